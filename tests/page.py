"""The job page as it is served, over a hub's Redis with jobs whose batches a test moves itself."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import httpx

from sendense.coordinator.record import Jobs
from sendense.extents import Extent
from sendense.jobs import presence
from sendense.jobs.ledger import Claim
from sendense.jobs.plan import batch_of
from sendense.models import Failure, JobSpec, Survey, Tunnel, VmRef
from sendense.requests import BackupRequest, DiskWork, Work
from sendense.service.tokens import Role, Tokens
from sendense.settings import Settings
from sendense.units import MiB
from tests.hub import Hub, a_node, open_hub
from tests.servers import free_port

BATCH_BYTES = 128 * MiB

START_SECONDS = 60.0
END_SECONDS = 10.0

LEASE_SECONDS = 3600.0
"""Longer than any test: nobody else is at work on these jobs."""

RETRY_SECONDS = 1000.0
"""No batch is due again while a test lasts."""

NODES = ("oslo-1", "oslo-2", "oslo-3", "bergen-1")


class Shown:
    """A hub at which nothing is done but what the test does."""

    def __init__(self, hub: Hub) -> None:
        self.hub, self.port = hub, free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.log, self.state = hub.folder / "api.log", hub.folder / "state"
        self.jobs, self._tokens = Jobs(hub.client), Tokens(Settings.model_construct(state_dir=self.state))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the API, and wait until it answers."""
        variables = {name: text for name, text in os.environ.items() if not name.startswith("SENDENSE_")}
        settings = {"STATE_DIR": self.state, "REDIS": self.hub.url, "API_LISTEN": f"127.0.0.1:{self.port}"}
        settings |= {"REPOSITORY": self.hub.folder / "repository", "API_RATE": 1_000_000}
        variables |= {f"SENDENSE_{name}": str(value) for name, value in settings.items()}
        argv = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "sendense.api"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables)
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self.url):
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """End the API."""
        if self._process:
            self._process.kill()
            self._process.wait(END_SECONDS)

    def requests(self) -> int:
        """How many it was asked so far."""
        return self.log.read_text().count(" /api/v1/")

    def token(self, role: Role = "operator", name: str = "") -> str:
        """A new token."""
        return self._tokens.create(role, name)[1]

    def revoke(self, name: str) -> None:
        """Have a token no longer be taken."""
        self._tokens.revoke(name)

    def client(self, role: Role = "operator") -> httpx.Client:
        """A program that asks the API; to be closed."""
        headers = {"Authorization": f"Bearer {self.token(role)}"}
        return httpx.Client(base_url=f"{self.url}api/v1/", headers=headers, timeout=60)

    def announce(self, *names: str, rate: float = 0.0, active: int = 0, verdict: str = "ok") -> None:
        """Have nodes say that they live; they are believed for some seconds."""
        for name in names:
            tunnel = Tunnel(verdict=verdict, detail="" if verdict == "ok" else "no answer on 127.0.0.1:10809")
            node = a_node(name, name.partition("-")[0], active=active, round_trip=0.0123, rate=rate, tunnel=tunnel)
            presence.announce_node(self.hub.client, node)

    def job(self, vm: str, *batches: int) -> "ShownJob":
        """A running backup, with a disk of so many batches each."""
        return ShownJob(self, vm, batches)


