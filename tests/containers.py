"""
Containers without an engine: the services of docker-compose.yml, run as an engine would from an image in a folder.

Each has its own mount and process namespaces, a read-only root, its volumes, tmpfs, user and environment, and no
capability; all are in one network namespace of their own, where services find each other by name as in Compose.
"""

import json
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.backup import patiently

ROOT = Path(__file__).resolve().parents[1]

START_SECONDS = 90.0
"""The longest that a service may take until it is healthy; it takes five."""

RUN_SECONDS = 120.0
"""The longest that a command in a container may take."""

_INIT = '"$@" & p=$!; trap "kill -TERM $p" TERM; wait $p; wait $p'
"""What an engine's init does as process 1: it passes SIGTERM on, and collects whoever ended."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


_READ = """
import json, sys
from compose.cli.docopt_command import DocoptDispatcher
from compose.cli.main import TopLevelCommand
options, handler, own = DocoptDispatcher(TopLevelCommand, {"options_first": True}).parse(sys.argv[1:])
print(json.dumps((options, own)))
"""
"""How Debian's docker-compose reads a command line."""

_UNDERSTOOD = {
    "up": ("--profile", "--detach", "--build"),
    "exec": (),
    "run": ("--rm", "--entrypoint"),
    "stop": (),
}
"""The commands of Compose that Engine.compose does, with their options."""


