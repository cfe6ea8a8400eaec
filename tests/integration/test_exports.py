"""The storage daemon's exports: what they offer, who may be in whose way, and what happens when parts of it stop."""

import asyncio
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbd
import pytest
from qemu.qmp import QMPClient

from sendense.errors import ConnectionLost, InputError, JobFailed, SendenseError, TargetFull, WriteFailed
from sendense.exports import Export, Exports
from sendense.extents import Extent
from sendense.nbd import images
from sendense.nbd.connect import Connection, connect
from sendense.nbd.transfer import Limits, Transfer
from sendense.nbd.uri import parse
from sendense.supervise.service import Budget
from sendense.supervise.storage import ANSWER_SECONDS, ASK_SECONDS, Storage
from tests.servers import free_port, nbdkit, qemu_nbd, short_folder

MiB = 2**20

SIZE = 64 * MiB

WAIT_SECONDS = 30.0
"""Far more than anything here takes."""

GRACE_SECONDS = 3.0
"""How late a call may be after its deadline on a busy machine."""


class Place:
    """A storage daemon in a folder of its own, and its exports."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, str(folder / "nbd.sock")
        self.notes: list[str] = []
        self.storage = Storage(self.address, folder, self.notes.append, Budget())
        self.storage.start()
        self.storage.wait()
        self.exports = self.exports_within(WAIT_SECONDS)

    def exports_within(self, seconds: float) -> Exports:
        """The same exports for somebody with another patience."""
        return Exports(self.storage.qmp_socket, self.address, seconds)

    def image(self, name: str, kind: str = "qcow2", size: int = SIZE) -> Path:
        """A new image."""
        path = self.folder / name
        images.create(path, kind, size)
        return path

    def signal(self, number: signal.Signals) -> None:
        """A signal to the daemon."""
        os.kill(self.storage.child.pid, number)


@pytest.fixture
def place() -> Iterator[Place]:
    """A running storage daemon."""
    with short_folder() as folder:
        place = Place(folder)
        try:
            yield place
        finally:
            place.storage.child.kill()


def open_export(uri: str) -> Connection:
    """A client of an export."""
    return connect(parse(uri), WAIT_SECONDS)


def blocking(connection: Connection) -> Any:
    """Its handle with libnbd's blocking calls, which the product never uses: here pytest has the deadline."""
    return connection.handle


def noise(seed: int, length: int) -> bytes:
    """Bytes that no other seed gives."""
    return random.Random(seed).randbytes(length)


def write(connection: Connection, data: bytes, offset: int = 0) -> None:
    """Write in pieces of 1 MiB, then flush."""
    for start in range(0, len(data), MiB):
        blocking(connection).pwrite(data[start : start + MiB], offset + start)
    blocking(connection).flush()


def qemu_img(*arguments: str | Path) -> None:
    """Run qemu-img, which has to succeed."""
    subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, timeout=WAIT_SECONDS)


def content(image: Path, length: int, offset: int = 0) -> bytes:
    """What an image that nobody serves holds, as qemu reads it."""
    with qemu_nbd(image, image_format="qcow2") as server:
        connection = open_export(server.uri)
        data: bytes = blocking(connection).pread(length, offset)
        connection.close()
    return data


@contextmanager
def copying(target: str, size: int = SIZE) -> Iterator["Copying"]:
    """The engine copies random data onto an export, again and again, in a thread of its own."""
    with nbdkit("--filter=rate", "pattern", f"size={size}", f"rate={8 * 64 * MiB}") as source:
        copy = Copying(source.uri, target, size)
        copy.thread.start()
        try:
            yield copy
        finally:
            copy.stop.set()
            copy.thread.join(WAIT_SECONDS)
            assert not copy.thread.is_alive()


class Copying:
    """A copy in the background, and how it ended."""

    def __init__(self, source: str, target: str, size: int) -> None:
        self.stop, self.rounds = threading.Event(), 0
        self.error: SendenseError | None = None
        self._source, self._target, self._size = source, target, size
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        source, target = open_export(self._source), open_export(self._target)
        try:
            while not self.stop.is_set():
                Transfer(source, target, Limits(MiB, 16, 10.0), target_is_zero=False, beat=lambda copied: None).run(
                    [Extent(0, self._size, zero=False)]
                )
                self.rounds += 1
        except SendenseError as exc:
            self.error = exc
        finally:
            source.close()
            target.close()

    def wait_for_rounds(self, number: int) -> None:
        """Wait until it is in the middle of its work."""
        wait_for(lambda: self.rounds >= number or self.error is not None)
        assert self.error is None


