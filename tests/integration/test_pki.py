"""Certificates of `sendense pki`: taken by qemu, libnbd, OpenSSL and GnuTLS, refused where they should be, renewed."""

import json
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sendense import pki
from sendense.cli.main import app
from sendense.errors import EndpointError, InputError, TlsFailed, TlsRequired
from sendense.exports import Exports, hub_export, reach
from sendense.nbd import images
from sendense.nbd.connect import connect
from sendense.nbd.probe import probe
from sendense.nbd.uri import parse
from sendense.settings import Settings
from sendense.supervise.service import Budget
from sendense.supervise.storage import Storage
from tests.servers import free_port, short_folder

MiB = 2**20

PATIENT = 20.0
"""Far more than a handshake takes."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A hub's certificates, and those of a node named node1."""
    pki.init(tmp_path / "pki", ["hub.example", "10.1.2.3", "[fd00::5]"])
    pki.add_node(tmp_path / "pki", "node1")
    return tmp_path / "pki"


def openssl(*arguments: str | Path) -> None:
    """Run openssl, which has to succeed."""
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_strict_checks_pass(folder: Path) -> None:
    """OpenSSL with all of its rules, and GnuTLS, take every certificate for what it is, and for nothing else."""
    authority = folder / "ca-cert.pem"
    node = folder / "nodes/node1/client-cert.pem"
    for purpose, files in {
        "sslserver": [folder / "server-cert.pem"],
        "sslclient": [folder / "client-cert.pem", node],
    }.items():
        for file in files:
            openssl("verify", "-x509_strict", "-CAfile", authority, "-purpose", purpose, file)
            subprocess.run(
                ["certtool", "--verify", "--load-ca-certificate", authority, "--infile", file],
                check=True,
                capture_output=True,
                timeout=60,
            )
    with pytest.raises(AssertionError, match="unsuitable certificate purpose"):
        openssl("verify", "-CAfile", authority, "-purpose", "sslserver", node)
    for option, name in (("-verify_hostname", "hub.example"), ("-verify_ip", "10.1.2.3"), ("-verify_ip", "fd00::5")):
        openssl("verify", "-x509_strict", "-CAfile", authority, option, name, folder / "server-cert.pem")
    context = ssl.create_default_context(cafile=str(authority))
    context.load_cert_chain(folder / "client-cert.pem", folder / "client-key.pem")


