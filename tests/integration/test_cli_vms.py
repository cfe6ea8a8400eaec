"""`sendense vms`, `backup --dry-run` and `config check` on a simulated site."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.support import Lab, Result
from tests.repository import Story
from tests.servers import short_folder
from tests.site import LabSite, open_site

MiB = 2**20

WAIT_SECONDS = 30.0


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """A site with web01, db01, and those for special cases."""
    with open_site(disk_size=32 * MiB, fill=2 * MiB) as site:
        yield site


class Command:
    """Runs commands on a site."""

    def __init__(self, lab: Lab, site: LabSite) -> None:
        self.lab, self.site = lab, site

    def run(self, *arguments: str, **settings: object) -> Result:
        """A command, and how it ended."""
        return self.lab.run(*arguments, **{"config": self.site.config, **settings})

    def json(self, *arguments: str, **settings: object) -> Any:
        """The one line of JSON on stdout of a command that has to work."""
        result = self.run(*arguments, "--json", **settings)
        assert result.status == 0, result.stderr
        assert result.stdout.count("\n") == 1
        return json.loads(result.stdout)

    def lines(self, *arguments: str, **settings: object) -> list[str]:
        """What a command that has to work prints, in lines without their alignment."""
        result = self.run(*arguments, **settings)
        assert result.status == 0, result.stderr
        return [" ".join(line.split()) for line in result.stdout.splitlines()]

    def refused(self, *arguments: str, **settings: object) -> str:
        """The two lines of a command that is refused as wrong input."""
        result = self.run(*arguments, **settings)
        assert result.status == 2, result
        assert result.stderr.splitlines() == result.error
        return "\n".join(result.error)


@pytest.fixture
def command(lab: Lab, site: LabSite) -> Command:
    """Commands on the site, with a state folder of the test's own."""
    return Command(lab, site)


def test_vms(command: Command) -> None:
    """All VMs are listed with what can be backed up of them, and why the rest cannot."""
    lines = command.lines("vms")
    assert lines[0] == "vm id power disks size tracking snapshots backup"
    found = {line.split()[0]: line.split()[2:] for line in lines[1:]}
    assert found["web01"] == ["on", "2", "64.0", "MiB", "off", "0", "yes"]
    assert found["mixed01"][-3:] == ["of", "3", "disks"]
    assert " ".join(found["legacy01"][-4:]) == "0 yes, only fulls"
    assert any(line.startswith("disk 2001: an independent disk") for line in lines)
    assert command.lines("vms", "--site", "lab") == lines
    vms = {(vm["ref"]["name"], vm["ref"]["moref"]): vm for vm in command.json("vms")}
    assert len([name for name, _ in vms if name == "test01"]) == 2
    [mixed] = [vm for (name, _), vm in vms.items() if name == "mixed01"]
    assert mixed["backup"]["possible"]
    assert list(mixed["backup"]["left_out"]) == ["2001", "2002"]
    assert not command.lab.state.exists()


def test_vm(command: Command) -> None:
    """One VM is shown with its place, its identity and its disks, by whatever it is called."""
    lines = command.lines("vms", "show", "web01")
    vm = command.json("vms", "show", "web01")
    assert lines[:4] == [
        "web01",
        f"path {vm['path']}",
        f"id {vm['ref']['moref']} of site lab",
        f"uuid {vm['ref']['uuid']}",
    ]
    assert "2000 Hard disk 1 32.0 MiB" in lines[-2]
    for name in (vm["path"], vm["ref"]["uuid"], vm["ref"]["moref"], "WEB01"):
        assert command.json("vms", "show", name)["ref"] == vm["ref"]
    assert "cannot be backed up: a raw device mapping" in "\n".join(command.lines("vms", "show", "mixed01"))


def test_vms_that_are_not_there(command: Command, tmp_path: Path) -> None:
    """Unknown and ambiguous names, unknown sites, and settings without any are refused, each with what to do."""
    assert "Did you mean" in command.refused("vms", "show", "web1x")
    assert "team-a/test01" in command.refused("vms", "show", "test01")
    assert "Known are: lab" in command.refused("vms", "--site", "oslo")
    empty = tmp_path / "empty.toml"
    empty.touch()
    assert "no site is set" in command.refused("vms", config=empty)


def test_start(command: Command) -> None:
    """A VM that is off is turned on; one that is on stays so."""
    command.site.client.power("db01", False)
    assert command.lines("vms", "start", "db01") == ["db01 is on"]
    assert command.site.client.vm("db01").powered_on
    assert command.lines("vms", "start", "db01") == ["db01 is on already"]


