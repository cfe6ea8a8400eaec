"""What `sendense copy` was asked for, checked before anything is started."""

from dataclasses import dataclass
from pathlib import Path

from sendense.errors import InputError
from sendense.nbd.images import PARTIAL, TARGET_FORMATS, Image, inspect
from sendense.nbd.uri import is_uri, parse


@dataclass(frozen=True, slots=True)
class CopyRequest:
    """The command's arguments as they were typed."""

    source: str
    target: str
    workers: int
    verify: bool = False
    resume: bool = False
    force: bool = False
    target_is_zero: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """Where the disk comes from: an NBD URI, or a local image that has to be served."""

    label: str
    uri: str = ""
    image: Image | None = None

    @property
    def fingerprint(self) -> list[int]:
        """Size and modification time in nanoseconds of every file of a local image; empty for a URI."""
        files = [file.stat() for file in self.image.files] if self.image else []
        return [number for file in files for number in (file.st_size, file.st_mtime_ns)]


@dataclass(frozen=True, slots=True)
class Target:
    """Where the disk goes: an NBD URI, or an image that is made under another name and renamed when it is whole."""

    label: str
    uri: str = ""
    path: Path = Path()
    format: str = ""

    @property
    def partial(self) -> Path:
        """Where the image is while it is not whole."""
        return self.path.with_name(self.path.name + PARTIAL)


def source_of(text: str) -> Source:
    """The source that was named; InputError when it cannot be one."""
    if is_uri(text):
        return Source(text, uri=parse(text).uri)
    path = Path(text).absolute()
    return Source(str(path), image=inspect(path))


def target_of(text: str) -> Target:
    """The target that was named; InputError when it cannot be one."""
    if is_uri(text):
        return Target(text, uri=parse(text).uri)
    path = Path(text).absolute()
    path = path.parent.resolve() / path.name
    kind = TARGET_FORMATS.get(path.suffix.lower())
    if not kind:
        raise InputError(f"{text}: the name says no format that can be written", "Name it .qcow2 or .raw.")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder", "Make it first.")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(f"{path}: is not a regular file", "Name a file that is not there yet.")
    return Target(str(path), path=path, format=kind)


def check_pair(source: Source, target: Target) -> None:
    """Refuse to read and write the same thing."""
    same = source.uri == target.uri if source.uri else False
    files = source.image.files if source.image else ()
    for path in (target.path, target.partial) if target.path.name else ():
        same = same or (path.exists() and any(file.samefile(path) for file in files))
    if same:
        raise InputError(f"{target.label}: the target is, or backs, the source", "Name another target.")
