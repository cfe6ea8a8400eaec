"""The hub's Redis as its nodes reach it: with a password, over TLS or not, and what is said when that goes wrong."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from sendense import pki
from sendense.errors import InputError
from sendense.jobs import broker, presence
from sendense.jobs.access import redis_url
from sendense.jobs.ledger import Ledger, LedgerUnavailable, connect
from sendense.jobs.queues import HUB_QUEUE, site_queue
from sendense.settings import Settings
from sendense.supervise.redis import PrivateRedis
from sendense.supervise.service import Budget
from tests.hub import Hub
from tests.integration.test_broker import Site, assert_copied, served, wait_for
from tests.servers import free_port, short_folder

WORKER = "node1-copy"


class Reached(Hub):
    """A Redis that somebody else runs, at a URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = connect(url)
        self.ledger = Ledger(self.client)


class Machines:
    """A hub whose Redis nodes reach, and one node's settings and files."""

    def __init__(self, folder: Path, *, tls: bool) -> None:
        self.folder, self.certificates = folder, folder / "pki"
        self.node_tls = None
        if tls:
            pki.init(self.certificates, ["hub.example"])
            self.node_tls = pki.add_node(self.certificates, "node1")
        port = free_port()
        self.hub = Settings(
            state_dir=folder / "hub", redis_listen=f"127.0.0.1:{port}", tls_dir=self.certificates if tls else None
        )
        self.hub.hub_dir.mkdir(parents=True)
        self.url = f"{'rediss' if tls else 'redis'}://127.0.0.1:{port}"
        self.redis = PrivateRedis(self.hub.hub_dir, lambda text: None, Budget(), self.hub)
        self.redis.start()
        self.redis.wait()
        self.password_file = folder / "node.password"
        shutil.copy(folder / "hub/redis.password", self.password_file)

    @property
    def password(self) -> str:
        """The one that the hub made."""
        return self.password_file.read_text().strip()

    def node(self, **changes: object) -> Settings:
        """The node's settings."""
        settings = {
            "state_dir": self.folder / "node",
            "redis": self.url,
            "redis_password_file": self.password_file,
            "tls_dir": self.node_tls,
        }
        return Settings.model_validate(settings | changes)

    def refusal(self, **changes: object) -> str:
        """What a node with these settings is told, at once and without further attempts."""
        settings = self.node(**changes)
        began = time.monotonic()
        with pytest.raises(InputError) as caught:
            connect(redis_url(settings), settings=settings).ping()
        assert time.monotonic() - began < 20
        assert caught.value.hint
        assert self.password not in str(caught.value)
        return str(caught.value)


@contextmanager
def open_machines(*, tls: bool) -> Iterator[Machines]:
    """A hub's Redis that answers."""
    with short_folder() as folder:
        machines = Machines(folder, tls=tls)
        try:
            yield machines
        finally:
            machines.redis.client.close()
            machines.redis.child.kill()


@pytest.fixture(scope="module")
def plain() -> Iterator[Machines]:
    """Without TLS, for nodes behind a tunnel."""
    with open_machines(tls=False) as machines:
        yield machines


@pytest.fixture(scope="module")
def tls() -> Iterator[Machines]:
    """With TLS."""
    with open_machines(tls=True) as machines:
        yield machines


@pytest.fixture(params=["socket", "tunnel", "tls"])
def reached(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machines:
    """The hub's Redis in every way that it is reached; the environment is that of a process there."""
    machines: Machines = request.getfixturevalue("tls" if request.param == "tls" else "plain")
    settings = machines.hub if request.param == "socket" else machines.node()
    for name in ("state_dir", "redis", "redis_listen", "redis_password_file", "tls_dir"):
        if value := getattr(settings, name):
            monkeypatch.setenv(f"SENDENSE_{name.upper()}", str(value))
    return machines


def test_a_job_runs_and_nothing_shows_the_password(reached: Machines, tmp_path: Path) -> None:
    """Chords, claims and presence work with what a node may do; argv, environments and answers are clean."""
    hub = Reached(redis_url(Settings()))
    site = Site(hub, tmp_path)
    command = [sys.executable, "-m", "workers", WORKER, "2", f"{HUB_QUEUE},{site_queue(site.spec.site)}"]
    environment = {**os.environ, "SENDENSE_REDIS": hub.url, "SENDENSE_WORKER": WORKER}
    with served(site), site.log.open("ab") as log:
        worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            wait_for("the worker", lambda: presence.is_present(hub.client, WORKER) or worker.poll() is not None)
            site.begin(window=2)
            site.wait_until("copied")
            assert_copied(site)
            stats = site.app.control.inspect(timeout=5.0, limit=1).stats()
            assert stats
            process, server = psutil.Process(worker.pid), psutil.Process(reached.redis.child.pid)
            shown = {
                "Flower": json.dumps(stats) + site.app.connection().as_uri(include_password=True) + str(site.app.conf),
                "ps": str([process.cmdline(), process.environ(), server.cmdline(), server.environ()]),
                "logs": site.words() + reached.redis.child.log.read_text(),
            }
            assert not [place for place, text in shown.items() if reached.password in text]
            assert "ERROR" not in site.words()
        finally:
            worker.terminate()
            worker.wait(30)
            hub.client.delete(*hub.client.scan_iter())
            site.close()
            hub.client.close()


@pytest.mark.parametrize(
    "command",
    [
        "CONFIG GET requirepass",
        "FLUSHALL",
        "KEYS *",
        "SHUTDOWN",
        "MODULE LIST",
        "ACL LIST",
        "REPLICAOF a 1",
        "MONITOR",
    ],
)
def test_a_node_rules_nothing(plain: Machines, command: str) -> None:
    """Whoever knows the password has the jobs, and not the server."""
    client = connect(plain.url, settings=plain.node())
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command.split())  # type: ignore[no-untyped-call]
    assert client.info("server")
    client.close()


