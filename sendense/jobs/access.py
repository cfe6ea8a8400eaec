"""
The way into Redis: where it is, its password from a file, and TLS with the certificates that `sendense pki` made.

redis-py tries again whatever fails. What does not heal by itself (a wrong password, a refused certificate, TLS on one
side only) is RedisRefused here, which nobody tries again. A Redis without room is RedisFull, and waited for.
"""

import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, ConnectionError, OutOfMemoryError, ResponseError, TimeoutError

from sendense.errors import InputError
from sendense.files import read_secret
from sendense.settings import Settings, load_settings

LOOK_SECONDS = 1.0
"""For each look at what is wrong with a Redis that did not answer: it is asked again anyway."""


class RedisRefused(InputError):
    """Redis refuses this machine, or is not what the settings say: waiting does not help."""


class RedisFull(ConnectionError):
    """
    Redis answers, and stores nothing: its memory or its disk is full. It is waited for like one that is away.

    A script or a transaction that it refuses so has changed nothing.
    """

    hint = "'sendense doctor --hub' says what is full: give it more memory (maxmemory), or make room on its disk."


_CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""TLS that ended as any connection may."""


def redis_url(settings: Settings) -> str:
    """Where the hub's Redis is; without a password, which `connect` and `make_app` know where to read."""
    return settings.redis or url_of(settings.hub_dir)


def url_of(folder: Path) -> str:
    """Where the private Redis of this folder answers, whoever runs it."""
    return f"unix://{quote(str(socket_of(folder)))}"


def socket_of(folder: Path) -> Path:
    """The socket of the private Redis of this folder."""
    return folder / "redis.sock"


def password_file(url: str, settings: Settings) -> Path | None:
    """
    The file with the password of the Redis at `url`; None when that wants none.

    Of those in our own state folder only the hub's wants one, and only when nodes reach it.
    """
    if url == url_of(settings.hub_dir):
        return own_password_file(settings) if settings.redis_listen else None
    private = url.startswith(f"unix://{quote(str(settings.state_dir.absolute()))}/")
    return None if private else settings.redis_password_file


def own_password_file(settings: Settings) -> Path:
    """The file with the password of a hub's own Redis, where nodes reach it; the hub makes it."""
    return settings.redis_password_file or settings.state_dir.absolute() / "redis.password"


def tls_options(url: str, settings: Settings) -> dict[str, Any]:
    """redis-py's options for TLS; none where the URL has no TLS. InputError where a file of them cannot be read."""
    if not url.startswith("rediss:"):
        return {}
    options: dict[str, Any] = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    if settings.tls_dir:
        files = {"ssl_ca_certs": "ca-cert.pem", "ssl_certfile": "client-cert.pem", "ssl_keyfile": "client-key.pem"}
        for option, name in files.items():
            path = settings.tls_dir.absolute() / name
            try:
                path.open("rb").close()
            except OSError as exc:
                hint = "Make it at the hub with 'sendense pki node', and copy that node's folder here (docs/tunnel.md)."
                raise InputError(f"tls_dir: {path}: {exc.strerror}", hint) from exc
            options[option] = str(path)
    return options


def pool(url: str, settings: Settings, **options: Any) -> "redis.ConnectionPool":
    """Connections to the Redis at `url`, each of which reads the password when it is made."""
    file = password_file(url, settings)
    kind = {"unix": _Unix, "redis": _Tcp, "rediss": _Tls}[url.partition(":")[0]]
    options |= tls_options(url, settings) | {"credential_provider": _PasswordFile(file) if file else None}
    return redis.ConnectionPool.from_url(url, connection_class=kind, where=url, file=file, **options)


def must_store(client: "redis.Redis") -> None:
    """RedisFull, or what else makes Redis unavailable, unless it stores what it is told."""
    client.set("sendense:stores", "", px=1)


class _PasswordFile(CredentialProvider):
    """Reads the password for each new connection, so that a changed one is taken at once."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def get_credentials(self) -> tuple[str]:
        """The password alone: of Redis' default user."""
        if not self._file.exists():  # the hub makes it before it starts Redis
            raise ConnectionError(f"the password of Redis is not there yet: {self._file}")
        try:
            return (read_secret(self._file, "redis_password_file"),)
        except InputError as exc:
            raise RedisRefused(exc.message, exc.hint) from exc