def test_keys_are_kept_from_others_and_the_authority_from_nodes(folder: Path) -> None:
    """A node gets three files, and nobody but their owner reads any."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    node = {path.name for path in (folder / "nodes/node1").iterdir()}
    assert node == {"ca-cert.pem", "client-cert.pem", "client-key.pem"}


def test_nothing_is_overwritten(folder: Path) -> None:
    """A second call is refused and leaves all as it was; an interrupted one is completed."""
    before = {path: path.read_bytes() for path in folder.rglob("*.pem")}
    with pytest.raises(InputError, match="has certificates already"):
        pki.init(folder, ["other.example"])
    with pytest.raises(InputError, match="is there already"):
        pki.add_node(folder, "node1")
    assert {path: path.read_bytes() for path in folder.rglob("*.pem")} == before
    for name in ("server-cert.pem", "client-cert.pem"):
        (folder / name).unlink()
    pki.init(folder, ["hub.example"])
    for name in ("ca-cert.pem", "ca-key.pem", "server-key.pem"):
        assert (folder / name).read_bytes() == before[folder / name]
    (folder / "ca-key.pem").unlink()
    with pytest.raises(InputError, match=r"ca-key\.pem: cannot be read as a key"):
        pki.add_node(folder, "node2")


def test_renewal_keeps_names_keys_and_nodes(folder: Path) -> None:
    """New days; a renewed authority vouches for old certificates, and the old one for new ones."""
    before = {path: path.read_bytes() for path in folder.rglob("*.pem")}
    old = {each.file: each for each in pki.show(folder)}
    assert not pki.init(folder, [], 1000, renew=True)
    assert pki.init(folder, [], 3650, renew=True)
    pki.add_node(folder, "node1", 30, renew=True)
    new = {each.file: each for each in pki.show(folder)}
    assert list(new) == list(old)
    for file, certificate in new.items():
        assert (certificate.subject, certificate.names) == (old[file].subject, old[file].names)
        assert (certificate.ends < old[file].ends) == ("nodes" in str(file))
    changed = {path.name for path in before if path.read_bytes() != before[path]}
    assert changed == {"ca-cert.pem", "server-cert.pem", "client-cert.pem"}
    (folder / "old.pem").write_bytes(before[folder / "ca-cert.pem"])
    (folder / "old-node.pem").write_bytes(before[folder / "nodes/node1/client-cert.pem"])
    openssl("verify", "-x509_strict", "-CAfile", folder / "old.pem", folder / "server-cert.pem")
    openssl("verify", "-x509_strict", "-CAfile", folder / "ca-cert.pem", folder / "old-node.pem")
    pki.init(folder, ["new.example"], renew=True)
    assert pki.read(folder / "server-cert.pem").names[0] == "new.example"


@pytest.mark.parametrize(
    ("hub", "words"),
    [
        ([], "the hub has no name"),
        (["hub.example:6379"], "'hub.example:6379' is no host name and no address"),
        (["a b"], "'a b' is no host name"),
        (["-x"], "'-x' is no host name"),
    ],
)
def test_names_that_are_none(tmp_path: Path, hub: list[str], words: str) -> None:
    """Nothing is made then."""
    with pytest.raises(InputError, match=words):
        pki.init(tmp_path / "pki", hub)
    assert not (tmp_path / "pki").exists()


def test_nodes_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    """A name never leaves its folder; and there is no node without a hub."""
    for name in ("../x", "", "a/b", "-x", "x" * 60):
        with pytest.raises(InputError, match="cannot be a node's name"):
            pki.add_node(folder, name)
    with pytest.raises(InputError, match="has no hub's certificates"):
        pki.add_node(tmp_path / "nowhere", "node1")


def test_commands(tmp_path: Path) -> None:
    """From nothing to a node's folder, listed for people and for programs."""
    folder, run = tmp_path / "pki", CliRunner().invoke
    command = [sys.executable, "-m", "sendense", "pki", "init", str(folder), "--name", "hub.example", "--days", "10"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)  # as users do: the options reach it
    made = run(app, ["pki", "node", str(folder), "node1"])
    assert f"copy {folder}/nodes/node1 to the node" in made.stdout
    shown = run(app, ["pki", "show", str(folder)]).stdout
    assert "hub.example, localhost, 127.0.0.1, ::1" in shown
    assert "in 9 days: renew it" in shown
    found = json.loads(run(app, ["pki", "show", str(folder / "nodes/node1"), "--json"]).stdout)
    assert [entry["subject"].partition("=")[2].split()[1] for entry in found] == ["authority", "node"]
    assert 720 < found[1]["days_left"] <= 730
    renewed = run(app, ["pki", "init", str(folder), "--renew"]).stdout
    assert "restart the hub" in renewed
    assert isinstance(run(app, ["pki", "show", str(tmp_path)]).exception, InputError)


@pytest.fixture
def hub(folder: Path) -> Iterator[Settings]:
    """A hub that serves an export named disk-1 over TLS, with its settings."""
    with short_folder() as place:
        settings = Settings(state_dir=place, exports_listen=f"127.0.0.1:{free_port()}", tls_dir=folder)
        settings.hub_dir.mkdir()
        storage = Storage(settings.exports_address, settings.hub_dir, lambda text: None, Budget(), settings.tls_dir)
        image = place / "disk.qcow2"
        images.create(image, "qcow2", MiB)
        try:
            storage.start()
            storage.wait()
            Exports(storage.qmp_socket, settings.exports_address).add("disk-1", image, writable=True)
            yield settings
        finally:
            storage.child.kill()


