"""The hub as a service: `sendense hub` hosts it until it is told to end, with the API and Flower beside it."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sendense.errors import Conflict
from sendense.hub.chronicle import Chronicle
from sendense.hub.folder import locked, prepare, service_lock
from sendense.hub.host import Host
from sendense.jobs import broker, presence
from sendense.settings import Settings
from sendense.supervise.child import Child
from sendense.supervise.flower import Flower
from sendense.supervise.journal import Journal
from sendense.supervise.notify import Notifier
from sendense.supervise.service import Budget
from sendense.supervise.stopping import Stop
from sendense.supervise.web import Web

STOP_SECONDS = 30.0
"""For batches and steps under way to end, before they are handed back."""

LOCK_SECONDS = 1.0
"""A command that looks whether there is a service has its lock for a moment."""

LOOK_SECONDS = 0.1
"""Between two looks at the parts."""

TAKE_SECONDS = presence.PRESENCE_SECONDS + 1.0
"""For another hub on the same Redis to be gone, which ended without a word."""

QUIET = {"exports": "option negotiation failed", "API": " INFO sendense.api.gate: GET "}
"""What parts say of those who only look, which is in their own logs: nodes whether they reach the exports, and pages
and programs that ask the API again and again. What it refused them is said."""

SAY_SECONDS = 60.0
"""Between two notes that another process still has the hub, or an address of it."""


class HubService:
    """One hub, from its start to its end. The lock of the hub's folder is its own for as long."""

    def __init__(self, settings: Settings, journal: Journal, stop: Stop) -> None:
        self._settings, self._journal, self._stop = settings, journal, stop
        self._notifier = Notifier()
        self._said: dict[str, float] = {}

    def run(self) -> None:
        """Host until told to end. Conflict where a hub runs already; JobFailed when a part cannot be kept up."""
        folder = self._settings.hub_dir
        prepare(self._settings)
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            with locked(service_lock(folder)) as mine:
                if mine:
                    with self._turn(folder / "lock") as is_ours:
                        if is_ours:
                            self._host()
                    return
            if time.monotonic() > deadline:
                raise Conflict(
                    f"a hub runs already in {folder}", "End that one, or give this one a state_dir of its own."
                )
            self._breathe()

    @contextmanager
    def _turn(self, lock: Path) -> Iterator[bool]:
        """Wait for a command that hosts the hub; False when told to end meanwhile."""
        said = 0.0
        while not self._stop.asked:
            with locked(lock) as mine:
                if mine:
                    yield True
                    return
            if not said or time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                self._tell("waiting for a command on this machine, which runs the hub now", action="waiting")
                self._notifier.status("waiting for a command that runs the hub")
            self._breathe()
        yield False

    def _host(self) -> None:
        settings, graceful = self._settings, False
        host = Host(
            settings,
            lambda text: self._tell(text, "warning", action="restart"),
            news=lambda text: self._tell(text, action="redis"),
            routine=True,
        )
        web = list(self._web(host))
        try:
            self._tell("starts", action="starts")
            for part, log in {**host.logs, **{one.child.name: one.child.log for one in web}}.items():
                self._journal.follow(part, log, QUIET.get(part, ""))
            host.take_repository()
            host.start_redis()
            self._take_redis(host)
            if not self._stop.asked:
                host.start_all()
                for one in web:
                    one.start()
                self._keep_up(host, web)
            graceful = True
        finally:
            self._end(host, web, graceful=graceful)

    def _take_redis(self, host: Host) -> None:
        """Have Redis alone; the crash of another hub on it keeps it for a while."""
        deadline = 0.0
        while not self._stop.asked:
            try:
                if host.hold():
                    return
            except broker.Unavailable as exc:
                self._notifier.status("waiting for Redis")
                host.missed(exc)
            else:
                deadline = deadline or time.monotonic() + TAKE_SECONDS
                self._notifier.status("waiting for the end of another hub on this Redis")
                if time.monotonic() > deadline:
                    raise host.taken()
            self._breathe()

    def _web(self, host: Host) -> Iterator[Web]:
        settings, folder = self._settings, self._settings.hub_dir

        def note(text: str) -> None:
            self._tell(text, "warning", action="restart")

        if settings.api_listen:
            child = Child(
                "API", [sys.executable, "-m", "sendense.api"], folder / "api.log", {"SENDENSE_REDIS": host.redis_url}
            )
            listen, tls = settings.api_listen, bool(settings.tls_dir)
            yield Web(child, "api_listen", listen, "/healthz", note, Budget(), tls=tls)
        if settings.flower_listen:
            yield Flower(settings, host.redis_url, folder, note, Budget())

    def _keep_up(self, host: Host, web: list[Web]) -> None:
        chronicle = Chronicle(host.context, self._journal)
        while not self._stop.asked:
            host.supervise()
            for one in web:
                one.supervise()
                self._tell_refusal(one)
            try:
                chronicle.look()
                if not self._notifier.is_ready and host.is_ready() and all(one.is_ready() for one in web):
                    self._tell("is ready", action="ready", **{one.child.name.lower(): one.url for one in web})
                    self._notifier.ready()
                    self._notifier.status("ready")
            except broker.Unavailable:  # the host sees to that
                pass
            self._breathe()

    def _tell_refusal(self, one: Web) -> None:
        """Say at once, and then each minute, that a part cannot listen."""
        if not one.refused:
            self._said.pop(one.child.name, None)
        elif time.monotonic() - self._said.get(one.child.name, -math.inf) > SAY_SECONDS:
            self._said[one.child.name] = time.monotonic()
            hint = "End who listens there, or set another address."
            self._tell(f"{one.refused}. {hint}", "error", action="refused")
            if not self._notifier.is_ready:
                self._notifier.status(f"not ready: {one.refused}")

    def _end(self, host: Host, web: list[Web], *, graceful: bool) -> None:
        try:
            self._notifier.stopping()
            for one in web:
                one.child.ask_to_end()
            if graceful:
                self._tell(f"ends: what is under way has {STOP_SECONDS:.0f} s", action="ends")
                deadline = time.monotonic() + STOP_SECONDS
                host.end_work(lambda: self._goes_on(deadline))
        finally:
            self._stop.shield()
            for one in web:
                one.end()
            host.close()
            self._tell("ended", action="ended")

    def _goes_on(self, deadline: float) -> bool:
        self._journal.pump()
        return not self._stop.urgent and time.monotonic() < deadline

    def _breathe(self) -> None:
        self._journal.pump()
        self._notifier.alive()
        time.sleep(LOOK_SECONDS)

    def _tell(self, text: str, level: str = "info", **fields: object) -> None:
        self._journal.tell("hub", text, level, **fields)
