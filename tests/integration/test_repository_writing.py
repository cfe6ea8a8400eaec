"""Writing a restore point with the real qemu-img: it appears complete or not at all, and says what stops it."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sendense.errors import JobFailed
from sendense.files import write_atomically
from sendense.nbd import images
from sendense.nbd.images import commit_into_backing, is_in_use, own_extents, problems, read_header, repair_leaks
from sendense.repository.batches import read
from sendense.repository.checking import check, strangers
from sendense.repository.points import PointDisk
from tests.drawing import drawing_of, extents_of
from tests.repository import BIRTH, CLUSTER, ROOT, UUID, VM, Story, content, in_namespace, qemu_img, run
from tests.servers import qemu_nbd, short_folder

ID = "20261122T225012Z-3f9a"


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A VM of one disk, without points yet."""
    return Story(tmp_path)


def test_a_chain(story: Story) -> None:
    """A full and its incrementals show each what the disk was, in plain qemu, with relative backing paths."""
    story.backup(full=True, d2000="AAAA----AA")
    story.backup(d2000="-B0B")
    last = story.backup(d2000="--C0----0", change_id="52 de/4")
    story.check_content()
    story.check_digests()
    assert story.repository.latest(UUID) == last
    image = story.repository.layout.image(UUID, last.id, 2000)
    assert read_header(image).backing == f"../{last.disks[0].parent}/disk-2000.qcow2"
    assert drawing_of(own_extents(image), story.size, CLUSTER).rstrip("-") == "--A0----0"


def test_an_image_is_for_its_owner(story: Story) -> None:
    """Neither others nor the group may read a VM's disk or its point's files."""
    story.backup(full=True, d2000="A")
    for path in story.repository.layout.vms.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_point_is_unfinished_until_it_is_committed(story: Story) -> None:
    """Images and batches alone are no point; the manifest is the last thing that is written."""
    draft = story.begin()
    disk = story.store(draft, 2000, None, "AA")
    assert story.repository.points() == []
    assert [found.id for found in story.repository.unfinished()] == [draft.id]
    assert draft.committed() is None
    point = story.commit(draft, [disk])
    assert draft.committed() == point
    assert story.repository.unfinished() == []
    assert story.repository.points() == [point]
    draft.commit(point)  # a job that ended before it could say so does it again
    for again in (lambda: draft.make_image(2000, story.size, None), draft.discard, lambda: draft.drop_image(2000)):
        with pytest.raises(JobFailed, match="is a restore point already"):
            again()
    story.check_content()


def test_an_image_is_made_once(story: Story) -> None:
    """What is there with the same size and parent is kept with its data; anything else is never replaced by itself."""
    first = story.backup(full=True, d2000="AAAA")
    draft = story.begin()
    image = draft.make_image(2000, story.size, first)
    run("qemu-io", "-f", "qcow2", "-c", f"write -P 7 0 {CLUSTER}", image)
    assert draft.make_image(2000, story.size, first) == image
    assert content(image, story.folder)[:CLUSTER] == b"\7" * CLUSTER
    with pytest.raises(JobFailed, match="and is to have"):
        draft.make_image(2000, story.size, None)
    with pytest.raises(JobFailed, match="had"):
        draft.make_image(2000, 2 * story.size, first)
    draft.drop_image(2000)
    draft.drop_image(2000)
    assert draft.make_image(2000, 2 * story.size, None) == image
    assert read_header(image).backing == ""


def test_an_image_that_is_served_is_kept(story: Story) -> None:
    """A job that prepares again while its export is up changes nothing."""
    draft = story.begin()
    image = draft.make_image(2000, story.size, None)
    with qemu_nbd(image, image_format="qcow2"):
        assert draft.make_image(2000, story.size, None) == image
        with pytest.raises(JobFailed, match="lock"):
            story.commit(draft, [story_disk(story, draft.write_batches(2000, []).digest)])
    assert story.repository.points() == []
    assert not is_in_use(image)
    story.commit(draft, [story_disk(story, draft.write_batches(2000, []).digest)])


def story_disk(story: Story, digest: str, **changes: Any) -> PointDisk:
    """A disk without any data."""
    values: dict[str, Any] = {"key": 2000, "label": "d", "file": "f", "size": story.size, "mode": "full"}
    return PointDisk(**{**values, "digest": digest, **changes})