def wait_for(happened: Any) -> None:
    """Wait until it happened."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_writable_export_offers_all_that_a_copy_wants(place: Place) -> None:
    """Several connections, flushes and zeroes; and adding it again leaves it as it is, with its clients."""
    image = place.image("disk.qcow2")
    uri = place.exports.add("web-1", image, writable=True)
    client = open_export(uri)
    info = client.info
    assert (info.size, info.read_only) == (SIZE, False)
    assert (info.multi_conn, info.flush, info.zero, info.fast_zero, info.trim, info.fua) == (True,) * 6
    assert info.allocation
    assert place.exports.add("web-1", image, writable=True) == uri == place.exports.uri("web-1")
    assert place.exports.list() == (Export("web-1", image, writable=True, closing=False),)
    write(client, noise(1, MiB))
    client.close()


def test_a_read_only_export_takes_no_writes(place: Place) -> None:
    """Not even from a client that tries; two of them on one image are fine."""
    image = place.image("disk.qcow2")
    clients = [open_export(place.exports.add(name, image, writable=False)) for name in ("one", "two")]
    for client in clients:
        assert client.info.read_only
        client.handle.set_strict_mode(0)
        with pytest.raises(nbd.Error):
            blocking(client).pwrite(b"x" * 512, 0)
        assert blocking(client).pread(512, 0) == bytes(512)
        client.close()


@pytest.mark.parametrize("name", ["plain.raw", "a,b=c %20 Ünï.raw"])
def test_a_raw_image(place: Place, name: str) -> None:
    """A restore's target: what is written is what the file holds, whatever the file is called."""
    image, data = place.image(name, "raw"), noise(1, MiB)
    client = open_export(place.exports.add("restore", image, "raw", writable=True))
    assert client.info.size == SIZE
    write(client, data, 3 * MiB)
    place.exports.remove("restore")
    with image.open("rb") as file:
        file.seek(3 * MiB)
        assert file.read(MiB) == data


