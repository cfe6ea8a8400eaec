"""
Every error that Sendense raises on purpose.

    SendenseError
    ├── InputError            the request cannot be right: nothing was started (exit status 2)
    │   └── TargetTooSmall, TargetReadOnly, SourceChanged
    ├── EndpointError         an NBD server cannot be used; its verdict is the doctor's word for why
    │   ├── Unresolvable, Refused, Unreachable, NoGreeting, NotNbd, HandshakeStalled
    │   ├── NoSuchExport, TlsRequired, TlsFailed, ConnectionLost
    ├── RequestError          one NBD request failed: says which bytes
    │   ├── ReadFailed, ReadStalled
    │   └── WriteFailed, WriteStalled, TargetFull
    ├── InternalError         a fault of our own
    ├── ClaimLost             the ledger gave this batch to somebody else, or stopped the job
    └── JobFailed             a job ended without its data stored

A class fixes whether trying again can help (`retryable`) and what to do (`hint`). Instances are rebuilt from
`args` when they cross a process, so `super().__init__` gets exactly the constructor's positional arguments.
"""

from typing import ClassVar

from sendense.units import show_bytes, show_seconds


class SendenseError(Exception):
    """Base class: `str()` says what and where, `hint` what to do."""

    retryable: ClassVar[bool] = False
    stalled: ClassVar[bool] = False
    attempts: ClassVar[int | None] = None
    """Attempts that a batch is worth after this error, where that is fewer than usual."""
    spares_job: ClassVar[bool] = False
    """Only its batch is lost when the last attempt ends with this; otherwise the job ends there."""
    hint: str = ""


class InputError(SendenseError):
    """The request is wrong; `hint` says what would be right."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        return self.message


class InternalError(SendenseError):
    """A fault of Sendense itself, or of a library under it."""

    hint = "Run the command again with --debug, and report what it prints."

    def __init__(self, cause: Exception) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return f"internal error: {type(self.cause).__name__}: {self.cause}"


class JobFailed(SendenseError):
    """A job ended without success; the message names the first cause."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        return self.message


class ClaimLost(SendenseError):
    """A task may not go on with its batch: its claim lapsed, or its job was stopped."""

    def __init__(self, job: str, batch: str) -> None:
        super().__init__(job, batch)
        self.job, self.batch = job, batch

    def __str__(self) -> str:
        return f"job {self.job} batch {self.batch}: the claim is no longer ours"


class EndpointError(SendenseError):
    """An NBD server that cannot be used. `verdict` is the doctor's word for it, `state` libnbd's name for the wait."""

    retryable = True
    verdict: ClassVar[str] = "error"

    def __init__(self, uri: str, detail: str, state: str = "") -> None:
        super().__init__(uri, detail, state)
        self.uri, self.detail, self.state = uri, detail, state

    def __str__(self) -> str:
        return f"{self.uri}: {self.detail}"


class Unresolvable(EndpointError):
    """The host name has no address, or the resolver did not answer."""

    verdict = "unresolvable"
    hint = "Check the host name in the URI, and this machine's resolver (getent hosts NAME)."


class Refused(EndpointError):
    """Nobody listens there."""

    verdict = "refused"
    hint = "Start the NBD server, or correct the port or socket path in the URI."


class Unreachable(EndpointError):
    """No answer to the connection attempt, or no route."""

    verdict = "unreachable"
    hint = "Check the route, the firewall and the tunnel between this machine and the server."


class NoGreeting(EndpointError):
    """The connection stands, and the server never says a word: how the predecessor hung for ever."""

    verdict = "no-greeting"
    stalled = True
    hint = (
        "Its client limit is reached (qemu-nbd serves one client unless started with --shared=N), "
        "the server is stopped, or it is no NBD server: end the other client or raise the limit."
    )


class NotNbd(EndpointError):
    """Something else than an NBD server answered."""

    verdict = "not-nbd"
    hint = "Another service listens there: correct the port or socket path in the URI."


class HandshakeStalled(EndpointError):
    """The greeting came, and the negotiation stopped half-way."""

    verdict = "handshake-stalled"
    stalled = True
    hint = "The server or the tunnel stopped in mid-handshake: look at the server's log, then restart it."


