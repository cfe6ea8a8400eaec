"""The demo as whoever tries Sendense first runs it."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.docs import ROOT, command_in
from tests.recording import lines_of, shown, words_of
from tests.servers import short_folder

DEMO_SECONDS = 180.0
"""The longest that it may take; it takes half a minute."""

END_SECONDS = 30.0
"""For it to clean up."""


@pytest.mark.timeout(DEMO_SECONDS + 2 * END_SECONDS)
def test_demo_restores_identical_disks_and_leaves_nothing() -> None:
    """It ends well, restores disks as they are, and cleans up, in a folder with a space; README's picture is of it."""
    with short_folder() as folder:
        scratch = folder / "t mp"
        scratch.mkdir()
        variables = {name: value for name, value in os.environ.items() if not name.startswith("SENDENSE_")}
        demo = subprocess.Popen(
            [ROOT / command_in("README.md", "./deploy/demo")],
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
        picture = lines_of((ROOT / "docs/images/demo.svg").read_text())
        assert words_of(picture) == words_of(shown(output.splitlines())), "make it anew: deploy/record"
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
