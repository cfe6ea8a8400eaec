"""The real API server of a hub as a process of its own, and clients of it with tokens made by the command."""

import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.backup import QUICK, Backups
from tests.servers import free_port

START_SECONDS = 30.0
"""The longest that a start may take; it takes one or two."""

END_SECONDS = 10.0

ANSWER_SECONDS = 60.0
"""The longest that a test waits for one answer; it comes within milliseconds, or after the hub's own limit."""


class Api:
    """A server at `url`, over the state folder and the repository of `backups`; its log is in `log`."""

    def __init__(self, backups: Backups, tls: Path | None = None, **settings: object) -> None:
        self.backups, self._tls, self._settings = backups, tls, settings
        self.log = backups.folder / "api.log"
        self.port = free_port()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self._clients: list[httpx.Client] = []

    def start(self) -> None:
        """Start it, and wait until it answers."""
        variables = {name: text for name, text in os.environ.items() if not name.startswith("SENDENSE_")}
        known: dict[str, object] = {
            "config": self.backups.site.config,
            "state_dir": self.backups.state,
            "repository": self.backups.root,
            "api_listen": f"127.0.0.1:{self.port}",
            **({"tls_dir": self._tls} if self._tls else {}),
            **QUICK,
            **self._settings,
        }
        variables.update({f"SENDENSE_{name.upper()}": str(value) for name, value in known.items()})
        argv = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "sendense.api"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables)
        deadline = time.monotonic() + START_SECONDS
        client = self.client()
        while True:
            try:
                assert client.get("/healthz").status_code == 200
                return
            except httpx.TransportError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the API did not start: {self.log.read_text(errors='replace')}") from None
                time.sleep(0.02)

    def stop(self) -> int:
        """End it in good order; its exit status."""
        for client in self._clients:
            client.close()
        if not self.process:
            return 0
        self.process.terminate()
        try:
            return self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(END_SECONDS)
            raise

    def token(self, role: str = "operator", name: str = "") -> str:
        """A new token, made by the command."""
        named = ("--name", name) if name else ()
        result = self.backups.run("token", "create", "--role", role, *named)
        assert result.status == 0, result.stderr
        return result.stdout.strip()

    def client(self, token: str = "", **headers: str) -> httpx.Client:
        """A client that shows this token."""
        if token:
            headers["Authorization"] = f"Bearer {token}"
        verify: ssl.SSLContext | bool = True
        if self._tls:
            verify = ssl.create_default_context(cafile=self._tls / "ca-cert.pem")
        client = httpx.Client(base_url=self.url, headers=headers, timeout=ANSWER_SECONDS, verify=verify)
        self._clients.append(client)
        return client


@contextmanager
def open_api(backups: Backups, tls: Path | None = None, **settings: object) -> Iterator[Api]:
    """A running API, which ends in good order."""
    api = Api(backups, tls, **settings)
    try:
        api.start()
        yield api
    finally:
        assert api.stop() == 0, api.log.read_text(errors="replace")


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem details of an answer that has to be a problem of this status."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    assert found["status"] == status
    assert found["title"]
    assert found["detail"]
    return found