class NoSuchExport(EndpointError):
    """The server does not offer the export that the URI names."""

    verdict = "no-such-export"
    retryable = False
    hint = "Put one of the server's exports at the end of the URI (sendense doctor URI lists them)."


class TlsRequired(EndpointError):
    """The server takes only TLS."""

    verdict = "tls-required"
    retryable = False
    hint = "Use nbds:// (with ?tls-certificates=DIR or ?tls-psk-file=FILE)."


class TlsFailed(EndpointError):
    """TLS was asked for and could not be had."""

    verdict = "tls-failed"
    retryable = False
    hint = "Check the server's certificate, its host name, and the tls-certificates or tls-psk-file of the URI."


class ConnectionLost(EndpointError):
    """The connection broke while in use."""

    verdict = "connection-lost"
    hint = "The server ended or cut the connection: look at its log."


class RequestError(SendenseError):
    """One NBD request that did not work out: which server, and which bytes of the disk."""

    retryable = True
    verb: ClassVar[str] = "request"

    def __init__(self, uri: str, offset: int, length: int, detail: str) -> None:
        super().__init__(uri, offset, length, detail)
        self.uri, self.offset, self.length, self.detail = uri, offset, length, detail

    def __str__(self) -> str:
        return f"{self.verb} {self.uri} offset={self.offset} length={self.length}: {self.detail}"


class ReadFailed(RequestError):
    """The source answered a read with an error."""

    verb = "read"
    attempts = 3
    spares_job = True
    hint = "The source cannot read this part of the disk: repair it there, then resume."


class WriteFailed(RequestError):
    """The target answered a write, a zero or a flush with an error."""

    verb = "write"
    hint = "Look at the target server's log; once it is repaired, resume."


class TargetFull(RequestError):
    """The target has no space left."""

    retryable = False
    verb = "write"
    hint = "Make room on the target's file system, then resume: what is stored stays stored."


class StalledRequest(RequestError):
    """A server took requests and completed none for longer than the no-progress deadline."""

    stalled = True
    verdict: ClassVar[str]

    def __init__(self, uri: str, offset: int, length: int, waited: float, diagnosis: str = "") -> None:
        SendenseError.__init__(self, uri, offset, length, waited, diagnosis)
        self.uri, self.offset, self.length = uri, offset, length
        self.waited, self.diagnosis = waited, diagnosis
        self.detail = f"no reply in {show_seconds(waited)}" + (f" ({diagnosis})" if diagnosis else "")


class ReadStalled(StalledRequest):
    """The source took a read and sent nothing before the deadline."""

    verb = "read"
    verdict = "read-stalled"
    hint = "Run 'sendense doctor URI' on this machine; if it stalls too, restart the source's server."


class WriteStalled(StalledRequest):
    """The target took a write and did not confirm it before the deadline."""

    verb = "write"
    verdict = "write-stalled"
    hint = "Run 'sendense doctor URI' on this machine; if it stalls too, restart the target's server."


class TargetTooSmall(InputError):
    """The target cannot hold the source."""

    def __init__(self, target: str, target_size: int, source_size: int) -> None:
        InputError.__init__(
            self,
            f"{target} holds {show_bytes(target_size)} ({target_size} bytes), "
            f"the source has {show_bytes(source_size)} ({source_size} bytes)",
            "Give a target at least as large as the source; nothing was written.",
        )
        self.args = (target, target_size, source_size)


class TargetReadOnly(InputError):
    """The target export does not take writes."""

    def __init__(self, target: str) -> None:
        InputError.__init__(self, f"{target} is read-only", "Serve the target writable, or name another one.")
        self.args = (target,)


class SourceChanged(InputError):
    """An unfinished copy cannot go on: its source is not what it was."""

    def __init__(self, source: str, before: int, now: int) -> None:
        InputError.__init__(
            self,
            f"{source} has {now} bytes now, and had {before} when the copy began",
            "Start over with --force, or bring the source back as it was.",
        )
        self.args = (source, before, now)
