"""The HTTPS server: SOAP at /sdk, and the lab's own JSON endpoint at /lab/."""

import gzip
import json
import secrets
import select
import socket
import socketserver
import ssl
import sys
import traceback
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sendense.errors import SendenseError
from sendense.lab import soap
from sendense.lab.control import Control, OpenRefused
from sendense.lab.operations import ConnectionDropped, Operations
from sendense.lab.vmomi import METHOD_FAULT, vmodl

_COOKIE = "vmware_soap_session"
_HANDSHAKE_SECONDS = 10.0
_IDLE_SECONDS = 1800.0
"""pyVmomi keeps an idle connection for 900 seconds, and takes it badly when the other end closed it before."""
_LARGEST_REQUEST = 64 * 2**20


class LabServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1; a thread for each connection, its TLS handshake included."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, folder: Path, operations: Operations, control: Control) -> None:
        self.operations, self.control = operations, control
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
        super().__init__(("127.0.0.1", port), _Handler)

    def server_bind(self) -> None:
        """Without http.server's look-up of this host's name, which can take as long as a resolver does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", int(self.server_address[1])

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Runs in the connection's own thread: a client that never shakes hands delays nobody."""
        request.settimeout(_HANDSHAKE_SECONDS)
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            secured = self._context.wrap_socket(request, server_side=True)
        except OSError:
            return
        with secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is nothing to tell."""
        if not isinstance(sys.exc_info()[1], OSError):
            traceback.print_exc()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    wbufsize = -1  # headers and body leave in one piece
    server: LabServer

    def do_GET(self) -> None:
        if self.path == "/sdk/vimServiceVersions.xml":
            self._send(HTTPStatus.OK, soap.versions_document(), "text/xml")
        else:
            self._send(HTTPStatus.NOT_FOUND, b"", "text/plain")

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if length > _LARGEST_REQUEST:
            self.close_connection = True
            self._send(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"", "text/plain")
            return
        body = self.rfile.read(length)
        path = self.path.partition("?")[0].rstrip("/")
        if path == "/sdk":
            self._soap(body)
        elif path == "/lab/open":
            self._open_disk(body)
        elif path.startswith("/lab/"):
            self._control(path.removeprefix("/lab/"), body)
        else:
            self._send(HTTPStatus.NOT_FOUND, b"", "text/plain")

    def _soap(self, body: bytes) -> None:
        cookie, is_new = self._cookie()
        headers = {"Set-Cookie": f'{_COOKIE}="{cookie}"; Path=/; HttpOnly; Secure;'} if is_new else {}
        version = ""
        try:
            call = soap.read_call(body, self.headers.get("SOAPAction", ""))
            version = call.version
            answer = soap.write_answer(call, *self.server.operations.answer(call, cookie))
            status = HTTPStatus.OK
        except ConnectionDropped:
            self.close_connection = True
            return
        except Exception as exc:
            answer, status = soap.write_fault(_as_fault(exc), version), HTTPStatus.INTERNAL_SERVER_ERROR
        self._send(status, answer, "text/xml; charset=utf-8", headers)

    def _cookie(self) -> tuple[str, bool]:
        """The client's cookie, and whether it is a new one."""
        try:
            found = SimpleCookie(self.headers.get("Cookie", "")).get(_COOKIE)
        except CookieError:
            found = None
        return (found.value, False) if found and found.value else (secrets.token_hex(20), True)

    def _control(self, name: str, body: bytes) -> None:
        if not self.server.control.is_allowed(self.headers.get("Authorization", "")):
            self._send_json(HTTPStatus.UNAUTHORIZED, {"error": "wrong token", "hint": ""})
            return
        try:
            self._send_json(HTTPStatus.OK, self.server.control.answer(name, json.loads(body or b"{}")))
        except SendenseError as exc:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": str(exc), "hint": exc.hint})
        except Exception as exc:
            message = getattr(exc, "msg", None) or str(exc) or type(exc).__name__
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": message, "hint": ""})

    def _open_disk(self, body: bytes) -> None:
        """A disk counts as open for as long as this connection stands, so a killed nbdkit gives it back as well."""
        self.close_connection = True
        try:
            with self.server.control.open_disk(json.loads(body)) as opened:
                self._send_json(HTTPStatus.OK, opened)
                self.wfile.flush()
                self._wait_for_close()
        except OpenRefused as exc:
            self._send_json(HTTPStatus.FORBIDDEN, {"error": str(exc)})

    def _wait_for_close(self) -> None:
        while True:
            readable, _, _ = select.select([self.connection], [], [], 1.0)
            if readable:
                try:
                    if not self.connection.recv(1):
                        return
                except OSError:
                    return

    def _send_json(self, status: HTTPStatus, value: object) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        if len(body) > 16384 and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, 1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """The lab's output stays readable."""


def _as_fault(exc: Exception) -> Exception:
    if isinstance(exc, METHOD_FAULT):
        return exc
    if isinstance(exc, soap.BadRequest):
        return _made(vmodl.fault.InvalidRequest, str(exc))
    traceback.print_exception(exc)
    return _made(vmodl.fault.SystemError, f"A general system error occurred: {exc!r}", reason=repr(exc))


def _made(kind: Any, message: str, **details: str) -> Exception:
    made: Exception = kind(msg=message, **details)
    return made