def test_two_exports_are_written_in_parallel(place: Place) -> None:
    """One daemon, one address, two images: each gets its own data, and is clean when it is removed."""
    names = {"one": 1, "two": 2}
    uris = {name: place.exports.add(name, place.image(f"{name}.qcow2"), writable=True) for name in names}
    threads = [
        threading.Thread(target=lambda uri=uris[name], seed=seed: write(open_export(uri), noise(seed, 16 * MiB)))
        for name, seed in names.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    for name, seed in names.items():
        place.exports.remove(name)
        image = place.folder / f"{name}.qcow2"
        qemu_img("check", image)
        assert content(image, 16 * MiB) == noise(seed, 16 * MiB)
    assert place.exports.list() == ()


def test_removing_cuts_off_a_client_that_writes(place: Place) -> None:
    """The writer finds its connection dead; the image is closed, clean, and free for the next."""
    image = place.image("disk.qcow2")
    with copying(place.exports.add("job-1", image, writable=True)) as copy:
        copy.wait_for_rounds(1)
        place.exports.remove("job-1")
        qemu_img("check", image)
        with image.open("r+b"):
            images.repair_leaks(image)  # takes qemu's write lock
        copy.thread.join(WAIT_SECONDS)
        assert isinstance(copy.error, ConnectionLost | WriteFailed)
        assert os.strerror(errno.ENOTCONN) in str(copy.error) or isinstance(copy.error, ConnectionLost)
    place.exports.remove("job-1")
    assert place.exports.list() == ()


def test_a_late_client_finds_nothing(place: Place) -> None:
    """Fencing: a connection from before the removal is dead, also when the image is served again."""
    image = place.image("disk.qcow2")
    late = open_export(place.exports.add("job-1", image, writable=True))
    place.exports.remove("job-1")
    place.exports.add("job-2", image, writable=True)
    with pytest.raises(nbd.Error) as caught:
        blocking(late).pwrite(b"x" * 512, 0)
    assert caught.value.errnum in (errno.ENOTCONN, errno.EPIPE, errno.ECONNRESET)


def test_killed_in_mid_write(place: Place) -> None:
    """The daemon is started again, its export is added again under the same URI, and what was flushed is there."""
    image, kept = place.image("disk.qcow2", size=2 * SIZE), noise(1, 4 * MiB)
    uri = place.exports.add("job-1", image, writable=True)
    first = open_export(uri)
    write(first, kept, SIZE)
    with copying(uri) as copy:
        copy.wait_for_rounds(1)
        place.signal(signal.SIGKILL)
        copy.thread.join(WAIT_SECONDS)
        assert isinstance(copy.error, ConnectionLost)
    wait_for(lambda: not place.storage.child.is_running())
    place.storage.supervise()
    assert place.notes == ["exports daemon ended: starting it again"]
    assert place.exports.list() == ()
    images.repair_leaks(image)
    assert place.exports.add("job-1", image, writable=True) == uri
    again = open_export(uri)
    assert blocking(again).pread(len(kept), SIZE) == kept
    write(again, kept, 0)
    place.exports.remove("job-1")
    qemu_img("check", image)


def test_killed_while_others_call(place: Place) -> None:
    """A call that finds no daemon waits for the next one."""
    image = place.image("disk.qcow2")
    place.signal(signal.SIGKILL)
    wait_for(lambda: not place.storage.child.is_running())
    added: list[str] = []
    caller = threading.Thread(target=lambda: added.append(place.exports.add("job-1", image, writable=True)))
    caller.start()
    time.sleep(0.3)
    assert not added
    place.storage.supervise()
    caller.join(WAIT_SECONDS)
    assert added == [place.exports.uri("job-1")]


def test_stopped(place: Place) -> None:
    """Calls to a stopped daemon end at their deadline, saying so; its supervisor kills it and starts another."""
    image, impatient = place.image("disk.qcow2"), place.exports_within(1.0)
    place.exports.add("job-1", image, writable=True)
    place.signal(signal.SIGSTOP)
    for call in (
        lambda: impatient.add("job-2", image, writable=True),
        lambda: impatient.remove("job-1"),
        impatient.list,
    ):
        began = time.monotonic()
        with pytest.raises(JobFailed, match=r"did not answer within 1\.0 s") as caught:
            call()
        assert time.monotonic() - began < 1.0 + GRACE_SECONDS
        assert "stopped" in caught.value.hint
    assert not impatient.answers()
    began = time.monotonic()
    while not place.notes:
        place.storage.supervise()
        assert time.monotonic() - began < ANSWER_SECONDS + ASK_SECONDS + WAIT_SECONDS
        time.sleep(0.05)
    assert "stopped answering" in place.notes[0]
    place.exports.add("job-1", image, writable=True)


def test_stopped_in_the_middle_of_a_call(place: Place) -> None:
    """A daemon that stops while an export ends is no endless wait."""
    place.exports.add("job-1", place.image("disk.qcow2"), writable=True)
    stopper = threading.Thread(target=place.signal, args=(signal.SIGSTOP,))
    impatient = place.exports_within(1.0)
    with copying(place.exports.uri("job-1")) as copy:
        copy.wait_for_rounds(1)
        stopper.start()
        began = time.monotonic()
        try:
            impatient.remove("job-1")
        except JobFailed as exc:
            assert "did not answer" in str(exc)  # noqa: PT017 it may have been quicker than the signal
        assert time.monotonic() - began < 1.0 + GRACE_SECONDS
        place.signal(signal.SIGKILL)
        copy.thread.join(WAIT_SECONDS)
    stopper.join(WAIT_SECONDS)


def test_a_client_that_keeps_the_monitor(place: Place) -> None:
    """Others say so at their deadline; the supervisor has a monitor of its own, and leaves the daemon alone."""
    image = place.image("disk.qcow2")

    async def keep() -> None:
        client = QMPClient()
        await client.connect(str(place.storage.qmp_socket))
        with pytest.raises(JobFailed, match="greeting") as caught:
            await asyncio.to_thread(lambda: place.exports_within(0.5).add("job-1", image, writable=True))
        assert "another process keeps its monitor" in caught.value.hint
        await asyncio.to_thread(time.sleep, ASK_SECONDS)
        await asyncio.to_thread(place.storage.supervise)
        await client.disconnect()

    asyncio.run(keep())
    assert place.notes == []
    place.exports.add("job-1", image, writable=True)


CALLER = """
import sys
from pathlib import Path
from sendense.exports import Exports
socket, address, name, image, shared = sys.argv[1:]
exports = Exports(Path(socket), address, 60)
for _ in range(8):
    exports.add(name, Path(image), writable=True)
    exports.add("shared", Path(shared), writable=True)
    assert name in [export.name for export in exports.list()]
    exports.remove("shared")
    exports.remove(name)
    assert name not in [export.name for export in exports.list()]
print("done")
"""


def test_several_processes_at_once(place: Place) -> None:
    """Each has its turn: their own exports come and go, and one that all of them add and remove does no harm."""
    shared = place.image("shared.qcow2")
    callers = [
        subprocess.Popen(
            [
                *(sys.executable, "-W", "error", "-c", CALLER, str(place.storage.qmp_socket), place.address),
                *(f"own-{number}", str(place.image(f"{number}.qcow2")), str(shared)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    try:
        for caller in callers:
            assert caller.communicate(timeout=60) == ("done\n", "")
    finally:
        for caller in callers:
            caller.kill()
            caller.wait(WAIT_SECONDS)
    assert place.exports.list() == ()
    for image in place.folder.glob("*.qcow2"):
        images.repair_leaks(image)


def test_an_image_that_is_in_use_elsewhere(place: Place) -> None:
    """It is refused, saying that another process has it, and nothing of the attempt is left."""
    image = place.image("disk.qcow2")
    with qemu_nbd(image, image_format="qcow2"):
        with pytest.raises(JobFailed, match=r"disk\.qcow2: is in use") as caught:
            place.exports.add("job-1", image, writable=True)
        assert "Another process has the image open" in caught.value.hint
        assert place.exports.list() == ()
    place.exports.add("job-1", image, writable=True)
    with pytest.raises(JobFailed, match="is in use") as caught:
        place.exports.add("job-2", image, writable=True)
    assert "Another process" in caught.value.hint


def test_what_cannot_be_served(place: Place) -> None:
    """The error names the image and what is wrong with it; the daemon is fine."""
    image, junk = place.image("disk.qcow2"), place.folder / "junk.qcow2"
    junk.write_bytes(noise(1, MiB))
    with pytest.raises(InputError, match=r"none\.qcow2: no such file"):
        place.exports.add("job-1", place.folder / "none.qcow2", writable=True)
    with pytest.raises(InputError, match="not a regular file"):
        place.exports.add("job-1", place.folder, writable=True)
    with pytest.raises(JobFailed, match=r"junk\.qcow2: cannot be served: Image is not in qcow2 format"):
        place.exports.add("job-1", junk, writable=True)
    with pytest.raises(ValueError, match="not a name"):
        place.exports.add("two words", image, writable=True)
    place.exports.add("job-1", image, writable=True)
    with pytest.raises(InputError, match="job-1: is there for another image"):
        place.exports.add("job-1", junk, "raw", writable=True)
    with pytest.raises(InputError, match="job-1: is there for another image"):
        place.exports.add("job-1", image, writable=False)


def test_half_removed(place: Place) -> None:
    """A caller killed half-way through leaves an open image; adding and removing the export both cope with it."""

    async def end_export() -> None:
        client = QMPClient()
        await client.connect(str(place.storage.qmp_socket))
        await client.execute("block-export-del", {"id": "job-1", "mode": "hard"})
        while "job-1" in str(await client.execute("query-block-exports")):
            await asyncio.sleep(0.01)
        await client.disconnect()

    image, other = place.image("disk.qcow2"), place.image("other.qcow2")
    place.exports.add("job-1", image, writable=True)
    asyncio.run(end_export())
    place.exports.add("job-1", image, writable=True)
    asyncio.run(end_export())
    place.exports.add("job-1", other, writable=True)
    images.repair_leaks(image)
    asyncio.run(end_export())
    with pytest.raises(JobFailed):
        images.repair_leaks(other)
    place.exports.remove("job-1")
    images.repair_leaks(other)


@pytest.mark.parametrize("operation", ["zero", "trim"])
def test_an_overlay_never_shows_its_base_again(place: Place, operation: str) -> None:
    """What was zeroed or discarded reads as zeroes, whole clusters and parts of them, now and from the file."""
    base, overlay = place.image("base.qcow2"), place.folder / "overlay.qcow2"
    client = open_export(place.exports.add("base", base, writable=True))
    write(client, noise(1, 8 * MiB))
    place.exports.remove("base")
    qemu_img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", overlay)
    client = open_export(place.exports.add("overlay", overlay, writable=True))
    handle = blocking(client)
    write(client, noise(2, MiB), 2 * MiB)
    if operation == "zero":
        handle.zero(4 * MiB, MiB)
        handle.zero(1000, 6 * MiB + 100)
        handle.zero(64 * 1024, 7 * MiB, nbd.CMD_FLAG_NO_HOLE)
    else:
        handle.trim(4 * MiB, MiB)
        handle.trim(64 * 1024, 7 * MiB)
    handle.flush()

    expected = bytearray(noise(1, 8 * MiB))
    expected[2 * MiB : 3 * MiB] = noise(2, MiB)
    expected[MiB : 5 * MiB] = bytes(4 * MiB)
    expected[7 * MiB : 7 * MiB + 64 * 1024] = bytes(64 * 1024)
    if operation == "zero":
        expected[6 * MiB + 100 : 6 * MiB + 1100] = bytes(1000)
    assert handle.pread(8 * MiB, 0) == expected
    place.exports.remove("overlay")
    assert content(overlay, 8 * MiB) == expected
    assert content(base, 8 * MiB) == noise(1, 8 * MiB)


@contextmanager
def small_disk(size: int) -> Iterator[Path]:
    """A folder on a file system of `size` bytes: a tmpfs in a mount namespace that ends with its only process."""
    command = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    script = f"mount -t tmpfs -o size={size} none /mnt && echo ready && exec cat"
    with subprocess.Popen([*command, "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        try:
            assert holder.stdout.readline() == b"ready\n"
            yield Path(f"/proc/{holder.pid}/root/mnt")
        finally:
            holder.kill()


@pytest.mark.parametrize("kind", ["qcow2", "raw"])
def test_a_full_disk(place: Place, kind: str) -> None:
    """The writer is told at once that there is no room, nothing pauses; with room again, the same export goes on."""
    with small_disk(24 * MiB) as folder:
        image, ballast = folder / "disk", folder / "ballast"
        images.create(image, kind, SIZE)
        ballast.write_bytes(bytes(8 * MiB))
        uri = place.exports.add("job-1", image, kind, writable=True)
        with copying(uri) as copy:
            copy.thread.join(WAIT_SECONDS)
            assert isinstance(copy.error, TargetFull)
        assert place.exports.answers()
        ballast.unlink()
        client = open_export(uri)
        write(client, noise(1, MiB))
        assert blocking(client).pread(MiB, 0) == noise(1, MiB)
        place.exports.remove("job-1")
        if kind == "qcow2":
            images.repair_leaks(image)


def test_over_tcp() -> None:
    """The same on a port of the loopback, which one tunnel can forward; killed and started again, it is there again."""
    with short_folder() as folder:
        address = f"127.0.0.1:{free_port()}"
        storage = Storage(address, folder, lambda text: None, Budget())
        storage.start()
        storage.wait()
        try:
            exports, image = Exports(storage.qmp_socket, address, WAIT_SECONDS), folder / "disk.qcow2"
            images.create(image, "qcow2", SIZE)
            for _ in range(2):
                uri = exports.add("job-1", image, writable=True)
                assert uri == f"nbd://{address}/job-1"
                client = open_export(uri)
                write(client, noise(1, MiB))
                os.kill(storage.child.pid, signal.SIGKILL)
                wait_for(lambda: not storage.child.is_running())
                storage.supervise()
                client.close()
        finally:
            storage.child.kill()


def test_ended_in_good_order(place: Place) -> None:
    """A daemon that is asked to end closes its images, with clients or without."""
    image = place.image("disk.qcow2")
    client = open_export(place.exports.add("job-1", image, writable=True))
    blocking(client).pwrite(noise(1, MiB), 0)
    place.storage.end()
    assert not place.storage.child.is_running()
    qemu_img("check", image)
    assert content(image, MiB) == noise(1, MiB)
