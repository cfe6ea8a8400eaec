"""A copy of a hub's state, made while it runs, and a lost hub brought back from it: by the real commands."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from redis.exceptions import ResponseError

from sendense.hub import keeping
from sendense.settings import Settings
from sendense.supervise.redis import PrivateRedis
from sendense.supervise.service import Budget
from tests.backup import QUICK, WAIT_SECONDS, Backups, open_backups, patiently
from tests.machines import Service, environment
from tests.servers import free_port, short_folder
from tests.site import LabSite, open_site

MiB = 2**20


@pytest.fixture
def backups() -> Iterator[Backups]:
    """A site with two machines, a state folder and a repository."""
    with open_site(vms=2, disks=1, disk_size=96 * MiB, fill=48 * MiB) as site, open_backups(site) as backups:
        yield backups


def start_hub(backups: Backups, config: Path, redis_port: int) -> Service:
    """Start `sendense hub`, and wait until it is ready."""
    settings = {
        "config": config,
        "state_dir": backups.state,
        "repository": backups.root,
        **QUICK,
        "redis_listen": f"127.0.0.1:{redis_port}",
        "api_listen": f"127.0.0.1:{free_port()}",
        "flower_listen": "",
    }
    argv = [sys.executable, "-m", "sendense", "hub", "--log-json"]
    hub = Service(argv, environment(settings), backups.folder / "hub.out")
    hub.wait_for("is ready")
    return hub


@pytest.mark.timeout(300)  # twenty commands, and a hub twice
def test_a_lost_hub_comes_back(backups: Backups) -> None:
    """Jobs, tokens, the audit log and settings are back; what was under way is cancelled, though it succeeded since."""
    site: LabSite = backups.site
    port, copy = free_port(), backups.folder / "copy"
    listening = {"redis_listen": f"127.0.0.1:{port}"}
    hub = start_hub(backups, site.config, port)
    first = backups.backup("web01", **listening)
    made = backups.run("token", "create", "--role", "reader", "--name", "watcher", **listening)
    assert made.status == 0

    site.client.set(None, read_rate=4 * MiB)
    slow = backups.start("backup", "db01", "--json", **listening)
    backups.wait_until_reading()
    saved = backups.run("state", "save", copy, **listening)
    assert saved.status == 0, saved.stderr
    assert "and the jobs" in saved.stdout
    assert f"Not in it: the repository, {backups.root}" in saved.stdout
    assert {path.stat().st_mode & 0o77 for path in copy.rglob("*")} == {0}
    again = backups.run("state", "save", copy, **listening)
    assert again.error[0].endswith("copy: is not empty")
    running = backups.run("state", "restore", copy, **listening)
    assert running.error[0].startswith("sendense: a hub runs in ")

    site.client.set(None, read_rate=0)
    second = backups.succeeded(backups.finish(slow))
    hub.kill()
    secrets = {name: (backups.state / name).read_bytes() for name in ("redis.password", "tokens.json")}
    shutil.rmtree(backups.state)
    assert (copy / "files" / str(site.config).lstrip("/")).read_bytes() == site.config.read_bytes()
    assert (copy / "files" / str(site.folder / "password").lstrip("/")).exists()

    restored = backups.run("state", "restore", copy, **listening)
    assert restored.status == 0, restored.stderr
    assert f"job {second.id} was under way then" in restored.stdout
    assert secrets == {name: (backups.state / name).read_bytes() for name in secrets}
    twice = backups.run("state", "restore", copy, **listening)
    assert twice.error[0].endswith("is there already")

    hub = start_hub(backups, site.config, port)
    try:

        def states() -> dict[str, str]:
            jobs = json.loads(backups.run("jobs", "--json", **listening).stdout)
            return {job["id"]: job["state"] for job in jobs}

        known = {first.id: "succeeded", second.id: "cancelled"}
        assert patiently(lambda: states() == known, WAIT_SECONDS), states()
        shown = json.loads(backups.run("jobs", "show", second.id, "--json", **listening).stdout)
        assert shown["leftover"] == []
        history = backups.run("jobs", "events", second.id, **listening).stdout
        assert "the hub's state was brought back as of" in history
        verified = backups.run("verify", "db01@latest", **listening)
        assert verified.status == 0, verified.stderr
        assert "watcher" in backups.run("token", "list", **listening).stdout
        audit = [json.loads(line) for line in (backups.state / "audit.log").read_text().splitlines()]
        assert {"submit", "restore_state"} <= {line["action"] for line in audit}
        backups.backup("db01", **listening)
    finally:
        hub.stop()


def test_redis_may_replace_its_files_meanwhile() -> None:
    """However often Redis rewrites its append-only file, a copy has all that was answered before, and can be read."""
    with short_folder() as folder:
        settings = Settings(state_dir=folder / "state")
        settings.hub_dir.mkdir(parents=True)
        redis = PrivateRedis(settings.hub_dir, lambda text: None, Budget())
        redis.start()
        try:
            redis.wait()
            for number in range(10):
                redis.client.rpush("sendense:numbers", *range(number * 1000, number * 1000 + 1000))
                redis.client.set("celery-queue", number)
                with suppress(ResponseError):  # it still is at the last one
                    redis.client.bgrewriteaof()
                keeping.save(settings, folder / f"copy{number}")
        finally:
            redis.client.close()
            redis.child.kill()
        for number in (0, 5, 9):
            other = Settings(state_dir=folder / f"other{number}")
            keeping.restore(other, folder / f"copy{number}")
            back = PrivateRedis(other.hub_dir, lambda text: None, Budget())
            back.start()
            try:
                back.wait()
                assert back.client.llen("sendense:numbers") == (number + 1) * 1000
                assert not back.client.exists("celery-queue")
            finally:
                back.client.close()
                back.child.kill()


def test_what_is_no_copy(tmp_path: Path) -> None:
    """A copy that was not finished, or is of a later version, is refused, and nothing is made of it."""
    command = [sys.executable, "-m", "sendense", "state", "restore", str(tmp_path / "copy")]
    known = environment({"state_dir": tmp_path / "state"})

    def refusal() -> str:
        done = subprocess.run(command, env=known, capture_output=True, text=True, timeout=WAIT_SECONDS)
        assert done.returncode == 2
        return done.stderr

    (tmp_path / "copy").mkdir()
    assert "state.json: No such file or directory" in refusal()
    (tmp_path / "copy/state.json").write_text("{")
    assert "state.json: is damaged" in refusal()
    late = {"format": 2, "version": "9.0", "time": "2026-11-23T02:00:00Z", "jobs": False}
    (tmp_path / "copy/state.json").write_text(json.dumps(late))
    assert "was made by Sendense 9.0" in refusal()
    assert not (tmp_path / "state").exists()
