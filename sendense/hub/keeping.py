"""
A copy of what a hub knows beside its repository: its jobs, tokens, audit log, passwords, certificates and settings.

The copy is made while the hub runs. Redis only ever adds to its append-only file, and replaces its files together with
the list of them: so the files of one list, each as far as it goes just now, are what Redis had at one moment, but for a
command that is cut off at the end, which Redis drops when it reads the file.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from sendense import __version__
from sendense.coordinator.record import Jobs
from sendense.errors import Conflict, InputError, JobFailed
from sendense.files import PART, make_folder, rename, storing, sync, write_atomically
from sendense.hub.folder import locked, prepare, service_lock
from sendense.service.audit import Audit, local_user
from sendense.settings import Settings, settings_file
from sendense.supervise.redis import PrivateRedis
from sendense.supervise.service import Budget

FORMAT = 1

LIST_TRIES = 20
"""Redis replaces its files when they have doubled: twice while one copy is made is already improbable."""

END_SECONDS = 30.0
"""For Redis to write what it has."""

RESTORED = "the hub's state was brought back as of {:%Y-%m-%d %H:%M} UTC, when this job was under way: it is cancelled"

_MANIFEST, _STATE, _JOBS, _FILES = "state.json", "state", "jobs", "files"
_AOF, _LIST = "appendonlydir", "appendonly.aof.manifest"
_OURS = "sendense:"
"""Begins every key that is not Celery's."""


class _Manifest(BaseModel):
    """What makes a folder a copy: written last."""

    model_config = ConfigDict(extra="ignore")

    format: int
    version: str
    time: datetime
    jobs: bool


@dataclass(frozen=True, slots=True)
class Saved:
    """What a copy has: its files beside Redis', and whether the jobs are among it."""

    files: int
    jobs: bool


@dataclass(frozen=True, slots=True)
class Restored:
    """What came back: when the copy was made, and the jobs that were under way then."""

    time: datetime
    cancelled: list[str]


def save(settings: Settings, folder: Path, redis_folder: Path | None = None) -> Saved:
    """
    Make a copy in `folder`, which is new or empty; a hub may run meanwhile.

    `redis_folder` has the data of a Redis that others run; without it, the jobs of such a hub are in no copy.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty", "Name a new folder for each copy.")
    if not settings.state_dir.is_dir():
        raise InputError(f"{settings.state_dir}: there is no hub's state", "Set state_dir as the hub has it.")
    redis_folder = redis_folder or (None if settings.redis else settings.hub_dir)
    with storing(folder):
        make_folder(folder)
        count = sum(_copy(path, folder / _STATE / name) for name, path in _state_files(settings))
        count += sum(_copy(path, folder / _FILES / str(path).lstrip("/")) for path in set(_named_files(settings)))
        jobs = bool(redis_folder and (redis_folder / _AOF / _LIST).exists())
        if jobs and redis_folder:
            _copy_jobs(redis_folder / _AOF, folder / _JOBS / _AOF)
        manifest = _Manifest(format=FORMAT, version=__version__, time=datetime.now(UTC), jobs=jobs)
        write_atomically(folder / _MANIFEST, manifest.model_dump_json(indent=2).encode())
    return Saved(count, jobs)


def restore(settings: Settings, folder: Path, redis_folder: Path | None = None) -> Restored:
    """
    Bring a copy back into an empty state folder, with no hub running; settings and certificates are not touched.

    Jobs that were under way are cancelled when the hub starts: what they had begun may have ended since.
    """
    manifest, hub = _read(folder), settings.hub_dir
    prepare(settings)
    home = redis_folder or hub
    with locked(service_lock(hub)) as no_service, locked(hub / "lock") as nobody:
        if not (no_service and nobody):
            raise Conflict(f"a hub runs in {hub}", "End it first: what is brought back would be overwritten.")
        files = [path for path in (folder / _STATE).rglob("*") if path.is_file()]
        places = {path: settings.state_dir.absolute() / path.relative_to(folder / _STATE) for path in files}
        for place in [*places.values(), home / _AOF]:
            if place.exists():
                raise Conflict(
                    f"{place}: is there already", "Bring a copy back into an empty state_dir: move this one away."
                )
        with storing(hub):
            cancelled = _restore_jobs(folder / _JOBS / _AOF, home, manifest.time) if manifest.jobs else []
            for path, place in places.items():
                _copy(path, place)
    with Audit(settings).change(
        local_user(), "restore_state", {"folder": str(folder), "time": manifest.time.isoformat()}
    ):
        return Restored(manifest.time, cancelled)


def _read(folder: Path) -> _Manifest:
    path = folder / _MANIFEST
    try:
        manifest = _Manifest.model_validate_json(path.read_bytes())
    except OSError as exc:
        raise InputError(f"{path}: {exc.strerror}", "Name a folder that 'sendense state save' finished.") from exc
    except ValidationError as exc:
        raise InputError(f"{path}: is damaged", "Take another copy.") from exc
    if manifest.format > FORMAT:
        raise InputError(
            f"{folder}: was made by Sendense {manifest.version}", "Bring it back with that version, or a later one."
        )
    return manifest


def _state_files(settings: Settings) -> Iterator[tuple[Path, Path]]:
    """Everything of a state folder that no start makes anew, by its name there."""
    state = settings.state_dir.absolute()
    for path in [*state.iterdir(), *settings.migrations_dir.rglob("*")]:
        if path.is_file() and path.suffix not in (".lock", PART):
            yield path.relative_to(state), path


def _named_files(settings: Settings) -> Iterator[Path]:
    """The settings' file, and what it names, but for the state folder and the repository."""
    if file := settings_file():
        yield file.absolute()
    named = settings.model_dump(exclude={"state_dir", "repository"})
    for path in map(Path.absolute, _paths(named)):
        if path.is_relative_to(settings.state_dir.absolute()):
            continue
        yield from (each for each in ([path] if path.is_file() else path.rglob("*")) if each.is_file())


