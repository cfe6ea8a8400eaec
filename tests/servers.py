"""Real NBD servers for tests, each a child of its own in a folder of its own."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

START_SECONDS = 20.0
END_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running server; `log` is the file that holds its stdout and stderr."""

    process: subprocess.Popen[bytes]
    uri: str
    log: Path

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self.process.pid

    def stop(self) -> None:
        """Freeze the server (SIGSTOP): the kernel still accepts connections for it."""
        self.process.send_signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Let a frozen server go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the server at once (SIGKILL), as a crash would."""
        self.process.kill()
        self.process.wait(END_SECONDS)

    def terminate(self) -> None:
        """End the server in good order, so that its image is complete; kill it if it does not end."""
        self.cont()
        self.process.terminate()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def short_folder() -> Iterator[Path]:
    """A new folder whose path is short enough for Unix sockets (107 bytes)."""
    folder = Path(tempfile.mkdtemp(prefix="sd", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


@contextmanager
def serve(command: list[str], uri: str, pid_file: Path) -> Iterator[Server]:
    """Run a server in the foreground until the block ends; it is ready once it wrote `pid_file`."""
    log = pid_file.with_name("log")
    with log.open("wb") as output:
        # A test run that is killed takes its servers along.
        guarded = ["setpriv", "--pdeathsig", "KILL", *command]
        process = subprocess.Popen(guarded, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    server = Server(process, uri, log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (pid_file.exists() and pid_file.stat().st_size):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)} did not start: {log.read_text(errors='replace')}")
            time.sleep(0.01)
        yield server
    finally:
        server.terminate()


@contextmanager
def nbdkit(
    *args: str | Path, tcp: bool = False, export: str = "", tls: Path | None = None, port: int = 0
) -> Iterator[Server]:
    """
    Run `nbdkit ARGS` on a Unix socket, or on a TCP port of 127.0.0.1.

    `tls` is a folder of `certificates()`: the server then takes TLS only, and the URI names the folder.
    """
    with short_folder() as folder:
        command = ["nbdkit", "--foreground", "--pidfile", str(folder / "pid")]
        if tls:
            command += ["--tls=require", "--tls-certificates", str(tls)]
        if tcp or port:
            port = port or free_port()
            command += ["--ipaddr", "127.0.0.1", "--port", str(port)]
        else:
            command += ["--unix", str(folder / "s")]
        uri = _uri(folder, port, export, tls)
        with serve([*command, *map(str, args)], uri, folder / "pid") as server:
            yield server


@contextmanager
def qemu_nbd(
    image: str | Path, *args: str, image_format: str = "raw", tcp: bool = False, export: str = "", port: int = 0
) -> Iterator[Server]:
    """
    Run `qemu-nbd ARGS IMAGE` on a Unix socket, or on a TCP port of 127.0.0.1.

    As qemu-nbd does it: one client (raise it with "--shared=N"), and ended when that leaves (unless "--persistent").
    """
    with short_folder() as folder:
        command = ["qemu-nbd", "--pid-file", str(folder / "pid"), "--format", image_format]
        if tcp or port:
            port = port or free_port()
            command += ["--bind", "127.0.0.1", "--port", str(port)]
        else:
            command += ["--socket", str(folder / "s")]
        if export:
            command += ["--export-name", export]
        uri = _uri(folder, port, export, None)
        with serve([*command, *args, str(image)], uri, folder / "pid") as server:
            yield server


def _uri(folder: Path, port: int, export: str, tls: Path | None) -> str:
    scheme, name = "nbds" if tls else "nbd", quote(export, safe="")
    parameters = [f"tls-certificates={tls}"] if tls else []
    if port:
        start = f"{scheme}://{'localhost' if tls else '127.0.0.1'}:{port}/{name}"
    else:
        start = f"{scheme}+unix:///{name}"
        parameters.insert(0, f"socket={folder / 's'}")
    return start + ("?" + "&".join(parameters) if parameters else "")


GREETING = b"NBDMAGICIHAVEOPT\0\3"
"""What an NBD server says first: both magic numbers, and the flags of fixed newstyle without zeroes."""


@contextmanager
def talker(words: bytes = b"", hang_up: bool = False) -> Iterator[str]:
    """Listen on a TCP port, say `words` to everybody, then nothing more, or hang up; yields the URI."""
    heard: list[socket.socket] = []

    def talk() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            peer.sendall(words)
            if hang_up:
                peer.close()
            else:
                heard.append(peer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=talk)
        thread.start()
        try:
            yield f"nbd://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(END_SECONDS)
            for peer in heard:
                peer.close()


@contextmanager
def full_queue() -> Iterator[tuple[str, socket.socket]]:
    """A TCP port whose queue of clients is full, so that it answers no more of them: the URI, and the listener."""
    with socket.socket() as listener, socket.socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        client.connect(listener.getsockname())
        yield f"nbd://127.0.0.1:{listener.getsockname()[1]}/", listener


def certificates(folder: Path) -> Path:
    """Make a CA and a server certificate for localhost, in `folder`, under the names that nbdkit and libnbd expect."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("ca", "server"):
        _certtool("--generate-privkey", "--key-type=ecdsa", "--outfile", folder / f"{name}-key.pem")
    ca, server = folder / "ca.info", folder / "server.info"
    ca.write_text("cn = Test CA\nca\ncert_signing_key\nexpiration_days = 30\n")
    server.write_text(
        "organization = Test\ncn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\n"
        "tls_www_server\nencryption_key\nsigning_key\nexpiration_days = 30\n"
    )
    authority = folder / "ca-cert.pem"
    ca_key, server_key = folder / "ca-key.pem", folder / "server-key.pem"
    _certtool("--generate-self-signed", "--load-privkey", ca_key, "--template", ca, "--outfile", authority)
    _certtool(
        *("--generate-certificate", "--load-privkey", server_key, "--template", server),
        *("--load-ca-certificate", authority, "--load-ca-privkey", ca_key, "--outfile", folder / "server-cert.pem"),
    )
    return folder


def _certtool(*args: str | os.PathLike[str]) -> None:
    subprocess.run(["certtool", *args], check=True, capture_output=True, timeout=60)


@contextmanager
def locked_by_another(lock: Path) -> Iterator[None]:
    """A lock that a process has from which none of the others here descends, and which does not know its folder."""
    descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    holder = subprocess.Popen(["/usr/bin/sleep", "600"], env={}, pass_fds=[descriptor])
    os.close(descriptor)
    try:
        yield
    finally:
        holder.kill()
        holder.wait(END_SECONDS)
