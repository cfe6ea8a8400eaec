"""What a hub does by itself goes on, whatever stops of it: beat, its worker, or the worker's processes."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sendense.hub.host import Host
from sendense.jobs import presence
from sendense.service import readiness
from sendense.settings import Settings
from sendense.supervise import beat as beat_module
from tests.backup import COMMAND_SECONDS
from tests.servers import short_folder

SILENCE_SECONDS = 8.0
"""More than a duty's five seconds."""


class Routine:
    """A host with its routine, supervised as a service does it."""

    def __init__(self, folder: Path) -> None:
        self.notes: list[str] = []
        settings = Settings(state_dir=folder, node_name="alone", repository=folder / "repository")
        (folder / "hub").mkdir()
        self.host = Host(settings, self.notes.append, routine=True)
        self.host.start_redis()
        self.host.start_all()

    def goes_on(self, done: Callable[[], bool]) -> bool:
        """Supervise until it is done."""
        deadline = time.monotonic() + COMMAND_SECONDS
        while time.monotonic() < deadline:
            self.host.supervise()
            if done():
                return True
            time.sleep(0.1)
        return False

    def family(self, *words: str) -> list[psutil.Process]:
        """Its processes with these words in their command line, parents first."""
        everybody = psutil.Process().children(recursive=True)
        return [one for one in everybody if all(word in " ".join(one.cmdline()) for word in words)]

    def silence(self) -> float:
        """Since it was heard last."""
        return presence.routine_silence(self.host.context.ledger.client)


@pytest.fixture(scope="module")
def routine() -> Iterator[Routine]:
    """One that is up, with less patience than the product's."""
    before, beat_module.SILENCE_SECONDS = beat_module.SILENCE_SECONDS, SILENCE_SECONDS
    with short_folder() as folder:
        routine = Routine(folder)
        try:
            yield routine
        finally:
            routine.host.close()
            beat_module.SILENCE_SECONDS = before


def stop_beat(routine: Routine) -> None:
    routine.family("workers.beat")[0].suspend()


def kill_beat(routine: Routine) -> None:
    routine.family("workers.beat")[0].kill()


def stop_pool(routine: Routine) -> None:
    for process in routine.family("workers", "alone-routine")[1:]:
        process.suspend()


def stop_worker(routine: Routine) -> None:
    for process in routine.family("workers", "alone-routine"):
        process.suspend()


def kill_worker(routine: Routine) -> None:
    routine.family("workers", "alone-routine")[0].kill()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("disturb", [stop_beat, kill_beat, stop_pool, stop_worker, kill_worker])
def test_it_goes_on(routine: Routine, disturb: Callable[[Routine], None]) -> None:
    """What ends or stops is started anew, said, and the routine is heard again; the hub is ready only then."""
    assert routine.goes_on(routine.host.is_ready)
    disturb(routine)
    said = len(routine.notes)
    assert routine.goes_on(lambda: len(routine.notes) > said)
    assert routine.goes_on(lambda: routine.silence() < 1.0)
    assert routine.goes_on(routine.host.is_ready)


def test_readiness(routine: Routine) -> None:
    """A hub whose routine stands still is not ready."""
    context = routine.host.context
    assert routine.goes_on(lambda: not errors(routine)["routine"])
    context.ledger.client.set("sendense:routine", context.jobs.clock() - 3600)
    assert "stands still" in errors(routine)["routine"]
    assert not routine.host.is_ready()


def errors(routine: Routine) -> dict[str, str]:
    """What the hub needs, and what is wrong with it."""
    return {check.name: check.error for check in readiness.checks(routine.host.context)}
