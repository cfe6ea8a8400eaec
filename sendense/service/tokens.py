"""Who may use a hub's API: bearer tokens, of which only hashes are kept, in a file of the state folder."""

import hashlib
import hmac
import secrets
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sendense.beat import no_beat
from sendense.errors import Conflict, InputError, NotFound
from sendense.files import locked, storing, write_atomically
from sendense.settings import Settings

Role = Literal["operator", "reader"]
"""A reader may look; an operator may do everything."""

SECRET_BYTES = 32
"""256 random bits: with so many, a plain hash is as good as a slow one, and guessing is pointless."""

LOCK_SECONDS = 10.0
"""For another command that makes or revokes a token, which takes milliseconds."""

_PREFIX = "sendense_"
"""Begins every token, so that whoever searches files for secrets finds it."""


class Token(BaseModel):
    """A token as it is kept. `digest`: SHA-256 of it, in hex."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    role: Role
    digest: str
    created: datetime
    expires: datetime | None = None

    @property
    def has_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and self.expires <= datetime.now(UTC)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    tokens: list[Token] = Field(default_factory=list)


class Tokens:
    """The tokens of a state folder. A change by another process is seen at the next call."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.state_dir.absolute() / "tokens.json"
        self._seen: tuple[int, int, int] | None = None
        self._tokens: list[Token] = []

    def all(self) -> list[Token]:
        """Every token, the oldest first; InputError when the file is damaged."""
        seen = self._version()
        if seen != self._seen:
            self._tokens = self._read() if seen else []
            self._seen = seen
        return self._tokens

    def find(self, secret: str) -> Token | None:
        """Whose token this is; None when it is nobody's, was revoked or has expired. Compares in constant time."""
        digest, found = _digest(secret), None
        for token in self.all():
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found if found and not found.has_expired else None

    def are_with(self, token: Token) -> bool:
        """Whether a token is still to be taken."""
        return token in self.all() and not token.has_expired

    def create(self, role: Role, name: str = "", days: int | None = None) -> tuple[Token, str]:
        """A new token, and what its bearer shows: that is nowhere else. Conflict when the name is taken."""
        secret, now = _PREFIX + secrets.token_urlsafe(SECRET_BYTES), datetime.now(UTC)
        try:
            token = Token(
                name=name or f"{role}-{secrets.token_hex(3)}",
                role=role,
                digest=_digest(secret),
                created=now,
                expires=now + timedelta(days=days) if days is not None else None,
            )
        except ValidationError as exc:
            hint = "Letters, digits, '.', '_' and '-', at most 63, the first of them a letter or digit."
            raise InputError(f"'{name}' cannot be a token's name", hint) from exc
        with self._locked():
            tokens = self._read()
            if any(each.name == token.name for each in tokens):
                raise Conflict(f"token {token.name}: there is one of that name", "Revoke it first, or name another.")
            self._write([*tokens, token])
        return token, secret

    def revoke(self, name: str) -> None:
        """Have a token no longer be taken, by a running hub neither."""
        with self._locked():
            tokens = self._read()
            left = [each for each in tokens if each.name != name]
            if len(left) == len(tokens):
                raise NotFound(f"token {name}: no such token", "List them: sendense token list")
            self._write(left)

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self._path.with_suffix(".lock"), LOCK_SECONDS, f"{self._path}: is being changed", no_beat)

    def _version(self) -> tuple[int, int, int] | None:
        """What differs between any two versions of the file: each is a file of its own."""
        with storing(self._path):
            try:
                found = self._path.stat()
            except FileNotFoundError:
                return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _read(self) -> list[Token]:
        with storing(self._path):
            try:
                return _File.model_validate_json(self._path.read_bytes()).tokens
            except FileNotFoundError:
                return []
            except ValidationError as exc:
                hint = "Put it back from a copy; or delete it, and make every token anew."
                raise InputError(f"{self._path}: is damaged", hint) from exc

    def _write(self, tokens: list[Token]) -> None:
        with storing(self._path):
            content = _File(tokens=tokens).model_dump_json(indent=2)
            write_atomically(self._path, f"{content}\n".encode())


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
