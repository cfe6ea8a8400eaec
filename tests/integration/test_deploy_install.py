"""deploy/install.sh on a fresh Debian that is booted: installed, run under its unit, upgraded, removed."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.backup import patiently
from tests.debian import SOURCE, Debian, Machine, boot, open_debian

INSTALL = f"/{SOURCE}/deploy/install.sh"

SETTINGS = "/etc/sendense/sendense.toml"

START_SECONDS = 60.0
"""The longest that a hub's start may take; it takes three."""


def ok(done: "subprocess.CompletedProcess[str]") -> str:
    """The output of a command that has to succeed."""
    assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.timeout(900)  # a Debian is downloaded, installed and booted
def test_install(debian_base: Path) -> None:
    """It starts once it is configured, works under its unit's restrictions, and keeps what is an operator's."""
    with open_debian(debian_base) as debian:
        ok(debian.run("apt-get", "-qq", "update"))
        ok(debian.run("apt-get", "-qq", "-y", "--no-install-recommends", "install", "systemd-sysv", "dbus", "sudo"))
        debian.copy_source()
        _refuse(debian)
        said = ok(debian.run(INSTALL, "hub"))
        assert f"1. Fill in {SETTINGS}" in said
        _is_whole(debian)
        found = ok(debian.run("stat", "-c", "%A %U %G", SETTINGS, "/var/lib/sendense"))
        assert found.splitlines() == ["-rw-r----- root sendense", "drwx------ sendense sendense"]
        ok(debian.run("install", "-d", "-m", "700", "-o", "sendense", "-g", "sendense", "/srv/backup"))
        with boot(debian) as machine:
            assert _state(machine, "sendense-hub") == "inactive"
            assert _state(machine, "redis-server") == "inactive"
            _configure(machine)
            _works(machine)
            _upgrade(debian, machine)
            _remove(machine)
            _install_a_node(machine)


def _is_whole(debian: Debian) -> None:
    """What was installed has every file of the source, also those that are no modules."""
    source, (installed,) = debian.root / SOURCE, debian.root.glob("opt/sendense/current/lib/python3.*/site-packages")
    for package in ("sendense", "workers"):
        for path in (source / package).rglob("*"):
            assert (installed / path.relative_to(source)).exists(), path


def _refuse(debian: Debian) -> None:
    for words, said in (
        ([], "usage: deploy/install.sh hub|node"),
        (["hubb"], "usage: deploy/install.sh hub|node"),
        (["hub", "--images"], "usage: deploy/install.sh hub|node"),
        (["--rollback"], "there is no release before this one"),
    ):
        done = debian.run(INSTALL, *words)
        assert done.returncode == 1
        assert said in done.stderr
    assert "run this as root" in debian.run("setpriv", "--reuid", "65534", "--clear-groups", INSTALL, "hub").stderr


def _state(machine: Machine, unit: str) -> str:
    return machine.run("systemctl", "is-active", unit).stdout.strip()


def _show(machine: Machine, what: str) -> str:
    return ok(machine.run("systemctl", "show", "--value", "--property", what, "sendense-hub")).strip()


def _configure(machine: Machine) -> None:
    """A lab on the same machine, which the hub reads itself."""
    lab = [
        "sendense",
        "lab",
        "up",
        "--folder",
        "/var/lib/sendense/lab",
        "--vms",
        "1",
        "--disks",
        "1",
        "--disk-size",
        "64M",
    ]
    ok(machine.run("systemd-run", "--quiet", "--unit", "lab", "--uid", "sendense", *lab))
    config = "/var/lib/sendense/lab/sendense.toml"
    assert patiently(lambda: machine.run("test", "-e", config).returncode == 0, START_SECONDS)
    fill = f"sed -i 's/^#repository/repository/' {SETTINGS} && sed -n '/^\\[sites/,$p' {config} >>{SETTINGS}"
    ok(machine.run("sh", "-c", fill))
    assert "sudo -u sendense sendense doctor --hub" in ok(machine.run(INSTALL, "hub"))
    assert patiently(lambda: _state(machine, "sendense-hub") == "active", START_SECONDS), _journal(machine)
    assert "/srv/backup" in _show(machine, "RequiresMountsFor").split()


