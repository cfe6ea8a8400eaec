"""NBD URIs."""

import string
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.errors import InputError
from sendense.nbd.uri import DEFAULT_PORT, is_uri, parse, unix_uri


@given(
    socket=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1).map("/run/".__add__),
    export=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])).filter(lambda name: name[:1] != "/"),
)
def test_unix_uri_round_trip(socket: str, export: str) -> None:
    """Whatever the names of socket and export, the URI made of them names just these."""
    endpoint = parse(unix_uri(socket, export))
    assert (endpoint.socket, endpoint.export, endpoint.tls) == (socket, export, False)


@given(st.text() | st.text(string.printable).map("nbd://".__add__))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """No text gets anything but an endpoint or an InputError."""
    with suppress(InputError):
        assert parse(text).uri == text


@given(port=st.integers(1, 65535), export=st.text(string.ascii_letters + string.digits + "-_.", max_size=20))
def test_host_and_port(port: int, export: str) -> None:
    """Host, port and export come out as they were written."""
    endpoint = parse(f"nbd://hub.example:{port}/{export}")
    assert (endpoint.host, endpoint.port, endpoint.export) == ("hub.example", port, export)
    assert endpoint.address == f"hub.example:{port}"


def test_defaults() -> None:
    """A bare host means NBD's own port and the default export."""
    endpoint = parse("nbd://hub")
    assert (endpoint.port, endpoint.export, endpoint.socket, endpoint.tls) == (DEFAULT_PORT, "", "", False)


def test_tls_parameters() -> None:
    """nbds:// takes the name of its user, certificates, key file and whether to check the peer."""
    endpoint = parse("nbds://alice@hub/disk?tls-certificates=/etc/pki&tls-psk-file=/etc/keys&tls-verify-peer=false")
    assert endpoint.tls
    assert endpoint.username == "alice"
    assert (endpoint.certificates, endpoint.psk_file) == ("/etc/pki", "/etc/keys")
    assert not endpoint.verify_peer
    assert parse("nbds://hub").verify_peer


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("http://hub/disk", "scheme 'http'"),
        ("nbd:/disk", "host is missing"),
        ("nbd://", "host is missing"),
        ("nbd://hub:99999/disk", "not a valid URI"),
        ("nbd://hub:port/disk", "not a valid URI"),
        ("nbd://[::1/disk", "not a valid URI"),
        ("nbd+unix:///disk", "socket=PATH is missing"),
        ("nbd+unix://hub/disk?socket=/s", "has no host"),
        ("nbd://hub/disk?socket=/s", "belongs to nbd+unix"),
        ("nbd://hub/disk?colour=red", "unknown parameter 'colour'"),
        ("nbd://hub/disk?tls-psk-file=/k", "needs nbds://"),
        ("nbd+unix:///?socket", "not a valid URI"),
    ],
)
def test_wrong_uris(uri: str, complaint: str) -> None:
    """A wrong URI is refused with what is wrong about it."""
    with pytest.raises(InputError, match="^" + uri[:3]) as caught:
        parse(uri)
    assert complaint in str(caught.value)


def test_what_is_meant_as_a_uri() -> None:
    """A path is no URI, whatever its name."""
    assert is_uri("nbd://hub")
    assert not is_uri("/images/nbd:disk.raw")
