"""`sendense serve`: a restore point's disks over NBD, read-only and without copying."""

import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sendense.nbd.connect import connect
from sendense.nbd.uri import parse
from tests.docs import command_in
from tests.integration.support import Lab, info_of, tool
from tests.repository import UUID, Story
from tests.servers import free_port, short_folder

START_SECONDS = 30.0


@pytest.fixture
def story() -> Iterator[Story]:
    """A VM with two disks and two restore points."""
    with short_folder() as folder:
        story = Story(folder, keys=(2000, 2001))
        story.backup(d2000="AB0A", d2001="C")
        story.backup(d2000="-D", d2001="0C")
        yield story


@contextmanager
def _serving(
    lab: Lab, story: Story, *arguments: str | Path, ending: signal.Signals = signal.SIGINT, lines: int = 1
) -> Iterator[tuple[list[str], int]]:
    """The lines that a serving command prints, and its process id; ended as a user does, it leaves nothing behind."""
    before = _folders()
    process = lab.start("serve", *arguments, repository=story.folder / "repository")
    assert process.stdout
    try:
        yield [process.stdout.readline().rstrip("\n") for _ in range(lines)], process.pid
    finally:
        process.send_signal(ending)
        result = lab.finish(process)
    assert result.status == 0
    assert _folders() == before


def _folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("sendense-serve-*"))


def _content(uri: str, folder: Path) -> bytes:
    path = folder / "read"
    tool("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, path)
    return path.read_bytes()


def test_all_disks_at_once(lab: Lab, story: Story) -> None:
    """A URI for each disk is printed; it shows the disk as it was then, to several clients, and takes no writes."""
    newest = story.repository.points()[-1]
    with _serving(lab, story, newest.id, lines=2) as (uris, _):
        for uri, key in zip(uris, (2000, 2001), strict=True):
            assert _content(uri, lab.folder) == story.kept[newest.id][key]
        info = info_of(uris[0])
        assert info.read_only
        assert info.multi_conn
        mode = Path(parse(uris[0]).socket).parent.stat().st_mode
        assert mode & 0o077 == 0
    assert not lab.state.exists()
    story.check_content()


def test_the_kernel_could_have_it(lab: Lab, story: Story) -> None:
    """The page's qemu-nbd takes its options and finds the disk; without the kernel's module it ends at the device."""
    command = command_in(
        "docs/backup.md",
        "qemu-nbd --connect=/dev/nbd0 --read-only --format=raw 'nbd+unix:///disk-2000?socket=…'",
    )
    device = lab.folder / "nbd0"
    with _serving(lab, story, story.repository.points()[-1].id, lines=2) as (uris, _):
        words = shlex.split(command.replace("/dev/nbd0", str(device)).replace("…", parse(uris[0]).socket))
        assert words[-1] == uris[0]
        done = subprocess.run(words, capture_output=True, text=True, timeout=START_SECONDS)
    assert (done.returncode, done.stderr) == (1, f"qemu-nbd: Failed to open {device}: No such file or directory\n")


def test_one_disk_on_a_port(lab: Lab, story: Story) -> None:
    """A disk of an older point is served on a port of this machine alone; SIGTERM ends it as Ctrl-C does."""
    oldest, port = story.repository.points()[0], free_port()
    arguments = (oldest.id, "--disk", "2001", "--port", str(port), "--json")
    with _serving(lab, story, *arguments, ending=signal.SIGTERM) as (lines, _):
        [entry] = json.loads(lines[0])
        assert entry == {
            "key": 2001,
            "label": "Hard disk 2001",
            "size": story.size,
            "export": "disk-2001",
            "uri": f"nbd://127.0.0.1:{port}/disk-2001",
        }
        assert _content(entry["uri"], lab.folder) == story.kept[oldest.id][2001]
        table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        listening = [line[1] for line in table if line[3] == "0A"]
        assert [each for each in listening if each.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_what_is_served_stays(lab: Lab, story: Story) -> None:
    """A point that is served, or below one, is not deleted meanwhile, and is afterwards."""
    oldest, newest = (point.id for point in story.repository.points())
    repository = story.folder / "repository"
    with _serving(lab, story, newest, lines=2) as (uris, _):
        connection = connect(parse(uris[0]), 20.0)
        process = lab.start("points", "delete", oldest, "--merge", repository=repository)
        out, err = process.communicate(timeout=100)
        assert process.returncode == 1, out
        assert "in use by a qemu program" in err
        assert _content(uris[0], lab.folder) == story.kept[newest][2000]
        connection.close()
    assert lab.run("points", "delete", oldest, "--merge", repository=repository).status == 0
    story.check_content()


def test_a_killed_server_comes_back(lab: Lab, story: Story) -> None:
    """The URIs go on when the server was killed; killed itself, the command takes it along."""
    newest = story.repository.points()[-1]
    process = lab.start("serve", newest.id, "--disk", "2000", repository=story.folder / "repository")
    assert process.stdout
    uri = process.stdout.readline().strip()
    [server] = [int(line.split()[0]) for line in lab.family() if "qemu-storage-daemon" in line]
    os.kill(server, signal.SIGKILL)
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            assert _content(uri, lab.folder) == story.kept[newest.id][2000]
            break
        except AssertionError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    process.kill()
    process.communicate(timeout=10)
    assert lab.survivors() == []
    folder = Path(parse(uri).socket).parent
    subprocess.run(["rm", "-r", folder], check=True, timeout=10)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("9999",), "no restore point '9999'"),
        (("{point}", "--disk", "7"), "has no disk 7"),
        (("{point}", "--disk", "x"), "--disk"),
        (("{point}", "--port", "70000"), "--port"),
    ],
)
def test_what_cannot_be_served(lab: Lab, story: Story, arguments: tuple[str, ...], said: str) -> None:
    """Wrong points, disks and ports are refused in two lines, with nothing started."""
    words = [word.format(point=story.repository.points()[0].id) for word in arguments]
    result = lab.run("serve", *words, repository=story.folder / "repository")
    assert (result.status, result.stdout) == (2, "")
    assert said in "\n".join(result.error)


def test_a_port_that_is_taken(lab: Lab, story: Story) -> None:
    """A port on which something listens already is refused at once."""
    point, port = story.repository.points()[0].id, str(free_port())
    with _serving(lab, story, point, "--port", port, lines=2):
        process = lab.start("serve", point, "--port", port, repository=story.folder / "repository")
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"127.0.0.1:{port}: Address already in use" in err


def test_a_broken_point(lab: Lab, story: Story) -> None:
    """A point with an image missing is not served."""
    newest = story.repository.points()[-1]
    story.repository.layout.image(UUID, newest.id, 2001).unlink()
    result = lab.run("serve", newest.id, repository=story.folder / "repository")
    assert result.status == 2
    assert "is missing" in result.error[0]
