"""Deleting restore points: what is built on them stays whole, whatever ends the deletion, at every step."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from sendense.errors import InputError, JobFailed
from sendense.nbd.images import commit_into_backing, is_in_use
from sendense.repository.batches import read
from sendense.repository.catalogue import Repository
from sendense.repository.merge import delete, delete_broken, recover
from sendense.repository.points import Point
from tests.repository import CLUSTER, ROOT, UUID, VM, Story, in_namespace, qemu_img, run
from tests.servers import qemu_nbd, short_folder

DELETE_SECONDS = 60


@pytest.fixture
def slow_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """qemu-img commits at 300 KiB/s: each takes seconds."""
    program, real = tmp_path / "bin" / "qemu-img", shutil.which("qemu-img")
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\n[ "$1" = commit ] && {{ shift; exec {real} commit -r 300K "$@"; }}\nexec {real} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


STEPS = ["batches 2000", "batches 2001", "leave"]
STEPS += [f"{step} {key}" for key in (2000, 2001) for step in ("commit", "replace", "adopt")]
STEPS += ["manifest", "remove"]


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A VM of two disks, without points yet."""
    return Story(tmp_path, (2000, 2001))


def four_points(story: Story) -> list[Point]:
    """A full and three incrementals; the third overwrites, zeroes and adds to what the second has."""
    return [
        story.backup(full=True, d2000="AAAAAAAAAAAA----AAAA", d2001="--------AAAA"),
        story.backup(d2000="--BBBBBB--------0000BBBB", d2001="BB------BBBBBBBBBBBB"),
        story.backup(d2000="-0-CC0-------CC-C---0-C---C", d2001="0-----------000C0--C"),
        story.backup(d2000="D-------------D-------------D", d2001="D"),
    ]


def test_a_point_that_nothing_is_built_on(story: Story) -> None:
    """The newest point of a chain goes without a merge, and leaves nothing."""
    points = four_points(story)
    assert delete(story.repository, points[-1], merge=False) == []
    assert story.repository.points() == points[:-1]
    assert not story.repository.layout.point(UUID, points[-1].id).exists()
    story.check_content()
    story.check_digests()
    assert delete(story.repository, points[-1], merge=False) == []


def test_a_parent_is_refused(story: Story) -> None:
    """Without a merge a point stays as long as another is built on it, and the error names that."""
    points = four_points(story)
    with pytest.raises(InputError, match=points[2].id) as caught:
        delete(story.repository, points[1], merge=False)
    assert "--merge" in caught.value.hint
    assert story.repository.points() == points


@pytest.mark.parametrize("place", [0, 1, 2])
def test_merge(story: Story, place: int) -> None:
    """The child takes over: every remaining point shows what it did, and every digest is that of its image."""
    points = four_points(story)
    steps: list[str] = []
    heirs = delete(story.repository, points[place], merge=True, on_step=steps.append)
    assert heirs == [points[place + 1].id]
    assert [step.split(" 2026")[0] for step in steps] == STEPS
    left = story.repository.points()
    assert [point.id for point in left] == [point.id for point in points if point.id != points[place].id]
    heir = left[place]
    assert (heir.mode, heir.disks[0].parent) == (points[place].mode, points[place].disks[0].parent)
    story.check_content()
    story.check_digests()


def test_merge_down_to_one(story: Story) -> None:
    """All points but the newest are deleted, oldest first, and what is left is a full that says why."""
    points = four_points(story)
    for point in points[:-1]:
        delete(story.repository, point, merge=True)
        story.check_content()
        story.check_digests()
    (last,) = story.repository.points()
    assert (last.id, last.mode) == (points[-1].id, "full")
    assert points[-2].id in last.reason
    later = story.backup(d2000="EE")
    assert later.disks[0].parent == last.id
    story.check_content()


