"""The server: where it listens, with which certificate, for how long it waits, and how it ends."""

import asyncio
import signal
import socket
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from sendense.api.calls import Calls
from sendense.errors import InputError
from sendense.settings import Settings, host_and_port

HEAD_SECONDS = 5.0
"""For a connection to send the head of a request, from its beginning or from its first byte; uvicorn has no limit."""

IDLE_SECONDS = 30
"""A connection that nobody asks anything on is closed after this."""

DEAF_SECONDS = 30
"""A client that takes nothing of what is sent to it for so long is cut off by the kernel (tcp(7), TCP_USER_TIMEOUT)."""

END_SECONDS = 3
"""For answers that are under way when the process is to end; whoever supervises it waits longer."""

BACKLOG = 256
"""Connections that wait to be accepted."""


class _Protocol(H11Protocol):
    """HTTP/1.1 in which a client cannot hold a connection by sending slowly, or nothing."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if not self._head and not self._is_answering():
            self._expect_head()
        super().data_received(data)
        if self._is_answering():
            self._forget_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_head(self) -> None:
        self._head = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _forget_head(self) -> None:
        if self._head:
            self._head.cancel()
            self._head = None


def serve(app: FastAPI, calls: Calls, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; InputError when the address or the certificate cannot be used."""
    listener = _listen(settings.api_listen)
    certificate, key = _certificate(settings)
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,  # the gate has its own, which knows the token
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=END_SECONDS,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    server = uvicorn.Server(config)
    calls.closing = lambda: server.should_exit
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # uvicorn has its own while it runs, and then raises the signal again
    server.run([listener])


def _listen(address: str) -> socket.socket:
    host, port = host_and_port(address)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)  # without it asyncio leaves Nagle's algorithm on: 40 ms
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAF_SECONDS * 1000
        )  # accepted ones have it too
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as exc:
        hint = "Set api_listen to an address of this machine and a free port, or to nothing for no API."
        raise InputError(f"api_listen {address}: {exc.strerror or exc}", hint) from exc
    return listener


def _certificate(settings: Settings) -> tuple[Path | None, Path | None]:
    """The server's certificate and its key: wherever there is one, nothing is said without TLS."""
    if not settings.tls_dir:
        return None, None
    certificate, key = (settings.tls_dir.absolute() / name for name in ("server-cert.pem", "server-key.pem"))
    for path in (certificate, key):
        try:
            path.open("rb").close()
        except OSError as exc:
            raise InputError(f"tls_dir: {path}: {exc.strerror}", "Make it with 'sendense pki init'.") from exc
    return certificate, key
