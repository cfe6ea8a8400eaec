"""The `sendense copy` command."""

import json
import os
import signal
import sys
from typing import Annotated, Any

import typer

EXIT_DIFFERENT, EXIT_INTERRUPTED = 3, 130


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM."""


def copy(
    source: Annotated[str, typer.Argument(help="NBD URI, or local image (raw, qcow2, vmdk, vhdx).")],
    target: Annotated[str, typer.Argument(help="NBD URI, or path of a new image (.qcow2 or .raw).")],
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Worker processes.", show_default="one per core")
    ] = os.cpu_count() or 1,
    verify: Annotated[bool, typer.Option("--verify", help="Read the target back and compare the digests.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished copy.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing target; forget an unfinished copy.")
    ] = False,
    target_is_zero: Annotated[
        bool, typer.Option("--target-is-zero", help="The target reads as zeroes already: skip zeroes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Copy a disk from SOURCE to TARGET: in parallel, resumable, and without ever hanging silently."""
    from sendense.cli.progress import make_watcher
    from sendense.errors import InputError
    from sendense.local.copy import LocalCopy
    from sendense.local.request import CopyRequest
    from sendense.settings import Settings

    if resume and force:
        raise InputError("--resume and --force contradict each other", "Give one of them.")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    request = CopyRequest(
        source, target, workers=workers, verify=verify, resume=resume, force=force, target_is_zero=target_is_zero
    )
    watcher = make_watcher(quiet=as_json)
    job = LocalCopy(request, Settings(), watcher)
    try:
        with watcher:
            summary = job.run()
    except Interrupted:
        print(f"sendense: interrupted\n  Go on with: {job.resume_command}", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        if as_json and job.summary:
            print(json.dumps(job.summary.to_json()))
    if summary.differences:
        first = summary.differences[0]
        more = f" and {len(summary.differences) - 1} more" if len(summary.differences) > 1 else ""
        print(
            f"sendense: {target} differs from what was copied: offset={first.offset} length={first.length}{more}\n"
            f"  Copy those parts again: {job.resume_command} --verify",
            file=sys.stderr,
        )
        raise typer.Exit(EXIT_DIFFERENT)
    if not as_json:
        watcher.conclude(summary)


def _interrupt(number: int, frame: Any) -> None:
    """Once: what follows is the end in good order, and takes less than five seconds."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted
