"""
A login at a site's vCenter, and the calls that are made with it.

Each call runs in a thread of its own, so that the caller keeps beating while the resolver, the network or vCenter takes
its time, and can go away at the deadline whatever the thread waits for.
"""

# pyVmomi has stubs for its types, and none for its functions and constructors.
# mypy: allow-untyped-calls

import http.client
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar
from xml.etree import ElementTree
from xml.parsers.expat import ExpatError

from pyVmomi import vim, vmodl
from pyVmomi.SoapAdapter import SoapStubAdapter
from pyVmomi.VmomiSupport import GetServiceVersions, versionIdMap

from sendense.beat import Beat as Beat
from sendense.beat import no_beat as no_beat
from sendense.errors import LoginRefused, SessionLost, SiteUnreachable
from sendense.files import read_secret
from sendense.settings import Site
from sendense.units import show_seconds
from sendense.vsphere import connection
from sendense.vsphere.connection import Connection, Worker
from sendense.vsphere.faults import translate, words

T = TypeVar("T")
BEAT_SECONDS = 1.0
"""Between two beats: half of what callers are promised."""

IDLE_SECONDS = 60.0
"""An idle connection is not used again after this: what lies between may have forgotten it without a word."""

LOGOUT_SECONDS = 5.0
"""A session that is not ended properly expires by itself."""

