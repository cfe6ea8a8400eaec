"""deploy/install.sh on a fresh Debian that is booted: installed, run under its unit, upgraded, removed."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.backup import patiently
from tests.debian import SOURCE, Debian, Machine, boot, open_debian
from tests.docs import command_in

INSTALL = f"/{SOURCE}/deploy/install.sh"

SETTINGS = "/etc/sendense/sendense.toml"

LAB = "/srv/lab"

NODE = "sendense-node@lab"

LATER = "\n# a later version\n"

NODE_SETTINGS = """
state_dir = "/var/lib/sendense/node"
redis = "redis://127.0.0.1:6379"
redis_password_file = "/var/lib/sendense/redis.password"
exports = "nbd://127.0.0.1:10809"

"""

KILLED = """
at() {
    [[ "$*" != "$KILL_AT"* ]] || kill -KILL $$
    command "$@"
}
for each in mktemp mv systemctl; do eval "$each() { at $each \\"\\$@\\"; }"; done
"""
"""Read by bash ahead of a script: the script is killed where it would begin KILL_AT."""

STEPS = (
    "mktemp",  # the release is half made
    "systemctl daemon-reload",
    "mv -T /opt/sendense/previous.new",
    "mv -T /opt/sendense/current.new",
    "systemctl enable",
    "systemctl try-restart --no-block sendense-hub",
)
"""Of an upgrade, in their order; at each of them all that ran still runs."""

LOOK_SECONDS = 2.0
"""For what would go on until somebody ends it."""

WAIT_SECONDS = 5.0
"""For systemd to begin what then waits for a hub."""

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
        needed = ("systemd-sysv", "dbus", "sudo", "openssh-server", "prometheus")
        ok(debian.run("apt-get", "-qq", "-y", "--no-install-recommends", "install", *needed))
        debian.copy_source()
        _refuse(debian)
        said = ok(debian.run(INSTALL, "hub"))
        assert f"1. Fill in {SETTINGS}" in said
        _is_whole(debian)
        _sets_up_a_checkout(debian)
        found = ok(debian.run("stat", "-c", "%A %U %G", SETTINGS, "/var/lib/sendense"))
        assert found.splitlines() == ["-rw-r----- root sendense", "drwx------ sendense sendense"]
        ok(debian.run("install", "-d", "-m", "700", "-o", "sendense", "-g", "sendense", "/srv/backup"))
        with boot(debian) as machine:
            assert _state(machine, "sendense-hub") == "inactive"
            assert _state(machine, "redis-server") == "inactive"
            _configure(machine)
            _works(machine)
            _units_by_hand(machine)
            _upgrade(debian, machine)
            _comes_back_elsewhere(machine)
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


def _sets_up_a_checkout(debian: Debian) -> None:
    """As whoever begins with the first page does; twice is no more than once."""
    for setup in (
        command_in("docs/first-backup.md", "./deploy/setup runtime"),
        command_in("docs/install.md", "deploy/setup runtime"),
    ):
        said = ok(debian.run("sh", "-c", f"cd /{SOURCE} && {setup}"))
    assert said == ""
    assert "not found" not in ok(debian.run(f"/{SOURCE}/.venv/bin/sendense", "doctor"))
    shutil.rmtree(debian.root / SOURCE / ".venv")


def _type(machine: Machine, command: str) -> str:
    """Type a document's command in the source's folder, as root; what it printed."""
    return ok(machine.run("sh", "-c", f"cd /{SOURCE} && {command}"))


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
        LAB,
        "--vms",
        "1",
        "--disks",
        "1",
        "--disk-size",
        "64M",
    ]
    ok(machine.run("install", "-d", "-m", "700", "-o", "sendense", LAB))
    ok(machine.run("systemd-run", "--quiet", "--unit", "lab", "--uid", "sendense", *lab))
    config = f"{LAB}/sendense.toml"
    assert patiently(lambda: machine.run("test", "-e", config).returncode == 0, START_SECONDS)
    fill = f"sed -i 's/^#repository/repository/' {SETTINGS} && sed -n '/^\\[sites/,$p' {config} >>{SETTINGS}"
    ok(machine.run("sh", "-c", fill))
    said = _type(machine, command_in("docs/deploying.md", "deploy/install.sh hub"))
    assert "sudo -u sendense sendense doctor --hub" in said
    assert patiently(lambda: _state(machine, "sendense-hub") == "active", START_SECONDS), _journal(machine)
    assert "/srv/backup" in _show(machine, "RequiresMountsFor").split()


def _journal(machine: Machine) -> str:
    return machine.run("journalctl", "--output", "cat", "--identifier", "sendense-hub").stdout


def _works(machine: Machine) -> None:
    ok(machine.run("sudo", "-u", "sendense", "sendense", "backup", "web01", "--verify"))
    _type(machine, command_in("docs/deploying.md", "sudo -u sendense sendense doctor --hub"))
    for line in _journal(machine).splitlines():
        assert json.loads(line)["level"] in ("info", "warning"), line
    pid = _show(machine, "MainPID")
    again = ok(machine.run(INSTALL, "hub"))  # finds all of it there
    assert "making" not in again
    assert _show(machine, "MainPID") == pid


def _units_by_hand(machine: Machine) -> None:
    """What the pages say about systemd, on a machine that has one."""
    security = _type(machine, command_in("docs/deploying.md", "systemd-analyze security sendense-hub"))
    found = re.search(r"exposure level for sendense-hub.service: ([\d.]+)", security)
    assert found, security
    assert float(found[1]) < 2
    follow = command_in("docs/deploying.md", "journalctl --unit sendense-hub --follow")
    followed = machine.run("sh", "-c", f"timeout {LOOK_SECONDS} {follow}")
    assert followed.returncode == 124, followed.stderr  # timeout's own
    assert '{"' in followed.stdout
    ok(machine.run("systemctl", "disable", "--now", "sendense-hub"))
    _type(machine, command_in("docs/nodes.md", "systemctl daemon-reload && systemctl enable --now sendense-hub"))
    assert _state(machine, "sendense-hub") == "active"
    ok(machine.run("sh", "-c", "install -o prometheus -m 0600 /dev/null /etc/prometheus/sendense.token"))
    ok(machine.run("sh", "-c", f"cp /{SOURCE}/deploy/grafana/*.yml /etc/prometheus"))
    _type(machine, command_in("docs/metrics.md", "systemctl restart prometheus"))
    assert _state(machine, "prometheus") == "active"
    _type(machine, command_in("docs/tunnel.md", "sshd -t && systemctl reload ssh"))


def _comes_back_elsewhere(machine: Machine) -> None:
    """A hub's state is saved, the machine is a new one, and everything is there again: by the page's commands."""
    before = machine.run("sudo", "-u", "sendense", "sendense", "jobs").stdout
    add_user = command_in(
        "docs/deploying.md",
        "useradd --system --create-home --home-dir /var/lib/sendense-tunnel --shell /usr/sbin/nologin sendense-tunnel",
    )
    known, keys = "/var/lib/sendense-tunnel/.ssh/authorized_keys", "/etc/ssh/ssh_host_*"
    _type(machine, add_user)
    _type(machine, f"install -D -m 600 -o sendense-tunnel deploy/tunnel/authorized_keys {known}")
    _type(machine, "install -m 644 deploy/tunnel/sshd.conf /etc/ssh/sshd_config.d/sendense-tunnel.conf")
    _type(
        machine,
        command_in(
            "docs/deploying.md",
            "(umask 077 && tar -cf /srv/tunnel.tar /etc/ssh/ssh_host_* /etc/ssh/sshd_config.d/sendense-tunnel.conf "
            "/var/lib/sendense-tunnel/.ssh)",
        ),
    )
    of_sshd = f"stat -c '%A %U %n' {known} {keys} && cat {known} {keys} /etc/ssh/sshd_config.d/sendense-tunnel.conf"
    ssh = _type(machine, of_sshd)
    ok(machine.run("install", "-d", "-m", "700", "-o", "sendense", "-g", "sendense", "/srv/state"))
    _type(machine, command_in("docs/deploying.md", "sudo -u sendense sendense state save /srv/state/monday"))
    _type(machine, command_in("docs/deploying.md", "deploy/install.sh --uninstall"))
    ok(machine.run("rm", "-r", "/etc/sendense", "/var/lib/sendense"))
    _type(machine, f"userdel -r sendense-tunnel; rm {keys} /etc/ssh/sshd_config.d/sendense-tunnel.conf")
    _type(machine, command_in("docs/deploying.md", "deploy/install.sh hub"))
    _type(
        machine,
        command_in(
            "docs/deploying.md",
            "tar -C /srv/state/monday/files --owner sendense --group sendense -c . | tar -C / -x --no-overwrite-dir",
        ),
    )
    _type(machine, command_in("docs/deploying.md", "chown -R sendense: /srv/state"))
    _type(machine, command_in("docs/deploying.md", "sudo -u sendense sendense state restore /srv/state/monday"))
    assert _state(machine, "sendense-hub") == "inactive"
    _type(machine, command_in("docs/deploying.md", "deploy/install.sh hub"))
    assert patiently(lambda: _state(machine, "sendense-hub") == "active", START_SECONDS), _journal(machine)
    assert before.strip()
    assert machine.run("sudo", "-u", "sendense", "sendense", "jobs").stdout == before
    assert "web01" in ok(machine.run("sudo", "-u", "sendense", "sendense", "vms"))  # the site's password can be read
    _type(machine, add_user)
    _type(machine, command_in("docs/deploying.md", "tar -C / -xf /srv/tunnel.tar"))
    assert _type(machine, of_sshd) == ssh
    ok(machine.run("sshd", "-t"))


def _upgrade(debian: Debian, machine: Machine) -> None:
    """Killed at each of its steps and run again, on a machine that is a node as well; then back, killed once more."""
    _start_a_node_beside(debian, machine)
    pids, settings = _pids(machine), (debian.root / SETTINGS.lstrip("/")).read_bytes()
    releases = debian.root / "opt/sendense"
    before = os.readlink(releases / "current")
    source = debian.root / SOURCE
    changed = [source / "sendense/__init__.py", *(source / "deploy/systemd").glob("*.service")]
    for path in changed:
        path.write_text(path.read_text() + LATER)
    (debian.root / "killed").write_text(KILLED)
    for step in STEPS:
        _kill_at(machine, step, "hub")
        assert _pids(machine) == pids, step
        assert _releases(debian, machine) == {before}, step
    _kill_at(machine, "systemctl try-restart --no-block sendense-node@", "hub")
    _restarted(machine, pids)
    assert (releases / before).is_dir()
    assert "restarting sendense-node@lab" in ok(machine.run(INSTALL, "hub"))
    now = os.readlink(releases / "current")
    assert now != before
    assert os.readlink(releases / "previous") == before
    assert patiently(lambda: _releases(debian, machine) == {now}, START_SECONDS), _releases(debian, machine)
    for path in changed[1:]:
        assert (debian.root / "etc/systemd/system" / path.name).read_bytes() == path.read_bytes()
    assert (debian.root / SETTINGS.lstrip("/")).read_bytes() == settings
    assert "web01" in ok(machine.run("sudo", "-u", "sendense", "sendense", "points"))
    _keeps_what_runs(debian, machine)
    pids = _pids(machine)
    _kill_at(machine, "systemctl try-restart", "--rollback")
    assert _pids(machine) == pids
    ok(machine.run(INSTALL, "--rollback"))
    assert os.readlink(releases / "current") == before
    _restarted(machine, pids)
    assert patiently(lambda: _releases(debian, machine) == {before}, START_SECONDS), _releases(debian, machine)
    ok(machine.run("systemctl", "stop", NODE))
    ok(machine.run("rm", "-r", f"/etc/systemd/system/{NODE}.service.d", "/etc/sendense/node.toml"))
    for path in changed:  # the lab's settings name a file of the first release
        path.write_text(path.read_text().removesuffix(LATER))


def _start_a_node_beside(debian: Debian, machine: Machine) -> None:
    """A node with settings of its own, which waits for a hub that is not there."""
    ok(machine.run(INSTALL, "node"))
    lab = (debian.root / LAB.lstrip("/") / "sendense.toml").read_text()
    (debian.root / "etc/sendense/node.toml").write_text(NODE_SETTINGS + lab[lab.index("[sites") :])
    drop_in = debian.root / "etc/systemd/system" / f"{NODE}.service.d"
    drop_in.mkdir()
    (drop_in / "own.conf").write_text("[Service]\nEnvironment=SENDENSE_CONFIG=/etc/sendense/node.toml\n")
    ok(machine.run("systemctl", "daemon-reload"))
    ok(machine.run("systemctl", "start", "--no-block", NODE))
    log, waits = ("journalctl", "--output", "cat", "--unit", NODE), "does not answer, waiting for it"
    assert patiently(lambda: waits in machine.run(*log).stdout, START_SECONDS), machine.run(*log).stdout


def _kill_at(machine: Machine, step: str, *words: str) -> None:
    """Run the installer, and kill it where it begins this command."""
    done = machine.run("env", "BASH_ENV=/killed", f"KILL_AT={step}", INSTALL, *words)
    assert done.returncode in (-9, 137), f"{step}: {done.stdout}{done.stderr}"


def _pids(machine: Machine) -> list[str]:
    """The main processes of the hub and of the node beside it."""
    shown = ok(machine.run("systemctl", "show", "--value", "--property", "MainPID", "sendense-hub", NODE))
    return shown.split()


def _releases(debian: Debian, machine: Machine) -> set[str]:
    """What these run, which has to be there whole; "" of one that does not run just now."""
    found = set()
    for pid in _pids(machine):
        command = machine.run("cat", f"/proc/{pid}/cmdline").stdout
        program = re.match(r"/opt/sendense/(releases/\w+)/bin/", command)
        found.add(program[1] if program else "")
    assert all((debian.root / "opt/sendense" / release / ".finished").exists() for release in found - {""})
    return found


def _keeps_what_runs(debian: Debian, machine: Machine) -> None:
    """An old release goes, but not before the last process of it has ended."""
    folder = debian.root / "opt/sendense/releases"
    for name in ("0ld", "0lder"):
        (folder / name / "bin").mkdir(parents=True)
        (folder / name / "bin/python").symlink_to("/usr/bin/python3")
    sleeper = ["/opt/sendense/releases/0ld/bin/python", "-c", "import time; time.sleep(999)"]
    ok(machine.run("systemd-run", "--quiet", "--unit", "sleeper", *sleeper))
    ok(machine.run(INSTALL, "hub"))
    assert (folder / "0ld").exists()
    assert not (folder / "0lder").exists()
    ok(machine.run("systemctl", "stop", "sleeper"))
    ok(machine.run(INSTALL, "hub"))
    assert not (folder / "0ld").exists()


def _restarted(machine: Machine, before: list[str]) -> None:
    """The hub is up, as another process than it was."""

    def restarted() -> bool:
        return _state(machine, "sendense-hub") == "active" and _pids(machine)[0] not in (before[0], "0")

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
    password, config = "/etc/sendense/redis.password", f"{LAB}/sendense.toml"
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
    ok(machine.run("systemctl", "disable", "--now", "sendense-tunnel", "sendense-node@lab"))
    _type(machine, command_in("docs/tunnel.md", "systemctl daemon-reload && systemctl enable --now sendense-tunnel"))
    oslo = command_in("docs/nodes.md", "systemctl daemon-reload && systemctl enable --now sendense-node@oslo")
    waits = machine.run("timeout", str(WAIT_SECONDS), "sh", "-c", oslo.replace("oslo", "lab"))
    assert waits.returncode == 124, waits.stderr  # timeout's own: its hub is not there
    assert _state(machine, "sendense-node@lab") in ("active", "activating")
    assert "sendense-tunnel" in _type(machine, command_in("docs/tunnel.md", "journalctl -u sendense-tunnel"))
    check = machine.run("sh", "-c", command_in("docs/nodes.md", "sudo -u sendense sendense config check"))
    assert (check.returncode, "or start the tunnel" in check.stderr) == (2, True), check
    found = machine.run("sudo", "-u", "sendense", "sendense", "doctor", "--node", "--json")
    assert found.returncode == 1
    assert json.loads(found.stdout)["verdict"] != "ok"
    ok(machine.run(INSTALL, "--uninstall"))
    assert _state(machine, "sendense-node@lab") == "inactive"
