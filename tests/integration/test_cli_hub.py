"""Commands with `--hub`: the same as on the hub itself, over its API."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendense.views import Job
from tests.api import Api
from tests.backup import COMMAND_SECONDS, WAIT_SECONDS, Backups, MiB, patiently
from tests.integration.support import Result, same_image, tool
from tests.servers import free_port
from tests.site import LabSite, open_site

SLOW = MiB


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """Machines with two small disks each."""
    with open_site(vms=4, disk_size=16 * MiB, fill=4 * MiB) as site:
        yield site


class Far:
    """Runs commands with `--hub` in a place where there is nothing of the hub's."""

    def __init__(self, api: Api, folder: Path) -> None:
        self.api, self.backups = api, api.backups
        token, nothing = folder / "token", folder / "nothing.toml"
        nothing.touch()
        token.touch(0o600)
        token.write_text(f"{api.token(name='far')}\n")
        self.state = folder / "far"
        self.settings: dict[str, object] = {"config": nothing, "state_dir": self.state, "token_file": token}

    def start(self, *arguments: str | Path, **settings: object) -> "subprocess.Popen[str]":
        """Start a command."""
        return self.backups.start(*arguments, "--hub", self.api.url, **{**self.settings, **settings})

    def run(self, *arguments: str | Path, **settings: object) -> Result:
        """A command, and how it ended; it starts nothing here."""
        result = self.backups.finish(self.start(*arguments, **settings))
        assert not self.state.exists()
        return result

    def job(self, *arguments: str | Path) -> Job:
        """The job of a command that has to succeed."""
        return self.backups.succeeded(self.run(*arguments, "--json"))


