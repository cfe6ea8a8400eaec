"""The argv of the nbdkit that reads a VM's disk (nbdkit-vddk-plugin(1)), and its secrets kept out of messages."""

import html
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from sendense.models import DiskSource
from sendense.settings import Site

_HTTPS_PORT = 443

_MASK = "***"

_LOOKS_SECRET = re.compile(
    r"""(?ix) \b (password | passwd | pwd | cookie | vmware_soap_session)  (["']? \s* [=:] \s*)
        ("[^"]*" | '[^']*' | \S+)"""
)
_SECRET_ELEMENT = re.compile(r"(?is)<((?:\w+:)?password)\b[^>]*>.*?</\1>")


def nbdkit_command(site: Site, disk: DiskSource, socket: Path, thumbprint: str) -> list[str]:
    """
    Serve one disk at one snapshot, read-only, on a Unix socket: one nbdkit serves one disk.

    `thumbprint` is that of vCenter's certificate (Session.thumbprint). The password stays in its file.
    """
    options = dict(site.nbdkit_options)
    script = options.pop("script", "")  # nbdkit's interpreters want it first
    parameters = {
        **({"script": script} if script else {}),
        "server": site.host.strip("[]"),
        **({"port": str(site.port)} if site.port != _HTTPS_PORT else {}),
        "user": site.user,
        "password": f"+{site.password_file}",
        "thumbprint": thumbprint,
        "vm": f"moref={disk.vm}",
        "snapshot": disk.snapshot,
        "file": disk.file,
        **options,
    }
    return [
        "nbdkit",
        "--foreground",
        "--readonly",
        "--unix",
        str(socket),
        *(f"--filter={name}" for name in site.nbdkit_filters),
        site.nbdkit_plugin,
        *(f"{key}={value}" for key, value in parameters.items()),
    ]


def mask(text: str, secrets: Iterable[str]) -> str:
    """`text` with *** for every secret in it, and for whatever is introduced as a password."""
    spellings = {spelling for secret in secrets if secret for spelling in (secret, html.escape(secret), quote(secret))}
    for spelling in sorted(spellings, key=len, reverse=True):
        text = text.replace(spelling, _MASK)
    text = _SECRET_ELEMENT.sub(rf"<\1>{_MASK}</\1>", text)
    return _LOOKS_SECRET.sub(rf"\1\2{_MASK}", text)
