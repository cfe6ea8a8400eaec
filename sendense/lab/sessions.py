"""Who is logged in, and what belongs to a session: its views, its property filters, its unread pages."""

import secrets
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


@dataclass(slots=True)
class Session:
    """One login; everything in it goes with it."""

    key: str
    user: str
    login_time: datetime
    last_used: float
    last_active: datetime
    views: dict[str, list[Any]] = field(default_factory=dict)
    """Objects of a view, by the view's id."""
    filters: dict[str, Any] = field(default_factory=dict)
    pages: dict[str, list[Any]] = field(default_factory=dict)
    """What is still to be fetched, by token."""
    version: int = 0
    """Of the last set of updates that was sent."""
    ended: bool = False


class Sessions:
    """All sessions, by what their clients present as a cookie; none outlives the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}

    def login(self, cookie: str, user: str) -> None:
        """Begin a session for the client with this cookie."""
        now = datetime.now(UTC)
        with self._lock:
            self._sessions[cookie] = Session(secrets.token_hex(16), user, now, time.monotonic(), now)

    def find(self, cookie: str, lasts: float) -> Session | None:
        """The client's session, used just now; None when it has none, or left it idle for longer than it `lasts`."""
        with self._lock:
            session = self._sessions.get(cookie)
            if session is None:
                return None
            if time.monotonic() - session.last_used > lasts:
                self._end(cookie)
                return None
            session.last_used, session.last_active = time.monotonic(), datetime.now(UTC)
            return session

    def logout(self, cookie: str) -> None:
        """End one session."""
        with self._lock:
            self._end(cookie)

    def expire_all(self) -> int:
        """End all sessions; returns how many there were."""
        with self._lock:
            count = len(self._sessions)
            for cookie in list(self._sessions):
                self._end(cookie)
            return count

    def _end(self, cookie: str) -> None:
        if session := self._sessions.pop(cookie, None):
            session.ended = True

    def all(self) -> list[Session]:
        """All sessions."""
        with self._lock:
            return list(self._sessions.values())
