"""`sendense copy` as its user meets it: what it refuses, what it says, its exit status, --json, --resume."""

import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.support import (
    COPY_SECONDS,
    KiB,
    Lab,
    MiB,
    difference,
    faulty,
    make_disk,
    make_junk,
    same_image,
    tool,
)
from tests.servers import free_port, nbdkit, qemu_nbd

SIZE = 24 * MiB

HASTY = {"tick_seconds": 0.1, "retry_seconds": 0.05}
"""What failed is tried again as soon as its delay is over."""

STUCK = {"connect_timeout": 60}
"""A server that the test stops counts as slow, and not as gone."""


@pytest.fixture
def source(lab: Lab) -> Path:
    """A raw disk with everything in it."""
    return make_disk(lab.path("source.raw"), SIZE)


def wait_until(happened: Callable[[], object]) -> None:
    """Until something that another process does is seen."""
    deadline = time.monotonic() + COPY_SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def wait_in_state(lab: Lab, name: str) -> None:
    """Until the only copy of this lab has a file of that name in its folder."""
    wait_until(lambda: list(lab.state.glob(f"copies/*/{name}")))


def byte_at(path: Path, offset: int) -> int:
    """One byte of a file; 0 behind its end, as in a hole."""
    with path.open("rb") as file:
        file.seek(offset)
        return int.from_bytes(file.read(1))


def test_json(lab: Lab, source: Path) -> None:
    """With --json, stdout is one object with all the numbers of the copy, and stderr says nothing."""
    target = lab.path("target.qcow2")
    result = lab.copy(source, target)
    assert (result.status, result.stderr) == (0, "")
    summary = result.summary
    names = "job state size data zero copied already_done batches retries stalls seconds digest"
    assert list(summary) == names.split()
    assert (summary["state"], summary["size"]) == ("succeeded", SIZE)
    assert summary["data"] + summary["zero"] == SIZE
    assert 3 * MiB < summary["data"] < 5 * MiB
    assert (summary["copied"], summary["already_done"], summary["batches"]) == (summary["data"], 0, 1)
    assert (summary["retries"], summary["stalls"]) == (0, 0)
    assert 0 < summary["seconds"] < COPY_SECONDS
    assert len(bytes.fromhex(summary["digest"])) == 32
    assert same_image(source, target)


def test_digest_is_of_the_content(lab: Lab, source: Path) -> None:
    """The same disk has the same digest whatever it is copied to; one changed byte gives another."""
    first = lab.copied(source, lab.path("first.qcow2"))
    assert lab.copied(source, lab.path("second.raw"), "--verify")["digest"] == first["digest"]
    with source.open("r+b") as file:
        file.seek(MiB)
        byte = file.read(1)[0]
        file.seek(MiB)
        file.write(bytes([byte ^ 1]))
    assert lab.copied(source, lab.path("third.qcow2"))["digest"] != first["digest"]
    assert same_image(source, lab.path("third.qcow2"))


def test_plain_output(lab: Lab, source: Path) -> None:
    """Without --json and without a terminal: the result on stdout, progress in plain lines on stderr."""
    target = lab.path("target.raw")
    result = lab.run("copy", source, target, "--verify")
    assert result.status == 0
    assert result.stdout.startswith("copied 3.")
    assert "verified, 24.0 MiB in all" in result.stdout
    assert result.stderr.startswith("copying: ")
    assert "\x1b" not in result.stdout + result.stderr
    assert difference(source, target) is None


def test_odd_names(lab: Lab, source: Path) -> None:
    """Names with spaces, quotes and other letters than English are taken as they are, and in relative paths."""
    folder = lab.path("a folder: 100 %, 'ü'")
    folder.mkdir()
    image = source.rename(folder / "disk=1, a?b#c.raw")
    target = folder / "copy & co;.qcow2"
    lab.copied(image.relative_to(lab.folder), target.relative_to(lab.folder))
    assert same_image(image, target)


def test_relative_state_folder(lab: Lab, source: Path) -> None:
    """A state folder may be named relative to the working directory."""
    target = lab.path("target.qcow2")
    lab.copied(source, target, state_dir="../state")
    assert same_image(source, target)