@pytest.mark.parametrize("seed", range(4))
def test_any_changes_and_any_deletions(tmp_path: Path, seed: int) -> None:
    """Whatever was changed and in whatever order points go, the others stay as they were."""
    rng = random.Random(seed)
    story = Story(tmp_path, clusters=24)
    story.backup(full=True, d2000="".join(rng.choices("A-", k=24)))
    for _ in range(5):
        story.backup(d2000="".join(rng.choices("A0-", (1, 1, rng.choice((1, 4, 12))), k=24)))
    points = story.repository.points()
    for point in rng.sample(points, len(points) - 1):
        delete(story.repository, point, merge=True)
        story.check_content()
        story.check_digests()
    assert len(story.repository.points()) == 1


def test_only_one_disk_is_built_on_it(story: Story) -> None:
    """A disk that the child made a full of needs nothing of the parent's."""
    first = story.backup(full=True, d2000="AAAA", d2001="AAAA")
    draft = story.begin()
    disks = [
        story.store(draft, 2000, first, "-B"),
        story.store(draft, 2001, None, "BB"),
    ]
    second = story.commit(draft, disks)
    assert second.mode == "incremental"
    assert delete(story.repository, first, merge=True) == [second.id]
    assert [disk.mode for disk in story.repository.points()[0].disks] == ["full", "full"]
    story.check_content()
    story.check_digests()


SCRIPT = """
import os, signal, sys
from pathlib import Path
from sendense.repository.catalogue import Repository
from sendense.repository.merge import delete

root, point, last = sys.argv[1:]
left = []

def on_step(step):
    left.append(step)
    if last == step or last == step.split(" 2026")[0]:
        os.kill(os.getpid(), signal.SIGKILL)

def beat():
    if last == "within reading" and not left:
        os.kill(os.getpid(), signal.SIGKILL)
    if last == "within commit" and "leave" in left:
        os.kill(os.getpid(), signal.SIGKILL)

repository = Repository.open(Path(root), create=False)
delete(repository, repository.find(point), merge=True, beat=beat, on_step=on_step)
"""


def delete_until(story: Story, point: Point, last: str) -> int:
    """Delete in a process of its own, which is killed after the step `last`; its exit status."""
    command = [sys.executable, "-c", SCRIPT, str(story.repository.layout.root), point.id, last]
    with short_folder() as folder:  # for the socket of the server that it had no time to end
        environment = {**os.environ, "TMPDIR": str(folder)}
        done = subprocess.run(command, env=environment, cwd=ROOT, timeout=DELETE_SECONDS, check=False)
    return done.returncode


@pytest.mark.parametrize("last", STEPS)
@pytest.mark.parametrize("place", [0, 1])
def test_killed_after_each_step(story: Story, last: str, place: int) -> None:
    """Whatever the last step was, each point shows what it did at once; recover() and another deletion end it well."""
    points = four_points(story)
    assert delete_until(story, points[place], last) == -signal.SIGKILL
    assert story.repository.broken() == []
    story.check_content()
    before = last.startswith("batches")
    assert (points[place].id in {point.id for point in story.repository.points()}) == before
    finished = recover(story.repository, UUID)
    assert finished == ([] if before or last == "remove" else [points[place].id])
    story.check_content()
    story.check_digests()
    assert recover(story.repository, UUID) == []
    delete(story.repository, points[place], merge=True)
    assert points[place].id not in {point.id for point in story.repository.points()}
    assert story.repository.unfinished() == []
    story.check_content()
    story.check_digests()


def test_killed_while_it_reads(story: Story) -> None:
    """The server that the parent was read through ends with the deletion, and nothing was changed."""
    points = four_points(story)
    assert delete_until(story, points[0], "within reading") == -signal.SIGKILL
    image = story.repository.layout.image(UUID, points[0].id, 2000)
    deadline = time.monotonic() + DELETE_SECONDS
    while is_in_use(image):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert recover(story.repository, UUID) == []
    assert story.repository.points() == points
    story.check_digests()
    assert delete(story.repository, points[0], merge=True) == [points[1].id]
    story.check_content()


def test_cancelled_within_the_commit(story: Story, slow_commits: None) -> None:
    """A deletion that is called off by its beat ends its qemu-img, and is finished later."""
    points = four_points(story)

    def call_off() -> None:
        if not story.repository.layout.point(UUID, points[0].id).joinpath("point.json").exists():
            raise JobFailed("called off")

    with pytest.raises(JobFailed, match="called off"):
        delete(story.repository, points[0], merge=True, beat=call_off)
    assert not is_in_use(story.repository.layout.image(UUID, points[1].id, 2000))
    story.check_content()
    assert recover(story.repository, UUID) == [points[0].id]
    story.check_content()
    story.check_digests()


