"""
HTTPS connections to vCenter on which every wait ends, and that trust only what the settings say.

pyVmomi's own support is not enough: its `thumbprint` is looked at only where the usual verification fails, and after a
first mismatch its shared TLS context stays unverified, so that the next connection takes any certificate; without a
context it verifies nothing on 127.0.0.1; and it has one time limit at most.
"""

import hashlib
import http.client
import select
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sendense.errors import CertificateRefused, InputError, SiteUnreachable
from sendense.settings import Site
from sendense.units import show_seconds

CONNECT_SECONDS = 10.0
"""For the TCP connection, and again for the TLS handshake."""

CALL_SECONDS = 60.0
"""For the answer to one call: vCenter under load takes seconds, reading a large VM's devices included."""


class Worker(threading.Thread):
    """A thread that makes one call; once `abandoned`, it may send nothing more."""

    abandoned = False


class Connection(http.client.HTTPSConnection):
    """
    One connection to a site's vCenter.

    Raises SiteUnreachable or CertificateRefused where it cannot be made; later failures come as http.client and socket
    raise them.
    """

    def __init__(self, name: str, site: Site) -> None:
        self.name, self.site = name, site
        self.thumbprint = ""
        """Of the certificate that was taken."""
        self._answered = False
        self._trust = _trust(site)
        super().__init__(site.host.strip("[]"), site.port, timeout=CALL_SECONDS, context=self._trust)

    def connect(self) -> None:
        """Connect, and take nothing but the right certificate, before a byte of a request is sent."""
        self._answered = False
        raw = self._dial()
        try:
            self.sock = self._secure(raw)
        except BaseException:
            raw.close()
            raise
        self.sock.settimeout(CALL_SECONDS)

    def request(
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, Any] = {},
        *,
        encode_chunked: bool = False,
    ) -> None:
        """As http.client has it, and on a new connection where vCenter closed this one while it was idle."""
        if self.sock and self._answered and select.select([self.sock], [], [], 0)[0]:
            self.close()
        if not self.sock:
            self.connect()
        if getattr(threading.current_thread(), "abandoned", False):
            raise TimeoutError("the call was given up")
        super().request(method, url, body, headers, encode_chunked=encode_chunked)

    def getresponse(self) -> http.client.HTTPResponse:
        """As http.client has it, and hang up where no answer comes."""
        try:
            response = super().getresponse()
        except BaseException:
            self.close()
            raise
        self._answered = True
        return response

    def cut(self) -> None:
        """Wake whoever waits on the connection in another thread: its read or write fails at once."""
        if self.sock:
            with suppress(OSError):
                # SSLSocket.shutdown would first forget that the connection is encrypted.
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def _dial(self) -> socket.socket:
        where = self.site.vcenter
        try:
            raw = socket.create_connection((self.host, self.port), CONNECT_SECONDS)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except (socket.gaierror, UnicodeError) as exc:
            detail = f"host '{self.host}' has no address: {getattr(exc, 'strerror', '') or exc}"
            raise SiteUnreachable(self.name, detail) from exc
        except TimeoutError as exc:
            detail = f"{where} did not answer the connection attempt in {show_seconds(CONNECT_SECONDS)}"
            raise SiteUnreachable(self.name, detail) from exc
        except OSError as exc:
            raise SiteUnreachable(self.name, f"{where}: {exc.strerror or exc}") from exc
        return raw

    def _secure(self, raw: socket.socket) -> ssl.SSLSocket:
        where = self.site.vcenter
        try:
            secured = self._trust.wrap_socket(raw, server_hostname=self.host)
        except ssl.SSLCertVerificationError as exc:
            detail = f"{where}: the certificate cannot be verified: {exc.verify_message}"
            raise CertificateRefused(self.name, detail, self._offered()) from exc
        except TimeoutError as exc:
            detail = f"{where} took the connection and did not begin TLS in {show_seconds(CONNECT_SECONDS)}"
            raise SiteUnreachable(self.name, detail) from exc
        except OSError as exc:
            detail = f"{where}: no TLS there: {getattr(exc, 'reason', '') or exc.strerror or exc}"
            raise SiteUnreachable(self.name, detail) from exc
        found, wanted = _thumbprint(secured), self.site.thumbprint.upper()
        if wanted and found != wanted:
            secured.close()
            detail = f"{where}: the certificate's thumbprint is {found}, and not {wanted}, which the settings demand"
            raise CertificateRefused(self.name, detail, found)
        self.thumbprint = found
        return secured

    def _offered(self) -> str:
        """Thumbprint of the certificate that was refused, to tell an operator; nothing is sent to who shows it."""
        with (
            suppress(OSError),
            socket.create_connection((self.host, self.port), CONNECT_SECONDS) as raw,
            _unverified().wrap_socket(raw, server_hostname=self.host) as secured,
        ):
            return _thumbprint(secured)
        return ""


def _trust(site: Site) -> ssl.SSLContext:
    """With a thumbprint the certificate itself is compared, so who signed it says nothing; see Connection._secure."""
    if site.thumbprint:
        return _unverified()
    try:
        return ssl.create_default_context(cafile=site.ca_file)
    except (OSError, ValueError) as exc:
        hint = "Name a file of PEM certificates that this process may read, or pin vCenter's own with thumbprint."
        raise InputError(f"ca_file {site.ca_file}: {getattr(exc, 'strerror', '') or exc}", hint) from exc


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _thumbprint(secured: ssl.SSLSocket) -> str:
    """SHA-1 of the peer's certificate, as VDDK writes it."""
    der = secured.getpeercert(binary_form=True) or b""
    return hashlib.sha1(der, usedforsecurity=False).digest().hex(":").upper()