def test_no_such_source(lab: Lab) -> None:
    """A source that is not there is named."""
    assert f"{lab.path('no.raw')}: no such file" in lab.refused(lab.path("no.raw"), lab.path("target.qcow2"))
    assert not lab.path("target.qcow2").exists()


def test_source_is_a_folder(lab: Lab) -> None:
    """A folder is no disk."""
    assert "is a directory" in lab.refused(lab.folder, lab.path("target.qcow2"))


def test_source_is_no_image(lab: Lab) -> None:
    """A file that is not what its name says is named, with what qemu says of it."""
    lab.path("disk.qcow2").write_bytes(b"not an image at all")
    error = lab.refused(lab.path("disk.qcow2"), lab.path("target.qcow2"))
    assert "not an image that qemu can read" in error
    assert "not in qcow2 format" in error


@pytest.mark.parametrize("name", ["target.img", "target", "target.vmdk"])
def test_unknown_target_format(lab: Lab, source: Path, name: str) -> None:
    """A target whose name says no format that can be written is refused, with those that can."""
    assert "Name it .qcow2 or .raw." in lab.refused(source, lab.path(name))


def test_no_such_target_folder(lab: Lab, source: Path) -> None:
    """A target in a folder that is not there is refused."""
    assert "no such folder" in lab.refused(source, lab.path("nowhere/target.raw"))


def test_bad_uri(lab: Lab, source: Path) -> None:
    """A URI that cannot be right is refused, with examples of right ones."""
    assert "http://x/" in lab.refused("http://x/", lab.path("target.raw"))
    assert "nbd://host:10809/export" in lab.refused(source, "nbd:///disk")


@pytest.mark.parametrize("name", ["target.qcow2", "target.raw"])
def test_existing_target(lab: Lab, source: Path, name: str) -> None:
    """An existing file is refused and left as it is, until --force replaces it."""
    target = lab.path(name)
    target.write_bytes(b"precious")
    assert "give --force" in lab.refused(source, target)
    assert target.read_bytes() == b"precious"
    lab.copied(source, target, "--force")
    assert same_image(source, target) if name.endswith("qcow2") else difference(source, target) is None


def test_forced_target_stays_until_the_copy_is_whole(lab: Lab, source: Path) -> None:
    """With --force, the file that is to be replaced is still there when the copy fails."""
    target, trigger = lab.path("target.raw"), lab.path("broken")
    target.write_bytes(b"precious")
    trigger.touch()
    with nbdkit(*faulty(lab, source, unreadable=f"{MiB}+1", trigger=trigger)) as server:
        assert lab.copy(server.uri, target, "--force", **HASTY).status == 1
        assert target.read_bytes() == b"precious"
        trigger.unlink()
        lab.copied(server.uri, target, "--resume", **HASTY)
    assert difference(source, target) is None


def test_source_is_the_target(lab: Lab, source: Path) -> None:
    """A disk cannot be copied onto itself, by whatever name."""
    content = source.read_bytes()
    lab.path("link.raw").hardlink_to(source)
    for target in (source, lab.path("link.raw"), Path("../disks/source.raw")):
        assert "is, or backs, the source" in lab.refused(source, target, "--force")
    assert source.read_bytes() == content


def test_source_is_the_target_export(lab: Lab) -> None:
    """An export cannot be copied onto itself."""
    disk = make_junk(lab.path("disk.raw"), MiB)
    with nbdkit("file", disk) as server:
        assert "is, or backs, the source" in lab.refused(server.uri, server.uri)
    assert set(disk.read_bytes()) == {0xA5}


def test_target_backs_the_source(lab: Lab, source: Path) -> None:
    """A disk cannot be copied onto its own backing file."""
    overlay, content = lab.path("overlay.qcow2"), source.read_bytes()
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", source, overlay)
    assert "is, or backs, the source" in lab.refused(overlay, source, "--force")
    assert source.read_bytes() == content


def test_source_is_where_the_target_would_be_made(lab: Lab, source: Path) -> None:
    """The unfinished image of a target is not taken for its source, nor deleted by --force."""
    partial = source.rename(lab.path("target.raw.partial"))
    assert "is, or backs, the source" in lab.refused(partial, lab.path("target.raw"), "--force")
    assert partial.stat().st_size == SIZE


