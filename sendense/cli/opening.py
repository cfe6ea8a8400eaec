"""Which hub a command asks: the one that is named, or this machine."""

import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sendense.beat import Beat, no_beat
from sendense.errors import InputError

if TYPE_CHECKING:
    from sendense.hub.following import Pace
    from sendense.service.hub import Hub
    from sendense.supervise.service import Note

COMMAND_PATIENCE_SECONDS = 2.0
"""For which a request is repeated: a user sees what is wrong, and starts the command again."""


def to_stderr(text: str) -> None:
    """A note of what the hub does meanwhile."""
    print(f"sendense: {text}", file=sys.stderr)


@contextmanager
def open_hub(note: "Note" = to_stderr, *, work: bool = False, beat: Beat = no_beat) -> "Iterator[Hub]":
    """
    The hub of the settings, otherwise this machine's.

    Of this machine's alone: `work` keeps it up for jobs, `note` is told what is started again, and `beat` is called
    while a site is asked.
    """
    from sendense.settings import load_settings

    settings = load_settings()
    if settings.hub:
        from sendense.client import Client

        with Client.of(settings, patience=COMMAND_PATIENCE_SECONDS) as client:
            yield client
    else:
        from sendense.hub.local import open_local

        with open_local(settings, note, work=work, beat=beat) as hub:
            yield hub


def warn_if_alone() -> None:
    """Say on stderr that this machine's hub, which was asked, is up nowhere: nothing of what was shown goes on."""
    from sendense.hub.folder import is_locked, service_lock
    from sendense.settings import load_settings

    settings = load_settings()
    folder = settings.hub_dir
    if not (settings.hub or settings.redis or is_locked(service_lock(folder)) or is_locked(folder / "lock")):
        to_stderr("no hub is up here: nothing goes on until 'sendense hub' does, or a command that runs jobs")


def is_remote() -> bool:
    """Whether the hub is another machine's, as far as commands know."""
    from sendense.settings import load_settings

    return bool(load_settings().hub)


def pace() -> "Pace":
    """How often to look at a job."""
    from sendense.hub.following import ELSEWHERE, HERE

    return ELSEWHERE if is_remote() else HERE


def new_key() -> str:
    """Names one order, which the hub then takes once however often it is sent."""
    return uuid.uuid4().hex


def target_named(text: str) -> str:
    """An NBD URI, or the path of an image on the hub; InputError for one that only means something here."""
    from sendense.nbd.uri import is_uri, parse

    if is_uri(text):
        return parse(text).uri
    if is_remote() and not text.startswith("/"):
        raise InputError(f"{text}: is not an absolute path", "With --hub, images are named by their paths on the hub.")
    return str(Path(text).absolute())
