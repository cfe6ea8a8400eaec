"""Connecting to real servers, and to real faults."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from sendense.errors import (
    ClaimLost,
    ConnectionLost,
    EndpointError,
    HandshakeStalled,
    NoGreeting,
    NoSuchExport,
    NotNbd,
    Refused,
    TlsFailed,
    TlsRequired,
    Unreachable,
    Unresolvable,
)
from sendense.nbd.connect import STAGES, Connection, connect, stage_of
from sendense.nbd.uri import parse, unix_uri
from tests.servers import GREETING, certificates, free_port, full_queue, nbdkit, qemu_nbd, short_folder, talker

PATIENT = 20.0
"""Seconds for what works: no noise on the machine takes as long."""

BRIEF = 1.0
"""Seconds for what never answers."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A raw image of 1 MiB."""
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(2**20))
    return path


def open_uri(uri: str, timeout: float = PATIENT) -> Connection:
    return connect(parse(uri), timeout)


def refusal(uri: str, timeout: float = PATIENT) -> EndpointError:
    """The error that a connection attempt ends with."""
    with pytest.raises(EndpointError) as caught:
        open_uri(uri, timeout)
    return caught.value


def test_export_of_nbdkit() -> None:
    """What nbdkit says of its export is in the connection's info."""
    with nbdkit("memory", "3M") as server:
        connection = open_uri(server.uri)
        info = connection.info
        connection.close()
    assert info.size == 3 * 2**20
    assert (info.multi_conn, info.read_only, info.allocation, info.structured) == (True, False, True, True)
    assert (info.minimum, info.maximum, info.tls, info.protocol) == (1, 32 * 2**20, False, "newstyle-fixed")


def test_export_of_qemu(image: Path) -> None:
    """qemu-nbd in its default mode offers a writable export for one client."""
    with qemu_nbd(image, export="disk one/ü") as server:
        connection = open_uri(server.uri)
        info = connection.info
        connection.close()
    assert (info.size, info.multi_conn, info.read_only, info.preferred) == (2**20, False, False, 4096)


def test_plain_server() -> None:
    """A server without structured replies works, and has no base:allocation."""
    with nbdkit("--no-sr", "memory", "1M") as server:
        connection = open_uri(server.uri)
        info = connection.info
        connection.close()
    assert (info.structured, info.allocation) == (False, False)


def test_oldstyle_server() -> None:
    """A server of the oldest protocol, which has no negotiation, works."""
    with nbdkit("--oldstyle", "memory", "1M") as server:
        connection = open_uri(server.uri)
        info = connection.info
        connection.close()
    assert (info.size, info.protocol) == (2**20, "oldstyle")


def test_close_ends_the_session(image: Path) -> None:
    """After close, the server knows that its client left: this qemu-nbd ends with its last one."""
    with qemu_nbd(image) as server:
        connection = open_uri(server.uri)
        connection.close()
        connection.close()
        assert server.process.wait(PATIENT) == 0


def test_stages_are_observed_in_order() -> None:
    """The observer hears of known stages only, connect before greeting, greeting before export."""
    seen: list[str] = []
    with nbdkit("memory", "1M", tcp=True) as server:
        os.kill(server.process.pid, signal.SIGSTOP)  # so that its greeting is waited for

        def beat() -> None:
            if "connect" in seen:
                os.kill(server.process.pid, signal.SIGCONT)

        connect(parse(server.uri), PATIENT, beat, lambda stage, seconds: seen.append(stage)).close()
    assert set(seen) <= set(STAGES)
    assert seen.index("resolve") < seen.index("connect") < seen.index("greeting")


def test_beat_while_waiting() -> None:
    """A wait that ends in a stall calls beat all along."""
    beats: list[float] = []
    with talker() as uri, pytest.raises(NoGreeting):
        connect(parse(uri), 1.6, lambda: beats.append(time.monotonic()))
    assert len(beats) >= 3


def test_beat_can_stop_the_attempt() -> None:
    """An error that beat raises ends the attempt at once."""

    def lose() -> None:
        raise ClaimLost("job", "batch")

    with talker() as uri, pytest.raises(ClaimLost):
        connect(parse(uri), 60, lose)


def test_deadline_for_all_stages() -> None:
    """The deadline ends an attempt that its stages' timeout would let go on."""
    began = time.monotonic()
    with talker(GREETING) as uri, pytest.raises(HandshakeStalled):
        connect(parse(uri), 60, deadline=began + BRIEF)
    assert time.monotonic() - began < 30