def test_read_only_target(lab: Lab, source: Path) -> None:
    """An export that takes no writes is refused."""
    target = make_junk(lab.path("target.raw"), SIZE)
    with nbdkit("--readonly", "file", target) as server:
        assert f"{server.uri} is read-only" in lab.refused(source, server.uri)
    assert set(target.read_bytes()) == {0xA5}


def test_target_too_small(lab: Lab, source: Path) -> None:
    """A target smaller than the source is refused with both sizes, before a byte is written."""
    target = make_junk(lab.path("target.raw"), SIZE - 1)
    with nbdkit("file", target) as server:
        error = lab.refused(source, server.uri)
        # It is not remembered as an unfinished copy either.
        assert "no unfinished copy" in lab.refused(source, server.uri, "--resume")
    assert f"({SIZE - 1} bytes)" in error
    assert f"({SIZE} bytes)" in error
    assert set(target.read_bytes()) == {0xA5}


def test_no_such_export(lab: Lab, source: Path) -> None:
    """An export that is not there is an error at once, which says what there is."""
    with qemu_nbd(source, "--read-only", "--persistent", export="disk1") as server:
        result = lab.copy(server.uri.replace("disk1", "disk7"), lab.path("target.qcow2"))
    assert result.status == 1
    assert "no export 'disk7'" in result.error[0]
    assert "'disk1'" in result.error[0]
    assert not list(lab.folder.glob("target*"))


def test_tls_required(lab: Lab, tls_folder: Path) -> None:
    """A server that takes TLS only is an error at once, which says how to use TLS."""
    with nbdkit("memory", "1M", tcp=True, tls=tls_folder) as server:
        plain = server.uri.partition("?")[0].replace("nbds://", "nbd://")
        result = lab.copy(plain, lab.path("target.qcow2"))
    assert result.status == 1
    assert "TLS" in result.error[0]
    assert "nbds://" in result.error[1]
    assert not list(lab.folder.glob("target*"))


def test_refused_port(lab: Lab, source: Path) -> None:
    """A port where nobody listens is an error at once, for the source as for the target."""
    uri = f"nbd://127.0.0.1:{free_port()}/"
    for pair in ((uri, lab.path("target.qcow2")), (source, uri)):
        result = lab.copy(*pair)
        assert result.status == 1
        assert "Connection refused" in result.error[0]
        assert result.stderr.splitlines() == result.error
    assert not list(lab.folder.glob("target*"))


def test_resume_of_nothing(lab: Lab, source: Path) -> None:
    """--resume without an unfinished copy is refused, and makes nothing."""
    target = lab.path("target.qcow2")
    assert "no unfinished copy" in lab.refused(source, target, "--resume")
    lab.copied(source, target)
    assert "no unfinished copy" in lab.refused(source, target, "--resume")
    assert same_image(source, target)


def test_resume_with_force(lab: Lab, source: Path) -> None:
    """--resume and --force contradict each other."""
    assert "contradict" in lab.refused(source, lab.path("target.qcow2"), "--resume", "--force")


@pytest.mark.parametrize(
    "arguments",
    [["copy"], ["copy", "a.raw"], ["copy", "a.raw", "b.raw", "--workers", "0"], ["copy", "a.raw", "b.raw", "--what"]],
    ids=["nothing", "no-target", "no-workers", "unknown-option"],
)
def test_wrong_usage(lab: Lab, arguments: list[str]) -> None:
    """A command line that cannot be right ends with status 2 and nothing on stdout."""
    result = lab.run(*arguments)
    assert (result.status, result.stdout) == (2, "")
    assert "Usage: " in result.stderr


def test_debug(lab: Lab) -> None:
    """A traceback is shown with --debug, wherever that stands, and only then."""
    arguments = ["copy", str(lab.path("no.raw")), str(lab.path("target.raw"))]
    for words in (["--debug", *arguments], [*arguments, "--debug"]):
        result = lab.run(*words)
        assert (result.status, "Traceback" in result.stderr) == (2, True)
    assert lab.run(*arguments).error[0].endswith("no such file")


def test_state_folder_below_a_file(lab: Lab, source: Path) -> None:
    """A state folder that cannot be made is refused with the setting that moves it."""
    lab.state.write_bytes(b"")
    error = lab.refused(source, lab.path("target.qcow2"), state_dir=lab.state / "state")
    assert "Not a directory" in error
    assert "Set SENDENSE_STATE_DIR" in error


