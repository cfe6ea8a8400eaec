"""Notices of a real hub on the lab: jobs that end in every way, and a hub that is killed before it told of them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from sendense.requests import JobView
from tests import receivers
from tests.backup import COMMAND_SECONDS, QUICK, Backups, open_backups, patiently
from tests.integration.support import Result
from tests.machines import START_SECONDS, Service, environment
from tests.receivers import Mailbox, Webhook
from tests.servers import free_port
from tests.site import LabSite, MiB, open_site

SOON_SECONDS = 60.0
"""For a notice to arrive: it takes five."""

SLOW = 64 * 1024
"""Bytes a second at which a disk is read that must not be done before its backup is cancelled: a minute."""


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """Small machines."""
    with open_site(vms=2, disks=1, disk_size=16 * MiB) as site:
        yield site


class Notifying:
    """A hub with receivers, its commands, and a token for it."""

    def __init__(self, backups: Backups, hook: Webhook, box: Mailbox) -> None:
        self.backups, self.hook, self.box = backups, hook, box
        self.api = free_port()
        self.config = backups.folder / "notices.toml"
        self.configure(hook.url)
        self.settings: dict[str, object] = {
            "config": self.config,
            "state_dir": backups.state,
            "repository": backups.root,
            "node_name": "hub01",
            "api_listen": f"127.0.0.1:{self.api}",
            "flower_listen": "",
            **QUICK,
        }
        self.service: Service | None = None

    def configure(self, url: str) -> None:
        """Write the settings file; a hub reads it when it starts."""
        table = f"""
[notices]
on = ["failure", "success", "overdue"]
webhook = "{url}"
mail_to = ["ops@example.org"]
mail_from = "hub@example.org"
smtp = "{self.box.address}"
smtp_security = "none"
"""
        self.config.write_text(self.backups.site.config.read_text() + table)

    def start(self) -> None:
        """Start the hub, and wait until it is ready."""
        argv = [sys.executable, "-m", "sendense", "hub"]
        self.service = Service(argv, environment(self.settings), self.backups.folder / "hub.out")
        self.service.wait_for("is ready", START_SECONDS)

    def run(self, *arguments: str, **settings: object) -> Result:
        """Run a command on the hub's machine."""
        argv = [sys.executable, "-m", "sendense", *arguments]
        known = environment({**self.settings, **settings})
        done = subprocess.run(argv, env=known, capture_output=True, text=True, timeout=COMMAND_SECONDS)
        return Result(done.returncode, done.stdout, done.stderr)

    def table(self, *options: str, **settings: object) -> str:
        """What `sendense notices` prints."""
        result = self.run("notices", *options, **settings)
        assert result.status == 0, result.stderr
        return result.stdout

    def gets(self, count: int) -> list[dict[str, Any]]:
        """Wait until the webhook was sent so many; those that it was sent."""
        assert patiently(lambda: len(self.hook.got) >= count, SOON_SECONDS), (self.hook.kinds(), self.table())
        return self.hook.notices()

    def job(self) -> JobView:
        """The latest job."""
        view = self.backups.job()
        assert view
        return view

    def stop(self) -> None:
        """End the hub."""
        if self.service:
            self.service.stop()


@pytest.fixture(scope="module")
def up(site: LabSite) -> Iterator[Notifying]:
    """A hub that runs."""
    with ExitStack() as stack:
        backups = stack.enter_context(open_backups(site))
        hook, box = stack.enter_context(receivers.webhook()), stack.enter_context(receivers.mailbox())
        notifying = Notifying(backups, hook, box)
        stack.callback(notifying.stop)
        notifying.start()
        yield notifying


@pytest.fixture(autouse=True)
def _nothing_sent(up: Notifying) -> None:
    up.hook.got.clear()