class HubPassword(_PasswordFile):
    """For Celery, which makes one by its name: so its URLs, and whatever shows them, have no password."""

    def __init__(self) -> None:
        settings = load_settings()
        super().__init__(own_password_file(settings))


HUB_PASSWORD = f"{HubPassword.__module__}.{HubPassword.__name__}"


class _Frank:
    """A connection that tells what does not heal by itself from what does. `where` and `file` are for its words."""

    def __init__(self, *args: Any, where: str, file: Path | None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._where, self._password_file = where, file

    def connect_check_health(self, *args: Any, **options: Any) -> None:
        """Connect, once."""
        try:
            super().connect_check_health(*args, **options)  # type: ignore[misc]
        except (ConnectionError, TimeoutError) as exc:
            if wrong := self._wrong(exc):
                raise RedisRefused(f"Redis at {self._where}: {wrong[0]}", wrong[1]) from exc
            raise

    def read_response(self, *args: Any, **options: Any) -> Any:
        """An answer; RedisRefused when it is that the password is wrong, RedisFull when it has no room."""
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        except AuthenticationError as exc:
            self.disconnect()  # type: ignore[attr-defined]
            if self._password_file:
                what = f"refused the password in {self._password_file} ({exc})"
            else:
                what = f"wants a password ({exc})"
            hint = "Copy the hub's redis.password here, with mode 0600, and set redis_password_file to the copy."
            raise RedisRefused(f"Redis at {self._where}: {what}", hint) from exc
        except ResponseError as exc:
            if isinstance(exc, OutOfMemoryError) or str(exc).startswith("MISCONF"):
                raise RedisFull(f"Redis has no room: {exc}") from exc
            raise

    def _wrong(self, exc: Exception) -> tuple[str, str] | None:
        """What a failed attempt to connect came from, and what to do, where that does not heal by itself."""
        return None


class _Unix(_Frank, redis.UnixDomainSocketConnection):
    pass


class _Tcp(_Frank, redis.Connection):
    def _wrong(self, exc: Exception) -> tuple[str, str] | None:
        if isinstance(exc, TimeoutError):  # one that takes TLS only hangs up at once
            return None
        try:
            with socket.create_connection((self.host, int(self.port)), LOOK_SECONDS) as plain:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody, which is quick; it is told nothing
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                with context.wrap_socket(plain):
                    return "takes TLS only", "Write it as rediss://, and set tls_dir to this machine's certificates."
        except OSError:
            return None


class _Tls(_Frank, redis.SSLConnection):
    def _wrong(self, exc: Exception) -> tuple[str, str] | None:
        try:
            plain = socket.create_connection((self.host, int(self.port)), LOOK_SECONDS)
        except OSError:
            return None
        with plain:
            try:
                self._greet(plain)
            except ssl.SSLCertVerificationError as refused:
                hint = (
                    "Compare its names and its end (there: 'sendense pki show'), and ca-cert.pem here with the hub's."
                )
                return f"its certificate is refused: {refused.verify_message}", hint
            except OSError as failed:
                if self._is_plain():
                    return "does not speak TLS", "Write it as redis:// for a tunnel, or set tls_dir at the hub."
                if isinstance(failed, ssl.SSLError) and not isinstance(failed, _CUT_OFF):
                    hint = (
                        "Take this machine's certificates (tls_dir) from the hub again: 'sendense pki node' makes them."
                    )
                    return f"TLS was refused: {failed.reason}", hint
        return None

    def _greet(self, plain: socket.socket) -> None:
        """Set TLS up as redis-py does, and hear whether our certificate is refused, which comes only after that."""
        context = ssl.create_default_context(cafile=self.ca_certs)
        if self.certfile:
            context.load_cert_chain(self.certfile, self.keyfile)
        with context.wrap_socket(plain, server_hostname=self.host) as tls:
            tls.recv(1)

    def _is_plain(self) -> bool:
        """Whether it answers without TLS as Redis does."""
        try:
            with socket.create_connection((self.host, int(self.port)), LOOK_SECONDS) as plain:
                plain.sendall(b"PING\r\n")
                return plain.recv(1) in (b"+", b"-")
        except OSError:
            return False