def node(hub: Settings, tls_dir: Path | None, host: str = "127.0.0.1") -> str:
    """The export's URI for a node with these certificates, which reaches the hub under that name."""
    base = f"nbds://{host}:{hub.exports_listen.rpartition(':')[2]}"
    return reach(hub_export("disk-1"), Settings(exports=base, tls_dir=tls_dir))


def refusal(uri: str) -> EndpointError:
    """How connecting fails; also the doctor's verdict."""
    with pytest.raises(EndpointError) as caught:
        connect(parse(uri), PATIENT)
    assert probe(uri, PATIENT).verdict == caught.value.verdict
    return caught.value


def test_exports_over_tls(hub: Settings, folder: Path) -> None:
    """A node and the hub itself reach an export, by name and by address; the doctor finds it well."""
    own = folder / "nodes/node1"
    for uri in (reach(hub_export("disk-1"), hub), node(hub, own), node(hub, own, "localhost")):
        connection = connect(parse(uri), PATIENT)
        assert (connection.info.tls, connection.info.multi_conn, connection.info.size) == (True, True, MiB)
        connection.close()
    assert probe(node(hub, own), PATIENT).verdict == "ok"


def test_exports_refuse_strangers(hub: Settings, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TLS, without a certificate, with another authority's, with one that has ended, and under another name."""
    own = folder / "nodes/node1"
    assert isinstance(refusal(node(hub, own).partition("?")[0].replace("nbds:", "nbd:")), TlsRequired)
    pki.init(tmp_path / "other", ["hub.example"])
    foreign = pki.add_node(tmp_path / "other", "node1")
    assert isinstance(refusal(node(hub, foreign)), TlsFailed)
    shutil.copy(own / "ca-cert.pem", foreign)
    assert isinstance(refusal(node(hub, foreign)), TlsFailed)
    for name in ("client-cert.pem", "client-key.pem"):
        (foreign / name).unlink()
    assert isinstance(refusal(node(hub, foreign)), TlsFailed)
    monkeypatch.setattr(pki, "_SKEW", timedelta(days=3))
    pki.add_node(folder, "node1", days=-1, renew=True)
    assert pki.read(own / "client-cert.pem").left(datetime.now(UTC)) < timedelta(0)
    assert isinstance(refusal(node(hub, own)), TlsFailed)
    assert isinstance(refusal(node(hub, folder, "127.1")), TlsFailed)


@pytest.mark.parametrize(
    ("settings", "uri"),
    [
        ({}, "nbd+unix:///a%20b?socket=/s/hub/nbd.sock"),
        ({"exports_listen": "127.0.0.1:10809"}, "nbd://127.0.0.1:10809/a%20b"),
        ({"exports_listen": "[::1]:10809"}, "nbd://[::1]:10809/a%20b"),
        ({"exports_listen": "0.0.0.0:1", "tls_dir": "/c d"}, "nbds://127.0.0.1:1/a%20b?tls-certificates=/c%20d"),
        ({"exports_listen": "[::]:1", "tls_dir": "/c"}, "nbds://[::1]:1/a%20b?tls-certificates=/c"),
        ({"exports": "nbd://hub:1", "tls_dir": "/c", "exports_listen": "[::]:1"}, "nbd://hub:1/a%20b"),
        ({"exports": "nbds://hub:1", "tls_dir": "/c"}, "nbds://hub:1/a%20b?tls-certificates=/c"),
        ({"exports": "nbds://hub:1"}, "nbds://hub:1/a%20b"),
    ],
)
def test_reach(settings: dict[str, str], uri: str) -> None:
    """The same export under the URI of each machine; what is no export of the hub stays what it is."""
    found = Settings.model_validate({"state_dir": "/s", **settings})
    assert reach(hub_export("a b"), found) == uri
    assert parse(uri).export == "a b"
    assert reach("nbd://else/where", found) == "nbd://else/where"