def _paths(value: object) -> Iterator[Path]:
    match value:
        case Path():
            yield value
        case dict():
            for each in value.values():
                yield from _paths(each)
        case list():
            for each in value:
                yield from _paths(each)


def _copy(source: Path, target: Path) -> bool:
    """Copy a file as it is just now with its time of change, for its owner alone; False where it is gone."""
    make_folder(target.parent)
    try:
        file = source.open("rb")
    except FileNotFoundError:
        return False
    with file, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as copy:
        shutil.copyfileobj(file, copy)
        copy.flush()
        changed = os.fstat(file.fileno())
        os.utime(copy.fileno(), ns=(changed.st_atime_ns, changed.st_mtime_ns))
        os.fsync(copy.fileno())
    return True


def _copy_jobs(source: Path, target: Path) -> None:
    """Copy Redis' append-only files of one moment."""
    for _ in range(LIST_TRIES):
        listed = (source / _LIST).read_bytes()
        names = [words[1] for line in listed.decode().splitlines() if (words := line.split()) and words[-1] != "h"]
        complete = all([_copy(source / name, target / name) for name in names])
        if complete and (source / _LIST).read_bytes() == listed:
            write_atomically(target / _LIST, listed)
            return
        shutil.rmtree(target, ignore_errors=True)
    raise JobFailed(f"{source}: Redis replaces its files again and again", "Try again in a minute.")


def _restore_jobs(source: Path, home: Path, time: datetime) -> list[str]:
    """
    Have the jobs of a copy in Redis' folder, those under way cancelled and all that Celery had queued dropped.

    Until the last rename nothing of it is there.
    """
    part = home / "back"
    shutil.rmtree(part, ignore_errors=True)
    for path in source.iterdir():
        _copy(path, part / _AOF / path.name)
    redis = PrivateRedis(part, lambda text: None, Budget())
    redis.start()
    try:
        redis.wait()
        client, jobs = redis.client, Jobs(redis.client)
        for key in client.scan_iter(count=1000):
            if not key.startswith(_OURS.encode()):
                client.unlink(key)
        active = jobs.active()
        for job in active:
            jobs.event(job, RESTORED.format(time))
            jobs.cancel(job)
    finally:
        redis.client.close()
        redis.child.end(END_SECONDS)
    sync(part / _AOF)
    rename(part / _AOF, home / _AOF)
    shutil.rmtree(part, ignore_errors=True)
    return active