def test_half_made_images(story: Story) -> None:
    """What a crash leaves of an image that was being made is made anew, and is gone when the point is committed."""
    draft = story.begin()
    part = draft.folder / "disk-2000.qcow2.part"
    part.write_bytes(b"QFI\xfb half")
    (draft.folder / "disk-2001.batches.abc.part").touch()
    story.commit(draft, [story.store(draft, 2000, None, "A")])
    assert sorted(os.listdir(draft.folder)) == ["disk-2000.batches", "disk-2000.qcow2", "point.json"]
    story.check_content()
    story.check_digests()


@pytest.mark.parametrize("size", [512, 65536 + 512, 1000, 2**44 + 512])
def test_odd_sizes(story: Story, size: int) -> None:
    """A disk that ends within a cluster, or within a sector, or is very large, has an image, and has it again."""
    draft = story.begin()
    image = draft.make_image(2000, size, None)
    assert draft.make_image(2000, size, None) == image
    assert 0 <= read_header(image).size - size < 512
    story.commit(draft, [story_disk(story, draft.write_batches(2000, []).digest, size=size)])
    assert story.repository.broken() == []


def test_what_is_not_there_is_not_committed(story: Story) -> None:
    """A point without its image, its batches, or with other batches than it says, does not come to be."""
    draft = story.begin()
    digest = draft.write_batches(2000, []).digest
    with pytest.raises(JobFailed, match=r"disk-2000\.qcow2: is missing"):
        story.commit(draft, [story_disk(story, digest)])
    draft.make_image(2000, story.size, None)
    with pytest.raises(JobFailed, match="is not what the point says"):
        story.commit(draft, [story_disk(story, digest, data=1)])
    with pytest.raises(JobFailed, match="is to have"):
        story.commit(draft, [story_disk(story, digest, size=512)])
    story.repository.layout.batches(UUID, draft.id, 2000).unlink()
    with pytest.raises(JobFailed, match=r"disk-2000\.batches: cannot be read"):
        story.commit(draft, [story_disk(story, digest)])
    assert story.repository.points() == []


def test_a_damaged_image_is_not_committed(story: Story) -> None:
    """An image that qemu-img check refuses is no backup; mere leaks are given back."""
    draft = story.begin()
    disk = story.store(draft, 2000, None, "AAAA")
    image = draft.image(2000)
    leaking = leak(image)
    assert "leaked" in qemu_check(image)
    damaged = draft.folder / "damaged"
    damaged.write_bytes(leaking)
    with image.open("r+b") as file:
        file.seek(0x30)
        table = int.from_bytes(file.read(8), "big")  # where the refcount table is (qcow2.txt, "Header")
        file.seek(table)
        file.write(bytes(8))
    assert check(image) != ""
    with pytest.raises(JobFailed, match="qemu-img check"):
        story.commit(draft, [disk])
    damaged.rename(image)
    story.commit(draft, [disk])
    assert check(image) == ""
    story.check_content()


