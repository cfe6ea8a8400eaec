"""
Connecting to an NBD server, stage by stage, each stage under its own deadline.

libnbd's blocking connect_* waits for ever (the predecessor's hang), so every wait here is a poll of at most
POLL_MS, after which `beat` is called. Foreign errors become EndpointError here and nowhere else.
"""

import errno
import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import nbd

from sendense.beat import Beat as Beat
from sendense.beat import no_beat as no_beat
from sendense.errors import (
    ConnectionLost,
    EndpointError,
    HandshakeStalled,
    NoGreeting,
    NoSuchExport,
    NotNbd,
    Refused,
    TlsFailed,
    TlsRequired,
    Unreachable,
    Unresolvable,
)
from sendense.nbd.uri import Endpoint
from sendense.units import MiB, show_seconds

POLL_MS = 500
"""Longest sleep inside libnbd: a signal handler or a claim's renewal is late by no more than this."""

DEFAULT_MAXIMUM = 32 * MiB
"""Largest request where the server states none (NBD protocol, "Block size constraints")."""

ALLOCATION = nbd.CONTEXT_BASE_ALLOCATION

STAGES = ("resolve", "connect", "greeting", "negotiation", "tls", "meta context", "export")

_REFUSALS = (
    errno.ECONNREFUSED,
    errno.EACCES,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENOTSOCK,
    errno.EPROTOTYPE,
)