_PATH = "/sdk"
_DROPPED = (ConnectionError, http.client.HTTPException, ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""How it shows that vCenter, or something on the way, ended a connection in use."""


class _GivenUp(TimeoutError):
    """A call had all of its time."""


def open_session(name: str, site: Site, beat: Beat = no_beat) -> "Session":
    """
    Log in at a site; `beat` is called at least every two seconds of every wait of the session.

    Raises InputError (password file, ca_file), SiteUnreachable, CertificateRefused or LoginRefused.
    """
    session = Session(name, site, beat)
    try:
        session.log_in()
    except BaseException:
        session.close()
        raise
    return session


class Session:
    """
    A login at a site's vCenter that survives its own expiry.

    A call that fails with NotAuthenticated, or on a dropped connection where it is safe to repeat, is made once more
    after another login. Used by one thread at a time.
    """

    def __init__(self, name: str, site: Site, beat: Beat = no_beat) -> None:
        self.name, self.site = name, site
        self.content: Any = None
        """The service's content: its collectors and managers."""
        self.thumbprint = ""
        """SHA-1 of the certificate that was accepted, as VDDK wants it."""
        self._stub: Any = None
        self._logged_in = False
        self._connections: list[Connection] = []
        self._beat = beat
        self._beaten = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Session({self.name!r}, {self.site.vcenter!r})"

    def log_in(self) -> None:
        """Log in, or again; see open_session for the errors. The password is read anew, and not kept."""
        password = read_secret(self.site.password_file, "password_file")

        def act() -> None:
            if self.content is None:
                self._stub = self._make_stub()
                self.content = vim.ServiceInstance("ServiceInstance", self._stub).RetrieveContent()
            self._stub.cookie = ""  # of the session that ended
            self.content.sessionManager.Login(self.site.user, password, None)

        try:
            self._run(act, connection.CALL_SECONDS)
        except (vim.fault.InvalidLogin, vim.fault.NoPermission) as exc:
            raise LoginRefused(self.name, f"{self.site.vcenter} refuses user {self.site.user}: {words(exc)}") from exc
        except vmodl.MethodFault as exc:
            raise translate(self.name, f"log in as {self.site.user}", exc) from exc
        except (OSError, http.client.HTTPException, ExpatError, ElementTree.ParseError) as exc:
            raise self._unreachable("log in", exc) from exc
        self._logged_in = True

    def close(self) -> None:
        """Log out, and hang up. Waits LOGOUT_SECONDS at most, and never raises."""
        self._beat = no_beat
        if self._logged_in:
            self._logged_in = False
            with suppress(Exception):
                self._run(lambda: self.content.sessionManager.Logout(), LOGOUT_SECONDS)
        if self._stub is not None:
            self._stub.DropConnections()

    @contextmanager
    def beating(self, beat: Beat) -> Iterator[None]:
        """Call `beat`, in place of the session's own, in every wait in here; what it raises ends the wait."""
        before, self._beat = self._beat, beat
        try:
            yield
        finally:
            self._beat = before

    def call(
        self,
        what: str,
        act: Callable[[], T],
        *,
        passing: tuple[type[vmodl.MethodFault], ...] = (),
        repeat: bool = True,
        seconds: float | None = None,
    ) -> T:
        """
        Result of `act`, which makes one call to vCenter, or several that only make sense within one session.

        It is made again after another login where the session had expired: vCenter then did nothing; and once more on a
        dropped connection if it is safe to `repeat`. Faults in `passing` are raised as they are, all others as
        SiteErrors that begin with `what`. It has `seconds`, CALL_SECONDS unless given.
        """
        seconds = connection.CALL_SECONDS if seconds is None else seconds
        expired = dropped = False
        while True:
            try:
                return self._run(act, seconds)
            except vim.fault.NotAuthenticated as exc:
                if expired:
                    raise SessionLost(self.name, f"{what}: the session ended right after the login") from exc
                expired = True
                self.log_in()
            except passing:
                raise
            except vmodl.MethodFault as exc:
                raise translate(self.name, what, exc) from exc
            except _DROPPED as exc:
                if dropped or not repeat:
                    raise self._unreachable(what, exc) from exc
                dropped = True
            except (OSError, ExpatError) as exc:
                raise self._unreachable(what, exc) from exc

    def pause(self, seconds: float) -> None:
        """Sleep, beating."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, BEAT_SECONDS))
            self._pulse()

    def clock(self) -> datetime:
        """The time by vCenter's clock."""
        service = vim.ServiceInstance("ServiceInstance", self._stub)
        found: datetime = self.call("read the clock", service.CurrentTime)
        return found

    def vm(self, moref: str) -> vim.VirtualMachine:
        """The VM of that moref, which may not exist: nothing is asked."""
        return vim.VirtualMachine(moref, self._stub)

    def snapshot(self, moref: str) -> vim.vm.Snapshot:
        """The snapshot of that moref, which may not exist: nothing is asked."""
        return vim.vm.Snapshot(moref, self._stub)

    def _run(self, act: Callable[[], T], seconds: float) -> T:
        """Result of `act`, from a thread that is left alone after `seconds`, or when the beat raises."""
        outcome: list[T] = []
        failure: list[BaseException] = []

        def work() -> None:
            try:
                outcome.append(act())
            except BaseException as exc:
                failure.append(exc)

        worker = Worker(target=work, name="vcenter", daemon=True)
        deadline = time.monotonic() + seconds
        worker.start()
        try:
            while worker.is_alive():
                if (left := deadline - time.monotonic()) <= 0:
                    raise _GivenUp(f"no answer in {show_seconds(seconds)}")
                worker.join(min(left, BEAT_SECONDS))
                self._pulse()
        except BaseException:
            worker.abandoned = True
            for each in self._connections:
                each.cut()
            raise
        if failure:
            raise failure[0]
        return outcome[0]

    def _pulse(self) -> None:
        now = time.monotonic()
        if now - self._beaten >= BEAT_SECONDS * 0.9:
            self._beaten = now
            self._beat()

    def _connect(self, **_: object) -> Connection:
        made = Connection(self.name, self.site)
        self._connections = [*(each for each in self._connections if each.sock), made]
        return made

    def _make_stub(self) -> Any:
        version = self._negotiate()
        site = self.site
        stub: Any = SoapStubAdapter(
            site.host, site.port, path=_PATH, version=version, connectionPoolTimeout=IDLE_SECONDS
        )
        stub.scheme = self._connect
        return stub

    def _negotiate(self) -> str:
        """The newest version of the API that both sides know; learns the certificate's thumbprint on the way."""
        made = self._connect()
        try:
            made.request("GET", f"{_PATH}/vimServiceVersions.xml")
            response = made.getresponse()
            document = response.read()
        finally:
            made.close()
        self.thumbprint = made.thumbprint
        if response.status != http.client.OK:
            raise http.client.HTTPException(f"HTTP {response.status} {response.reason}")
        offered = {item.text for item in ElementTree.fromstring(document).iter("version")}
        for version in GetServiceVersions("vim25"):
            if versionIdMap[version] in offered:
                return str(version)
        raise http.client.HTTPException("it offers no version of the vSphere API that is known here")

    def _unreachable(self, what: str, exc: BaseException) -> SiteUnreachable:
        if isinstance(exc, ExpatError | ElementTree.ParseError):
            said = "what answers is no vCenter"
        elif isinstance(exc, _GivenUp):
            said = str(exc)
        elif isinstance(exc, TimeoutError):
            said = f"no answer in {show_seconds(connection.CALL_SECONDS)}"
        else:
            said = f"the connection failed: {getattr(exc, 'strerror', '') or str(exc) or type(exc).__name__}"
        return SiteUnreachable(self.name, f"{what}: {self.site.vcenter}: {said}")
