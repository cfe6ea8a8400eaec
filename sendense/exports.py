"""
Exports of the storage daemon: images served over NBD under a name, added and removed over QMP by any process.

The daemon's monitor serves one client at a time, and the others wait for its greeting. So whoever has it is alone with
the daemon, and what one session does is one step for everybody else (qemu's docs/interop/qmp-spec.rst).
"""

import asyncio
import logging
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from blake3 import blake3
from qemu.qmp import ExecuteError, QMPClient, QMPError, Runstate

from sendense.errors import ExportsUnavailable, InputError, JobFailed
from sendense.models import HUB_EXPORT
from sendense.nbd.connect import Beat, no_beat
from sendense.nbd.uri import bracketed, unix_uri
from sendense.settings import Settings
from sendense.settings import host_and_port as host_and_port
from sendense.units import show_seconds

RETRY_SECONDS = 0.1
"""Between two tries to reach a daemon that is being started again."""

POLL_SECONDS = 0.02
"""Between two looks at whether an export has ended, which takes as long as its requests under way."""

PROBE_EXPORT = "sendense-probe"
"""Always there, read-only, and all zeroes: for whoever looks whether the exports can be reached and read."""

BEAT_SECONDS = 1.0
"""Between two beats of a caller that waits."""

CLOSE_SECONDS = 1.0
"""For leaving a session in good order."""

_LOOPBACKS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
"""Where this machine reaches what listens on all of its addresses."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
"""The name is the export's id as well, which qemu restricts (util/id.c): else nobody could ask for the names."""

T = TypeVar("T")

# What it logs it also raises, and here that is told once.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True, slots=True)
class Export:
    """An image that is served. `closing`: its clients are cut off, and its last requests are under way."""

    name: str
    image: Path
    writable: bool
    closing: bool