Observer = Callable[[str, float], None]
"""Called with each stage that ended well, and its seconds."""


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What a server says of an export. Sizes in bytes; flags are those of the NBD transmission phase."""

    size: int
    read_only: bool
    multi_conn: bool
    flush: bool
    zero: bool
    fast_zero: bool
    trim: bool
    fua: bool
    minimum: int
    preferred: int
    maximum: int
    allocation: bool
    structured: bool
    tls: bool
    protocol: str

    def padding(self, end: int) -> int:
        """Bytes from `end` to the end of its block: not 0 only where a disk ends inside a block of a larger export."""
        odd = end % self.minimum
        return min(self.minimum - odd, self.size - end) if odd else 0


@dataclass(slots=True)
class Connection:
    """One open libnbd handle with what is known of its export. Belongs to one process; dropped on any doubt."""

    endpoint: Endpoint
    handle: nbd.NBD
    info: ExportInfo
    broken: bool = field(default=False)

    @property
    def uri(self) -> str:
        """The URI that was connected to, for messages."""
        return self.endpoint.uri

    def close(self) -> None:
        """Say goodbye if the server listens, then hang up; never wait for it."""
        try:
            if not self.broken and self.handle.aio_is_ready():
                self.handle.aio_disconnect()
        except nbd.Error:
            pass  # hanging up says it as well
        _hang_up(self.handle)
        self.broken = True


def connect(
    endpoint: Endpoint,
    timeout: float,
    beat: Beat = no_beat,
    observe: Observer | None = None,
    deadline: float = math.inf,
) -> Connection:
    """
    Open an export, each stage within `timeout` seconds, and all of them before `deadline` (on the monotonic clock).

    Raises the EndpointError of the stage that failed or stalled.
    """
    return Handshake(endpoint, timeout, beat, observe, deadline).run()


class Handshake:
    """The stages of one connection attempt; `stage` is the one under way."""

    def __init__(
        self, endpoint: Endpoint, timeout: float, beat: Beat, observe: Observer | None, deadline: float = math.inf
    ) -> None:
        self.endpoint, self.timeout, self.beat, self.deadline = endpoint, timeout, beat, deadline
        self.observe: Observer = observe or (lambda stage, seconds: None)
        self.stage = "resolve"
        self.stage_began = time.monotonic()
        self.waited_in = ""
        self.handle = nbd.NBD()

    def run(self) -> Connection:
        """Walk the stages; see `connect`."""
        try:
            return self._run()
        except BaseException:
            _hang_up(self.handle)
            raise

    def _run(self) -> Connection:
        endpoint, handle = self.endpoint, self.handle
        if endpoint.host:
            self._resolve()
        self._enter("tls")
        try:
            handle.set_opt_mode(True)
            handle.set_full_info(True)
            handle.set_pread_initialize(False)  # a failed read's buffer is never looked at
            handle.add_meta_context(ALLOCATION)
            self._prepare_tls()
        except nbd.Error as exc:
            raise TlsFailed(endpoint.uri, exc.string) from exc
        self._enter("connect")
        try:
            if endpoint.socket:
                handle.aio_connect_unix(endpoint.socket)
            else:
                handle.aio_connect_tcp(endpoint.host, str(endpoint.port))
                self._establish()
            self._wait()
            # The kernel then notices a peer that vanished without a word (a power cut, a dropped NAT entry).
            self._set_tcp(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if handle.aio_is_negotiating():
                self._go()
        except nbd.Error as exc:
            raise self._failure(exc) from exc
        if not handle.aio_is_ready():
            raise self._closed()
        self._enter("")
        return Connection(endpoint, handle, _describe(handle))

    def list_exports(self) -> list[str]:
        """Names that the server offers; empty when it will not say. Only in the negotiation phase."""
        names: list[str] = []

        def offered(name: str, description: str) -> int:
            names.append(name)
            return 0

        try:
            self.handle.aio_opt_list(offered)
            self._wait()
        except (nbd.Error, EndpointError):
            return []
        return names

    def _enter(self, stage: str) -> None:
        """Note that `stage` began, and with it that the one before ended well."""
        now = time.monotonic()
        if stage == self.stage:
            return
        self.observe(self.stage, now - self.stage_began)
        self.stage, self.stage_began = stage, now

    def _resolve(self) -> None:
        """Look the host up in a thread: getaddrinfo has no time limit of its own."""
        outcome: list[OSError | None] = []

        def look_up() -> None:
            try:
                socket.getaddrinfo(self.endpoint.host, self.endpoint.port, type=socket.SOCK_STREAM)
                outcome.append(None)
            except OSError as exc:
                outcome.append(exc)
            except UnicodeError as exc:
                outcome.append(OSError(str(exc)))

        thread = threading.Thread(target=look_up, daemon=True)
        thread.start()
        while thread.is_alive() and (left := self._left()) > 0:
            thread.join(min(POLL_MS / 1000, left))
            self.beat()
        if not outcome:
            detail = f"host '{self.endpoint.host}': no answer from the resolver in {self._waited()}"
            raise Unresolvable(self.endpoint.uri, detail)
        if outcome[0]:
            raise Unresolvable(self.endpoint.uri, f"host '{self.endpoint.host}': {outcome[0].strerror or outcome[0]}")

    def _prepare_tls(self) -> None:
        endpoint, handle = self.endpoint, self.handle
        handle.set_tls(nbd.TLS_REQUIRE if endpoint.tls else nbd.TLS_DISABLE)
        if not endpoint.tls:
            return
        handle.set_tls_verify_peer(endpoint.verify_peer)
        if not endpoint.psk_file and endpoint.verify_peer:
            handle.set_tls_certificates(str(self._authority()))
        elif endpoint.certificates:
            handle.set_tls_certificates(endpoint.certificates)
        if endpoint.psk_file:
            handle.set_tls_psk_file(endpoint.psk_file)
        if endpoint.username:
            handle.set_tls_username(endpoint.username)

    def _authority(self) -> Path:
        """
        The folder whose ca-cert.pem the server's certificate is checked against.

        libnbd 1.14 checks nothing, and says nothing, where that file is missing (measured): so its absence is an error.
        """
        places = [Path(self.endpoint.certificates)] if self.endpoint.certificates else _authority_places()
        for place in places:
            if (place / "ca-cert.pem").is_file():
                return place
        searched = ", ".join(str(place / "ca-cert.pem") for place in places)
        detail = f"no CA certificate to check the server against: none of {searched} is there"
        raise TlsFailed(self.endpoint.uri, detail)

    def _set_tcp(self, level: int, option: int) -> None:
        if self.endpoint.socket or self.handle.aio_is_closed() or self.handle.aio_is_dead():
            return
        with socket.socket(fileno=os.dup(self.handle.aio_get_fd())) as sock:
            sock.setsockopt(level, option, 1)

    def _establish(self) -> None:
        """
        Wait until TCP stands or fails.

        libnbd 1.14 goes on to MAGIC.RECV_MAGIC as soon as connect(2) says EINPROGRESS (measured): a host that is off
        would pass for a server that sends no greeting.
        """
        poller = select.poll()
        poller.register(self.handle.aio_get_fd(), select.POLLOUT)
        while not (events := poller.poll(min(POLL_MS, max(1, int(self._left() * 1000))))):
            self.beat()
            if self._left() <= 0:
                detail = f"no answer from {self.endpoint.address} in {self._waited()}"
                raise Unreachable(self.endpoint.uri, detail, "CONNECT_TCP.CONNECTING")
        if events[0][1] & (select.POLLERR | select.POLLHUP):
            self.handle.poll(1)  # raises what went wrong

    def _wait(self) -> None:
        """Drive the handshake until libnbd wants nothing more from the server, naming each stage as it comes."""
        handle = self.handle
        while handle.aio_get_direction():
            if handle.aio_is_ready():
                return
            self.waited_in = handle.connection_state().partition(":")[0]
            self._enter(stage_of(self.waited_in, self.stage))
            left = self._left()
            if left <= 0:
                raise self._stalled()
            # qemu sends its replies in small pieces, each of which waits for the acknowledgement of the one before:
            # delayed, they cost 40 ms apiece (measured).
            self._set_tcp(socket.IPPROTO_TCP, socket.TCP_QUICKACK)
            handle.poll(min(POLL_MS, max(1, int(left * 1000))))
            self.beat()

    def _go(self) -> None:
        """Choose the export."""
        handle = self.handle
        try:
            handle.set_export_name(self.endpoint.export)
        except nbd.Error as exc:
            raise NoSuchExport(self.endpoint.uri, f"export '{self.endpoint.export}': {exc.string}") from exc
        answer: list[int] = []

        def done(error: "nbd.Pointer") -> int:
            answer.append(error.value)
            return 1

        handle.aio_opt_go(done)
        self._wait()
        if handle.aio_is_negotiating():
            error = answer[0] if answer else 0
            self.stage = "export"
            if error == errno.ENOTSUP and not self.endpoint.tls:
                self.stage = "tls"
                raise TlsRequired(self.endpoint.uri, "the server takes TLS connections only", self._state())
            state, name, offered = self._state(), self.endpoint.export, self.list_exports()
            reason = "" if error == errno.ENOENT else f" ({os.strerror(error)})"
            if name in offered:  # nbdkit says no more to a client whose plugin failed to open
                detail = f"the server lists the export '{name}' and cannot open it{reason}: its log says why"
            else:
                there = f"; it offers: {', '.join(repr(other) for other in offered)}" if offered else ""
                detail = f"the server has no export '{name}'{reason}{there}"
            raise NoSuchExport(self.endpoint.uri, detail, state)

    def _left(self) -> float:
        """Seconds left for the stage under way."""
        return min(self.stage_began + self.timeout, self.deadline) - time.monotonic()

    def _waited(self) -> str:
        return show_seconds(time.monotonic() - self.stage_began)

    def _state(self) -> str:
        """libnbd's name for the state; for a connection that ended, the one that it last waited in."""
        state = self.handle.connection_state().partition(":")[0]
        return self.waited_in if self.waited_in and state in ("DEAD", "CLOSED") else state

    def _stalled(self) -> EndpointError:
        uri, state, waited = self.endpoint.uri, self._state(), self._waited()
        if self.stage == "greeting":
            return NoGreeting(uri, f"connected, but no greeting in {waited}", state)
        return HandshakeStalled(uri, f"the server stopped in stage '{self.stage}': no reply in {waited}", state)

    def _failure(self, exc: nbd.Error) -> EndpointError:
        uri, state = self.endpoint.uri, self._state()
        # libnbd has no error number for a closed socket or a wrong magic: only its text tells the two apart.
        closed = "disconnected" in exc.string or exc.errnum in (errno.ECONNRESET, errno.EPIPE)
        if self.stage == "connect" and (closed or "handshake:" in exc.string):
            self._enter("greeting")  # it came within the same call
        if self.stage == "greeting" and "send:" in exc.string:
            self._enter("negotiation")  # the client answers a greeting, and says nothing before
        if self.endpoint.tls and ("gnutls" in exc.string or self.stage == "negotiation"):
            self._enter("tls")  # which a client that wants TLS asks for at once
        if self.stage == "connect":
            if exc.errnum == errno.EAGAIN:  # how Linux refuses a Unix socket whose queue is full
                return NoGreeting(uri, f"{self.endpoint.address}: as many clients as fit are waiting already", state)
            reason = os.strerror(exc.errnum) if exc.errnum else exc.string
            kind = Refused if exc.errnum in _REFUSALS else Unreachable
            return kind(uri, f"cannot connect to {self.endpoint.address}: {reason}", state)
        if self.stage == "greeting":
            if closed:
                return NoGreeting(uri, "the server closed the connection without a greeting", state)
            return NotNbd(uri, "what answered there does not speak NBD", state)
        if self.stage == "tls":
            return TlsFailed(uri, f"TLS could not be set up: {exc.string}", state)
        return ConnectionLost(uri, f"the server broke off in stage '{self.stage}': {exc.string}", state)

    def _closed(self) -> EndpointError:
        """The handle ended without an error of its own: libnbd's way to say that TLS was declined."""
        if self.endpoint.tls and self.stage in ("greeting", "negotiation", "tls"):
            self._enter("tls")  # whatever stage was seen last: greeting and refusal may come within one call
            return TlsFailed(self.endpoint.uri, "the server does not offer TLS", self._state())
        return ConnectionLost(self.endpoint.uri, f"closed in stage '{self.stage}'", self._state())


