"""
A disk of the simulated site, for nbdkit's python plugin: takes the parameters of nbdkit-vddk-plugin(1).

Runs in nbdkit's own Python with nothing but the standard library. Like VDDK it logs in when a client connects; what
is wrong then is told on nbdkit's stderr only. Reads are of whole sectors, extents of whole chunks of 64 KiB.
"""

import errno
import hashlib
import http.client
import json
import os
import random
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nbdkit

API_VERSION = 2

SECTOR = 512
CHUNK = 64 * 1024
CONNECT_SECONDS = 20.0
LOOK_SECONDS = 0.2

NEEDED = ("server", "user", "password", "vm", "file")
KNOWN = {*NEEDED, "thumbprint", "snapshot", "libdir", "transports", "compression", "port", "nfchostport"}

settings: dict[str, str] = {}

sys.tracebacklimit = 0  # nbdkit prints a traceback with each error, which would bury the reason


def config(key: str, value: str) -> None:
    if key not in KNOWN:
        raise ValueError(f"unknown parameter '{key}'")
    if key == "compression" and value not in ("none", "zlib", "fastlz", "skipz"):
        raise ValueError(f"unknown compression type: {value}")
    if key == "password" and value.startswith("+"):
        value = Path(value[1:]).read_text(encoding="utf-8").partition("\n")[0]
    settings[key] = value


def config_complete() -> None:
    for key in NEEDED:
        if key not in settings:
            raise ValueError(f"remote connection requested, missing parameter: {key}")


def thread_model() -> int:
    return nbdkit.THREAD_MODEL_PARALLEL


class Disk:
    """An open disk: its content, the connection that says so to the site, and the knobs of its machine."""

    def __init__(self) -> None:
        self.connection, opened = connect()
        try:
            self.file = os.open(opened["path"], os.O_RDONLY)
        except OSError as exc:
            self.connection.close()
            raise RuntimeError(f"VixDiskLib_Open: {settings['file']}: {exc.strerror}") from exc
        self.size: int = opened["size"]
        self.lock = threading.Lock()
        self.rate, self.free_at = 0, 0.0
        self.knobs_file, self.knobs_time, self.looked = opened["knobs"], 0, 0.0
        self.knobs: dict[str, Any] = {}

    def look(self) -> dict[str, Any]:
        """The knobs as they stand; their file is looked at a few times per second."""
        with self.lock:
            now = time.monotonic()
            if now - self.looked > LOOK_SECONDS:
                self.looked = now
                changed = os.stat(self.knobs_file).st_mtime_ns
                if changed != self.knobs_time:
                    self.knobs = json.loads(Path(self.knobs_file).read_text(encoding="utf-8"))
                    self.knobs_time = changed
            return self.knobs

    def pace(self, count: int) -> None:
        """Wait until so many bytes more may have been read; at another rate, the wait begins anew."""
        while rate := self.look().get("read_rate"):
            with self.lock:
                if rate != self.rate:
                    self.rate, self.free_at = rate, 0.0
                now = time.monotonic()
                self.free_at = until = max(now, self.free_at) + count / rate
            while self.look().get("read_rate") == rate:
                if (pause := until - time.monotonic()) <= 0:
                    return
                time.sleep(min(pause, LOOK_SECONDS))


def open(readonly: bool) -> Disk:
    if not readonly:
        raise RuntimeError("VixDiskLib_Open: a snapshot is read-only: start nbdkit with --readonly")
    return Disk()


def close(disk: Disk) -> None:
    os.close(disk.file)
    disk.connection.close()


def connect() -> tuple[http.client.HTTPSConnection, dict[str, Any]]:
    """Log in at the site and open the disk there; the connection stays for as long as the disk is open."""
    host, _, port = settings["server"].partition(":")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the thumbprint is what is checked
    connection = http.client.HTTPSConnection(
        host, int(settings.get("port") or port or 443), timeout=CONNECT_SECONDS, context=context
    )
    try:
        connection.connect()
    except OSError as exc:
        raise RuntimeError(f"VixDiskLib_ConnectEx: Cannot connect to host {host}: {exc}") from None
    found = hashlib.sha1(connection.sock.getpeercert(binary_form=True) or b"").hexdigest()
    wanted = settings.get("thumbprint", "").replace(":", "").lower()
    if found != wanted:
        connection.close()
        raise RuntimeError("VixDiskLib_ConnectEx: SSL: the host's certificate has another thumbprint")
    request = {
        "user": settings["user"],
        "password": settings["password"],
        "vm": settings["vm"].removeprefix("moref="),
        "snapshot": settings.get("snapshot", "").removeprefix("moref="),
        "file": settings["file"],
    }
    try:
        connection.request("POST", "/lab/open", json.dumps(request))
        # Not read to its end by http.client: it would close the connection that has to stay.
        response = http.client.HTTPResponse(connection.sock, method="POST")
        response.begin()
        answer = json.loads(response.read(int(response.getheader("Content-Length", "0"))))
    except (OSError, http.client.HTTPException, ValueError) as exc:
        connection.close()
        raise RuntimeError(f"VixDiskLib_ConnectEx: {host} did not answer: {exc}") from None
    if response.status != http.client.OK:
        connection.close()
        raise RuntimeError(answer["error"])
    return connection, answer


def get_size(disk: Disk) -> int:
    return disk.size


def can_extents(disk: Disk) -> bool:
    return True


def pread(disk: Disk, buffer: bytearray, offset: int, flags: int) -> None:
    count = len(buffer)
    if offset % SECTOR or count % SECTOR:
        nbdkit.set_error(errno.EINVAL)
        raise RuntimeError("read is not aligned to sectors")
    knobs = disk.look()
    if knobs.get("latency_ms"):
        time.sleep(knobs["latency_ms"] / 1000)
    disk.pace(count)
    if fails(knobs.get("read_errors"), offset, count):
        nbdkit.set_error(errno.EIO)
        raise RuntimeError(f"VixDiskLib_Read: offset {offset} length {count}: A read error was ordered")
    view, done = memoryview(buffer), 0
    while done < count:
        got = os.preadv(disk.file, [view[done:]], offset + done)
        if not got:
            raise RuntimeError(f"the disk's file ends at {offset + done}")
        done += got


def fails(errors: "dict[str, Any] | None", offset: int, count: int) -> bool:
    if not errors:
        return False
    if any(offset < start + length and start < offset + count for start, length in errors["areas"]):
        return True
    return bool(random.random() * 100 < errors["percent"])


def extents(disk: Disk, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    """Chunks with data anywhere in them, and holes that read as zeroes."""
    found: list[tuple[int, int, int]] = []
    position, end = offset, offset + count
    hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    while position < end:
        try:
            data = os.lseek(disk.file, position // CHUNK * CHUNK, os.SEEK_DATA)
        except OSError:  # nothing but a hole from here on
            data = end
        if data // CHUNK * CHUNK > position or data >= end:
            after, kind = data // CHUNK * CHUNK if data < end else end, hole
        else:
            # Not before the data, where the chunk may begin with a hole.
            last = os.lseek(disk.file, max(data, position), os.SEEK_HOLE)
            after, kind = -(-max(last, data + 1) // CHUNK) * CHUNK, 0
        after = min(after, end)
        found.append((position, after - position, kind))
        position = after
        if flags & nbdkit.FLAG_REQ_ONE:
            break
    return found
