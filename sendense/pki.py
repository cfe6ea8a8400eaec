"""
Certificates for a hub and its nodes: an authority in a folder, and what that signed.

The files' names are those that qemu and libnbd look for (qemu's docs/system/tls.rst). The rules that the certificates
keep are the union of those of GnuTLS, of qemu (crypto/tlscredsx509.c) and of OpenSSL's strict checks.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from sendense.errors import InputError
from sendense.files import make_folder, storing, write_atomically

AUTHORITY_DAYS = 3650
"""The authority's certificate is on every machine: it is renewed as seldom as can be."""

CERTIFICATE_DAYS = 730
"""Of a hub's or a node's certificate, unless asked for otherwise."""

CA_CERT, CA_KEY = "ca-cert.pem", "ca-key.pem"
SERVER_CERT, SERVER_KEY = "server-cert.pem", "server-key.pem"
CLIENT_CERT, CLIENT_KEY = "client-cert.pem", "client-key.pem"

NODES = "nodes"
"""The folder with one folder for each node, which has all that the node gets."""

_SKEW = timedelta(days=1)
"""By which a certificate begins earlier: clocks differ."""

_LOCAL = ("localhost", "127.0.0.1", "::1")
"""Where a hub reaches itself, and nodes reach it through a tunnel."""

_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,50}")
"""A node's name; the certificate's name has room for 64 characters."""

_HOST = re.compile(
    r"(?=.{1,253}$)([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate: `names` are a hub's host names and addresses."""

    file: Path
    subject: str
    names: tuple[str, ...]
    ends: datetime

    def left(self, now: datetime) -> timedelta:
        """Until it ends; negative when it has."""
        return self.ends - now


def init(folder: Path, hub: Sequence[str], days: int = CERTIFICATE_DAYS, *, renew: bool = False) -> bool:
    """
    Make an authority, and with it the hub's certificates; whether machines need the authority's certificate anew.

    `hub` are the names and addresses under which nodes reach the hub. With `renew`, certificates that are there are
    made anew with their old keys, and without `hub` with their old names; the nodes' remain good.
    """
    server = folder / SERVER_CERT
    if server.exists() != renew:
        if renew:
            raise InputError(f"{server}: is not there", "Without --renew, 'sendense pki init' makes it.")
        raise InputError(f"{folder}: has certificates already", "'sendense pki show' lists them, --renew renews them.")
    if not (hub or renew):
        raise InputError("the hub has no name", "Give each name and address that nodes reach it under: --name NAME")
    names = _alternatives([*hub, *_LOCAL] if hub else read(server).names)
    with storing(folder):
        make_folder(folder)
        key = _ensure_key(folder / CA_KEY, alone=not (folder / CA_CERT).exists())
        anew = _ensure_authority(folder, key, days)
        _sign(folder / CLIENT_CERT, _ensure_key(folder / CLIENT_KEY), "hub", (), days, folder)
        _sign(server, _ensure_key(folder / SERVER_KEY), "server", names, days, folder)  # last: with it all is there
    return anew


def add_node(folder: Path, name: str, days: int = CERTIFICATE_DAYS, *, renew: bool = False) -> Path:
    """Make a node's certificate, or with `renew` make it anew with its old key; the folder that the node gets."""
    if not _NODE.fullmatch(name):
        raise InputError(f"'{name}' cannot be a node's name", "Up to 51 letters, digits, '.', '_' and '-'.")
    if not (folder / SERVER_CERT).exists():
        raise InputError(f"{folder}: has no hub's certificates", "Make them first: sendense pki init")
    own = folder / NODES / name
    certificate = own / CLIENT_CERT
    if certificate.exists() != renew:
        if renew:
            raise InputError(f"{certificate}: is not there", "Without --renew, 'sendense pki node' makes it.")
        raise InputError(f"{certificate}: is there already", "Copy its folder to the node, or renew it with --renew.")
    with storing(own):
        make_folder(own)
        write_atomically(own / CA_CERT, (folder / CA_CERT).read_bytes())
        _sign(certificate, _ensure_key(own / CLIENT_KEY), f"node {name}", (), days, folder)
    return own


def show(folder: Path) -> list[Certificate]:
    """What a folder of `init` or of `add_node` has, the authority first; InputError where there is none."""
    files = [folder / name for name in (CA_CERT, SERVER_CERT, CLIENT_CERT)]
    files += sorted((folder / NODES).glob(f"*/{CLIENT_CERT}"))
    found = [read(file) for file in files if file.exists()]
    if not found:
        raise InputError(f"{folder}: has no certificates", "Name the folder that 'sendense pki init' made.")
    return found


def read(file: Path) -> Certificate:
    """A certificate; InputError when the file is none."""
    certificate = _load(file)
    return Certificate(
        file, certificate.subject.rfc4514_string(), tuple(_names(certificate)), certificate.not_valid_after_utc
    )


def _load(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError) as exc:
        raise InputError(f"{file}: cannot be read as a certificate: {exc}", "Take it from a backup.") from exc


def _names(certificate: x509.Certificate) -> Iterator[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return
    for name in found:
        yield str(name.value)


def _alternatives(names: Sequence[str]) -> list[x509.GeneralName]:
    return [_alternative(name) for name in dict.fromkeys(names)]


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name.removeprefix("[").removesuffix("]")))
    except ValueError:
        if _HOST.fullmatch(name):
            return x509.DNSName(name)
    raise InputError(f"'{name}' is no host name and no address", "Give it as nodes write it, without a port.")