def _hang_up(handle: nbd.NBD) -> None:
    """
    End the session now.

    libnbd closes the socket when the handle is dropped, which an error's traceback can put off, and with it the
    moment at which a server that takes one client takes the next.
    """
    try:
        descriptor = handle.aio_get_fd()
    except nbd.Error:
        return  # not connected, or closed already
    with socket.socket(fileno=os.dup(descriptor)) as sock, suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _authority_places() -> list[Path]:
    """Where nbd_set_tls_certificates(3) looks by default."""
    if os.geteuid() == 0:
        return [Path("/etc/pki/libnbd")]
    return [Path.home() / ".pki" / "libnbd", Path.home() / ".config" / "pki" / "libnbd"]


def stage_of(state: str, current: str) -> str:
    """The stage that a libnbd connection state (generator/states*.c in its source) belongs to."""
    name = state.partition(":")[0]
    if name.startswith(("CONNECT.", "CONNECT_TCP.", "CONNECT_SA.", "START", "CONNECT_COMMAND.")):
        return "connect"
    if name.startswith("MAGIC."):
        return "greeting"
    if "OPT_STARTTLS" in name:
        return "tls"
    if "META_CONTEXT" in name:
        return "meta context"
    if "OPT_GO" in name or "OPT_EXPORT_NAME" in name or "OPT_LIST" in name:
        return "export"
    if name.startswith(("NEWSTYLE.", "OLDSTYLE.")):
        return "negotiation"
    return current


def _describe(handle: nbd.NBD) -> ExportInfo:
    protocol = handle.get_protocol()
    # nbdkit 1.32 offers flush, zero, trim and FUA in an oldstyle handshake, and answers EINVAL to each of them.
    keeps_word = protocol != "oldstyle"
    return ExportInfo(
        size=handle.get_size(),
        read_only=handle.is_read_only(),
        multi_conn=handle.can_multi_conn(),
        flush=keeps_word and handle.can_flush(),
        zero=keeps_word and handle.can_zero(),
        fast_zero=handle.can_fast_zero(),
        trim=keeps_word and handle.can_trim(),
        fua=keeps_word and handle.can_fua(),
        minimum=handle.get_block_size(nbd.SIZE_MINIMUM) or 1,
        preferred=handle.get_block_size(nbd.SIZE_PREFERRED),
        maximum=handle.get_block_size(nbd.SIZE_MAXIMUM) or DEFAULT_MAXIMUM,
        allocation=handle.can_meta_context(ALLOCATION),
        structured=handle.get_structured_replies_negotiated(),
        tls=handle.get_tls_negotiated(),
        protocol=protocol,
    )