def test_the_password_is_made_once_and_kept_from_others(plain: Machines) -> None:
    """Also with a Redis that is started again; its file and the server's have no other readers."""
    before = plain.password
    plain.redis.restart("")
    assert (plain.folder / "hub/redis.password").read_text().strip() == before
    for file in (plain.folder / "hub/redis.password", plain.hub.hub_dir / "redis.acl"):
        assert file.stat().st_mode & 0o777 == 0o600
    assert before not in (plain.hub.hub_dir / "redis.acl").read_text()
    assert connect(plain.url, settings=plain.node()).ping()


def test_wrong_passwords(plain: Machines, tmp_path: Path) -> None:
    """A wrong one, none, and files that cannot be used: each says which file, and Redis."""
    wrong = tmp_path / "wrong"
    wrong.write_text("guess\n")
    wrong.chmod(0o600)
    assert plain.refusal(redis_password_file=wrong).startswith(f"Redis at {plain.url}: refused the password in {wrong}")
    assert plain.refusal(redis_password_file=None).startswith(f"Redis at {plain.url}: wants a password")
    wrong.chmod(0o644)
    assert "is open to others (mode 0644)" in plain.refusal(redis_password_file=wrong)


def test_tls_on_one_side_only(plain: Machines, tls: Machines) -> None:
    """Either way round it is said which side lacks it."""
    assert plain.refusal(redis=plain.url.replace("redis:", "rediss:"), tls_dir=tls.node_tls).endswith(
        "does not speak TLS"
    )
    assert tls.refusal(redis=tls.url.replace("rediss:", "redis:")).endswith("takes TLS only")


def test_certificates_that_are_refused(tls: Machines, tmp_path: Path) -> None:
    """The hub's by the node: of another authority, or for another name. The node's by the hub. And none at all."""
    pki.init(tmp_path / "other", ["hub.example"])
    foreign = pki.add_node(tmp_path / "other", "node1")
    assert "its certificate is refused: " in tls.refusal(tls_dir=foreign)
    elsewhere = tls.url.replace("127.0.0.1", "127.1")
    assert "its certificate is refused: Hostname mismatch" in tls.refusal(redis=elsewhere)
    shutil.copy(tls.certificates / "ca-cert.pem", foreign / "ca-cert.pem")
    assert "TLS was refused: " in tls.refusal(tls_dir=foreign)
    (foreign / "client-key.pem").unlink()
    assert f"{foreign / 'client-key.pem'}: No such file" in tls.refusal(tls_dir=foreign)


def test_a_redis_that_is_away_may_come_back(plain: Machines, tls: Machines) -> None:
    """Nobody listens, or the hub has not made its password yet: no error that ends a job."""
    for machines in (plain, tls):
        port = free_port()
        settings = machines.node(redis=f"{machines.url.rpartition(':')[0]}:{port}")
        with pytest.raises(LedgerUnavailable):
            connect(settings.redis, retries=0, settings=settings).ping()
    new = Settings(state_dir=plain.folder / "new", redis_listen="127.0.0.1:1")
    with pytest.raises(LedgerUnavailable):
        connect(redis_url(new), retries=0, settings=new).ping()


def test_a_worker_with_a_wrong_password_ends_saying_so(plain: Machines, tmp_path: Path) -> None:
    """Instead of trying for ever: its supervisor has these words."""
    (tmp_path / "wrong").write_text("guess\n")
    (tmp_path / "wrong").chmod(0o600)
    environment = {"SENDENSE_REDIS_PASSWORD_FILE": str(tmp_path / "wrong"), "SENDENSE_WORKER": WORKER}
    done = subprocess.run(
        [sys.executable, "-m", "workers", WORKER, "1", HUB_QUEUE],
        env={**os.environ, "SENDENSE_REDIS": plain.url, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"Redis at {plain.url}: refused the password in {tmp_path / 'wrong'}")
    assert "redis_password_file" in done.stderr


def test_make_app_reads_nothing_before_it_must(plain: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local copy's Redis has no password, whatever the settings say of the hub's."""
    monkeypatch.setenv("SENDENSE_REDIS_PASSWORD_FILE", str(plain.folder / "missing"))
    monkeypatch.setenv("SENDENSE_STATE_DIR", str(plain.folder / "node"))
    url = f"unix://{plain.folder}/node/copies/x/redis.sock"
    assert "credential_provider" not in broker.make_app(url).connection().as_uri()