def test_dry_run_of_a_full(command: Command) -> None:
    """Before anything was backed up it says why it is a full, what is left out, and makes nothing."""
    lines = command.lines("backup", "mixed01", "--dry-run")
    assert lines[0] == "backup of mixed01: a full"
    assert "full, as the VM has no restore point yet" in lines
    assert any(line.startswith("Disk 2001 would be left out: an independent disk") for line in lines)
    assert "Change tracking would be turned on." in lines
    [disk] = command.json("backup", "mixed01", "--dry-run")["disks"]
    assert (disk["key"], disk["mode"], disk["exact"]) == (2000, "full", False)
    assert 0 < disk["copied"] <= disk["size"]
    assert "no incremental is possible" in command.refused("backup", "mixed01", "--dry-run", "--mode", "incremental")
    assert "has no disk 7" in command.refused("backup", "web01", "--dry-run", "--disks", "7")
    assert "not device keys" in command.refused("backup", "web01", "--dry-run", "--disks", "x")
    assert "for --dry-run" in command.refused("backup", "web01", "--with-snapshot")
    strange = command.site.folder  # a folder, and full of other things
    assert "is no repository, and not empty" in command.refused("backup", "web01", "--dry-run", repository=strange)
    assert not command.site.client.vm("mixed01").tracking_enabled
    assert not command.lab.state.exists()
    assert not (command.site.folder / "repository").exists()


def test_dry_run_of_an_incremental(command: Command, tmp_path: Path) -> None:
    """With a snapshot, or of a VM that is off, it says exactly what the backup then copies; otherwise at most what."""
    client, repository = command.site.client, tmp_path / "repository"
    first = command.json("backup", "db01", repository=repository)["point"]
    written = client.write_files("db01", 2000, files=3, size=MiB)

    running = command.json("backup", "db01", "--dry-run", repository=repository)
    assert (running["mode"], running["parent"]) == ("incremental", first)
    assert [(disk["changed"], disk["exact"]) for disk in running["disks"]] == [(None, False)] * 2
    assert "--with-snapshot makes a snapshot" in "\n".join(
        command.lines("backup", "db01", "--dry-run", repository=repository)
    )

    known = command.json("backup", "db01", "--dry-run", "--with-snapshot", repository=repository)
    assert client.snapshots("db01") == []
    assert [(disk["exact"], disk["mode"]) for disk in known["disks"]] == [(True, "incremental")] * 2
    assert known["disks"][0]["changed"] <= written.bytes
    assert known["disks"][1]["changed"] == 0

    client.power("db01", False)
    try:
        off = command.json("backup", "db01", "--dry-run", repository=repository)["disks"]
        assert [disk["changed"] for disk in off] == [disk["changed"] for disk in known["disks"]]
        assert all(disk["exact"] for disk in off)
        done = command.json("backup", "db01", repository=repository)["disks"]
        assert [disk["changed"] for disk in done] == [disk["copied"] for disk in known["disks"]]
    finally:
        client.power("db01", True)

    client.reset_tracking("db01")
    reset = command.json("backup", "db01", "--dry-run", "--with-snapshot", repository=repository)
    assert reset["mode"] == "full"
    assert "tracking was reset" in reset["disks"][0]["reason"]


def test_dry_run_that_is_interrupted(command: Command) -> None:
    """Ctrl-C while the snapshot is made ends the command once that is removed."""
    client = command.site.client
    client.set(snapshot_seconds=2)
    try:
        process = command.lab.start("backup", "web01", "--dry-run", "--with-snapshot", config=command.site.config)
        assert process.stderr
        assert "making a snapshot" in process.stderr.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert command.lab.finish(process).status == 130
    finally:
        client.set(snapshot_seconds=0)
    assert client.snapshots("web01") == []


