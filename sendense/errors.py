"""
Every error that Sendense raises on purpose.

    SendenseError, and Said, which only gives the words their place
    ├── InputError            the request cannot be right: nothing was started (exit status 2)
    │   ├── NotFound, Conflict, RedisRefused (sendense.jobs)
    │   └── TargetTooSmall, TargetReadOnly, SourceChanged
    ├── EndpointError         an NBD server cannot be used; its verdict is the doctor's word for why
    │   ├── Unresolvable, Refused, Unreachable, NoGreeting, NotNbd, HandshakeStalled
    │   ├── NoSuchExport, ExportGone, TlsRequired, TlsFailed, ConnectionLost, SourceRefused
    ├── RequestError          one NBD request failed: says which bytes
    │   ├── ReadFailed, ReadStalled
    │   └── WriteFailed, WriteStalled, TargetFull
    ├── SiteError             a VMware site cannot be used, or refused what was asked
    │   ├── SiteUnreachable, CertificateRefused, LoginRefused, SessionLost, PermissionMissing
    │   ├── VmGone, SnapshotGone, SnapshotFailed, QuiesceFailed, PowerFailed, ChangesUnknown
    │   └── SiteBusy, SiteFault
    ├── InternalError         a fault of our own
    ├── StepLost              processes died or stopped in a step of a job, again and again
    ├── Cancelled             a user cancelled the job
    ├── ClaimLost             the ledger gave this batch to somebody else, or stopped the job
    ├── ConnectionsTaken      as many disks are open as a site allows: whoever asks waits
    ├── HubUnreachable        the hub's API does not answer, or something else does
    ├── NotAllowed            the hub does not know the token, or its role may not do this
    ├── StillRunning          a job did not end within the time that was waited for it
    ├── TimeIsUp              a request to the API was not answered in time (sendense.api)
    └── JobFailed             a job ended without its data stored
        ├── SiteSilent           no node of a site answers for its vCenter
        ├── SiteFailed           a site's own error, as its node tells it
        ├── ExportsUnavailable   the hub's exports daemon does not answer, or an image is in use
        └── Different            what is stored is not what was copied

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


class Said(SendenseError):
    """An error that is given its words: what and where, and what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        return self.message


class InputError(Said):
    """The request is wrong; `hint` says what would be right."""


class NotFound(InputError):
    """What was named is not there."""


class Conflict(InputError):
    """The request is right by itself, and cannot be had as things stand now."""


class InternalError(SendenseError):
    """A fault of Sendense itself, or of a library under it."""

    hint = "Run the command again with --debug, and report what it prints."

    def __init__(self, cause: Exception) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return f"internal error: {type(self.cause).__name__}: {self.cause}"


class JobFailed(Said):
    """A job ended without success; the message names the first cause."""


class HubUnreachable(Said):
    """A hub gave no answer, or something else did."""

    retryable = True


class NotAllowed(Said):
    """The hub does not take the token, or not for this."""


class StillRunning(Said):
    """The time that a caller wanted to wait for a job is over, and the job is not."""


class ExportsUnavailable(JobFailed):
    """The exports daemon did not do what it was asked; it is being started again, or an image is still in use."""

    retryable = True


class Different(JobFailed):
    """What is stored is not what was copied."""

    def __init__(self, message: str) -> None:
        hint = "Look at the storage under it. Others may be sound (sendense verify --all); the next backup is a full."
        super().__init__(message, hint)
        self.args = (message,)


class ClaimLost(SendenseError):
    """A task may not go on with its batch: its claim lapsed, or its job was stopped."""

    def __init__(self, job: str, batch: str) -> None:
        super().__init__(job, batch)
        self.job, self.batch = job, batch

    def __str__(self) -> str:
        return f"job {self.job} batch {self.batch}: the claim is no longer ours"


class ConnectionsTaken(SendenseError):
    """A VMware site, or one of its hosts, has as many disks open as it may: the work waits, and nothing failed."""

    retryable = True

    def __init__(self, site: str, host: str, limit: int) -> None:
        super().__init__(site, host, limit)
        self.site, self.host, self.limit = site, host, limit
        setting = "host_connections" if host else "connections"
        self.hint = f"It goes on as soon as one is closed; their number is {setting} of the site, in the settings."

    def __str__(self) -> str:
        where = f"host {self.host} of site {self.site}" if self.host else f"site {self.site}"
        return f"{where}: all of its {self.limit} connections are in use"


class StepLost(SendenseError):
    """Every process that ran a job's step was killed, or stopped."""

    hint = "Look at the worker's log, and at what kills it (memory, say)."

    def __init__(self, step: str, owner: str) -> None:
        super().__init__(step, owner)
        self.step, self.owner = step, owner

    def __str__(self) -> str:
        return f"{self.step}: its processes were killed or stopped, the last of them {self.owner}"


