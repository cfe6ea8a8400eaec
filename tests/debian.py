"""A Debian of its own in a folder, as fresh as an image's or a machine's, and commands in it as root."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.backup import patiently

ROOT = Path(__file__).resolve().parents[1]

MAKE_SECONDS = 400.0
"""For downloading, unpacking and installing; alone it takes a minute."""

BOOT_SECONDS = 90.0
"""For a boot; it takes five."""

SOURCE = "usr/src/sendense"
"""Where the images' files copy this source."""

_MOUNTED = """
set -e
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot "$root" env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels "$@"
"""


class Debian:
    """A system in `root`. Its pip takes packages from a folder: it knows nothing of how this machine reaches others."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command as root, in namespaces of its own."""
        return subprocess.run(
            [
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "bash",
                "-c",
                _MOUNTED,
                "run",
                self.root,
                *command,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=MAKE_SECONDS,
        )

    def copy_source(self) -> None:
        """What `COPY .` copies, by .dockerignore: what is named there with '!', and nothing else."""
        words = (ROOT / ".dockerignore").read_text().split()
        assert words[0] == "*"
        for name in (word[1:] for word in words if word.startswith("!")):
            source, target = ROOT / name, self.root / SOURCE / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, target)


class Machine:
    """A system that was booted, with systemd as its process 1, and no network but its loopback."""

    def __init__(self, debian: Debian) -> None:
        (debian.root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
        self._log = debian.root.with_name("console")
        outside = [] if Path("/run/systemd/system").exists() else ["--keep-unit"]
        name = debian.root.parent.name.replace("_", "-")  # which is not for names of machines
        options = [
            "--quiet",
            "--boot",
            f"--machine={name}",
            "--register=no",
            "--private-network",
            "--console=pipe",
            *outside,
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "systemd-nspawn", *options, "--directory", str(debian.root)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        assert patiently(lambda: self.run("systemctl", "is-system-running").stdout == "running\n", BOOT_SECONDS), (
            self.run("systemctl", "--failed").stdout + self._log.read_text(errors="replace")
        )

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command as root."""
        inside = ["nsenter", "-t", str(self._first()), "-m", "-u", "-i", "-n", "-p", "--root", "--wdns=/"]
        clean = ["env", "-i", "HOME=/root", "PATH=/usr/local/bin:/usr/bin:/usr/sbin", "PIP_NO_INDEX=1"]
        return subprocess.run(
            [*inside, *clean, "PIP_FIND_LINKS=/wheels", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=MAKE_SECONDS,
        )

    def close(self) -> None:
        """Turn it off."""
        if first := self._first():
            psutil.Process(first).kill()
        self._process.wait(BOOT_SECONDS)

    def _first(self) -> int:
        """Of its process 1; 0 where there is none."""
        try:
            return next((one.pid for one in psutil.Process(self._process.pid).children()), 0)
        except psutil.NoSuchProcess:
            return 0


@contextmanager
def boot(debian: Debian) -> Iterator[Machine]:
    """Boot it; it needs systemd-sysv and dbus."""
    machine = Machine(debian)
    try:
        yield machine
    finally:
        machine.close()


@contextmanager
def open_base() -> Iterator[Path]:
    """What all new systems are copied from: Debian's essential packages, and the wheels."""
    with tempfile.TemporaryDirectory(prefix="sd-debian-", ignore_cleanup_errors=True) as folder:
        root = Path(folder) / "root"
        _run("debootstrap", "--variant=minbase", "bookworm", root)
        # As in Debian's image: a package that is installed starts no service, and is not synced file by file.
        policy = root / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        (root / "etc/dpkg/dpkg.cfg.d/docker-apt-speedup").write_text("force-unsafe-io\n")
        (root / "etc/apt/apt.conf.d/docker-no-languages").write_text('Acquire::Languages "none";\n')
        lock = ROOT / "deploy/requirements.txt"
        _run(
            *(sys.executable, "-m", "pip", "--quiet", "download", "--require-hashes", "--only-binary", ":all:"),
            *("--no-deps", "-r", lock, "-d", root / "wheels"),
        )
        yield root


@contextmanager
def open_debian(base: Path) -> Iterator[Debian]:
    """A new system."""
    with tempfile.TemporaryDirectory(prefix="sd-debian-", ignore_cleanup_errors=True) as folder:
        root = Path(folder) / "root"
        _run("cp", "--archive", "--reflink=auto", base, root)
        yield Debian(root)


def _run(*command: str | Path) -> None:
    done = subprocess.run(
        list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=MAKE_SECONDS
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