def test_killed_within_the_commit(story: Story, slow_commits: None) -> None:
    """An image that is half committed into hurts nobody, and the second commit ends it."""
    points = four_points(story)
    assert delete_until(story, points[0], "within commit") == -signal.SIGKILL
    folder = story.repository.layout.point(UUID, points[0].id)
    assert (folder / "point.deleted").exists()
    story.check_content()
    # The next deletion of the VM finishes it by itself.
    assert delete(story.repository, points[-1], merge=False) == []
    assert [point.id for point in story.repository.points()] == [points[1].id, points[2].id]
    story.check_content()
    story.check_digests()


def test_killed_while_the_folder_is_emptied(story: Story) -> None:
    """What is left of a deleted folder is neither a point nor unfinished work, and goes."""
    points = four_points(story)
    folder = story.repository.layout.point(UUID, points[-1].id)
    folder.rename(folder.with_name(f"removed-{folder.name}-1"))
    assert story.repository.points() == points[:-1]
    assert story.repository.unfinished() == []
    assert recover(story.repository, UUID) == []
    assert not list(folder.parent.glob("removed-*"))
    story.check_digests()


def test_damage_in_the_parent_is_found(story: Story) -> None:
    """Content that is not what was copied is never given a new digest: nothing is deleted, and the error says where."""
    points = four_points(story)
    image = story.repository.layout.image(UUID, points[0].id, 2000)
    # Cluster 4 is in a batch of the full that the incremental overwrites in part, and is hidden by it; 0 is not.
    run("qemu-io", "-f", "qcow2", "-c", f"write -P 9 {4 * CLUSTER} 512", image)
    with pytest.raises(JobFailed, match=rf"{points[0].id} disk 2000: .*offset=0 length=") as caught:
        delete(story.repository, points[0], merge=True)
    assert "nothing was deleted" in str(caught.value)
    assert story.repository.points() == points
    assert not list(image.parent.parent.rglob("*.next*"))


def test_an_image_in_use(story: Story) -> None:
    """A point that is being read, or one above it, is not touched, and the error names the image."""
    points = four_points(story)
    for reader in (points[0], points[1], points[3]):
        path = story.repository.layout.image(UUID, reader.id, 2000)
        with qemu_nbd(path, "--read-only", "--persistent", image_format="qcow2"):
            with pytest.raises(JobFailed, match=r"disk-2000\.qcow2: is in use"):
                delete(story.repository, points[0], merge=True)
            assert story.repository.points() == points
    with (
        qemu_nbd(story.repository.layout.image(UUID, points[3].id, 2001), "--read-only", image_format="qcow2"),
        pytest.raises(JobFailed, match=r"disk-2001\.qcow2: is in use"),
    ):
        delete(story.repository, points[3], merge=False)
    assert delete(story.repository, points[0], merge=True) == [points[1].id]
    story.check_digests()


def test_an_image_in_use_once_it_left(story: Story) -> None:
    """A deletion that cannot go on because somebody reads says so, and goes on later."""
    points = four_points(story)
    assert delete_until(story, points[1], "leave") == -signal.SIGKILL
    path = story.repository.layout.image(UUID, points[3].id, 2000)
    with qemu_nbd(path, "--read-only", image_format="qcow2"), pytest.raises(JobFailed, match="is in use"):
        recover(story.repository, UUID)
    story.check_content()
    assert recover(story.repository, UUID) == [points[1].id]
    story.check_content()
    story.check_digests()


def test_a_writer_is_kept_out_by_qemu(story: Story) -> None:
    """qemu's own lock stops a commit that comes in spite of everything; both images stay as they are."""
    points = four_points(story)
    path = story.repository.layout.image(UUID, points[3].id, 2000)
    child = story.repository.layout.image(UUID, points[1].id, 2000)
    with (
        qemu_nbd(path, "--read-only", "--persistent", image_format="qcow2"),
        pytest.raises(JobFailed, match="lock"),
    ):
        commit_into_backing(child)
    story.check_digests()