def test_state_folder_with_a_long_path(lab: Lab, source: Path) -> None:
    """A state folder whose sockets would have too long a path is refused with the setting that moves it."""
    error = lab.refused(source, lab.path("target.qcow2"), state_dir=lab.state / ("long" * 15))
    assert "too long a path" in error
    assert "Set SENDENSE_STATE_DIR" in error


def test_full_target(lab: Lab, source: Path) -> None:
    """A target that is full fails at once, naming the place; with room made, a resume finishes the copy."""
    target, trigger = make_junk(lab.path("target.raw"), SIZE), lab.path("full")
    trigger.touch()
    with nbdkit(*faulty(lab, target, full=f"{SIZE // 2}+{SIZE}", trigger=trigger)) as server:
        failed = lab.copy(source, server.uri)
        assert failed.status == 1
        assert failed.error[0].startswith(f"sendense: write {server.uri} offset=")
        assert "No space left on device" in failed.error[0]
        assert "Make room" in failed.error[1]
        assert failed.summary["state"] == "failed"
        assert "No space left on device" in failed.summary["error"]

        trigger.unlink()
        lab.copied(source, server.uri, "--resume", "--verify")
    assert difference(source, target) is None


def test_unfinished_copy(lab: Lab, source: Path) -> None:
    """An unfinished copy is refused, with the command that goes on with it; that command then does."""
    target, trigger = lab.path("a target.qcow2"), lab.path("broken")
    trigger.touch()
    with nbdkit(*faulty(lab, source, unreadable=f"{MiB}+1", trigger=trigger)) as server:
        assert lab.copy(server.uri, target, **HASTY).status == 1
        refusal = lab.refused(server.uri, target)
        assert "an unfinished copy of" in refusal
        assert "an unfinished copy of" in lab.refused(source, target)  # of another source
        assert "an unfinished copy of" in lab.refused(source, target, "--resume")

        trigger.unlink()
        words = shlex.split(refusal.partition("Go on with it: ")[2].partition("   (or")[0])
        assert words == ["sendense", "copy", server.uri, str(target), "--resume"]
        assert lab.run(*words[1:]).status == 0
    assert same_image(source, target)


def test_unfinished_copy_started_over(lab: Lab, source: Path) -> None:
    """--force forgets an unfinished copy, and copies everything."""
    target, trigger = lab.path("target.qcow2"), lab.path("broken")
    trigger.touch()
    with nbdkit(*faulty(lab, source, unreadable=f"{MiB}+1", trigger=trigger)) as server:
        assert lab.copy(server.uri, target, **HASTY).status == 1
        trigger.unlink()
        summary = lab.copied(server.uri, target, "--force")
    assert (summary["copied"], summary["already_done"]) == (summary["data"], 0)
    assert same_image(source, target)


@pytest.mark.parametrize("kind", ["raw", "flat-vmdk", "overlay"])
def test_unfinished_copy_of_a_changed_source(lab: Lab, source: Path, kind: str) -> None:
    """A local source that was written to since cannot be gone on with: two disks would be mixed."""
    target, trigger = make_junk(lab.path("target.raw"), SIZE), lab.path("full")
    trigger.touch()
    written = source
    if kind == "flat-vmdk":
        disk, source, written = source, lab.path("source.vmdk"), lab.path("source-flat.vmdk")
        tool("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicFlat", disk, source)
    elif kind == "overlay":
        source = lab.path("source.qcow2")
        tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", written, source)
    with nbdkit(*faulty(lab, target, full=f"0+{SIZE}", trigger=trigger)) as server:
        assert lab.copy(source, server.uri).status == 1
        trigger.unlink()
        with written.open("r+b") as file:
            file.write(b"changed")
        assert "was written to since" in lab.refused(source, server.uri, "--resume")
        lab.copied(source, server.uri, "--force")
    assert difference(written, target) is None


def test_unfinished_copy_without_its_image(lab: Lab, source: Path) -> None:
    """A resume whose half-made image is gone is refused: what the ledger says is stored no longer is."""
    target, trigger = lab.path("target.qcow2"), lab.path("broken")
    trigger.touch()
    with nbdkit(*faulty(lab, source, unreadable=f"{MiB}+1", trigger=trigger)) as server:
        assert lab.copy(server.uri, target, **HASTY).status == 1
        trigger.unlink()
        lab.path("target.qcow2.partial").unlink()
        result = lab.copy(server.uri, target, "--resume")
        assert (result.status, "is gone" in result.error[0]) == (2, True)
        lab.copied(server.uri, target, "--force")
    assert same_image(source, target)