def leak(image: Path) -> bytes:
    """Forget a cluster, as a server that was killed may; the file's content then."""
    with image.open("r+b") as file:
        file.seek(0x28)
        l1 = int.from_bytes(file.read(8), "big")
        file.seek(l1)
        l2 = int.from_bytes(file.read(8), "big") & 0x00FFFFFFFFFFFE00
        file.seek(l2 + 8 * 20)
        file.write((0).to_bytes(8, "big"))
        end = file.seek(0, os.SEEK_END)
        file.write(bytes(CLUSTER))
        file.seek(0x30)
        table = int.from_bytes(file.read(8), "big")
        file.seek(table)
        block = int.from_bytes(file.read(8), "big")
        file.seek(block + 2 * (end // CLUSTER))
        file.write((1).to_bytes(2, "big"))
    return image.read_bytes()


def qemu_check(image: Path) -> str:
    """What qemu-img check says, whatever it finds."""
    done = subprocess.run(
        ["qemu-img", "check", "-f", "qcow2", image], capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout + done.stderr


def test_a_disk_that_is_no_part_of_the_point(story: Story) -> None:
    """An image that was begun for a disk which is gone now does not stay in the point."""
    draft = story.begin()
    draft.make_image(2001, story.size, None)
    draft.write_batches(2001, [])
    story.commit(draft, [story.store(draft, 2000, None, "A")])
    assert sorted(os.listdir(draft.folder)) == ["disk-2000.batches", "disk-2000.qcow2", "point.json"]


def test_a_parent_that_went_meanwhile(story: Story) -> None:
    """Nothing is built on a point that was deleted; what was built on it is not committed."""
    first = story.backup(full=True, d2000="AAAA")
    draft = story.begin()
    disk = story.store(draft, 2000, first, "B")
    folder = story.repository.layout.point(UUID, first.id)
    folder.rename(folder.with_name("gone"))
    with pytest.raises(JobFailed, match="was deleted meanwhile"):
        story.commit(draft, [disk])
    with pytest.raises(JobFailed, match="was deleted meanwhile"):
        story.begin().make_image(2000, story.size, first)
    foreign = first.model_copy(update={"vm": VM.model_copy(update={"uuid": UUID[:-4] + "cafe"})})
    with pytest.raises(JobFailed, match="of another VM"):
        story.begin().make_image(2000, story.size, foreign)


def test_discard(story: Story) -> None:
    """An unfinished point goes with all that is in it; a second time is no error."""
    draft = story.begin()
    story.store(draft, 2000, None, "A")
    draft.discard()
    draft.discard()
    assert not draft.folder.exists()
    assert story.repository.unfinished() == []
    assert os.listdir(draft.folder.parent) == []


def test_killed_at_any_instant(story: Story) -> None:
    """A writer that is killed leaves no point or a whole one, and the next run ends it."""
    script = """
import os, signal, sys, threading
from pathlib import Path
sys.path.insert(0, os.getcwd())
from sendense.repository.catalogue import Repository
from tests.repository import Story, VM
story = Story(Path(sys.argv[1]))
draft = story.repository.begin(VM, sys.argv[2])
if float(sys.argv[3]):
    threading.Timer(float(sys.argv[3]), os.kill, (os.getpid(), signal.SIGKILL)).start()
if not draft.committed():
    story.commit(draft, [story.store(draft, 2000, None, "AAAA")])
os._exit(0)
"""
    for number, seconds in enumerate((0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15)):
        id = f"{BIRTH:%Y%m%dT%H%M%S}Z-{number:04x}"
        for until in (seconds, 0.0):
            command = [sys.executable, "-c", script, str(story.folder), id, str(until)]
            done = subprocess.run(command, cwd=ROOT, timeout=60, capture_output=True, text=True, check=False)
            assert done.returncode in ((0, -signal.SIGKILL) if until else (0,)), done.stderr
            assert story.repository.broken() == []
            assert len(story.repository.points()) + len(story.repository.unfinished()) <= number + 1
    for point in story.repository.points():
        story.kept[point.id] = {2000: content(story.repository.layout.image(UUID, point.id, 2000), story.folder)}
    assert len(story.kept) == 8
    story.check_digests()


def test_strangers(story: Story) -> None:
    """Content that no batch has is found, in a full and in an overlay, data and zeroes."""
    first = story.backup(full=True, d2000="AA--AA")
    second = story.backup(d2000="-B")
    for point, drawing in ((first, "--A---0"), (second, "A--0")):
        image = story.repository.layout.image(UUID, point.id, 2000)
        batches = story.repository.layout.batches(UUID, point.id, 2000)
        assert strangers(image, read(batches)) == []
        extents = extents_of(drawing, CLUSTER)
        for extent in extents:
            run(
                "qemu-io",
                "-f",
                "qcow2",
                "-c",
                f"write {'-z' if extent.zero else '-P 1'} {extent.offset} {extent.length}",
                image,
            )
        assert strangers(image, read(batches)) == extents


def test_is_in_use(story: Story) -> None:
    """An image counts as in use while a qemu program has it open, also below an overlay, and not when one only asks."""
    first, second = story.backup(full=True, d2000="A"), story.backup(d2000="B")
    below = story.repository.layout.image(UUID, first.id, 2000)
    above = story.repository.layout.image(UUID, second.id, 2000)
    assert not is_in_use(below)
    with qemu_nbd(above, "--read-only", "--persistent", image_format="qcow2"):
        assert is_in_use(below)
        assert is_in_use(above)
    assert not is_in_use(below)
    with qemu_nbd(above, "--persistent", image_format="qcow2"):
        assert is_in_use(below)
    qemu_img("info", below)
    assert not is_in_use(below)


WRITING = """
from datetime import UTC, datetime
from pathlib import Path
from sendense.errors import SendenseError
from sendense.repository.batches import stored_batch
from sendense.repository.catalogue import Repository
from tests.repository import VM, UUID
import os, random

root, size = Path(ROOT), 2**21
repository = Repository.open(root, create=True)
print(len(repository.points()), "points,", repository.broken())

def tell(do):
    try:
        do()
        print("done")
    except SendenseError as exc:
        print(type(exc).__name__, "|", exc, "|", exc.hint)
"""


def test_a_full_disk(story: Story) -> None:
    """ENOSPC is told with the place and the cure, wherever it strikes, and costs the points that are there nothing."""
    point = story.backup(full=True, d2000="AAAA")
    script = (
        WRITING.replace("ROOT", repr(str(story.repository.layout.root)))
        + f"""
draft = repository.begin(VM, {ID!r})
rng = random.Random(1)
tell(lambda: draft.make_image(2000, size, None))
with open(root / "filler", "wb", buffering=0) as filler:
    try:
        while filler.write(bytes(4096)):
            pass
    except OSError:
        pass
tell(lambda: draft.make_image(2001, size, None))
tell(lambda: draft.write_batches(2000, (stored_batch([Extent(at, 1)], rng.randbytes(32)) for at in range(9000))))
tell(lambda: repository.mark_verified(repository.find({point.id!r}), datetime.now(UTC)))
tell(lambda: repository.begin(VM, {ID!r}[:-1] + "0").make_image(2000, size, None))
print(sorted(os.listdir(draft.folder)), repository.find({point.id!r}).id, repository.broken())
(root / "filler").unlink()
tell(lambda: draft.make_image(2001, size, None))
"""
    )
    lines = in_namespace(story.repository.layout.root, "size=1m", script).splitlines()
    assert lines[:2] == ["1 points, []", "done"]
    for line, place in zip(
        lines[2:6], ("disk-2001.qcow2", "disk-2000.batches", "point.json", "disk-2000"), strict=True
    ):
        kind, message, hint = line.split(" | ")
        assert kind == "JobFailed"
        assert place in message or "3f90" in message
        assert "No space left on device" in message
        assert "room" in hint
    assert lines[6] == f"['disk-2000.qcow2'] {point.id} []"
    assert lines[7:] == ["done"]


def test_a_read_only_repository(story: Story) -> None:
    """A repository that is mounted read-only is read as ever, and refuses to be written with the cure."""
    point = story.backup(full=True, d2000="AAAA")
    script = (
        WRITING.replace("ROOT", repr(str(story.repository.layout.root)))
        + f"""
from sendense.repository.merge import delete, recover
point = repository.find({point.id!r})
print(len(repository.levels(point, 2000)), recover(repository, UUID))
tell(lambda: repository.begin(VM, {ID!r}))
tell(lambda: repository.mark_verified(point, datetime.now(UTC)))
tell(lambda: delete(repository, point, merge=False))
tell(lambda: Repository.open(root / "vms" / "new", create=True))
"""
    )
    lines = in_namespace(story.repository.layout.root, "ro", script).splitlines()
    assert lines[:2] == ["1 points, []", "1 []"]
    for line, kind in zip(lines[2:], ("JobFailed", "JobFailed", "JobFailed", "InputError"), strict=True):
        found, message, hint = line.split(" | ")
        assert found == kind
        assert "Read-only file system" in message
        assert "writable" in hint


def test_a_repository_of_another_user() -> None:
    """What this user may not read or write is told so (EACCES)."""
    with short_folder() as folder:
        folder.chmod(0o755)
        story = Story(folder)
        point = story.backup(full=True, d2000="AAAA")
        root = story.repository.layout.root
        for path in (root, *root.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        script = WRITING.replace("ROOT", repr(str(root))).replace(
            "repository = ", "if not os.geteuid():\n    os.setgid(1)\n    os.setuid(1)\nrepository = ", 1
        )
        script += f"tell(lambda: repository.begin(VM, {ID!r}))"
        lines = run(sys.executable, "-c", script).splitlines()
        assert lines[0] == "1 points, []"
        kind, message, hint = lines[1].split(" | ")
        assert (kind, "Permission denied" in message, "Run as the user" in hint) == ("JobFailed", True, True)
        (root / f"vms/{UUID}/points/{point.id}/point.json").chmod(0)
        assert "Permission denied" in run(sys.executable, "-c", script).splitlines()[0]
        for path in (root, *root.rglob("*")):
            path.chmod(0o700)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """A reader sees the old content or the new one, and nothing else is left."""
    path = tmp_path / "file"
    write_atomically(path, b"old")
    inode = path.stat().st_ino
    write_atomically(path, b"new")
    assert (path.read_bytes(), path.stat().st_ino != inode) == (b"new", True)
    assert os.listdir(tmp_path) == ["file"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", b"x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize("ask", [problems, commit_into_backing, repair_leaks])
def test_a_qemu_img_that_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[..., object]) -> None:
    """It may take as long as it reads or writes; when it does neither it is ended, and the error says so."""
    program = tmp_path / "qemu-img"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(images, "STALL_SECONDS", 0.5)
    beats: list[int] = []
    try:
        said = str(ask(tmp_path / "image", lambda: beats.append(1)))
    except JobFailed as exc:
        said = str(exc)
    assert "read and wrote nothing for" in said
    assert beats