class Cancelled(SendenseError):
    """A user cancelled the job."""

    def __init__(self, job: str) -> None:
        super().__init__(job)
        self.job = job
        self.hint = f"Go on with it: sendense jobs resume {job}"

    def __str__(self) -> str:
        return f"job {self.job} was cancelled"


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


class ExportGone(EndpointError):
    """The hub does not offer its job's export now: the daemon was started again, or the job has ended."""

    verdict = "export-gone"
    hint = "The hub puts it back by itself; if it does not, look at exports.log there."


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


class SourceRefused(EndpointError):
    """The nbdkit that reads a VM's disk did not open it; the detail is what it said, as only it knows the reason."""

    verdict = "source-refused"
    attempts = 3
    hint = "Check the site's user, password_file, thumbprint and nbdkit_options in the settings of this machine."


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


class SiteSilent(JobFailed):
    """Nobody at a site answers for its vCenter."""

    def __init__(self, site: str, question: str, waited: float) -> None:
        super().__init__(
            f"site {site}: no answer to '{question}' in {show_seconds(waited)}",
            f"Look whether a node of that site is up (sendense nodes); start one there: sendense node --site {site}",
        )
        self.args = (site, question, waited)


class SiteFailed(JobFailed):
    """A site could not do what it was asked; the words are those of the error that it met there."""


class SiteError(SendenseError):
    """A VMware site cannot be used, or its vCenter refused something; `detail` has vCenter's own words."""

    def __init__(self, site: str, detail: str) -> None:
        super().__init__(site, detail)
        self.site, self.detail = site, detail

    def __str__(self) -> str:
        return f"site {self.site}: {self.detail}"


class SiteUnreachable(SiteError):
    """vCenter does not answer, or not as a vCenter does."""

    retryable = True
    hint = "Check vcenter in the site's settings, the way from this machine to it, and that vCenter's services run."


class CertificateRefused(SiteError):
    """vCenter showed a certificate that nothing here vouches for; the password was not sent."""

    def __init__(self, site: str, detail: str, thumbprint: str = "") -> None:
        SendenseError.__init__(self, site, detail, thumbprint)
        self.site, self.detail, self.thumbprint = site, detail, thumbprint
        self.hint = (
            f"If it is vCenter's (compare it on its console), pin it with thumbprint = '{thumbprint}' in the site's "
            "settings; or name its authority with ca_file."
            if thumbprint
            else "Name the certificate's authority with ca_file, or the certificate itself with thumbprint."
        )


class LoginRefused(SiteError):
    """vCenter does not take this user and password."""

    hint = "Check user and password_file in the site's settings, and that the account is not locked."


class SessionLost(SiteError):
    """A session ended as soon as it began."""

    retryable = True
    hint = "Look at vCenter's sessions: another program may be ending them, or their number is at its limit."


class PermissionMissing(SiteError):
    """The user may log in, and not do this."""

    hint = "Give the site's user this privilege in vCenter, on the VM or a folder above it."


class VmGone(SiteError):
    """The VM is no longer there."""

    hint = "It was deleted or unregistered: look for it with 'sendense vms'."


class SnapshotGone(SiteError):
    """Somebody removed the snapshot that was being read."""

    hint = "Back the VM up again; look in vCenter's events for who removed the snapshot."


class SnapshotFailed(SiteError):
    """vCenter did not make or remove a snapshot."""

    retryable = True
    hint = "Look at the VM's tasks and events in vCenter."


class QuiesceFailed(SiteError):
    """The guest could not be quiesced; no snapshot was made."""

    hint = "Look at VMware Tools and the VSS writers in the guest, or back it up with --no-quiesce."


class PowerFailed(SiteError):
    """The VM did not turn on or off."""

    retryable = True
    hint = "Look at the VM's console, tasks and events in vCenter."


class ChangesUnknown(SiteError):
    """vCenter cannot say what changed since a change ID: the disk has to be copied whole. `reason` is why, in short."""

    hint = "A full backup of the disk starts a new chain."

    def __init__(self, site: str, detail: str, reason: str) -> None:
        SendenseError.__init__(self, site, detail, reason)
        self.site, self.detail, self.reason = site, detail, reason


class SiteBusy(SiteError):
    """vCenter cannot do it now: something else is under way, or a host does not answer it."""

    retryable = True
    hint = "It is tried again; look at the VM's tasks, and at the state of its host, in vCenter."


class SiteFault(SiteError):
    """vCenter answered with a fault that nothing here expects."""

    hint = "Look at vCenter's tasks and events at that time."