class ShownJob:
    """A job that copies, as the records have it."""

    def __init__(self, shown: Shown, vm: str, batches: tuple[int, ...]) -> None:
        self._shown, self._ledger = shown, shown.hub.ledger
        self.id = shown.jobs.id_for(f"{vm} {time.monotonic_ns()}", vm)
        ref = VmRef(site="oslo", moref="vm-17", uuid="50c9b0a2-0000-4000-8000-000000000017", name=vm)
        shown.jobs.submit(self.id, BackupRequest(vm=ref), f"backup of {vm}", "copy", [self.id])
        lease, _ = shown.jobs.lease(self.id, "test", LEASE_SECONDS, LEASE_SECONDS)
        assert lease
        self._lease = lease
        self._epochs: dict[int, int] = {}
        disks = [
            DiskWork(
                key=2000 + place, label=f"Hard disk {place + 1}", size=count * BATCH_BYTES, copy_id=self.copy(place)
            )
            for place, count in enumerate(batches)
        ]
        for place, count in enumerate(batches):
            spec = JobSpec(id=self.copy(place), kind="copy", site="oslo", name=vm, source="nbd://source/")
            self._ledger.prepare(spec)
            survey = Survey(size=count * BATCH_BYTES, multi_conn=True, allocation=True, flush=True)
            plan = (batch_of([Extent(number * BATCH_BYTES, BATCH_BYTES)]) for number in range(count))
            self._ledger.write_plan(self.copy(place), survey, plan)
            self._epochs[place] = self._ledger.begin(spec)
        started = shown.jobs.now()
        work = Work(disks=disks, point="20261123T024137Z-b467").model_dump_json()
        lease.write({"state": "running", "started": started, "work": work})

    def copy(self, place: int = 0) -> str:
        """The ledger's name for a disk."""
        return f"{self.id}-{2000 + place}"

    def ran_for(self, seconds: float) -> None:
        """Have it run for so long already."""
        began = (datetime.fromisoformat(self._shown.jobs.now()) - timedelta(seconds=seconds)).isoformat()
        self._lease.write({"created": began, "started": began})

    def say(self, *texts: str) -> None:
        """Add lines to its history."""
        for text in texts:
            self._shown.jobs.event(self.id, text)

    def send(self, count: int, disk: int = 0) -> list[int]:
        """Have the next batches sent."""
        state, batches, _ = self._ledger.take(self.copy(disk), self._epochs[disk], count)
        assert state == "copying"
        return batches

    def claim(self, batch: int, node: str, disk: int = 0, copied: int = 0) -> Claim:
        """Have a node take a batch that was sent, and move so many bytes of it."""
        owner = f"{node}-copy/1/{batch}"
        claim = self._ledger.claim(self.copy(disk), batch, self._epochs[disk], owner, LEASE_SECONDS)
        assert claim
        assert self._ledger.renew(claim, LEASE_SECONDS, copied)
        return claim

    def move(self, claim: Claim, copied: int) -> None:
        """Have a batch under way go on to so many bytes."""
        assert self._ledger.renew(claim, LEASE_SECONDS, copied)

    def store(self, count: int, nodes: tuple[str, ...] = NODES, disk: int = 0) -> list[int]:
        """Have the next batches stored, by these nodes in turn."""
        batches = self.send(count, disk)
        for batch in batches:
            self.finish(self.claim(batch, nodes[batch % len(nodes)], disk))
        return batches

    def finish(self, claim: Claim) -> None:
        """Have a batch recorded."""
        assert self._ledger.record(claim, bytes(32), BATCH_BYTES, BATCH_BYTES, 0, None)

    def fail(self, claim: Claim, *, again: bool) -> None:
        """Have a batch's attempt fail: it is tried again much later, or never."""
        failure = Failure(batch=claim.batch, error="ReadFailed", message=f"batch {claim.batch + 1}: Input/output error")
        self._ledger.release(claim, failure, 0, RETRY_SECONDS if again else None, end_job=False)

    def end(self, state: str, error: Failure | None = None) -> None:
        """End it."""
        if error:
            self._lease.write({"error": error.model_dump_json()})
        assert self._shown.jobs.finish(self.id, "test", state)


@contextmanager
def open_shown() -> Iterator[Shown]:
    """A Redis without jobs, and the API over it, until the block ends."""
    with open_hub() as hub:
        shown = Shown(hub)
        try:
            shown.start()
            yield shown
        finally:
            shown.stop()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}healthz", timeout=END_SECONDS).status_code == 200
    except httpx.TransportError:
        return False
