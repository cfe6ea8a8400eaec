"""The way to a hub: where it is, with which token and certificate, and what is wrong when it does not answer."""

import os
import ssl
import time
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from sendense.addresses import is_loopback
from sendense.client.calls import Call
from sendense.client.exchange import Lost, unreachable
from sendense.errors import InputError
from sendense.files import read_secret
from sendense.settings import TOKEN_VARIABLE, Settings, load_settings
from sendense.units import show_seconds

CONNECT_SECONDS = 5.0
"""For a hub to take a connection: more is a wrong address, or a firewall."""

SEND_SECONDS = 10.0

PATIENCE_SECONDS = 10.0
"""For which what may be repeated is, where a program does not say."""

_ROOT = "/api/v1"


class Access:
    """Where the hub is, who asks, and how long it is tried."""

    def __init__(self, url: str, token: str, *, ca_file: Path | str | None = None, patience: float = PATIENCE_SECONDS):
        """
        Nothing is sent yet. `url`: http(s)://HOST:PORT. `ca_file`: who signed the hub's certificate, where the system
        does not know. `patience`: seconds for which a request that may be repeated is, after its first failure.
        """
        self.url, self.patience = url.rstrip("/"), patience
        scheme, host = _scheme_and_host(self.url)
        here = is_loopback(host)
        if scheme == "http" and not here:
            raise InputError(
                f"{url}: without TLS everybody on the way could read the token",
                "Give an https:// URL, or reach the hub through a tunnel at http://127.0.0.1:PORT.",
            )
        if not (token and token.isascii() and token.isprintable()):
            raise InputError("the token is none", "'sendense token create' on the hub makes one.")
        self.options: dict[str, Any] = {
            "base_url": f"{self.url}{_ROOT}",
            "headers": {"Authorization": f"Bearer {token}", "Accept": "application/json"},
            "verify": _verifying(ca_file) if scheme == "https" else False,
            "trust_env": not here,  # no proxy leads back to this machine
        }

    @classmethod
    def of(cls, settings: Settings | None = None, *, patience: float = PATIENCE_SECONDS) -> Self:
        """The hub of the settings, those of this process unless given."""
        settings = settings or load_settings()
        if not settings.hub:
            raise InputError("no hub is set", "Set SENDENSE_HUB to the URL of its API.")
        ca_file = settings.tls_dir / "ca-cert.pem" if settings.tls_dir else None
        return cls(settings.hub, _token(settings), ca_file=ca_file, patience=patience)

    def request(self, client: httpx.Client | httpx.AsyncClient, call: Call[Any]) -> httpx.Request:
        """What to send for a call."""
        headers = {"Idempotency-Key": call.key} if call.key else {}
        body = call.body.model_dump(mode="json") if call.body else None
        limits = httpx.Timeout(call.seconds, connect=CONNECT_SECONDS, write=SEND_SECONDS, pool=SEND_SECONDS)
        query = dict(call.query) or None
        return client.build_request(call.method, call.path, params=query, json=body, headers=headers, timeout=limits)

    def lost(self, exc: httpx.HTTPError, call: Call[Any], began: float) -> Lost:
        """What came of a call that was sent at `began`, and that nobody answered."""
        unsent = isinstance(exc, httpx.ConnectError | httpx.ConnectTimeout)
        again = not isinstance(exc, httpx.ReadTimeout | httpx.UnsupportedProtocol)
        if certificate := _certificate_error(exc):
            hint = "Set tls_dir to a folder with the hub's ca-cert.pem, and name the hub as its certificate does."
            return Lost(unreachable(self.url, f"its certificate is refused: {certificate}", hint), unsent, False)
        waited = show_seconds(time.monotonic() - began)
        said = f"no answer in {waited}" if isinstance(exc, httpx.TimeoutException) else str(exc) or type(exc).__name__
        return Lost(unreachable(self.url, f"{call.method} {call.path}: {said}"), unsent, again)


def _scheme_and_host(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not (parts.path or parts.query):
            return parts.scheme, parts.hostname
    except ValueError:  # of a port, or of brackets
        pass
    raise InputError(f"{url}: is no http://HOST:PORT or https://HOST:PORT", "Give the URL of a hub's API.")


def _token(settings: Settings) -> str:
    if settings.token_file:
        return read_secret(settings.token_file, "token_file")
    if token := os.environ.get(TOKEN_VARIABLE, ""):
        return token
    raise InputError(
        f"no token for the hub {settings.hub} is set",
        "Name its file (SENDENSE_TOKEN_FILE, mode 0600); 'sendense token create' on the hub makes one.",
    )


def _verifying(ca_file: Path | str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as exc:
        raise InputError(
            f"{ca_file}: {getattr(exc, 'strerror', None) or exc}",
            "It has to be the PEM certificate of who signed the hub's.",
        ) from exc


def _certificate_error(exc: BaseException | None) -> str:
    """Why a certificate was refused, if that is what is behind an error."""
    while exc:
        if isinstance(exc, ssl.SSLCertVerificationError):
            return exc.verify_message
        exc = exc.__cause__ or exc.__context__
    return ""
