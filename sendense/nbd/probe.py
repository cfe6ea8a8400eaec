"""
The doctor's walk over an NBD server: every stage that a copy goes through, each under its own deadline.

It reads a few bytes, and writes only when asked to.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nbd

from sendense.errors import ConnectionLost, EndpointError, HandshakeStalled
from sendense.nbd.connect import ALLOCATION, POLL_MS, STAGES, Beat, Connection, ExportInfo, Handshake, connect, no_beat
from sendense.nbd.uri import Endpoint, parse
from sendense.units import KiB, MiB, show_bytes, show_seconds

ORDER = (*STAGES, "size", "first read", "extents", "second connection", "write")
"""The stages, as they follow each other on the wire."""

READ_BYTES = 4 * KiB
"""What the first read asks for: the smaller, the less can change between it and --write."""

EXTENT_BYTES = 128 * MiB
"""The range whose block status is asked for: as long as a batch, since a whole disk's can be slow (VDDK)."""

OK, FAILED, STALLED, SKIPPED = "ok", "failed", "stalled", "skipped"

_FIXES = {
    "ok": "Nothing to do.",
    "empty": "The export has 0 bytes: check the export name in the URI, and the image that the server opened.",
    "single-client": "Use one connection only, or let the server take more clients (qemu-nbd --persistent --shared=N).",
    "read-stalled": "The server talks, but its storage does not answer: check the disk behind it, then restart it.",
    "read-error": "Look at the server's log, and at the disk or image behind it.",
    "write-stalled": "Reads work, writes hang: check the storage behind the server, then restart the server.",
    "write-error": "Serve the export writable, with room on its storage, and look at the server's log.",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """One line of the table: `result` is ok, failed, stalled or skipped; `milliseconds` None where nothing was done."""

    name: str
    result: str
    milliseconds: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict, the stage that led to it, and libnbd's name for the state that the connection was in."""

    verdict: str
    stage: str
    state: str
    detail: str
    fix: str


@dataclass(frozen=True, slots=True)
class Report:
    """What the doctor found: a verdict and its reason, every stage in order, and the export if it was opened."""

    uri: str
    finding: Finding
    stages: tuple[Stage, ...]
    export: ExportInfo | None

    @property
    def verdict(self) -> str:
        """One word: 'ok', or what is wrong."""
        return self.finding.verdict

    def as_json(self) -> dict[str, Any]:
        """The object that `sendense doctor --json` prints."""
        found, info = self.finding, self.export
        return {
            "verdict": found.verdict,
            "stage": found.stage,
            "state": found.state,
            "detail": found.detail,
            "fix": found.fix,
            "stages": [
                {"name": s.name, "result": s.result, "milliseconds": s.milliseconds, "detail": s.detail}
                for s in self.stages
            ],
            "export": info
            and {
                "size": info.size,
                "flags": [flag for flag in _FLAGS if getattr(info, flag)],
                "block_sizes": {"minimum": info.minimum, "preferred": info.preferred, "maximum": info.maximum},
                "contexts": [ALLOCATION] if info.allocation else [],
                "multi_conn": info.multi_conn,
                "read_only": info.read_only,
                "structured_replies": info.structured,
                "tls": info.tls,
                "protocol": info.protocol,
            },
        }


_FLAGS = ("read_only", "flush", "fua", "trim", "zero", "fast_zero", "multi_conn")


def probe(target: str | Endpoint, timeout: float, write: bool = False, beat: Beat = no_beat) -> Report:
    """
    Walk all stages, each within `timeout` seconds; what is wrong is in the report, never raised.

    A second connection is tried as well. `write` also writes the first bytes back as they were read: not for an
    export that somebody else is writing to. InputError: `target` is no valid URI.
    """
    endpoint = parse(target) if isinstance(target, str) else target
    return _Walk(endpoint, timeout, beat, math.inf).run(second=True, write=write)


def diagnose(endpoint: Endpoint, timeout: float, beat: Beat = no_beat) -> str:
    """One line on why a server stalled, within about `timeout` seconds in all; for a stalled copy's error."""
    found = _Walk(endpoint, timeout, beat, time.monotonic() + timeout).run(second=False, write=False).finding
    if found.verdict == "ok":
        return "doctor: ok, a new connection works and reads"
    return f"doctor: {found.verdict} in stage {found.stage}: {found.detail}"


Completion = Callable[["nbd.Pointer"], int]


class _Trouble(Exception):
    """A request that failed, or stalled. `verb` is read or write."""

    def __init__(self, verb: str, detail: str, stalled: bool = False) -> None:
        super().__init__(verb, detail, stalled)
        self.verdict = f"{verb}-{'stalled' if stalled else 'error'}"
        self.detail, self.stalled = detail, stalled


class _Walk:
    """One walk over the stages; `deadline` (on the monotonic clock) bounds all of them together."""

    def __init__(self, endpoint: Endpoint, timeout: float, beat: Beat, deadline: float) -> None:
        self.endpoint, self.timeout, self.beat, self.deadline = endpoint, timeout, beat, deadline
        self.stages: dict[str, Stage] = {}

    def run(self, second: bool, write: bool) -> Report:
        passed: dict[str, float] = {}

        def observe(stage: str, seconds: float) -> None:
            passed[stage] = passed.get(stage, 0.0) + seconds

        handshake = Handshake(self.endpoint, self.timeout, self.beat, observe, self.deadline)
        try:
            connection = handshake.run()
        except EndpointError as exc:
            self._note_failure(handshake.stage, handshake.stage_began, exc.detail)
            # Without a state nothing was sent: only what was seen to pass has passed.
            self._note_handshake(passed, until=handshake.stage if exc.state else "")
            return self._report(_refusal(exc, handshake.stage), None, write)
        try:
            self._note_handshake(passed, until="size")
            return self._report(self._examine(connection, second, write), connection.info, write)
        finally:
            connection.close()

    def _examine(self, connection: Connection, second: bool, write: bool) -> Finding:
        """Walk the stages of an open connection."""
        size = connection.info.size
        if not size:
            self._note("size", FAILED, 0.0, "0 bytes")
            return _finding("empty", "size", connection, "the export has 0 bytes")
        self._note("size", OK, 0.0, f"{show_bytes(size)} ({size} bytes)")
        found = self._try("first read", connection, self._read) or self._extents(connection)
        if found:
            return found
        alone = self._second(connection) if second else None
        found = (self._try("write", connection, self._write) if write else None) or alone
        if found:
            return found
        detail = "every stage passed"
        if second and not connection.info.multi_conn:
            detail += "; multi-conn is not advertised, though a second connection works"
        return _finding("ok", "", connection, detail)

    def _try(self, name: str, connection: Connection, step: Callable[[Connection], str]) -> Finding | None:
        """Run one stage, whose `step` returns its detail for the table."""
        began = time.monotonic()
        try:
            detail = step(connection)
        except _Trouble as trouble:
            self._note(name, STALLED if trouble.stalled else FAILED, time.monotonic() - began, trouble.detail)
            return _finding(trouble.verdict, name, connection, trouble.detail)
        self._note(name, OK, time.monotonic() - began, detail)
        return None

    def _read(self, connection: Connection) -> str:
        return f"{self._pread(connection).size()} bytes at 0"

    def _pread(self, connection: Connection) -> nbd.Buffer:
        buffer = nbd.Buffer(_aligned(READ_BYTES, connection.info))
        self._complete(connection, "read", lambda done: connection.handle.aio_pread(buffer, 0, done))
        return buffer

    def _extents(self, connection: Connection) -> Finding | None:
        if not connection.info.allocation:
            self._note("extents", SKIPPED, None, f"no {ALLOCATION}: a copy reads everything")
            return None
        return self._try("extents", connection, self._block_status)

    def _block_status(self, connection: Connection) -> str:
        length = _aligned(EXTENT_BYTES, connection.info)
        entries: list[int] = []

        def extent(context: str, offset: int, found: list[int], error: "nbd.Pointer") -> int:
            entries.extend(found)
            return 0

        self._complete(connection, "read", lambda done: connection.handle.aio_block_status(length, 0, extent, done))
        if not entries:
            raise _Trouble("read", f"no {ALLOCATION} in the server's answer to a block status request")
        pairs = list(zip(entries[::2], entries[1::2], strict=True))
        data = sum(count for count, flags in pairs if not flags & nbd.STATE_ZERO)
        extents = f"{len(pairs)} extent{'s' * (len(pairs) > 1)}"
        return f"{extents}, {show_bytes(data)} of data in the first {show_bytes(sum(entries[::2]))}"

    def _second(self, connection: Connection) -> Finding | None:
        """
        Open another connection while the first one stands, and leave it at once.

        Where it waits for a greeting, the server may take it up when the first one ends, and finds it closed.
        """
        name, began = "second connection", time.monotonic()
        try:
            connect(self.endpoint, self.timeout, self.beat, deadline=self.deadline).close()
        except EndpointError as exc:
            self._note_failure(name, began, exc.detail)
            outcome = "would hang" if exc.stalled else "fails"
            detail = f"works, but takes one client: a second one {outcome} ({exc.detail})"
            if connection.info.multi_conn:
                detail += "; multi-conn is advertised, so other clients may have the rest of its connections"
            return Finding("single-client", name, exc.state, detail, _FIXES["single-client"])
        self._note(name, OK, time.monotonic() - began, "")
        return None

    def _write(self, connection: Connection) -> str:
        """Write the first bytes back as they are now: read again, since the stages before took their time."""
        if connection.info.read_only:
            raise _Trouble("write", "the export is read-only: nothing was written")
        handle, data = connection.handle, self._pread(connection)
        self._complete(connection, "write", lambda done: handle.aio_pwrite(data, 0, done))
        if connection.info.flush:
            self._complete(connection, "write", handle.aio_flush)
        return f"{data.size()} bytes at 0, as they were" + (", and flushed" if connection.info.flush else "")

    def _complete(self, connection: Connection, verb: str, issue: Callable[[Completion], int]) -> None:
        """Issue one request and wait for its answer."""
        answer: list[int] = []

        def done(error: "nbd.Pointer") -> int:
            answer.append(error.value)
            return 1

        handle, began = connection.handle, time.monotonic()
        try:
            issue(done)
            while not answer:
                now = time.monotonic()
                left = min(began + self.timeout, self.deadline) - now
                if left <= 0:
                    raise _Trouble(verb, f"no reply in {show_seconds(now - began)}", stalled=True)
                handle.poll(min(POLL_MS, max(1, int(left * 1000))))
                self.beat()
        except nbd.Error as exc:
            raise _Trouble(verb, exc.string) from exc
        if answer[0]:
            raise _Trouble(verb, os.strerror(answer[0]))

    def _note(self, name: str, result: str, seconds: float | None, detail: str = "") -> None:
        self.stages[name] = Stage(name, result, None if seconds is None else round(seconds * 1000, 1), detail)

    def _note_failure(self, name: str, began: float, detail: str) -> None:
        seconds = time.monotonic() - began
        self._note(name, STALLED if seconds >= self.timeout else FAILED, seconds, detail)

    def _note_handshake(self, passed: dict[str, float], until: str) -> None:
        """Note the stages before `until`: those too quick to be seen have passed as well."""
        before = ORDER[: ORDER.index(until)] if until else [name for name in STAGES if name in passed]
        for name in before:
            if name == "resolve" and self.endpoint.socket:
                self._note(name, SKIPPED, None, "a Unix socket")
            elif name == "tls" and not self.endpoint.tls:
                self._note(name, SKIPPED, None, "not asked for")
            else:
                self._note(name, OK, passed.get(name, 0.0))

    def _report(self, finding: Finding, info: ExportInfo | None, write: bool) -> Report:
        for name in ORDER:
            if name not in self.stages:
                self._note(name, SKIPPED, None, "not asked for" if name == "write" and not write else "not reached")
        return Report(self.endpoint.uri, finding, tuple(self.stages[name] for name in ORDER), info)


def _aligned(length: int, info: ExportInfo) -> int:
    """At most `length` bytes from the start of the disk, in whole blocks where the disk has one."""
    length = min(max(length, info.minimum), info.size)
    return length - length % info.minimum or length


def _finding(verdict: str, stage: str, connection: Connection, detail: str) -> Finding:
    state = connection.handle.connection_state().partition(":")[0]
    return Finding(verdict, stage, state, detail, _FIXES[verdict])


def _refusal(exc: EndpointError, stage: str) -> Finding:
    # A server that hangs up in mid-handshake has no verdict of its own: it got no further than one that stalls.
    verdict = HandshakeStalled.verdict if isinstance(exc, ConnectionLost) else exc.verdict
    return Finding(verdict, stage, exc.state, exc.detail, exc.hint)