class Exports:
    """
    The exports of the daemon whose monitor listens at `qmp_socket` and whose NBD server listens at `address`.

    `address` is an absolute path or HOST:PORT. `timeout` is the seconds that a call may take, waiting for its turn and
    for a daemon that is being started again included; ExportsUnavailable after that. Calls may be made again any time.
    `beat` is called every second, and what it raises ends the call.
    """

    def __init__(self, qmp_socket: Path, address: str, timeout: float = 30.0, beat: Beat = no_beat) -> None:
        self._socket, self._address, self._timeout, self._beat = qmp_socket, address, timeout, beat

    def uri(self, name: str) -> str:
        """Where an export of that name is, whether or not it is there now."""
        if self._address.startswith("/"):
            return unix_uri(self._address, name)
        return f"nbd://{self._address}/{name}"

    def add(self, name: str, image: Path, fmt: str = "qcow2", *, writable: bool) -> str:
        """
        Serve an image under a name, and return the URI; an export of that name on that image is left as it is.

        Any number of clients, multi-conn. A writable image must be used by nobody else, and a killed daemon's leaks
        are repaired before (`nbd.images.repair_leaks`).
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a name for an export: {name!r}")
        image = image.absolute()
        _check_image(image, writable=writable)
        node = _node_of(name, image, fmt, writable)

        async def work(monitor: _Monitor) -> None:
            there = await monitor.exports()
            while name in there and there[name]["shutting-down"]:
                await asyncio.sleep(POLL_SECONDS)
                there = await monitor.exports()
            if name in there:
                if there[name]["node-name"] != node:
                    raise InputError(f"export {name}: is there for another image", "Remove that export first.")
                return
            await monitor.drop_nodes(name)  # of a caller that was killed before it had made the export
            try:
                await monitor.execute("blockdev-add", _blockdev(node, image, fmt, writable))
                options = {"type": "nbd", "id": name, "name": name, "node-name": node, "writable": writable}
                await monitor.execute("block-export-add", options)
            except ExecuteError as exc:
                await monitor.drop_nodes(name)
                raise _cannot_serve(image, exc) from exc

        self._call(work)
        return self.uri(name)

    def remove(self, name: str) -> None:
        """
        End an export, cut its clients off at once, and return when the image is durable and closed.

        Fine when there is none. After this no client can write to the image, however late it wakes up.
        """

        async def end(monitor: _Monitor) -> set[Path]:
            asked = False
            while export := (await monitor.exports()).get(name):
                if not (asked or export["shutting-down"]):
                    await monitor.execute("block-export-del", {"id": name, "mode": "hard"})
                asked = True
                await asyncio.sleep(POLL_SECONDS)
            return {Path(node["file"]) for node in await monitor.nodes(name) if not node["ro"]}

        # Closing an image flushes it, and the daemon answers nobody meanwhile: so the data goes to the disk before.
        for image in self._call(end):
            _sync(image)
        self._call(lambda monitor: monitor.drop_nodes(name))

    def list(self) -> tuple[Export, ...]:
        """The exports there are, by name. Who their clients are, qemu does not say."""

        async def work(monitor: _Monitor) -> tuple[Export, ...]:
            exports = await monitor.exports()
            nodes = {node["node-name"]: node for node in await monitor.nodes()}
            return tuple(
                Export(
                    name=name,
                    image=Path(nodes[export["node-name"]]["file"]),
                    writable=not nodes[export["node-name"]]["ro"],
                    closing=export["shutting-down"],
                )
                for name, export in sorted(exports.items())
            )

        return self._call(work)

    def answers(self) -> bool:
        """Whether the daemon answers within the timeout."""
        try:
            self._call(_Monitor.exports)
        except JobFailed:
            return False
        return True

    def _call(self, work: "Callable[[_Monitor], Awaitable[T]]") -> T:
        """Do some work in one session; it is done again from its start when the daemon ends in the middle."""
        deadline = time.monotonic() + self._timeout
        monitor = _Monitor(self._socket)
        while True:
            try:
                return asyncio.run(self._beating(monitor.session(work, deadline)))
            except ExecuteError as exc:
                refused = f"the exports daemon refused '{monitor.stage}': {_one_line(exc)}"
                raise ExportsUnavailable(refused, _LOG_HINT) from exc
            except TimeoutError as exc:
                waited = show_seconds(self._timeout)
                raise ExportsUnavailable(
                    f"the exports daemon at {self._socket} did not answer within {waited} ({monitor.stage})",
                    "It is stopped, its disk is, or another process keeps its monitor; the hub's log says more.",
                ) from exc
            except (QMPError, OSError, EOFError) as exc:
                if time.monotonic() + RETRY_SECONDS > deadline:
                    raise ExportsUnavailable(
                        f"the exports daemon at {self._socket} cannot be reached: {exc}", _LOG_HINT
                    ) from exc
            self._beat()
            time.sleep(RETRY_SECONDS)

    async def _beating(self, session: "Coroutine[Any, Any, T]") -> T:
        """The session's result; whoever waits for it shows signs of life, or is told to stop."""
        task = asyncio.create_task(session)
        try:
            while not (await asyncio.wait({task}, timeout=BEAT_SECONDS))[0]:
                self._beat()
        except BaseException:
            task.cancel()
            raise
        return task.result()


class _Monitor:
    """The daemon's monitor, in one session after the other."""

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)
        self._client = QMPClient()
        self.stage = "greeting"
        """What was waited for last."""

    async def session(self, work: "Callable[[_Monitor], Awaitable[T]]", deadline: float) -> T:
        """Connect when it is our turn, do the work, and leave; TimeoutError at the deadline."""
        self._client, self.stage = QMPClient(), "greeting"
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._client.connect(await self._reach())
                return await work(self)
        finally:
            await self._leave()

    async def _reach(self) -> socket.socket:
        """A connection to the monitor's socket; asyncio's own takes one whose queue is full for connected (3.11)."""
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            while True:
                try:
                    sock.connect(self._socket)
                    return sock
                except BlockingIOError:
                    await asyncio.sleep(POLL_SECONDS)
        except BaseException:
            sock.close()
            raise

    async def _leave(self) -> None:
        if self._client.runstate == Runstate.IDLE:
            return
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._client.disconnect()
        except (QMPError, OSError, EOFError):  # TimeoutError is an OSError: what broke the session was raised already
            pass

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """The answer to one command; ExecuteError when it is refused."""
        self.stage = command
        return await self._client.execute(command, arguments)

    async def exports(self) -> dict[str, dict[str, Any]]:
        """BlockExportInfo by the export's id, which is its name; but for that of the probe."""
        exports = await self.execute("query-block-exports")
        return {export["id"]: export for export in exports if export["id"] != PROBE_EXPORT}

    async def nodes(self, name: str = "") -> list[dict[str, Any]]:
        """BlockDeviceInfo of the nodes that are served, or of those that were made for the export `name`."""
        nodes = await self.execute("query-named-block-nodes", {"flat": True})
        return [node for node in nodes if node["node-name"].startswith(_prefix(name))]

    async def drop_nodes(self, name: str) -> None:
        """Close what was opened for the export `name`; an export that has just ended holds its node for a moment."""
        while nodes := await self.nodes(name):
            if (export := (await self.exports()).get(name)) and not export["shutting-down"]:
                return  # somebody has added it again
            for node in nodes:
                try:
                    await self.execute("blockdev-del", {"node-name": node["node-name"]})
                except ExecuteError:
                    await asyncio.sleep(POLL_SECONDS)


