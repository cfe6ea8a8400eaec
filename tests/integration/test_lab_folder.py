"""The folder of a simulated site: what is in it, and what outlives an end of any kind; and the commands."""

import contextlib
import os
import re
import stat
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

from sendense.errors import InputError
from sendense.lab.client import LabClient
from tests.integration.test_lab_vcenter import all_changes, disk, enable, find, login, snapshot
from tests.site import LabSite, open_site

MiB = 2**20
SECONDS = 30.0


def lab(site: LabSite, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `sendense lab ARGUMENTS` on a site's folder."""
    command = [sys.executable, "-m", "sendense", "lab", *arguments, "--folder", str(site.folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)


def test_the_settings_file() -> None:
    """A site says where it listens, and leaves settings that hold no secret, and files that only their owner reads."""
    with open_site(vms=1) as site:
        settings = tomllib.loads(site.config.read_text())
        assert settings["repository"] == str(site.folder / "repository")
        assert settings["state_dir"] == str(site.folder / "state")
        entry = settings["sites"]["lab"]
        assert entry["vcenter"] == f"127.0.0.1:{site.port}"
        assert re.fullmatch(r"([0-9A-F]{2}:){19}[0-9A-F]{2}", entry["thumbprint"])
        assert (entry["nbdkit_plugin"], entry["user"]) == ("python", "operator@lab.local")
        assert Path(entry["nbdkit_options"]["script"]).is_file()
        assert site.password not in site.config.read_text()
        for name in ("password", "token", "key.pem"):
            assert stat.S_IMODE((site.folder / name).stat().st_mode) == 0o600
        said = site.folder.with_name("site.log").read_text().splitlines()
        assert said[-2:] == [
            f"vCenter of the lab listens on https://127.0.0.1:{site.port}/sdk",
            f"export SENDENSE_CONFIG={site.config}",
        ]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_site_goes_on(end: str) -> None:
    """After a stop or a kill the site has the same port, certificate, machines, disks, snapshots and change log."""
    with open_site(vms=1) as site:
        site.client.set("web01", latency_ms=1)
        with login(site) as content:
            vm = find(content, "web01")
            enable(vm)
            change_id = disk(snapshot(vm, "first").config).backing.changeId
            site.client.write("web01", 5 * MiB, b"before")
        before, config, image = site.client.vms(), site.config.read_text(), site.client.disk_path("web01").read_bytes()
        getattr(site, end)()
        leftover = site.folder / "snapshots" / "snapshot-9-2000.raw"
        leftover.touch()
        site.config.write_text(config + "\n# mine\n")
        site.start()
        assert site.client.vms() == before
        assert site.config.read_text() == config + "\n# mine\n"
        assert site.client.disk_path("web01").read_bytes() == image
        assert site.client.status()["vm_knobs"] == {before[0].id: {"latency_ms": 1}}
        assert not leftover.exists()
        with login(site) as content:
            vm = find(content, "web01")
            site.client.write("web01", 8 * MiB, b"after")
            found, _, _ = all_changes(vm, snapshot(vm, "second"), change_id)
            assert [start for start, _ in found] == [5 * MiB, 8 * MiB]


def test_killed_while_writing() -> None:
    """However a kill falls between writes and snapshots: no changed block is missing from the answer afterwards."""
    with open_site(vms=1) as site:
        with login(site) as content:
            vm = find(content, "web01")
            enable(vm)
            change_id = disk(snapshot(vm, "base").config).backing.changeId
        base = site.client.snapshots("web01")[0].paths[2000].read_bytes()
        for number in range(3):
            killer = threading.Timer(0.1 * (number + 1), site.kill)
            killer.start()
            with contextlib.suppress(InputError):  # the site does not answer
                while True:
                    site.client.write_files("web01", files=3, size=MiB)
            killer.join()
            site.start()
        with login(site) as content:
            vm = find(content, "web01")
            found, _, _ = all_changes(vm, snapshot(vm, "end"), change_id)
        image, inside = site.client.disk_path("web01").read_bytes(), bytearray(base)
        for start, length in found:
            inside[start : start + length] = image[start : start + length]
        assert bytes(inside) == image
        assert sorted(path.name for path in (site.folder / "disks").iterdir() if path.is_dir()) == []


def test_one_site_in_a_folder() -> None:
    """A second site does not start where one runs; a strange folder and a bad plan are refused."""
    with open_site(vms=0) as site:
        second = lab(site, "up")
        assert second.returncode != 0
        assert "a site runs here already" in second.stderr
        third = lab(site, "up", "--disk-size", "1000")
        assert "give whole MiB" in third.stderr


def test_commands() -> None:
    """Write, disk, power, set and status do what they say, on the running site."""
    with open_site(vms=1) as site:
        written = lab(site, "write", "web01", "--files", "3", "--bytes", "300K")
        assert "added 3: /guest/" in written.stdout
        assert re.search(r"disk 2000: .* in \d+ areas changed", written.stdout)
        path = lab(site, "disk", "web01", "2001").stdout.strip()
        assert path == str(site.client.disk_path("web01", 2001))
        assert os.path.getsize(path) == 64 * MiB
        assert lab(site, "power", "web01", "off").returncode == 0
        assert "power off" in lab(site, "status").stdout
        refused = lab(site, "write", "web01")
        assert "powered off" in refused.stderr
        assert lab(site, "set", "read-rate=10M", "read-errors=4096+512,8K+1.5K", "--vm", "web01").returncode == 0
        assert lab(site, "set", "snapshot-seconds=1.5", "fail-next=CreateSnapshot:FileFault").returncode == 0
        status = site.client.status()
        values = {"read_rate": 10 * MiB, "read_errors": {"areas": [[4096, 512], [8192, 1536]]}}
        assert status["vm_knobs"] == {site.client.vm("web01").id: values}
        assert status["knobs"]["snapshot_seconds"] == 1.5
        assert status["fail_next"] == {"CreateSnapshot": ["FileFault"]}
        assert lab(site, "set", "--vm", "web01", "read-errors=none").returncode == 0
        assert site.client.status()["vm_knobs"][site.client.vm("web01").id]["read_errors"] == {}
        for wrong in ("some", "4M+some", "4M+64K,8M"):
            refused = lab(site, "set", f"read-errors={wrong}")
            assert f"read-errors={wrong}: no such value" in refused.stderr
            assert "as 4096+512 or 4M+64K" in refused.stderr
        assert "no such machine" in lab(site, "write", "nobody").stderr
        assert "2 machines have this name" in lab(site, "power", "test01", "off").stderr


def test_a_folder_with_a_strange_name(tmp_path: Path) -> None:
    """Blanks, quotes and umlauts in the folder's name do no harm to the disks, nor to the settings file."""
    folder = tmp_path / "lab 'ü' \"x\""
    site = LabSite(folder, ["--vms", "1", "--disk-size", "16M"], LabClient(folder))
    try:
        site.start()
        assert site.client.write_files("web01", size=MiB).added
        assert tomllib.loads(site.config.read_text())["repository"] == str(folder / "repository")
    finally:
        site.stop()


def test_wrong_knobs_are_refused() -> None:
    """A knob that is not there, or a value that cannot be, changes nothing and says what there is."""
    with open_site(vms=1) as site:
        before = site.client.status()["knobs"]
        for values in ({"nonsense": 1}, {"area_limit": 0}, {"read_rate": "fast"}):
            with pytest.raises(InputError):
                site.client.set(**values)
        with pytest.raises(InputError, match="not a knob of one machine"):
            site.client.set("web01", connection_limit=1)
        with pytest.raises(InputError, match="no such fault"):
            site.client.fail_next("CreateSnapshot", "NoSuchFault")
        assert site.client.status()["knobs"] == before
