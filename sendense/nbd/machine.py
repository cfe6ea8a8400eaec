"""What this machine needs to run Sendense, and whether it is there."""

import importlib.metadata
import os
import platform
import re
import subprocess
from dataclasses import dataclass

COMMAND_SECONDS = 10.0
"""A program that does not tell its version in this time is broken."""

_COMMANDS = (
    ("nbdkit", "1.32", "apt install nbdkit"),
    ("qemu-img", "7.1", "apt install qemu-utils"),
    ("qemu-nbd", "7.1", "apt install qemu-utils"),
    ("qemu-storage-daemon", "7.1", "apt install qemu-system-common"),
    ("redis-server", "7.0", "apt install redis-server"),
    ("setpriv", "2.33", "apt install util-linux"),  # the first with --pdeathsig
)

_PLUGINS = (
    ("file", "apt install nbdkit", True),
    ("python", "apt install nbdkit-plugin-python", True),
    (
        "vddk",
        "needed for VMware sources only. Fedora, RHEL and CentOS Stream have it (nbdkit-vddk-plugin), Debian does not; "
        "the VDDK library that it loads comes from VMware (developer.broadcom.com).",
        False,
    ),
)

_PACKAGES = (("celery", "5.7"), ("kombu", "5.7"))


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked for. `found` is its version, 'yes', or empty; where not `required`, its absence is a note."""

    name: str
    found: str
    needed: str
    ok: bool
    fix: str
    required: bool = True


def check_machine() -> list[Check]:
    """Look for everything that Sendense runs on; each child command has a time limit."""
    checks = [
        _versioned("python", platform.python_version(), "3.11", "apt install python3 (Debian 12 or later)"),
        _versioned("libnbd", _libnbd(), "1.14", "apt install python3-libnbd; the venv needs --system-site-packages"),
    ]
    for name, needed, fix in _COMMANDS:
        checks.append(_versioned(name, _version_in(_output_of(name, "--version")), needed, fix))
        if name == "nbdkit":
            checks += [_plugin(plugin, fix, required) for plugin, fix, required in _PLUGINS]
    for name, needed in _PACKAGES:
        checks.append(_versioned(name, _package(name), needed, f"pip install '{name}>={needed}'"))
    return checks


def _versioned(name: str, found: str, needed: str, fix: str) -> Check:
    ok = bool(found) and _numbers(found) >= _numbers(needed)
    return Check(name, found, needed, ok, "" if ok else fix)


def _plugin(name: str, fix: str, required: bool) -> Check:
    found = _output_of("nbdkit", "--dump-plugin", name) is not None
    return Check(f"nbdkit {name} plugin", "yes" if found else "", "", found, "" if found else fix, required)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _version_in(text: str | None) -> str:
    match = re.search(r"\d+(\.\d+)+", text or "")
    return match.group() if match else ""


def _output_of(*command: str) -> str | None:
    """The command's stdout, or None if it is missing, fails or hangs."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=True,
            env=environment,
            errors="replace",
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=COMMAND_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _libnbd() -> str:
    try:
        import nbd
    except ImportError:
        return ""
    return nbd.NBD().get_version()


def _package(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
