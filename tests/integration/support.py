"""The real `sendense copy` as a process of its own, the disks it copies, and servers with faults."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sendense.nbd.connect import ExportInfo, connect
from sendense.nbd.uri import parse, unix_uri
from tests.servers import Server, serve, short_folder

COPY_SECONDS = 100.0
"""The longest that one command may take: forty times what it does take."""

END_SECONDS = 3.0
"""A killed child is gone at once; the kernel may take a moment to take its memory."""

KiB, MiB = 2**10, 2**20


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def summary(self) -> dict[str, Any]:
        """The one JSON object on stdout; nothing else may be there."""
        line, end, rest = self.stdout.partition("\n")
        assert (end, rest) == ("\n", ""), self
        summary: dict[str, Any] = json.loads(line)
        return summary

    @property
    def error(self) -> list[str]:
        """The two lines of the error on stderr, which is the last thing there: what and where, then what to do."""
        assert "Traceback" not in self.stderr, self.stderr
        lines = self.stderr.splitlines()[-2:]
        assert [line[:2] for line in lines] == ["se", "  "], self.stderr
        return lines


class Lab:
    """A folder for disks, and a state folder that names every process of the copies made here."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder / "disks", folder / "state"
        self.folder.mkdir()

    def path(self, name: str) -> Path:
        """A file in the folder for disks."""
        return self.folder / name

    def start(self, *arguments: str | Path, **settings: object) -> "subprocess.Popen[str]":
        """Start `sendense ARGUMENTS`; settings become SENDENSE_… variables."""
        variables = {name: text for name, text in os.environ.items() if not name.startswith("SENDENSE_")}
        variables["SENDENSE_STATE_DIR"] = str(self.state)
        variables.update({f"SENDENSE_{name.upper()}": str(value) for name, value in settings.items()})
        return subprocess.Popen(
            [sys.executable, "-m", "sendense", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=variables,
            cwd=self.folder,
        )

    def run(self, *arguments: str | Path, **settings: object) -> Result:
        """Run `sendense ARGUMENTS` to its end, and see that no process of it is left."""
        return self.finish(self.start(*arguments, **settings))

    def finish(self, process: "subprocess.Popen[str]") -> Result:
        """Wait for the end of a command, and see that no process of it is left."""
        try:
            stdout, stderr = process.communicate(timeout=COPY_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate(timeout=END_SECONDS)
            raise AssertionError(f"did not end within {COPY_SECONDS:.0f} s: {stdout}{stderr}") from None
        assert self.survivors() == []
        return Result(process.returncode, stdout, stderr)

    def copy(self, source: str | Path, target: str | Path, *options: str, **settings: object) -> Result:
        """Run `sendense copy --json` with two workers."""
        return self.run("copy", source, target, "--workers", "2", "--json", *options, **settings)

    def copied(self, source: str | Path, target: str | Path, *options: str, **settings: object) -> dict[str, Any]:
        """The summary of a copy that has to succeed, and has to leave nothing behind."""
        result = self.copy(source, target, *options, **settings)
        assert result.status == 0, result.stderr
        assert result.summary["state"] == "succeeded"
        assert result.summary["data"] + result.summary["zero"] == result.summary["size"]
        assert not list(self.state.glob("copies/*/"))
        assert not list(self.folder.glob("*.partial"))
        return result.summary

    def refused(self, source: str | Path, target: str | Path, *options: str, **settings: object) -> str:
        """The error of a copy that is refused as wrong input: what and where, then what to do, as one text."""
        result = self.copy(source, target, *options, **settings)
        assert result.status == 2, result
        assert result.stderr.splitlines() == result.error
        return "\n".join(result.error)

    def survivors(self) -> list[str]:
        """Command lines of the processes that know the state folder, once ended ones had time to go."""
        deadline = time.monotonic() + END_SECONDS
        while (found := self.family()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def family(self) -> list[str]:
        """Command lines of the processes that know the state folder, each behind its process id."""
        found, mark = [], os.fsencode(self.state)
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                line = (entry / "cmdline").read_bytes()
                if mark in line or mark in (entry / "environ").read_bytes():
                    found.append(f"{entry.name} {line.replace(bytes(1), b' ').decode(errors='replace')}")
            except OSError:  # it ended meanwhile
                continue
        return found


@contextmanager
def open_lab() -> Iterator[Lab]:
    """A lab in a folder of its own, deleted afterwards."""
    with short_folder() as folder:
        lab = Lab(folder)
        yield lab
        assert lab.survivors() == []


def make_disk(path: Path, size: int) -> Path:
    """
    A sparse raw disk: data, holes, zeroes that are allocated, islands smaller than a cluster, and a tail of data.

    The same bytes for the same size.
    """
    noise = random.Random(size)
    pieces = [
        (0, noise.randbytes(MiB + 1500)),  # ends inside a cluster
        (256 * KiB, bytes(3 * 64 * KiB)),  # zero clusters
        (800_000, bytes(5000)),  # zeroes, and no whole cluster
        *((start * MiB + 777, noise.randbytes(512)) for start in range(2, 6)),
        (size // 2 + 12_345, noise.randbytes(2 * MiB)),
        (size // 2 + MiB, bytes(MiB // 2)),
        (size - 100_001, noise.randbytes(100_001)),
    ]
    with path.open("wb") as file:
        for offset, content in pieces:
            start = max(0, offset)
            file.seek(start)
            file.write(content[start - offset :][: max(0, size - start)])
        file.truncate(size)
    return path


def make_scattered_disk(path: Path, islands: int) -> Path:
    """A raw disk with 4 KiB of data in every second 64 KiB: a batch takes 512 of them."""
    noise = random.Random(islands)
    with path.open("wb") as file:
        for number in range(islands):
            file.seek(number * 128 * KiB)
            file.write(noise.randbytes(4 * KiB))
        file.truncate(islands * 128 * KiB)
    return path


def make_junk(path: Path, size: int) -> Path:
    """A target full of old data, without a single zero byte in it."""
    with path.open("wb") as file:
        for start in range(0, size, MiB):
            file.write(b"\xa5" * min(MiB, size - start))
    return path


def difference(first: Path, second: Path) -> int | None:
    """Where two files differ first, to the MiB; None when the second starts with all of the first."""
    with first.open("rb") as one, second.open("rb") as two:
        offset = 0
        while content := one.read(MiB):
            if content != two.read(len(content)):
                return offset
            offset += len(content)
    return None


def compare_images(source: Path, target: Path, source_format: str = "raw", target_format: str = "qcow2") -> str:
    """What `qemu-img compare` says; it takes the longer disk as the same when the rest of it is zero."""
    return tool("qemu-img", "compare", "-f", source_format, "-F", target_format, source, target).strip()


SAME = "Images are identical."


def same_image(source: Path, target: Path, source_format: str = "raw") -> bool:
    """Whether a qcow2 is sound and holds what the source holds."""
    tool("qemu-img", "check", "-q", "-f", "qcow2", target)
    return compare_images(source, target, source_format).splitlines()[-1] == SAME


def allocated(path: Path) -> int:
    """Bytes that a file takes on its disk."""
    return path.stat().st_blocks * 512


def tool(*command: str | Path) -> str:
    """Output of a command that has to succeed; those of administrators are found as well."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    program = shutil.which(command[0], path=path)
    assert program, f"{command[0]} is not installed"
    argv = [program, *map(str, command[1:])]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": path})
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def info_of(uri: str) -> ExportInfo:
    """What a server says of its export."""
    connection = connect(parse(uri), 20.0)
    connection.close()
    return connection.info


@contextmanager
def storage_daemon(image: Path, image_format: str, *, export: str) -> Iterator[Server]:
    """Run qemu-storage-daemon with one writable export on a Unix socket."""
    with short_folder() as folder:
        socket, pid = folder / "s", folder / "pid"
        command = [
            *("qemu-storage-daemon", "--pidfile", str(pid)),
            *("--blockdev", f"driver=file,node-name=file,filename={image},discard=unmap"),
            *("--blockdev", f"driver={image_format},node-name=disk,file=file,discard=unmap"),
            *("--nbd-server", f"addr.type=unix,addr.path={socket},max-connections=0"),
            *("--export", f"type=nbd,id=disk,node-name=disk,name={export},writable=on"),
        ]
        with serve(command, unix_uri(str(socket), export), pid) as server:
            yield server


FAULTY = '''
"""A disk with faults, for nbdkit's python plugin. A fault lasts for as long as its trigger file exists."""

import errno
import os

import nbdkit

API_VERSION = 2
settings = {}


def config(key, value):
    settings[key] = value


def open(readonly):
    return os.open(settings["file"], os.O_RDWR)


def get_size(disk):
    return os.fstat(disk).st_size


def can_multi_conn(disk):
    return True


def can_trim(disk):
    return "trim" not in settings.get("without", "")


def can_flush(disk):
    return "flush" not in settings.get("without", "")


def can_fua(disk):
    return nbdkit.FUA_NATIVE if can_flush(disk) else nbdkit.FUA_NONE


def hits(fault, offset, length):
    """Whether a request touches the place of a fault that is there."""
    if fault not in settings or not os.path.exists(settings["trigger"]):
        return False
    start, count = map(int, settings[fault].split("+"))
    return offset < start + count and start < offset + length


def pread(disk, buffer, offset, flags):
    if hits("unreadable", offset, len(buffer)):
        nbdkit.set_error(errno.EIO)
        raise OSError("this part of the disk does not read")
    os.preadv(disk, [buffer], offset)


def pwrite(disk, buffer, offset, flags):
    if hits("full", offset, len(buffer)):
        nbdkit.set_error(errno.ENOSPC)
        raise OSError("no space left")
    if not hits("forgetful", offset, len(buffer)):
        os.pwrite(disk, buffer, offset)


def trim(disk, count, offset, flags):
    pass


def flush(disk, flags):
    os.fsync(disk)
'''


def faulty(lab: Lab, disk: Path, **settings: str | Path) -> list[str | Path]:
    """Arguments of nbdkit: a disk `unreadable`, `full` or `forgetful` at "OFFSET+LENGTH" while `trigger` is there."""
    plugin = lab.path("faulty.py")
    plugin.write_text(FAULTY)
    return ["python", plugin, f"file={disk}", *(f"{name}={value}" for name, value in settings.items())]