def _ensure_key(file: Path, *, alone: bool = True) -> ec.EllipticCurvePrivateKey:
    """The key of a file, which is made unless it is there or its certificate is (`alone` is False)."""
    if not file.exists() and alone:
        made = ec.generate_private_key(ec.SECP256R1())
        form = serialization.PrivateFormat.PKCS8
        write_atomically(file, made.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), None)
    except (OSError, ValueError, TypeError) as exc:
        raise InputError(
            f"{file}: cannot be read as a key", "Take it from a backup, or begin in a new folder."
        ) from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{file}: is no key of 'sendense pki'", "Name another folder.")
    return key


def _ensure_authority(folder: Path, key: ec.EllipticCurvePrivateKey, days: int) -> bool:
    """Make the authority's certificate unless one is there that outlives what it is to sign; whether it was made."""
    file, now = folder / CA_CERT, datetime.now(UTC)
    there = _load(file) if file.exists() else None
    if there and there.not_valid_after_utc > now + timedelta(days=days):
        return False
    identity = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = there.subject if there else _name(f"authority {identity.digest.hex()[:8]}")
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    built = (
        _builder(name, name, key, now + timedelta(days=max(days + 1, AUTHORITY_DAYS)))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identity, critical=False)
    )
    _write(file, built.sign(key, hashes.SHA256()))
    return True


def _sign(
    file: Path,
    key: ec.EllipticCurvePrivateKey,
    subject: str,
    names: Sequence[x509.GeneralName],
    days: int,
    folder: Path,
) -> None:
    """Make a certificate: a server's when it has names, otherwise a client's."""
    authority, authority_key = _load(folder / CA_CERT), _ensure_key(folder / CA_KEY, alone=False)
    identity = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    ends = datetime.now(UTC) + timedelta(days=days)
    purpose: ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH if names else ExtendedKeyUsageOID.CLIENT_AUTH
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    built = (
        _builder(_name(subject), authority.subject, key, min(ends, authority.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        # Where this is critical, qemu 7.2 asks for key encipherment, which an EC key must not have (RFC 8813).
        .add_extension(usage, critical=False)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identity), critical=False)
    )
    if names:
        built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
    _write(file, built.sign(authority_key, hashes.SHA256()))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _SKEW)
        .not_valid_after(ends)
    )


def _name(common: str) -> x509.Name:
    """A subject that is no host's name: where a certificate has no other, GnuTLS takes this for one."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Sendense {common}")])


def _write(file: Path, certificate: x509.Certificate) -> None:
    write_atomically(file, certificate.public_bytes(serialization.Encoding.PEM))
