"""The demo as whoever tries Sendense first runs it."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.servers import short_folder

DEMO = Path(__file__).parents[2] / "deploy" / "demo"

DEMO_SECONDS = 180.0
"""The longest that it may take; it takes half a minute."""

END_SECONDS = 30.0
"""For it to clean up."""


@pytest.mark.timeout(DEMO_SECONDS + 2 * END_SECONDS)
def test_demo_restores_identical_disks_and_leaves_nothing() -> None:
    """The demo ends well, restores both disks as they are, says so, and cleans up; in a folder with a space."""
    with short_folder() as folder:
        scratch = folder / "t mp"
        scratch.mkdir()
        variables = {name: value for name, value in os.environ.items() if not name.startswith("SENDENSE_")}
        demo = subprocess.Popen(
            [DEMO],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**variables, "TMPDIR": str(scratch)},
        )
        try:
            output, _ = demo.communicate(timeout=DEMO_SECONDS)
        except subprocess.TimeoutExpired:
            demo.terminate()
            raise AssertionError(demo.communicate(timeout=END_SECONDS)[0]) from None
        assert demo.returncode == 0, output
        assert output.count("Images are identical.") == 2
        assert "Pass 5: Checking group summary information" in output
        assert list(scratch.iterdir()) == []
        assert processes_of(scratch) == []


def processes_of(folder: Path) -> list[str]:
    """Processes that name this folder in their command line or work in it."""
    found, mark = [], os.fsencode(folder)
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes()
            if mark in line or mark in os.fsencode(os.readlink(entry / "cwd")):
                found.append(line.decode(errors="replace"))
        except OSError:  # it ended meanwhile
            continue
    return found