def test_dry_run_names_the_job_at_work(command: Command, tmp_path: Path) -> None:
    """While a job is at work on the VM, the dry run says which; with no hub up it is listed so, and cancelled."""
    client, settings = command.site.client, {"config": command.site.config, "repository": tmp_path / "repository"}
    client.set(snapshot_seconds=600)
    try:
        process = command.lab.start("backup", "legacy01", "--json", **settings)
        deadline = time.monotonic() + WAIT_SECONDS
        while not (found := _dry_run_meanwhile(command, settings))["job"]:
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=10)
        listed = command.lab.start("jobs", **settings)
        assert "no hub is up here" in listed.communicate(timeout=60)[1]
        cancelling = command.lab.start("jobs", "cancel", found["job"], **settings)
        assert cancelling.stderr
        said = next((line for line in cancelling.stderr if "is still at: " in line), "")
    finally:
        client.set(snapshot_seconds=0)
    ended = cancelling.communicate(timeout=120)[0]  # or not yet: its site may still be starting
    assert "cancelled" in ended
    assert said or ended == f"job {found['job']}: cancelled\n"
    assert found["mode"] == "full"
    assert command.lab.survivors() == []


def _dry_run_meanwhile(command: Command, settings: dict[str, Any]) -> dict[str, Any]:
    process = command.lab.start("backup", "legacy01", "--dry-run", "--json", **settings)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_config_check(command: Command) -> None:
    """Everything that the settings name is looked at, a line each."""
    lines = command.lines("config", "check")
    assert lines[1] == f"settings file ok {command.site.config}"
    assert [line.split(" ok ")[0] for line in lines[2:]] == [
        "state folder",
        "repository",
        "sites",
        "nbdkit",
        "lab: password file",
        "lab: nbdkit plugin",
        "lab: vCenter",
    ]
    assert "logged in as operator@lab.local" in lines[-1]
    offline = command.json("config", "check", "--offline")
    assert [each["thing"] for each in offline] == [line.split(" ok ")[0] for line in lines[1:-1]]
    assert not command.lab.state.exists()


def _copy_of(site: LabSite, folder: Path, **changed: str) -> Path:
    """The site's settings in a file of their own, with lines replaced."""
    lines = site.config.read_text().splitlines()
    for key, value in changed.items():
        lines = [f"{key} = {value}" if line.startswith(f"{key} =") else line for line in lines]
    path = folder / "changed.toml"
    path.write_text("\n".join(lines))
    return path


def test_config_check_names_the_first_thing_wrong(command: Command, tmp_path: Path) -> None:
    """What cannot be used is named with the fix, the rest is looked at all the same, and the exit status is 2."""
    password = tmp_path / "password"
    password.write_text("nobody-knows-me\n")
    password.chmod(0o644)
    quoted = json.dumps(str(password))
    open_to_all = _copy_of(command.site, tmp_path, password_file=quoted)
    result = command.run("config", "check", "--offline", config=open_to_all)
    assert result.status == 2
    assert "open to others (mode 0644)" in result.error[0]
    assert f"chmod 600 {password}" in result.error[1]
    assert "lab: nbdkit plugin  ok" in result.stdout
    password.chmod(0o600)
    result = command.run("config", "check", config=open_to_all)
    assert result.status == 2
    assert "refuses user operator@lab.local" in result.error[0]
    assert "nobody-knows-me" not in result.stdout + result.stderr
    plugin = _copy_of(command.site, tmp_path, nbdkit_plugin='"nosuch"')
    assert "cannot open plugin 'nosuch'" in command.run("config", "check", "--offline", config=plugin).error[0]
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "repository"
    assert "repository" in command.run("config", "check", "--offline", repository=folder).error[0]


def test_config_check_of_a_repository(command: Command) -> None:
    """The repository's points are counted, and one of a newer format is wrong."""
    with short_folder() as folder:
        story = Story(folder)
        story.backup(d2000="A")
        story.backup(d2000="-A")
        path = folder / "repository"
        [line] = [
            line for line in command.lines("config", "check", "--offline", repository=path) if "repository" in line
        ]
        assert "2 restore points" in line
        (path / "repository.json").write_text('{"format": 9}')
        result = command.run("config", "check", "--offline", repository=path)
        assert result.status == 2
        assert "format 9" in result.error[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("processes = 0\n", "processes"),
        ("colour = 1\n", "no such setting"),
        ("[sites.Oslo]\n", "sites.Oslo"),
        ("sites = [\n", "toml"),
    ],
)
def test_config_check_of_a_wrong_file(command: Command, tmp_path: Path, text: str, said: str) -> None:
    """A file that cannot be right is refused with the file and the key."""
    path = tmp_path / "sendense.toml"
    path.write_text(text)
    error = command.refused("config", "check", config=path)
    assert said in error
    assert str(path) in error
    assert os.fspath(tmp_path / "none") in command.refused("config", "check", config=tmp_path / "none")
