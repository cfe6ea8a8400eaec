"""What hub and node ask of the machine that they run on: programs, folders with room, certificates that last."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from sendense import pki
from sendense.diagnosis.finding import Trouble
from sendense.errors import InputError
from sendense.hub.folder import check_path
from sendense.nbd.machine import check_machine
from sendense.settings import Settings
from sendense.units import KiB, MiB, show_bytes

LITTLE_BYTES, LITTLE_SHARE = 1024 * MiB, 0.02
"""Free bytes, and free share of a file system, below which somebody should make room."""

TRY_BYTES = 64 * KiB
"""That are written to see whether it works: file systems that are full still take an empty file."""

SOON_DAYS = 30
"""A certificate that ends within so many days is to be renewed."""

MOST_SKEW, MUCH_SKEW = 5.0, 60.0
"""Seconds between two clocks that are worth a word, and with which certificates and schedules go wrong."""

_CLOCK_FIX = "Have both machines keep time: timedatectl set-ntp true (or chrony), then look at: timedatectl"


def programs(plugin: str = "") -> str:
    """The programs and libraries of `sendense doctor`; `plugin`: nbdkit's, where disks are read through it."""
    checks = check_machine()
    lacking = [
        check for check in checks if not check.ok and (check.required or check.name == f"nbdkit {plugin} plugin")
    ]
    if lacking:
        named = ", ".join(f"{check.name} {check.found or 'is missing'}" for check in lacking)
        raise Trouble("machine", named, "; ".join(check.fix for check in lacking))
    return f"all {sum(check.required for check in checks)} programs and libraries are there"


def state_folder(settings: Settings) -> str:
    """The state folder takes files, and its path is short enough for sockets."""
    check_path(settings)
    return usable(settings.state_dir.absolute(), "state_dir", "state-folder")


def usable(path: Path, setting: str, verdict: str) -> str:
    """A folder that this user may write to, with room on its file system; one that is not there yet can be made."""
    there = writable(path, setting)
    try:
        with tempfile.NamedTemporaryFile(dir=there, suffix=".part") as file:
            file.write(bytes(TRY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        total, _, free = shutil.disk_usage(there)
    except OSError as exc:
        fix = f"Make room on its file system, or set {setting} to another folder."
        raise Trouble(verdict, f"{there}: {exc.strerror or exc}", fix) from exc
    if free < min(LITTLE_BYTES, total * LITTLE_SHARE):
        detail = f"{there}: {show_bytes(free)} of {show_bytes(total)} are free"
        raise Trouble(f"{verdict}-space", detail, f"Make room on its file system: df -h {there}", "warning")
    missing = "" if there == path else ", which will be made"
    return f"{path}{missing}, {show_bytes(free)} free"


def writable(path: Path, setting: str) -> Path:
    """The folder, or the nearest above it that is there, when this user may write to it; InputError otherwise."""
    path = path.absolute()
    try:
        there = next(each for each in (path, *path.parents) if each.exists())
    except OSError as exc:
        raise InputError(f"{path}: {exc.strerror or exc}", f"Correct {setting}, or the file.") from exc
    if not there.is_dir():
        raise InputError(f"{there}: is no folder", f"Set {setting} to a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{there}: may not be written by this user", f"Set {setting} to a folder that may be written.")
    return there


def certificates(folder: Path, kinds: Iterable[str]) -> str:
    """When the first of the certificates in `tls_dir` ends, of those files that are used here."""
    now, found = datetime.now(UTC), [pki.read(folder.absolute() / name) for name in kinds]
    first = min(found, key=lambda each: each.ends)
    detail = f"{first.file} ends {first.ends:%Y-%m-%d}"
    fix = "At the hub: sendense pki init --renew for its own, pki node --renew for a node's (docs/tunnel.md)."
    if first.ends <= now:
        raise Trouble("certificate-ended", f"{first.file} ended {first.ends:%Y-%m-%d}", fix)
    if first.left(now).days < SOON_DAYS:
        raise Trouble("certificate-ends", detail, fix, "warning")
    return detail


def compare_clocks(theirs: float, ours: float, whose: str, within: float = 0.0) -> str:
    """Two clocks, in seconds since the epoch; `within`: seconds by which the reading of theirs may be off."""
    skew = ours - theirs
    said = f"this machine's clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} {whose}'s"
    if abs(skew) - within > MUCH_SKEW:
        raise Trouble("clock", said, _CLOCK_FIX)
    if abs(skew) - within > MOST_SKEW:
        raise Trouble("clock", said, _CLOCK_FIX, "warning")
    return f"within {max(abs(skew), 0.1):.1f} s of {whose}'s"