def test_unresolvable() -> None:
    """A name under .invalid has no address (RFC 2606)."""
    assert isinstance(refusal("nbd://hub.invalid/disk"), Unresolvable)


def test_refused_port() -> None:
    """A port that nobody listens on refuses."""
    error = refusal(f"nbd://127.0.0.1:{free_port()}/")
    assert isinstance(error, Refused)
    assert "Connection refused" in error.detail


@pytest.mark.parametrize("path", ["/nonexistent/socket", "/etc/passwd", "/etc/passwd/socket", "/tmp/" + "x" * 200])
def test_refused_socket(path: str) -> None:
    """A path without a listening socket behind it refuses, whatever is there instead."""
    assert isinstance(refusal(unix_uri(path)), Refused)


def test_refused_late() -> None:
    """A refusal that comes a second after the attempt is still a refusal, and no wrong greeting."""
    with full_queue() as (uri, listener):
        closer = threading.Timer(0.3, listener.close)
        closer.start()
        error = refusal(uri)
        closer.join()
    assert isinstance(error, Refused)


def test_unreachable_without_route() -> None:
    """TCP has no route to a multicast address."""
    assert isinstance(refusal("nbd://224.0.0.1/"), Unreachable)


def test_unreachable_without_answer() -> None:
    """A host that never answers is unreachable, though libnbd says that it waits for the greeting."""
    with full_queue() as (uri, _):
        error = refusal(uri, BRIEF)
    assert isinstance(error, Unreachable)
    assert error.state == "CONNECT_TCP.CONNECTING"


def test_full_queue_of_a_socket() -> None:
    """A Unix socket whose queue of waiting clients is full has a server, which greets nobody more."""
    with short_folder() as folder, socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        path = str(folder / "s")
        listener.bind(path)
        listener.listen(0)
        client.connect(path)
        error = refusal(unix_uri(path))
    assert isinstance(error, NoGreeting)


def test_second_client_of_qemu_nbd(image: Path) -> None:
    """The predecessor's hang: the only client's place is taken, and the next one waits for a greeting."""
    with qemu_nbd(image, "--persistent") as server:
        connection = open_uri(server.uri)
        error = refusal(server.uri, BRIEF)
        connection.close()
        open_uri(server.uri).close()
    assert isinstance(error, NoGreeting)
    assert error.state == "MAGIC.RECV_MAGIC"


def test_frozen_server() -> None:
    """A stopped server's kernel takes the connection, and no greeting comes."""
    with nbdkit("memory", "1M", tcp=True) as server:
        server.stop()
        error = refusal(server.uri, BRIEF)
        server.cont()
        open_uri(server.uri).close()
    assert isinstance(error, NoGreeting)
    assert error.state == "MAGIC.RECV_MAGIC"


def test_hang_up_instead_of_a_greeting() -> None:
    """A server that closes at once gave no greeting."""
    with talker(hang_up=True) as uri:
        error = refusal(uri)
    assert isinstance(error, NoGreeting)
    assert "closed" in error.detail


