#!/usr/bin/env python3
"""
Back a VM up from a program, and wait for it.

    SENDENSE_HUB=https://hub:7780 SENDENSE_TOKEN_FILE=token SENDENSE_TLS_DIR=pki examples/submit.py VM
"""

import sys

from sendense import Client
from sendense.errors import SendenseError
from sendense.views import Job


def show(job: Job) -> None:
    """Called about once a second."""
    done = f"{job.progress.done / job.progress.data:.0%}" if job.progress and job.progress.data else ""
    print(job.waiting or job.step, done, flush=True)


def main(vm: str) -> int:
    """The exit status."""
    try:
        with Client.of() as client:
            backup = client.backup(vm, verify=True)
            print(f"job {backup.id} has begun", flush=True)
            ended = backup.wait(on_progress=show)
            point = client.point(ended.point).point
    except SendenseError as exc:  # what and where, and what to do about it
        print(f"{exc}\n  {exc.hint}", file=sys.stderr)
        return 1
    copied = sum(disk.changed for disk in point.disks)
    print(f"restore point {point.id}: {point.mode}, {copied} bytes of {len(point.disks)} disks")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: submit.py VM")
    sys.exit(main(sys.argv[1]))
