"""NBD URIs: parsed and checked before anything is connected (NBD project, doc/uri.md)."""

from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from sendense.errors import InputError

DEFAULT_PORT = 10809
SCHEMES = ("nbd", "nbds", "nbd+unix", "nbds+unix")
_PARAMETERS = ("socket", "tls-certificates", "tls-psk-file", "tls-verify-peer")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One export of one NBD server, and how to reach it. `host` and `port`, or `socket`."""

    uri: str
    export: str
    host: str = ""
    port: int = DEFAULT_PORT
    socket: str = ""
    tls: bool = False
    username: str = ""
    certificates: str = ""
    psk_file: str = ""
    verify_peer: bool = True

    @property
    def address(self) -> str:
        """Where the server listens, as people write it."""
        return self.socket or f"{bracketed(self.host)}:{self.port}"


def bracketed(host: str) -> str:
    """A host as it stands before a port: an IPv6 address has brackets there."""
    return f"[{host}]" if ":" in host else host


def is_uri(text: str) -> bool:
    """Whether text is meant as a URI and not as a path."""
    return "://" in text


def unix_uri(socket: str, export: str = "") -> str:
    """The URI of an export on a Unix socket."""
    return f"nbd+unix:///{quote(export, safe='')}?socket={quote(socket, safe='/')}"


def parse(uri: str) -> Endpoint:
    """The endpoint that a URI names; InputError says what is wrong with it."""
    try:
        parts = urlsplit(uri)
        port = parts.port
        parameters = _parameters(parts.query)
    except ValueError as exc:
        raise InputError(f"{uri}: not a valid URI: {exc}", _EXAMPLES) from exc
    if not parts.scheme:
        raise InputError(f"{uri}: not an NBD URI", _EXAMPLES)
    if parts.scheme not in SCHEMES:
        raise InputError(f"{uri}: scheme '{parts.scheme}' is not one of {', '.join(SCHEMES)}", _EXAMPLES)
    if unknown := [name for name in parameters if name not in _PARAMETERS]:
        raise InputError(f"{uri}: unknown parameter '{unknown[0]}'", f"Known are: {', '.join(_PARAMETERS)}.")
    unix = parts.scheme.endswith("+unix")
    if unix and not parameters.get("socket"):
        raise InputError(f"{uri}: the parameter socket=PATH is missing", _EXAMPLES)
    if unix and parts.hostname:
        raise InputError(f"{uri}: a Unix socket has no host: an export follows three slashes", _EXAMPLES)
    if not unix and "socket" in parameters:
        raise InputError(f"{uri}: socket= belongs to nbd+unix://", _EXAMPLES)
    if not unix and not parts.hostname:
        raise InputError(f"{uri}: the host is missing", _EXAMPLES)
    tls = parts.scheme.startswith("nbds")
    if not tls and (named := [name for name in parameters if name.startswith("tls-")]):
        raise InputError(f"{uri}: {named[0]} needs nbds://", _EXAMPLES)
    return Endpoint(
        uri=uri,
        export=unquote(parts.path.removeprefix("/")),
        host=parts.hostname or "",
        port=DEFAULT_PORT if port is None else port,
        socket=parameters.get("socket", ""),
        tls=tls,
        username=unquote(parts.username or ""),
        certificates=parameters.get("tls-certificates", ""),
        psk_file=parameters.get("tls-psk-file", ""),
        verify_peer=parameters.get("tls-verify-peer", "true").lower() not in ("0", "false", "no"),
    )


def _parameters(query: str) -> dict[str, str]:
    """NAME=VALUE, joined by '&', percent-encoded; a plus is a plus, unlike in a web form."""
    pairs = [part.partition("=") for part in query.split("&") if part]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(f"'{wrong[0]}' has no value")
    return {unquote(name): unquote(value) for name, _, value in pairs}


_EXAMPLES = "Examples: nbd://host:10809/export, nbd+unix:///export?socket=/run/nbd.sock, nbds://host/export"