def test_another_service() -> None:
    """An ssh server's banner is no NBD greeting."""
    with talker(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n") as uri:
        error = refusal(uri)
    assert isinstance(error, NotNbd)


def test_handshake_stalls() -> None:
    """A server that greets and then says nothing is named with the state that libnbd waits in."""
    with talker(GREETING) as uri:
        error = refusal(uri, BRIEF)
    assert isinstance(error, HandshakeStalled)
    assert error.state.startswith("NEWSTYLE.")


def test_server_ends_in_the_handshake() -> None:
    """A server that is killed while its plugin opens broke the connection off."""
    with nbdkit("--filter=delay", "memory", "1M", "delay-open=60") as server:
        killer = threading.Timer(0.5, server.process.kill)
        killer.start()
        error = refusal(server.uri)
        killer.join()
    assert isinstance(error, ConnectionLost)
    assert not isinstance(error, HandshakeStalled)


def test_failed_attempt_gives_its_place_back(image: Path) -> None:
    """An error that is kept does not keep the only client's place: the next client gets it."""
    with qemu_nbd(image, "--persistent", export="a") as server:
        kept = refusal(server.uri.replace("/a?", "/b?"))
        open_uri(server.uri).close()
    assert isinstance(kept, NoSuchExport)
    assert kept.__traceback__


def test_close_gives_the_place_back(image: Path) -> None:
    """A connection closed as broken frees its place at once, though its handle lives on."""
    with qemu_nbd(image, "--persistent") as server:
        first = open_uri(server.uri)
        first.broken = True
        first.close()
        second = open_uri(server.uri)
        assert second.info == first.info
        second.close()


def test_no_such_export(image: Path) -> None:
    """The error lists the exports that there are."""
    with qemu_nbd(image, "--shared=0", export="disk-2000") as server:
        error = refusal(server.uri.replace("disk-2000", "disk-2001"))
    assert isinstance(error, NoSuchExport)
    assert "no export 'disk-2001'" in error.detail
    assert "'disk-2000'" in error.detail
    assert not error.retryable


def test_export_that_does_not_open() -> None:
    """An export that the server lists and cannot open points to the server's log."""
    with nbdkit("eval", "open=echo ENOENT gone >&2; exit 1", "get_size=echo 1M", "pread=exit 1") as server:
        error = refusal(server.uri)
        assert "gone" in server.log.read_text()
    assert isinstance(error, NoSuchExport)
    assert "its log says why" in error.detail


def test_tls(tls_folder: Path) -> None:
    """A server whose certificate is signed by the CA that the URI names is taken."""
    with nbdkit("memory", "1M", tcp=True, tls=tls_folder) as server:
        connection = open_uri(server.uri)
        connection.close()
    assert connection.info.tls


def test_tls_with_a_key(tmp_path: Path) -> None:
    """A pre-shared key does without certificates."""
    keys = tmp_path / "keys"
    keys.write_text("alice:" + os.urandom(32).hex() + "\n")
    keys.chmod(0o600)
    with nbdkit("--tls=require", f"--tls-psk={keys}", "memory", "1M") as server:
        _, _, parameters = server.uri.partition("?")
        connection = open_uri(f"nbds+unix://alice@/?{parameters}&tls-psk-file={keys}")
        connection.close()
    assert connection.info.tls


def test_tls_required(tls_folder: Path) -> None:
    """A server that takes TLS only says so to a client without."""
    with nbdkit("memory", "1M", tcp=True, tls=tls_folder) as server:
        error = refusal(server.uri.partition("?")[0].replace("nbds", "nbd"))
    assert isinstance(error, TlsRequired)


def test_tls_of_another_authority(tls_folder: Path, tmp_path: Path) -> None:
    """A certificate that the URI's CA did not sign is refused."""
    other = certificates(tmp_path / "other")
    with nbdkit("memory", "1M", tcp=True, tls=tls_folder) as server:
        error = refusal(server.uri.replace(str(tls_folder), str(other)))
    assert isinstance(error, TlsFailed)


def test_tls_of_another_host(tls_folder: Path) -> None:
    """A certificate for another host name is refused, unless the URI says not to check the peer."""
    with nbdkit("--ipaddr", "127.0.0.2", "memory", "1M", tcp=True, tls=tls_folder) as server:
        elsewhere = server.uri.replace("localhost", "127.0.0.2")
        error = refusal(elsewhere)
        open_uri(f"{elsewhere}&tls-verify-peer=no").close()
    assert isinstance(error, TlsFailed)


def test_tls_without_authority(tls_folder: Path, tmp_path: Path) -> None:
    """Without a CA certificate nothing could be checked, so nothing is connected."""
    with nbdkit("memory", "1M", tcp=True, tls=tls_folder) as server:
        error = refusal(server.uri.replace(str(tls_folder), str(tmp_path)))
    assert isinstance(error, TlsFailed)
    assert str(tmp_path / "ca-cert.pem") in error.detail


def test_tls_not_offered(tls_folder: Path) -> None:
    """A server without TLS is not used in clear when TLS was asked for."""
    with nbdkit("memory", "1M", tcp=True) as server:
        error = refusal(f"{server.uri.replace('nbd', 'nbds')}?tls-certificates={tls_folder}")
    assert isinstance(error, TlsFailed)


@pytest.mark.parametrize(
    ("state", "stage"),
    [
        ("CONNECT_TCP.CONNECTING", "connect"),
        ("MAGIC.RECV_MAGIC: Receive initial magic", "greeting"),
        ("NEWSTYLE.RECV_GFLAGS", "negotiation"),
        ("NEWSTYLE.OPT_STARTTLS.TLS_HANDSHAKE_READ", "tls"),
        ("NEWSTYLE.OPT_META_CONTEXT.RECV_REPLY", "meta context"),
        ("NEWSTYLE.OPT_GO.RECV_REPLY", "export"),
        ("DEAD", "before"),
    ],
)
def test_stage_of_a_state(state: str, stage: str) -> None:
    """libnbd's states map to the stages; one that says nothing leaves the stage as it was."""
    assert stage_of(state, "before") == stage
