"""The `sendense copy` command."""

import json
import os
import signal
import sys
from typing import Annotated

import typer

from sendense.cli.ending import EXIT_DIFFERENT, EXIT_INTERRUPTED, Interrupted, interrupt


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
    from sendense.local.admission import admit
    from sendense.local.request import CopyRequest
    from sendense.local.stack import Stack
    from sendense.settings import load_settings

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    settings = load_settings()
    request = CopyRequest(
        source, target, workers=workers, verify=verify, resume=resume, force=force, target_is_zero=target_is_zero
    )
    admission = admit(request, settings)
    stack = Stack(admission.folder)
    job = None
    try:
        stack.start()
        # Only now: what these import takes as long as the worker's start, and goes on beside it.
        from sendense.cli.progress import make_watcher
        from sendense.local.copy import LocalCopy

        with make_watcher(quiet=as_json) as watcher:
            job = LocalCopy(admission, stack, settings, watcher)
            summary = job.run()
    except Interrupted:
        begun = admission.folder.is_unfinished
        hint = f"Go on with: {admission.resume_command}" if begun else "Nothing was copied yet: start it again."
        print(f"sendense: interrupted\n  {hint}", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        stack.close()
        admission.folder.leave()
        if as_json and job and job.summary:
            print(json.dumps(job.summary.to_json()))
    if summary.differences:
        first = summary.differences[0]
        more = f" and {len(summary.differences) - 1} more" if len(summary.differences) > 1 else ""
        print(
            f"sendense: {target} differs from what was copied: offset={first.offset} length={first.length}{more}\n"
            f"  Copy those parts again: {admission.resume_command} --verify",
            file=sys.stderr,
        )
        raise typer.Exit(EXIT_DIFFERENT)
    if not as_json:
        watcher.conclude(summary)