def hub_export(name: str) -> str:
    """What jobs call an export of the hub, which each machine reaches in its own way."""
    return f"{HUB_EXPORT}{name}"


def reach(uri: str, settings: Settings) -> str:
    """The URI under which this machine reaches an export of the hub; every other URI is returned as it is."""
    if not uri.startswith(HUB_EXPORT):
        return uri
    name = uri.removeprefix(HUB_EXPORT)
    if settings.exports:
        base = settings.exports
    elif settings.exports_listen:
        host, port = host_and_port(settings.exports_listen)
        base = f"{'nbds' if settings.tls_dir else 'nbd'}://{_LOOPBACKS.get(host, bracketed(host))}:{port}"
    else:
        return unix_uri(str(settings.nbd_socket), name)
    uri = f"{base.rstrip('/')}/{quote(name, safe='')}"
    if settings.tls_dir and base.startswith("nbds:"):
        uri += f"?tls-certificates={quote(str(settings.tls_dir.absolute()))}"
    return uri


def _prefix(name: str) -> str:
    """How the names of an export's nodes begin; qemu takes 31 characters."""
    return f"sd-{_hash(name)}-" if name else "sd-"


def _node_of(name: str, image: Path, fmt: str, writable: bool) -> str:
    """The node's name tells what it is, so that the same export on another image is seen."""
    return _prefix(name) + _hash(f"{image}\0{fmt}\0{writable}")


def _hash(text: str) -> str:
    return blake3(os.fsencode(text)).hexdigest()[:12]


def _blockdev(node: str, image: Path, fmt: str, writable: bool) -> dict[str, Any]:
    """BlockdevOptions: discarded clusters go back to the file system; backing files come from the image's header."""
    file = {"driver": "file", "filename": str(image), "discard": "unmap"}
    return {"driver": fmt, "node-name": node, "read-only": not writable, "discard": "unmap", "file": file}


def _check_image(image: Path, *, writable: bool) -> None:
    if not image.exists():
        raise InputError(f"{image}: no such file")
    if not image.is_file():
        raise InputError(f"{image}: not a regular file")
    if not os.access(image, os.R_OK | (os.W_OK if writable else 0)):
        use = "written" if writable else "read"
        raise InputError(f"{image}: may not be {use} by this user", f"Run as a user who may have it {use}.")


def _cannot_serve(image: Path, exc: ExecuteError) -> JobFailed:
    reason = _one_line(exc)
    hint = f"Check it: qemu-img check {image}"
    if '" lock' in reason:  # no other sign of it: every error of a command has the class GenericError
        hint = "Another process has the image open (an export, qemu-img, a VM): end that one, then try again."
        return ExportsUnavailable(f"{image}: is in use: {reason}", hint)
    return JobFailed(f"{image}: cannot be served: {reason}", hint)


def _one_line(exc: ExecuteError) -> str:
    return " ".join(str(exc).split())


def _sync(image: Path) -> None:
    try:
        descriptor = os.open(image, os.O_RDONLY)
    except FileNotFoundError:
        return  # somebody deleted it: there is nothing to keep
    try:
        os.fsync(descriptor)
    except OSError as exc:
        raise JobFailed(
            f"{image}: what was written cannot be made durable: {exc.strerror}", "Look at the disk, then copy again."
        ) from exc
    finally:
        os.close(descriptor)


_LOG_HINT = "The exports daemon's log (exports.log) says why."