def test_two_copies_onto_one_target(lab: Lab, source: Path) -> None:
    """While a copy onto a target runs, another one is refused; the first is not disturbed."""
    target = lab.path("target.qcow2")
    with nbdkit("--readonly", "file", source) as server:
        server.stop()
        first = lab.start("copy", server.uri, target, **STUCK)
        try:
            wait_in_state(lab, "redis.sock")
            assert any("redis-server" in line for line in lab.family())
            second = lab.start("copy", source, target, "--force")
            _, stderr = second.communicate(timeout=COPY_SECONDS)
            assert (second.returncode, "another copy onto it is running" in stderr) == (2, True)
        finally:
            server.cont()
        assert lab.finish(first).status == 0
    assert same_image(source, target)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(lab: Lab, source: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end the copy with status 130, a summary and the command that goes on with it."""
    target, trigger = lab.path("target.qcow2"), lab.path("broken")
    trigger.touch()
    with nbdkit(*faulty(lab, source, unreadable=f"0+{SIZE}", trigger=trigger)) as server:
        process = lab.start("copy", server.uri, target, "--json")
        try:
            wait_in_state(lab, "copy.json")
        finally:
            process.send_signal(number)
        result = lab.finish(process)
        assert result.status == 130
        assert result.error == ["sendense: interrupted", f"  Go on with: {shlex.join(resume(server.uri, target))}"]
        assert result.summary["state"] == "interrupted"

        trigger.unlink()
        lab.copied(server.uri, target, "--resume", "--verify")
    assert same_image(source, target)


def resume(source: str, target: Path) -> list[str]:
    return ["sendense", "copy", source, str(target), "--resume"]


def test_interrupted_before_it_began(lab: Lab, source: Path) -> None:
    """Interrupted before there is anything to go on with, a copy does not claim that there is."""
    target = lab.path("target.qcow2")
    with nbdkit("--readonly", "file", source) as server:
        server.stop()
        process = lab.start("copy", server.uri, target, "--json", **STUCK)
        try:
            wait_in_state(lab, "redis.sock")
        finally:
            process.send_signal(signal.SIGINT)
        result = lab.finish(process)
        assert (result.status, result.error[0]) == (130, "sendense: interrupted")
        assert "--resume" not in result.stderr
        server.cont()
        lab.copied(server.uri, target)
    assert same_image(source, target)


def test_spoiled_image(lab: Lab, source: Path) -> None:
    """An image that was spoiled while it was made is not delivered under its name before it is right."""
    target, trigger, partial = lab.path("target.raw"), lab.path("broken"), lab.path("target.raw.partial")
    trigger.touch()
    spoiled = SIZE // 2 + 13 * KiB
    assert byte_at(source, spoiled)
    with nbdkit(*faulty(lab, source, unreadable=f"{MiB}+1", trigger=trigger)) as server:
        process = lab.start("copy", server.uri, target, "--json", "--verify", tick_seconds=0.1, retry_seconds=1)
        try:
            wait_in_state(lab, "copy.json")
            wait_until(lambda: partial.exists() and byte_at(partial, spoiled) == byte_at(source, spoiled))
            with partial.open("r+b") as file:
                file.seek(spoiled)
                file.write(bytes([byte_at(source, spoiled) ^ 1]))
        finally:
            trigger.unlink()
        found = lab.finish(process)
        assert (found.status, target.exists(), partial.exists()) == (3, False, True)
        lab.copied(server.uri, target, "--resume", "--verify")
    assert difference(source, target) is None


def test_nothing_is_left_in_the_temporary_folder(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy's processes are killed in the end, and leave no temporary files of theirs behind."""
    temporary = lab.path("tmp")
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    disk = make_disk(lab.path("disk.raw"), 8 * MiB)
    lab.copied(disk, "copy.qcow2", "--verify")
    assert list(temporary.iterdir()) == []
    assert same_image(disk, lab.path("copy.qcow2"))
