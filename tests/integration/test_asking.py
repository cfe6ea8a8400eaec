"""Questions to a site's vCenter: asked where nobody knows the site's password, answered by its control worker."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from sendense.coordinator import asking
from sendense.coordinator.asking import ask
from sendense.coordinator.context import Context
from sendense.coordinator.record import Jobs
from sendense.errors import Cancelled, InputError, JobFailed, NotFound, SiteSilent
from sendense.jobs import broker, presence
from sendense.models import VmInfo
from sendense.orders import PreviewOrder
from sendense.views import Preview
from tests.backup import patiently
from tests.hub import Hub, context_of
from tests.site import LabSite, MiB, open_site

WAIT_SECONDS = 60.0
"""The longest wait for something that takes a second or two."""

AHEAD = ("faketime", "-f", "+3600s")
"""A clock that is an hour fast."""


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """A site with two small machines."""
    with open_site(vms=2, disks=1, disk_size=16 * MiB) as site:
        yield site


@pytest.fixture
def context(hub: Hub) -> Context:
    """A hub whose settings know no site."""
    return context_of(hub)


@contextmanager
def control_worker(hub: Hub, site: LabSite, *before: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The control worker of the site, on a machine that knows it; `before` begins its command line."""
    known = {"CONFIG": str(site.config), "REDIS": hub.url, "WORKER": "oslo-control"}
    variables = {f"SENDENSE_{name}": value for name, value in known.items()}
    command = [*before, sys.executable, "-m", "workers", "oslo-control", "2", "control.lab"]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command], env={**os.environ, **variables}, start_new_session=True
    )
    try:
        assert patiently(lambda: presence.is_present(hub.client, "oslo-control"), WAIT_SECONDS)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(WAIT_SECONDS)


def test_answers(hub: Hub, site: LabSite, context: Context) -> None:
    """Whoever asks gets what the site says, also from a worker whose clock is an hour fast; errors come as they are."""
    with control_worker(hub, site, *AHEAD):
        vms: list[VmInfo] = ask(context, "lab", "vms", seconds=WAIT_SECONDS)
        assert sorted(vm.ref.name for vm in vms) == sorted(vm.name for vm in site.client.vms())
        assert ask(context, "lab", "vm", seconds=WAIT_SECONDS, vm=vms[0].ref.name) == vms[0]
        with pytest.raises(NotFound, match="has no VM 'nobody'"):
            ask(context, "lab", "vm", seconds=WAIT_SECONDS, vm="nobody")
        order = PreviewOrder(vm=vms[0].ref.name)
        found: Preview = ask(context, "lab", "preview", seconds=WAIT_SECONDS, order=order, parent=None)
        assert [disk.mode for disk in found.disks] == ["full"] * len(vms[0].disks)
        with pytest.raises(InputError, match="no incremental is possible"):
            ask(
                context,
                "lab",
                "preview",
                seconds=WAIT_SECONDS,
                order=order.model_copy(update={"mode": "incremental"}),
                parent=None,
            )
    assert hub.client.keys("sendense:answered:*") == []


def _kill_pool(main: int) -> None:
    for process in psutil.Process(main).children(recursive=True):
        process.kill()


def test_nobody_answers(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a node of the site the question ends, and says where to look."""
    monkeypatch.setattr(asking, "GONE_SECONDS", 1.0)
    with pytest.raises(SiteSilent, match="site lab: no answer to 'vms'") as caught:
        ask(context, "lab", "vms", seconds=WAIT_SECONDS)
    assert "sendense node --site lab" in caught.value.hint


def test_answerer_killed(hub: Hub, site: LabSite, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed in the middle of an answer leaves the question to another."""
    monkeypatch.setattr(asking, "ASKED_SECONDS", 2)
    with control_worker(hub, site) as worker:
        assert site.process
        os.kill(site.process.pid, signal.SIGSTOP)
        answers: list[object] = []
        asker = threading.Thread(
            target=lambda: answers.append(ask(context, "lab", "vms", seconds=WAIT_SECONDS)), daemon=True
        )
        asker.start()
        assert patiently(lambda: bool(hub.client.keys("sendense:taken:*")), WAIT_SECONDS)
        _kill_pool(worker.pid)
        hub.client.delete(*hub.client.keys("sendense:taken:*"))  # as it lapses, half a minute later
        os.kill(site.process.pid, signal.SIGCONT)
        asker.join(WAIT_SECONDS)
        assert answers


def test_asker_gone(hub: Hub, site: LabSite, context: Context) -> None:
    """A question whose asker went away is not answered, and makes no snapshot."""
    with control_worker(hub, site):
        name = site.client.vms()[0].name

        def give_up() -> None:
            raise Cancelled("preview")

        assert site.process
        os.kill(site.process.pid, signal.SIGSTOP)
        order = PreviewOrder(vm=name, with_snapshot=True)
        with pytest.raises(Cancelled):
            ask(context, "lab", "preview", seconds=WAIT_SECONDS, beat=give_up, order=order, parent=None)
        assert hub.client.keys("sendense:asked:*") == []
        os.kill(site.process.pid, signal.SIGCONT)
        assert patiently(lambda: not hub.client.keys("sendense:taken:*"), WAIT_SECONDS)
        assert site.client.vm(name).snapshots == []


def test_own_site(site: LabSite, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    """A machine that has the site in its own settings answers itself, and needs no hub."""
    monkeypatch.setenv("SENDENSE_CONFIG", str(site.config))
    from sendense.settings import load_settings

    nowhere = "unix:///nowhere/redis.sock"
    context = Context(load_settings(), hub.ledger, Jobs(hub.client), broker.make_app(nowhere))
    assert ask(context, "lab", "vms", seconds=1)


def test_failure_at_the_site(hub: Hub, site: LabSite, context: Context, tmp_path: Path) -> None:
    """What fails there is told here, with its hint."""
    password = site.folder / "password"
    kept = password.read_text()
    with control_worker(hub, site):
        password.write_text("wrong\n")
        try:
            with pytest.raises(JobFailed) as caught:
                ask(context, "lab", "vms", seconds=WAIT_SECONDS)
        finally:
            password.write_text(kept)
    assert "lab" in str(caught.value)
    assert caught.value.hint
