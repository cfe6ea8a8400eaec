"""Flower as a child: the pages on which operators see workers and tasks (`workers.flower`)."""

import secrets
import sys
from pathlib import Path

from sendense.errors import InputError
from sendense.files import make_folder, read_secret, storing, write_atomically
from sendense.settings import Settings
from sendense.supervise.child import Child
from sendense.supervise.service import Budget, Note
from sendense.supervise.web import Web

USER = "operator"


class Flower(Web):
    """One Flower on `settings.flower_listen`, which is not empty, for the Redis at `redis_url`."""

    def __init__(self, settings: Settings, redis_url: str, folder: Path, note: Note, budget: Budget) -> None:
        environment = {"SENDENSE_REDIS": redis_url}
        child = Child("Flower", [sys.executable, "-m", "workers.flower"], folder / "flower.log", environment)
        # What it answers there is at worst that it wants a password.
        super().__init__(
            child, "flower_listen", settings.flower_listen, "/healthcheck", note, budget, tls=bool(settings.tls_dir)
        )
        self.settings = settings

    def prepare(self) -> None:
        """It wants a password."""
        ensure_password(self.settings)
        super().prepare()


def password_file(settings: Settings) -> Path:
    """Where the password of USER is."""
    return settings.state_dir.absolute() / "flower.password"


def ensure_password(settings: Settings) -> None:
    """Make the password, once."""
    path = password_file(settings)
    with storing(path):
        if not path.exists():
            make_folder(path.parent)
            write_atomically(path, f"{secrets.token_urlsafe(24)}\n".encode())


def read_password(settings: Settings) -> str:
    """The password; InputError where there is none, or one that Flower cannot compare with what browsers send."""
    path = password_file(settings)
    password = read_secret(path, "Flower's password")
    if not password.isascii():
        raise InputError(f"{path}: not all of it is ASCII", "Write another, or delete the file: a new one is made.")
    return password
