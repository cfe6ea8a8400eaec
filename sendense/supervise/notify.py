"""Telling systemd how a service is (sd_notify(3)): ready, at work, alive, about to end."""

import os
import socket
import time

_ADDRESS, _WATCHDOG = "NOTIFY_SOCKET", ("WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """
    Says nothing where no systemd listens. Never waits: what the socket does not take at once is not said.

    It takes systemd's variables out of the environment, since they are not meant for children.
    """

    def __init__(self) -> None:
        self._address = os.environ.pop(_ADDRESS, "")
        microseconds, pid = (os.environ.pop(name, "") for name in _WATCHDOG)
        self._every = int(microseconds) / 2e6 if microseconds and pid in ("", str(os.getpid())) else 0.0
        self._fed = 0.0
        self._status = ""
        self.is_ready = False

    def ready(self) -> None:
        """The service does what it is there for; said once."""
        if not self.is_ready:
            self.is_ready = True
            self._send("READY=1")

    def status(self, text: str) -> None:
        """What it does now, in a line for operators."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """It ends."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Its main loop goes round: to be called each time; systemd hears of it twice as often as it asks for."""
        if self._every and time.monotonic() - self._fed > self._every:
            self._fed = time.monotonic()
            self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(text.encode(), address)
        except OSError:  # systemd is being restarted, say: it asks for nothing then
            return