@pytest.fixture(scope="module")
def far(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Far:
    """Commands from elsewhere, of an operator."""
    return Far(api, tmp_path_factory.mktemp("far"))


@pytest.fixture(scope="module")
def jobs(far: Far, backups: Backups) -> list[Job]:
    """Two backups of web01, one made from elsewhere and one here."""
    return [far.job("backup", "web01"), backups.backup("web01")]


@pytest.mark.parametrize(
    "line",
    [
        "vms",
        "vms --json",
        "vms --site oslo",
        "vms show web01",
        "backup web01 --dry-run",
        "backup web01 --dry-run --with-snapshot --json",
        "backup nobody",
        "backup web01 --disks -7",
        "points",
        "points web01 --json",
        "points show web01@latest",
        "points show {first} --json",
        "points chain {second}",
        "points chain web01@latest --json",
        "points delete {first}",
        "points prune --all --keep-last 1 --dry-run",
        "points prune web01",
        "jobs",
        "jobs --state succeeded --kind backup --vm web01",
        "jobs show {job} --json",
        "jobs show zz",
        "jobs events {job}",
        "jobs watch {job}",
        "jobs cancel {job}",
        "jobs pause {job}",
        "restore {first} /nowhere/x.qcow2",
        "restore {first} /nowhere/x.qcow2 --disk 2000",
        "migrate web01 --to /nowhere/x.qcow2",
        "migrate web01 --to /nowhere/x.qcow2 --to /nowhere/x.qcow2",
        "nodes",
        "nodes drain n1",
        "exports",
        "serve x",
    ],
)
def test_the_same_as_at_the_hub(far: Far, jobs: list[Job], line: str) -> None:
    """A command line prints the same, and ends with the same status, wherever it is typed."""
    words = line.format(job=jobs[0].id, first=jobs[0].point, second=jobs[1].point).split()
    here, there = far.backups.run(*words), far.run(*words)
    assert (there.status, there.stdout, there.stderr) == (here.status, here.stdout, here.stderr)
    assert here.status == 0 or here.error


def test_jobs_of_every_kind(far: Far, jobs: list[Job], tmp_path: Path) -> None:
    """Restored, verified, migrated and deleted from elsewhere: paths are the hub's."""
    backups, point = far.backups, jobs[1].point
    kept = backups.keep("web01")
    assert far.job("restore", point, tmp_path, "--verify").kind == "restore"
    assert all(same_image(raw, tmp_path / f"disk-{key}.qcow2") for key, raw in kept.items())
    verified = far.run("verify", "--all")
    assert verified.status == 0, verified.stderr
    assert verified.stdout.splitlines()[-1] == "2 of 2 restore points are what was copied"
    targets = [tmp_path / "system.qcow2", tmp_path / "data.raw"]
    far.job("migrate", "db01", *(word for target in targets for word in ("--to", str(target))))
    assert all(target.exists() for target in targets)
    assert far.run("vms", "start", "db01").stdout == "db01 is on already\n"
    pruned = far.run("points", "prune", "--all", "--keep-last", "1", "--json")
    assert [each["job"]["state"] for each in json.loads(pruned.stdout)] == ["succeeded"]
    assert [each.id for each in backups.points("web01")] == [point]
    deleted = far.run("points", "delete", point)
    assert (deleted.status, deleted.stdout) == (0, "deletion of 1 restore point of web01: done\n"), deleted.stderr
    assert far.run("points").stdout == "there are no restore points yet\n"
    assert far.run("jobs", "clean").status == 0


def test_interrupted(far: Far, site: LabSite) -> None:
    """Ctrl-C cancels the job of a command that began it, not one that is only watched; a job rests, and goes on."""
    site.client.set("app01", read_rate=SLOW)
    try:
        process = far.start("backup", "app01", "--json")
        job = far.backups.wait_for_step("copy", process)
        watching = far.start("jobs", "watch", job.id)
        assert watching.stderr
        assert watching.stderr.readline()
        watching.send_signal(signal.SIGINT)
        watched = far.backups.finish(watching)
        assert (watched.status, f"no longer watching job {job.id}" in watched.stderr) == (130, True)
        assert f"sendense jobs resume {job.id}" in far.run("jobs", "pause", job.id).stdout
        shown = far.run("jobs", "show", job.id)
        assert shown.stdout.splitlines()[0].startswith(f"job {job.id}: backup of app01, paused")
        process.send_signal(signal.SIGINT)
        result = far.backups.finish(process)
        assert result.status == 130
        assert f"sendense jobs resume {job.id}" in result.error[1]
        assert result.summary["state"] == "cancelled"
    finally:
        site.client.set("app01", read_rate=0)
    assert far.job("jobs", "resume", job.id).id == job.id


def test_served(far: Far, tmp_path: Path) -> None:
    """A point is served by the hub for as long as the command runs."""
    backups = far.backups
    job = backups.backup("mail01")
    kept = backups.keep("mail01")
    process = far.start("serve", job.point)
    assert process.stdout
    uris = [process.stdout.readline().strip() for _ in kept]
    for uri, raw in zip(uris, kept.values(), strict=True):
        tool("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, tmp_path / "read")
        assert tool("cmp", raw, tmp_path / "read") == ""
    exports = json.loads(far.run("exports", "--json").stdout)
    assert [(each["job"], each["writable"]) for each in exports] == [("", False)] * len(uris)
    assert [(each["point"], each["uri"]) for each in exports] == [(job.point, uri) for uri in uris]
    process.send_signal(signal.SIGTERM)
    assert backups.finish(process).status == 0
    assert far.run("exports").stdout == "nothing is served\n"


def test_what_a_killed_serve_leaves(far: Far) -> None:
    """Its exports are listed with the point that they are of, and can be removed by their names; a job's cannot."""
    point = far.backups.backup("mail01").point
    process = far.start("serve", point, "--disk", "2000")
    assert process.stdout
    uri = process.stdout.readline().strip()
    process.kill()
    process.communicate(timeout=COMMAND_SECONDS)
    name = f"point-{point}-2000"
    assert far.run("exports").stdout.splitlines()[1:] == [
        f"point {point}  2000  read-only",
        f"    export {name}",
        *(line for line in far.run("exports").stdout.splitlines() if line.startswith("    image /")),
        f"    at {uri}",
    ]
    assert far.run("exports", "remove", name).stdout == f"export {name} is removed\n"
    assert far.run("exports").stdout == "nothing is served\n"
    again = far.run("exports", "remove", name)
    assert (again.status, again.error[0]) == (
        2,
        f"sendense: export {name}: is of no restore point that is served",
    )


def test_a_hub_that_stops_is_said_soon(far: Far, api: Api, site: LabSite) -> None:
    """A command follows what the hub tells, and asks only when it tells nothing; when that stops, it says so."""
    site.client.set("mail01", read_rate=SLOW)
    try:
        process = far.start("backup", "mail01", "--mode", "full")
        job = far.backups.wait_for_step("copy", process).id
        assert api.process
        api.process.send_signal(signal.SIGSTOP)
        assert process.stderr
        while "said nothing of the job for 5 s" not in (line := process.stderr.readline()):
            assert line
        api.process.send_signal(signal.SIGCONT)
    finally:
        site.client.set("mail01", read_rate=0)
    result = far.backups.finish(process)
    assert (result.status, result.stdout.startswith("backup of mail01: done")) == (0, True), result
    asked = [line for line in api.log.read_text().splitlines() if f"GET /api/v1/jobs/{job} " in line]
    assert len(asked) <= 3


def test_a_hub_that_goes_away(far: Far, api: Api, site: LabSite) -> None:
    """A command that follows a job waits for a hub that is started again, and says so."""
    site.client.set("mail01", read_rate=SLOW)
    try:
        process = far.start("backup", "mail01", "--mode", "full")
        far.backups.wait_for_step("copy", process)
        api.stop()
        assert process.stderr
        while "trying again" not in (line := process.stderr.readline()):
            assert line
        api.start()
    finally:
        site.client.set("mail01", read_rate=0)
    result = far.backups.finish(process)
    assert (result.status, result.stdout.startswith("backup of mail01: done")) == (0, True), result


@pytest.mark.parametrize(
    "line", ["copy a b", "doctor", "config check", "lab up", "pki init x", "token list", "hub", "node --site lab"]
)
def test_commands_about_this_machine(far: Far, line: str) -> None:
    """Those take no URL of a hub, and say so."""
    result = far.run(*line.split())
    assert (result.status, result.stdout) == (2, "")
    assert "this machine" in result.error[0]


def test_wrong_hubs(far: Far, tmp_path: Path) -> None:
    """What is wrong with a hub, or with how it is named, is told within seconds."""
    run, began = far.backups.run, time.monotonic()
    nobody = f"http://127.0.0.1:{free_port()}"
    here = {**far.settings, "hub": nobody}
    assert nobody in run("jobs", **here).error[0]
    assert run("jobs", **here).status == 1
    assert nobody in run("--hub", nobody, "jobs", **far.settings).error[0]
    assert nobody in run("jobs", f"--hub={nobody}", **far.settings).error[0]
    assert time.monotonic() - began < 40
    for url, said in (("hub:1", "is no http"), ("http://hub.example:1", "without TLS"), ("", "names no hub")):
        result = run("jobs", "--hub", *([url] if url else []), **far.settings)
        assert (result.status, said in result.stderr) == (2, True), result
    token = tmp_path / "token"
    for content, mode, status, said in (
        ("wrong", 0o600, 1, "token"),
        ("wrong", 0o644, 2, "chmod 600"),
        ("", 0o600, 2, "empty"),
    ):
        token.write_text(content)
        token.chmod(mode)
        result = far.run("jobs", token_file=token)
        assert (result.status, said in "\n".join(result.error)) == (status, True), result
    relative = far.run("restore", "x", "here.qcow2")
    assert (relative.status, "absolute path" in relative.error[0]) == (2, True)
    assert "here.qcow2: is not an absolute path" in far.run("migrate", "web01", "--to", "here.qcow2").error[0]
    assert "--port" in far.run("serve", "x", "--port", "10809").error[0]
    assert patiently(lambda: not far.state.exists(), WAIT_SECONDS)