def _journal(machine: Machine) -> str:
    return machine.run("journalctl", "--output", "cat", "--identifier", "sendense-hub").stdout


def _works(machine: Machine) -> None:
    ok(machine.run("sudo", "-u", "sendense", "sendense", "backup", "web01", "--verify"))
    for line in _journal(machine).splitlines():
        assert json.loads(line)["level"] in ("info", "warning"), line
    pid = _show(machine, "MainPID")
    again = ok(machine.run(INSTALL, "hub"))  # finds all of it there
    assert "making" not in again
    assert _show(machine, "MainPID") == pid


def _upgrade(debian: Debian, machine: Machine) -> None:
    pid, settings = _show(machine, "MainPID"), (debian.root / SETTINGS.lstrip("/")).read_bytes()
    releases = debian.root / "opt/sendense"
    before = (releases / "current").readlink()
    source = debian.root / SOURCE / "sendense/__init__.py"
    source.write_text(f"{source.read_text()}\n# a later version\n")
    assert "restarting sendense-hub" in ok(machine.run(INSTALL, "hub"))
    assert (releases / "current").readlink() != before
    assert (releases / "previous").readlink() == before
    _restarted(machine, pid)
    assert (debian.root / SETTINGS.lstrip("/")).read_bytes() == settings
    assert "web01" in ok(machine.run("sudo", "-u", "sendense", "sendense", "points"))
    pid = _show(machine, "MainPID")
    ok(machine.run(INSTALL, "--rollback"))
    assert (releases / "current").readlink() == before
    _restarted(machine, pid)


def _restarted(machine: Machine, pid: str) -> None:
    def restarted() -> bool:
        return _state(machine, "sendense-hub") == "active" and _show(machine, "MainPID") != pid

    assert patiently(restarted, START_SECONDS), _journal(machine)


def _remove(machine: Machine) -> None:
    said = ok(machine.run(INSTALL, "--uninstall"))
    assert "Kept: /etc/sendense, /var/lib/sendense, the restore points" in said
    assert _state(machine, "sendense-hub") == "inactive"
    for path in (SETTINGS, "/srv/backup/repository.json", "/var/lib/sendense/audit.log"):
        ok(machine.run("test", "-e", path))
    for gone in ("/opt/sendense", "/usr/local/bin/sendense", "/etc/systemd/system/sendense-hub.service"):
        assert machine.run("test", "-e", gone).returncode == 1, gone


def _install_a_node(machine: Machine) -> None:
    """A node of the lab's site: its unit and its tunnel's are started, and it waits for a hub that is not there."""
    password, config = "/etc/sendense/redis.password", "/var/lib/sendense/lab/sendense.toml"
    ok(machine.run("rm", SETTINGS))
    assert f"1. Fill in {SETTINGS}" in ok(machine.run(INSTALL, "node"))
    ok(machine.run("sh", "-c", f"install -m 600 -o sendense /dev/null {password} && echo secret >{password}"))
    uncomment = r"s/^#\(redis\|exports\)\(.*127.0.0.1.*\)/\1\2/; s/^#\(redis_password_file.*copy\)/\1/"
    ok(machine.run("sed", "-i", uncomment, SETTINGS))
    ok(machine.run("sh", "-c", f"sed -n '/^\\[sites/,$p' {config} >>{SETTINGS}"))
    said = ok(machine.run(INSTALL, "node"))
    assert "starting sendense-tunnel" in said
    assert "starting sendense-node@lab" in said

    def journal() -> str:
        return machine.run("journalctl", "--output", "cat", "--identifier", "sendense-node-lab").stdout

    assert patiently(lambda: "does not answer, waiting for it" in journal(), START_SECONDS), journal()
    found = machine.run("sudo", "-u", "sendense", "sendense", "doctor", "--node", "--json")
    assert found.returncode == 1
    assert json.loads(found.stdout)["verdict"] != "ok"
    ok(machine.run(INSTALL, "--uninstall"))
    assert _state(machine, "sendense-node@lab") == "inactive"
