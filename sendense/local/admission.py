"""Whether a copy may start, and from where: checked before anything is started, and nothing that is stored is lost."""

import shlex
from dataclasses import dataclass

from sendense.errors import InputError
from sendense.local.request import CopyRequest, Source, Target, check_pair, source_of, target_of
from sendense.local.state import StateFolder, Unfinished
from sendense.settings import Settings


@dataclass(frozen=True, slots=True)
class Admission:
    """A copy that may start: its folder is locked for it. `unfinished` is what it goes on with."""

    request: CopyRequest
    source: Source
    target: Target
    folder: StateFolder
    unfinished: Unfinished | None

    @property
    def resume_command(self) -> str:
        """What goes on with this copy."""
        return _resume_command(self.request)


def admit(request: CopyRequest, settings: Settings) -> Admission:
    """Check the request against the files and the unfinished copies there are; InputError says what is in the way."""
    if request.resume and request.force:
        raise InputError("--resume and --force contradict each other", "Give one of them.")
    source, target = source_of(request.source), target_of(request.target)
    check_pair(source, target)
    folder = StateFolder(settings.state_dir, target.label)
    folder.lock()
    try:
        unfinished = _find_unfinished(request, source, target, folder)
    except InputError:
        folder.leave()
        raise
    return Admission(request, source, target, folder, unfinished)


def _find_unfinished(request: CopyRequest, source: Source, target: Target, folder: StateFolder) -> Unfinished | None:
    if request.force:
        folder.clear()
        if target.path.name:
            target.partial.unlink(missing_ok=True)
        return None
    unfinished = folder.load()
    if unfinished:
        _check_resume(request, source, target, unfinished)
        return unfinished
    if request.resume:
        raise InputError(f"there is no unfinished copy onto {target.label}", "Run the command without --resume.")
    folder.clear()
    for path in (target.path, target.partial) if target.path.name else ():
        if path.exists():
            raise InputError(f"{path}: exists", "Name another target, or give --force to replace it.")
    return None


def _check_resume(request: CopyRequest, source: Source, target: Target, unfinished: Unfinished) -> None:
    there = f"an unfinished copy of {unfinished.source} onto {target.label} is there"
    if unfinished.source != source.label:
        raise InputError(there, "Finish that one first (--resume with that source), or give it up: --force")
    if not request.resume:
        raise InputError(there, f"Go on with it: {_resume_command(request)}   (or start over: --force)")
    if unfinished.fingerprint != source.fingerprint:
        raise InputError(f"{source.label}: was written to since the copy began", "Start over with --force.")


def _resume_command(request: CopyRequest) -> str:
    return shlex.join(["sendense", "copy", request.source, request.target, "--resume"])
