"""Real receivers of notices: an HTTP server and a mail server on loopback, each with its own moods."""

import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.servers import free_port, short_folder

START_SECONDS = 60.0
"""The longest that a start may take; it takes half of one."""

HANG_SECONDS = 60.0
"""A receiver that hangs does so for longer than any attempt may take."""

TAKES, HANGS, DRIPS = 204, 0, 1
"""Answers beside statuses of HTTP that are no errors: nothing is said; a letter a second is."""


class Webhook:
    """An HTTP server at `url`: answers with the first of `answers` while there are any, then takes everything."""

    def __init__(self, tls: Path | None = None) -> None:
        self.answers: list[int] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        self._hangs = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((dict(self.headers), body))
                receiver._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls / "server-cert.pem", tls / "server-key.pem")
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True)
        self._thread.start()

    def notices(self) -> list[dict[str, Any]]:
        """The bodies of all requests."""
        return [json.loads(body) for _, body in self.got]

    def kinds(self) -> list[str]:
        """The kinds of all of them."""
        return [notice["kind"] for notice in self.notices()]

    def close(self) -> None:
        """End it."""
        self._hangs.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(HANG_SECONDS)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        answer = self.answers.pop(0) if self.answers else TAKES
        if answer == HANGS:
            self._hangs.wait(HANG_SECONDS)
        elif answer == DRIPS:
            while not self._hangs.wait(1):
                try:
                    request.wfile.write(b"H")
                except OSError:
                    break
        else:
            request.send_response(answer)
            request.send_header("Location", "http://127.0.0.1:1/elsewhere")
            request.send_header("Content-Length", "0")
            request.end_headers()


class Mailbox:
    """A mail server at `address`, a process of its own (`tests.mailserver`); what it took is in a folder."""

    def __init__(self, folder: Path, tls: Path | None = None, *, security: str = "none", user: str = "") -> None:
        self._folder, self.security, self.user = folder, security, user
        self.port = free_port()
        self.address = f"localhost:{self.port}"
        self.mood()
        words = [str(folder), str(self.port), security, str(tls or ""), user]
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.mailserver", *words],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        deadline = time.monotonic() + START_SECONDS
        while not (folder / "ready").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "log").read_text())
            time.sleep(0.02)

    def mood(self, *answers: str, refused: Collection[str] = (), answer: str = "550 nobody of that name") -> None:
        """Have it answer the bodies of the next mails so, and refuse these recipients; then it takes everything."""
        part = self._folder / "mood.part"
        part.write_text(json.dumps({"answers": answers, "refused": list(refused), "answer": answer}))
        part.replace(self._folder / "mood")

    def mails(self) -> list[EmailMessage]:
        """Those that were taken, in their order."""
        found = sorted(self._folder.glob("*.eml"))
        return [message_from_bytes(path.read_bytes(), policy=default) for path in found]

    def subjects(self) -> list[str]:
        """Theirs."""
        return [str(mail["Subject"]) for mail in self.mails()]

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(START_SECONDS)
        self._log.close()


@contextmanager
def webhook(tls: Path | None = None) -> Iterator[Webhook]:
    """A running HTTP server."""
    receiver = Webhook(tls)
    try:
        yield receiver
    finally:
        receiver.close()


@contextmanager
def mailbox(tls: Path | None = None, *, security: str = "none", user: str = "") -> Iterator[Mailbox]:
    """A running mail server."""
    with short_folder() as folder:
        receiver = Mailbox(folder, tls, security=security, user=user)
        try:
            yield receiver
        finally:
            receiver.close()


@contextmanager
def deaf(drip: bytes = b"") -> Iterator[str]:
    """The address of a server that takes connections and says nothing, or one letter of `drip` a second."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends = threading.Event()

        def run() -> None:
            listener.settimeout(0.2)
            taken: list[socket.socket] = []
            last = 0.0
            while not ends.is_set():
                try:
                    taken.append(listener.accept()[0])
                except TimeoutError:
                    pass
                if drip and time.monotonic() - last > 1:
                    last = time.monotonic()
                    for one in taken:
                        try:
                            one.send(drip[:1])
                        except OSError:
                            continue
            for one in taken:
                one.close()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ends.set()
            thread.join(HANG_SECONDS)
