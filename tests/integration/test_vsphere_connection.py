"""Connections to what says it is a vCenter: its certificate, and all the ways in which it can keep silent."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sendense.errors import CertificateRefused, SiteError, SiteUnreachable
from sendense.lab.certificate import ensure_certificate, thumbprint
from sendense.settings import Site
from sendense.vsphere import connection
from sendense.vsphere.session import Session, open_session

PASSWORD = "pass-word-17"

Talk = Callable[[socket.socket], None]


@contextlib.contextmanager
def peer(folder: Path, talk: Talk, host: str = "127.0.0.1", *, tls: bool = True) -> Iterator[tuple[int, bytearray]]:
    """A server that hands every connection to `talk`; its port, and what it was sent before that."""
    ensure_certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    heard = bytearray()

    def serve(raw: socket.socket) -> None:
        with contextlib.suppress(OSError), raw:
            raw.settimeout(10)
            with context.wrap_socket(raw, server_side=True) if tls else raw as conn:
                heard.extend(conn.recv(65536))
                talk(conn)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server((host, 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield listener.getsockname()[1], heard
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept()


def answer(status: str, body: str = "") -> Talk:
    """Says the same to everybody."""
    return lambda conn: conn.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())


def a_site(folder: Path, address: str, **more: object) -> Site:
    """Settings for what listens at `address`."""
    password = folder / "password"
    password.touch(0o600)
    password.write_text(PASSWORD)
    return Site.model_validate({"vcenter": address, "user": "operator", "password_file": password, **more})


def refused(site: Site) -> SiteError:
    """The error that a login ends with."""
    with pytest.raises(SiteError) as caught:
        open_session("berlin", site)
    assert PASSWORD not in repr(caught.value) + str(caught.value) + caught.value.hint
    return caught.value


def test_a_pinned_certificate_is_the_only_one(tmp_path: Path) -> None:
    """With a thumbprint another certificate is refused every time, also one that would verify, and hears no request."""
    with peer(tmp_path, answer("200 OK")) as (port, heard):
        site = a_site(tmp_path, f"127.0.0.1:{port}", thumbprint=":".join(["00"] * 20), ca_file=tmp_path / "ca.pem")
        for session in (Session("berlin", site), Session("berlin", site)):
            for _ in range(2):
                with pytest.raises(CertificateRefused) as caught:
                    session.log_in()
                assert caught.value.thumbprint == thumbprint(tmp_path)
                assert thumbprint(tmp_path) in caught.value.hint
        assert not heard


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    """Without a thumbprint a self-signed certificate is refused, on 127.0.0.1 as well, and the hint says how to pin."""
    with peer(tmp_path, answer("200 OK")) as (port, heard):
        error = refused(a_site(tmp_path, f"127.0.0.1:{port}"))
        assert isinstance(error, CertificateRefused)
        assert error.thumbprint == thumbprint(tmp_path)
        assert f"'{thumbprint(tmp_path)}'" in error.hint
        assert not heard


def test_a_certificate_for_another_host(tmp_path: Path) -> None:
    """A certificate that verifies but bears another name is refused."""
    with peer(tmp_path, answer("200 OK"), "127.0.0.2") as (port, heard):
        error = refused(a_site(tmp_path, f"127.0.0.2:{port}", ca_file=tmp_path / "ca.pem"))
        assert isinstance(error, CertificateRefused)
        assert "127.0.0.2" in str(error)
        assert not heard


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        (answer("404 Not Found"), "HTTP 404"),
        (answer("503 Service Unavailable"), "HTTP 503"),
        (answer("200 OK", "<html><p>Hello</html>"), "what answers is no vCenter"),
        (answer("200 OK", "<namespaces/>"), "no version of the vSphere API"),
        (lambda conn: None, "connection failed"),
    ],
)
def test_something_else_than_a_vcenter(talk: Talk, said: str, tmp_path: Path) -> None:
    """Another web server, a vCenter that is starting, and one that hangs up, are told apart."""
    with peer(tmp_path, talk) as (port, _):
        error = refused(a_site(tmp_path, f"127.0.0.1:{port}", ca_file=tmp_path / "ca.pem"))
        assert isinstance(error, SiteUnreachable)
        assert said in str(error)


def test_no_tls(tmp_path: Path) -> None:
    """A server that speaks no TLS is told from one with a wrong certificate."""
    with peer(tmp_path, answer("400 Bad Request"), tls=False) as (port, _):
        error = refused(a_site(tmp_path, f"127.0.0.1:{port}"))
        assert isinstance(error, SiteUnreachable)
        assert "no TLS there" in str(error)


def test_silence_after_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel accepts for a server that is stopped ends at the deadline of the TLS handshake."""
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        error = refused(a_site(tmp_path, f"127.0.0.1:{listener.getsockname()[1]}"))
    assert "did not begin TLS in 0.3 s" in str(error)


def test_silence_instead_of_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is never answered ends at its deadline, and so does one whose answer never ends."""

    def trickle(conn: socket.socket) -> None:
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            conn.sendall(b" ")
            time.sleep(0.1)

    monkeypatch.setattr(connection, "CALL_SECONDS", 0.5)
    for talk in (lambda conn: time.sleep(9), trickle):
        began = time.monotonic()
        with peer(tmp_path, talk) as (port, _):
            error = refused(a_site(tmp_path, f"127.0.0.1:{port}", ca_file=tmp_path / "ca.pem"))
        assert isinstance(error, SiteUnreachable)
        assert "no answer in 0.5 s" in str(error)
        assert time.monotonic() - began < 5


def test_the_beat_goes_on_and_may_end_the_wait(tmp_path: Path) -> None:
    """While vCenter is silent the caller's beat is called, and what it raises ends the wait at once."""
    beats: list[float] = []

    def beat() -> None:
        beats.append(time.monotonic())
        if len(beats) == 3:
            raise KeyError("enough")

    with peer(tmp_path, lambda conn: time.sleep(9)) as (port, _):
        site = a_site(tmp_path, f"127.0.0.1:{port}", ca_file=tmp_path / "ca.pem")
        began = time.monotonic()
        with pytest.raises(KeyError), Session("berlin", site) as session, session.beating(beat):
            session.log_in()
    assert len(beats) == 3
    assert beats[-1] - began < 8


def test_nobody_listens(tmp_path: Path) -> None:
    """A port where nobody listens, and a name without an address, say so."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "Connection refused" in str(refused(a_site(tmp_path, f"127.0.0.1:{port}")))
    assert "has no address" in str(refused(a_site(tmp_path, "vcenter.invalid")))


def test_a_missing_ca_file(tmp_path: Path) -> None:
    """An authority's file that is not there is the settings' fault, and named."""
    with pytest.raises(Exception, match=r"ca_file .*nothing.pem: No such file"):
        open_session("berlin", a_site(tmp_path, "127.0.0.1:1", ca_file=tmp_path / "nothing.pem"))