def test_unfinished_work_keeps_its_parent(story: Story) -> None:
    """A point that a running backup builds on is not deleted, with or without a merge; nor is a fork merged."""
    points = four_points(story)
    draft = story.begin()
    draft.make_image(2000, story.size, points[-1])
    for merge in (False, True):
        with pytest.raises(InputError, match=draft.id):
            delete(story.repository, points[-1], merge=merge)
    # One below it may be merged: the draft is built on a name, which goes on to show the same.
    delete(story.repository, points[2], merge=True)
    story.commit(draft, [story.store(draft, key, points[-1], "EE-0") for key in story.content])
    story.check_content()
    story.check_digests()


def test_a_fork_is_refused(story: Story) -> None:
    """Two points on one parent: neither can take over alone."""
    first = story.backup(full=True, d2000="AAAA")
    second = story.backup(d2000="B")
    story.content = {key: bytearray(content) for key, content in story.kept[first.id].items()}
    draft = story.begin()
    third = story.commit(draft, [story.store(draft, key, first, "C") for key in story.content])
    with pytest.raises(InputError, match=f"several points .*{second.id}, {third.id}"):
        delete(story.repository, first, merge=True)
    delete(story.repository, third, merge=False)
    delete(story.repository, first, merge=True)
    story.check_content()


def test_a_damaged_point_is_deleted(story: Story) -> None:
    """A point without a readable manifest can go, unless another is built on it; it also keeps its own parent."""
    points = four_points(story)
    layout = story.repository.layout
    (layout.point(UUID, points[2].id) / "point.json").write_text("{")
    with pytest.raises(InputError, match=f"{points[2].id} is built on"):
        delete(story.repository, points[1], merge=True)
    broken = {found.id: found for found in story.repository.broken()}
    assert set(broken) == {points[2].id, points[3].id}
    with pytest.raises(InputError, match=points[3].id):
        delete_broken(story.repository, broken[points[2].id])
    delete_broken(story.repository, broken[points[3].id])
    delete_broken(story.repository, broken[points[2].id])
    assert story.repository.broken() == []
    assert story.repository.points() == points[:2]


def test_a_merge_that_does_not_fit(story: Story) -> None:
    """What the file system has no room for is refused before anything is changed."""
    points = four_points(story)
    root = story.repository.layout.root
    script = f"""
from pathlib import Path
from sendense.errors import JobFailed
from sendense.repository.catalogue import Repository
from sendense.repository.merge import delete
repository = Repository.open(Path({str(root)!r}), create=False)
try:
    delete(repository, repository.find({points[0].id!r}), merge=True)
except JobFailed as exc:
    print(exc, "|", exc.hint, "|", len(repository.points()))
"""
    said = in_namespace(root, "size=18m", script)
    assert "left, and merging" in said
    assert said.strip().endswith("| 4")


def test_batches_in_disk_order(story: Story) -> None:
    """Batches of parent and child are in the order of the disk, where each was, and every extent stands once."""
    points = four_points(story)
    delete(story.repository, points[0], merge=True)
    layout = story.repository.layout
    for key in story.content:
        stored = list(read(layout.batches(UUID, points[1].id, key)))
        begins = [batch.extents[0].offset for batch in stored]
        assert begins == sorted(begins)
        extents = sorted(extent for batch in stored for extent in batch.extents)
        assert all(one.end <= other.offset for one, other in pairwise(extents))


def test_the_repository_was_moved(story: Story, tmp_path: Path) -> None:
    """Chains open in plain qemu from another place, and merge there."""
    points = four_points(story)
    moved = tmp_path / "elsewhere" / "with space:and=odd,name"
    moved.parent.mkdir()
    story.repository.layout.root.rename(moved)
    story.repository = Repository.open(moved, create=False)
    delete(story.repository, points[1], merge=True)
    story.check_content()
    story.check_digests()
    image = story.repository.layout.image(VM.uuid, points[3].id, 2000)
    assert qemu_img("check", "-f", "qcow2", image)
