"""A child that answers over HTTP, and on which nothing else depends."""

import http.client
import socket
import ssl
import time

from sendense.errors import JobFailed, SendenseError
from sendense.settings import host_and_port
from sendense.supervise.child import Child
from sendense.supervise.service import Budget, Note, Service

ASK_SECONDS = 5.0
"""Between two looks at whether it answers."""

ANSWER_SECONDS = 1.0
"""For one answer: whoever asks supervises others, too."""

SILENT_SECONDS = 30.0
"""What answered nothing for so long, or is not up after so long, is started again."""

END_SECONDS = 5.0
"""For the requests under way."""


class Web(Service):
    """
    A server at HOST:PORT that answers at `path` without asking who wants to know.

    Whatever happens to it is told to `note`, and never ends, or holds up, who supervises it. `setting` names HOST:PORT.
    """

    def __init__(
        self, child: Child, setting: str, listen: str, path: str, note: Note, budget: Budget, *, tls: bool
    ) -> None:
        super().__init__(child, note, budget)
        self._setting, self._listen, self._path, self._tls = setting, listen, path, tls
        self._asked = self._answered = 0.0
        self.refused = ""
        """Why it cannot listen where it is to; empty when nothing is in its way."""

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{'https' if self._tls else 'http'}://{self._listen}/"

    def start(self) -> None:
        """Start it, unless another process listens there: `supervise` then starts it when that is gone."""
        self._asked = time.monotonic()
        if why := refusal(self._listen):
            self.refused = f"the {self.child.name} cannot listen at {self._listen} ({self._setting}): {why}"
            return
        self.refused = ""
        super().start()

    def prepare(self) -> None:
        """It gets time to start."""
        self._answered = time.monotonic()

    def is_ready(self) -> bool:
        """Whether it answers there, and nobody else."""
        if not self.child.listens(host_and_port(self._listen)[1]):
            return False
        host, port = host_and_port(self._listen)
        connection: http.client.HTTPConnection
        if self._tls:
            context = ssl._create_unverified_context()  # nothing is told to it, so it need not prove who it is
            connection = http.client.HTTPSConnection(host, port, timeout=ANSWER_SECONDS, context=context)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
        try:
            connection.request("GET", self._path)
            connection.getresponse()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return True

    def supervise(self) -> None:
        """Start it again if it ended or stopped answering, as often as its budget allows; returns within seconds."""
        now = time.monotonic()
        if now - self._asked < ASK_SECONDS:
            return
        self._asked = now
        if self.child.is_running():
            if self.is_ready():
                self._answered = now
            if now - self._answered < SILENT_SECONDS:
                return
            what = "stopped answering"
            if not self.kill():
                return
        else:
            what = f"ended ({self.child.last_words(2) or 'without a word'})" if self.child.pid else ""
        if self._budget.is_spent():
            return
        if what and not self.refused:
            self.note(f"{self.child.name} {what}: starting it again")
        try:
            self.start()
        except SendenseError as exc:
            self.note(f"{self.child.name} cannot be started: {exc}")

    def end(self) -> None:
        """End it."""
        self.child.end(END_SECONDS)


def must_be_free(setting: str, listen: str) -> None:
    """JobFailed, which names the setting, when nothing can listen at HOST:PORT now."""
    if why := refusal(listen):
        hint = f"End who listens there (ss -ltnp), or set {setting} to an address of this machine and a free port."
        raise JobFailed(f"{setting} {listen}: {why}", hint)


def refusal(listen: str) -> str:
    """Why nothing can listen at HOST:PORT now; empty when it can."""
    host, port = host_and_port(listen)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen()
    except OSError as exc:
        return exc.strerror or str(exc)
    return ""
