"""Debian's Prometheus with the product's own example settings and rules, on loopback."""

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.backup import patiently
from tests.servers import free_port

SHIPPED = Path(__file__).resolve().parents[1] / "deploy" / "grafana"

START_SECONDS = 60.0
ANSWER_SECONDS = 20.0
END_SECONDS = 20.0

EVERY = "2s"
"""Between two scrapes, and two looks at the rules."""

HOLDS = "1s"
"""What the `for` of each rule is here: so an alert still has to hold from one look to the next."""


class Prometheus:
    """A running one, in a folder."""

    def __init__(self, folder: Path, target: str, token: str) -> None:
        self.folder, self.port = folder, free_port()
        (folder / "token").write_text(token)
        config = (SHIPPED / "prometheus.yml").read_text()
        config = config.replace("15s", EVERY).replace("/etc/prometheus/sendense.token", str(folder / "token"))
        (folder / "prometheus.yml").write_text(config.replace("localhost:7780", target))
        rules = (SHIPPED / "alerts.yml").read_text()
        (folder / "alerts.yml").write_text(re.sub(r"(?m)^( +for:) .+$", rf"\1 {HOLDS}", rules))
        self._log = folder / "prometheus.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        command = [
            *("setpriv", "--pdeathsig", "KILL", "prometheus", f"--config.file={self.folder / 'prometheus.yml'}"),
            *(f"--storage.tsdb.path={self.folder / 'data'}", f"--web.listen-address=127.0.0.1:{self.port}"),
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        assert patiently(self._is_ready, START_SECONDS), self._log.read_text()

    def stop(self) -> None:
        """End it."""
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(END_SECONDS)

    def firing(self) -> dict[str, list[dict[str, str]]]:
        """The labels of the alerts that fire, by the alerts' names."""
        found: dict[str, list[dict[str, str]]] = {}
        for alert in self.ask("alerts")["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert["labels"])
        return found

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an expression has now."""
        found: list[dict[str, Any]] = self.ask(f"query?query={quote(expression)}")["result"]
        return found

    def ask(self, path: str) -> Any:
        """The data of an answer of its API."""
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}", timeout=ANSWER_SECONDS) as answer:
            return json.load(answer)["data"]

    def _is_ready(self) -> bool:
        assert self._process
        assert self._process.poll() is None, self._log.read_text()
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=ANSWER_SECONDS) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def open_prometheus(folder: Path, target: str, token: str) -> Iterator[Prometheus]:
    """One that scrapes the hub at HOST:PORT, with a token of it."""
    prometheus = Prometheus(folder, target, token)
    try:
        prometheus.start()
        yield prometheus
    finally:
        prometheus.stop()