def test_a_test(up: Notifying, tmp_path: Path) -> None:
    """`notices test` sends one to each receiver, from here and over the API, where a reader may not."""
    result = up.run("notices", "test")
    assert (result.status, up.hook.kinds()) == (0, ["test"])
    assert (
        f"webhook: http://127.0.0.1:{up.hook.url.split(':')[2].split('/')[0]}: took notice hub01:test-" in result.stdout
    )
    assert "mail: ops@example.org by localhost" in result.stdout
    remote = {"api_listen": "", "config": None, "hub": f"http://127.0.0.1:{up.api}", "token_file": tmp_path / "token"}
    for role, status in (("operator", 1), ("reader", 1)):
        token = up.run("token", "create", "--role", role).stdout
        (tmp_path / "token").write_text(token)
        (tmp_path / "token").chmod(0o600)
        up.hook.answers = [500]
        result = up.run("notices", "test", **remote)
        assert result.status == status, result
        said = {"operator": "not taken by webhook", "reader": "is a reader's"}[role]
        assert said in result.error[0]
    up.hook.answers = []
    shown = json.loads(up.table("--json", **remote))
    assert [each["receiver"] for each in shown["receivers"]] == ["webhook", "mail"]
    assert "/hook" not in json.dumps(shown)


def test_jobs(up: Notifying, site: LabSite) -> None:
    """A success that is asked for, a failure and what it left; nothing of what a user cancelled."""
    before = len(up.box.mails())
    assert up.run("backup", "web01").status == 0
    with unreadable(site):
        assert up.run("backup", "web01").status == 1
    site.client.set("db01", read_rate=SLOW)
    with subprocess.Popen([sys.executable, "-m", "sendense", "backup", "db01"], env=environment(up.settings)) as backup:
        assert patiently(lambda: up.job().name == "backup of db01", COMMAND_SECONDS)
        assert up.run("jobs", "cancel", up.job().id).status == 0
        assert backup.wait(COMMAND_SECONDS) == 130
    site.client.set("db01", read_rate=0)
    assert up.run("backup", "db01").status == 0
    succeeded, failed, last = up.gets(3)
    assert [each["kind"] for each in (succeeded, failed, last)] == ["job.succeeded", "job.failed", "job.succeeded"]
    assert (failed["job"]["request"]["vm"]["name"], failed["job"]["state"]) == ("web01", "failed")
    assert f"sendense jobs resume {failed['job']['id']}" in failed["commands"]
    assert patiently(lambda: len(up.box.mails()) >= before + 3, SOON_SECONDS)
    mails = up.box.mails()[before:]
    assert [mail["X-Sendense-Notice"] for mail in mails] == [each["id"] for each in (succeeded, failed, last)]
    assert mails[1]["Subject"].startswith(
        "[sendense hub01] backup of web01: failed, site lab: disk 2000: read offset=3145728: "
    )
    assert "tried 3 times, the first of 2 places" in failed["text"]
    assert "; said last, of one of them: nbdkit: " in failed["text"]
    assert "newest good restore point" in mails[1].get_content()
    assert "begun by no schedule; it is not tried again by itself" in mails[1].get_content()
    for command in failed["commands"]:  # as they stand in the mail, but for the one that would go on with the job
        if "resume" not in command:
            assert up.run(*command.split()[1:]).status == 0
    text = up.table()
    assert "told of: failure, success, overdue" in text
    assert "backup of web01: failed" in text


def test_a_hub_that_is_killed(up: Notifying, site: LabSite) -> None:
    """What ended before a hub was killed is told by the next one; a receiver that was down gets the same id twice."""
    down = free_port()
    up.configure(f"http://127.0.0.1:{down}/")
    up.stop()
    up.start()
    with unreadable(site):
        assert up.run("backup", "web01").status == 1
    assert patiently(lambda: "Connection refused" in up.table(), SOON_SECONDS)
    assert "waits" in up.table()
    (waiting,) = json.loads(up.table("--json"))["receivers"][0]["waiting"]
    assert up.service
    up.service.kill()
    up.configure(up.hook.url)
    up.hook.answers = [503]
    up.start()
    first, second = up.gets(2)
    assert (first["id"], second["id"], first["kind"]) == (waiting["id"], waiting["id"], "job.failed")
    assert first == second


@contextmanager
def unreadable(site: LabSite) -> Iterator[None]:
    """What the guest of web01 writes now cannot be read at the site: its backups fail."""
    site.client.write("web01", 3 * MiB, b"x" * 131072)
    site.client.set("web01", read_errors={"areas": [[3 * MiB, 131072]]})
    try:
        yield
    finally:
        site.client.set("web01", read_errors={"areas": []})