def compose_file(variables: dict[str, str] | None = None) -> dict[str, Any]:
    """The compose file, with these variables in place."""

    def value(found: re.Match[str]) -> str:
        return (variables or {}).get(found[1]) or found[2]

    text = re.sub(r"\$\{(\w+)(?::-|-)([^}]*)\}", value, (ROOT / "docker-compose.yml").read_text())
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def container_file(name: str) -> dict[str, list[str]]:
    """The instructions of an image's file, by their names."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "deploy/images" / f"{name}.Containerfile").read_text().splitlines():
        word, _, rest = line.partition(" ")
        if word and not word.startswith("#"):
            found.setdefault(word, []).append(rest)
    return found


class Engine:
    """Runs services of the compose file from the image in `image`; volumes and the rest are in `folder`."""

    def __init__(self, image: Path, folder: Path, entrypoint: str, variables: dict[str, str] | None = None) -> None:
        self._image, self._folder, self._entrypoint = image, folder, entrypoint
        file = compose_file(variables)
        self.services: dict[str, Any] = file["services"]
        self._secrets: dict[str, dict[str, str]] = file["secrets"]
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._space = f"sd{secrets.token_hex(4)}"
        subprocess.run(["ip", "netns", "add", self._space], check=True, timeout=RUN_SECONDS)
        subprocess.run(["ip", "-n", self._space, "link", "set", "lo", "up"], check=True, timeout=RUN_SECONDS)
        names = " ".join(["localhost", *self.services])
        (folder / "hosts").write_text(f"127.0.0.1 {names}\n")
        self.inside = ["ip", "netns", "exec", self._space]
        """Ahead of a command that is to run in the network of the services."""

    def compose(self, line: str) -> str:
        """
        Do what a line says, as Debian's docker-compose reads it: `docker compose` and its options, `up`, `exec`, `run`
        or `stop`, and theirs. Images are there already. What it printed; it has to succeed.
        """
        program, *words = shlex.split(line)
        assert (program, words.pop(0)) == ("docker", "compose"), line
        read = ["/usr/bin/python3", "-W", "ignore", "-c", _READ, *words]
        done = subprocess.run(read, capture_output=True, text=True, timeout=RUN_SECONDS)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        options, own = json.loads(done.stdout)
        given = {key for key, value in (options | own).items() if key.startswith("-") and value}
        verb = options["COMMAND"]
        unknown = given - {"--index", *_UNDERSTOOD.get(verb, ())}
        assert verb in _UNDERSTOOD, f"{line}: {verb} is not understood here"
        assert not unknown, f"{line}: {unknown} are not understood here"
        names = [own["SERVICE"]] if isinstance(own["SERVICE"], str) else own["SERVICE"]
        assert set(names) <= self.services.keys(), f"{line}: no such service"
        if verb == "up":
            assert "--detach" in given, f"{line}: does not end"
            self._up_all(names or self._enabled(options["--profile"]))
        elif verb == "stop":
            for name in names:
                self.stop(name)
        else:
            run = self.exec if verb == "exec" else self.run
            entrypoint = {"entrypoint": own["--entrypoint"]} if own.get("--entrypoint") else {}
            done = run(names[0], own["COMMAND"], *own["ARGS"], **entrypoint)
            assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
            return done.stdout
        return ""

    def _enabled(self, profiles: Sequence[str]) -> list[str]:
        """The services that `up` starts."""
        return [
            name for name, one in self.services.items() if not one.get("profiles") or {*profiles} & {*one["profiles"]}
        ]

    def _up_all(self, names: Sequence[str]) -> None:
        """Start what does not run, each behind what it depends on."""
        for name in names:
            self._up_all([*self.services[name].get("depends_on", {})])
            process = self._running.get(name)
            if process is None or process.poll() is not None:
                self.up(name)

    def up(self, name: str) -> None:
        """Start a service when what it depends on is as it wants it, and wait until it is healthy, or done."""
        service = self.services[name]
        for needed, condition in service.get("depends_on", {}).items():
            if condition["condition"] == "service_healthy":
                assert self.is_healthy(needed), self.log(needed)
            else:
                assert self._running[needed].returncode == 0, self.log(needed)
        with self._log(name).open("ab") as log:
            self._running[name] = process = subprocess.Popen(
                self._command(name, service["command"]), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        if "healthcheck" in service:
            assert patiently(lambda: process.poll() is not None or self.is_healthy(name), START_SECONDS), self.log(name)
            assert process.poll() is None, self.log(name)
        else:
            assert process.wait(START_SECONDS) == 0, self.log(name)

    def run(self, name: str, *command: str, entrypoint: str = "") -> "subprocess.CompletedProcess[str]":
        """A container of a service for one command of its own, as `docker compose run` makes one."""
        return subprocess.run(
            self._command(name, command, entrypoint),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
        )

    def exec(self, name: str, *command: str) -> "subprocess.CompletedProcess[str]":
        """A command in a running container, as `docker compose exec` runs it."""
        inside = ["nsenter", "-t", str(self._main(name).pid), "-m", "-p", "-n", "--root", "--wdns=/"]
        return subprocess.run(
            [*inside, *self._as_user(name, command)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
        )

    def is_healthy(self, name: str) -> bool:
        """Whether a service's own check says so."""
        kind, *command = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        try:
            return self.exec(name, *command).returncode == 0
        except (psutil.NoSuchProcess, IndexError):  # it has only begun
            return False

    def stop(self, name: str) -> float:
        """End a service as an engine does: SIGTERM, and no more than its grace period; the seconds that it took."""
        began, grace = time.monotonic(), float(self.services[name]["stop_grace_period"].removesuffix("s"))
        self._main(name).send_signal(signal.SIGTERM)
        self._running.pop(name).wait(grace)
        return time.monotonic() - began

    def crash(self, name: str) -> None:
        """End a service at once, with all that is in its container."""
        self._main(name).kill()
        self._running.pop(name).wait(RUN_SECONDS)

    def log(self, name: str) -> str:
        """What a service said."""
        return self._log(name).read_text(errors="replace")

    def exists(self, name: str) -> bool:
        """Whether a service ran."""
        return self._log(name).exists()

    def empty(self, volume: str) -> None:
        """Lose what is in a volume."""
        for path in self.volume(volume).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def volume(self, name: str) -> Path:
        """A named volume; a new one belongs to whom its mount point in the image belongs to."""
        return self._folder / "volumes" / name

    def close(self) -> None:
        """End everything."""
        for process in self._running.values():
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.kill()
            process.wait(RUN_SECONDS)
            psutil.wait_procs(family, RUN_SECONDS)
        subprocess.run(["ip", "netns", "del", self._space], check=True, timeout=RUN_SECONDS)

    def _main(self, name: str) -> psutil.Process:
        """The container's process 1, which stands for the engine's init: it passes signals on."""
        return psutil.Process(self._running[name].pid).children()[0]

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _as_user(self, name: str, command: Sequence[str]) -> list[str]:
        service = self.services[name]
        user, group = service["user"].split(":")
        environment = {key: str(value) for key, value in service.get("environment", {}).items()}
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        return [
            *("setpriv", "--reuid", user, "--regid", group, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"),
            *("--no-new-privs", "env", "-i", f"PATH={PATH}", "HOME=/var/lib/sendense"),
            *(f"{key}={value}" for key, value in environment.items()),
            *command,
        ]

    def _command(self, name: str, command: Sequence[str], entrypoint: str = "") -> list[str]:
        """What runs a container: it ends with this process, and everything in it with its process 1."""
        service, view = self.services[name], self._folder / "views" / name
        view.mkdir(parents=True, exist_ok=True)
        steps = ["set -e", f"mount --bind {self._image} {view}"]
        for mount in service.get("volumes", []):
            source, target, *options = mount.split(":")
            volume = Path(source) if "/" in source else self.volume(source)
            point = self._image / target.lstrip("/")
            if volume.is_file():
                point.touch()
            else:
                point.mkdir(parents=True, exist_ok=True)
            if not volume.exists():
                volume.mkdir(parents=True)
                subprocess.run(["chown", "--reference", point, volume], check=True, timeout=RUN_SECONDS)
                subprocess.run(["chmod", "--reference", point, volume], check=True, timeout=RUN_SECONDS)
            steps.append(f"mount --bind {volume} {view}{target}")
            steps += [f"mount -o remount,bind,ro {view}{target}"] if "ro" in options else []
        for secret in service.get("secrets", []):
            (self._image / "run/secrets").mkdir(exist_ok=True)
            (self._image / "run/secrets" / secret).touch()
            place = f"{view}/run/secrets/{secret}"
            steps += [f"mount --bind {self._secrets[secret]['file']} {place}", f"mount -o remount,bind,ro {place}"]
        for mount in service["tmpfs"]:
            target, _, options = mount.partition(":")
            (self._image / target.lstrip("/")).mkdir(exist_ok=True)
            steps.append(f"mount -t tmpfs -o noexec,nosuid,nodev,{options} tmpfs {view}{target}")
        (self._image / "etc/hosts").touch()
        steps += [f"mount --bind {self._folder / 'hosts'} {view}/etc/hosts", f"mount --rbind /dev {view}/dev"]
        if service["read_only"]:
            steps.append(f"mount -o remount,bind,ro {view}")
        steps += [f"mount -t proc proc {view}/proc", f'exec chroot {view} "$@"']
        argv = self._as_user(name, [entrypoint or self._entrypoint, *command])
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        if service.get("network_mode") == "none":
            namespaces.append("--net")
        else:
            namespaces = [*self.inside, *namespaces]
        assert service["init"]
        inside = ["bash", "-c", _INIT, "init", *argv]
        return ["setpriv", "--pdeathsig", "KILL", *namespaces, "bash", "-c", "\n".join(steps), "steps", *inside]
