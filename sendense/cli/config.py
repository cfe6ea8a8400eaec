"""The `sendense config` commands."""

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sendense.cli.tables import print_json, print_table
from sendense.errors import InputError, SendenseError
from sendense.units import show_bytes

if TYPE_CHECKING:
    from sendense.settings import Settings, Site

config_app = typer.Typer(help="The settings, and whether they work.", no_args_is_help=True)

NBDKIT_SECONDS = 20.0
"""For nbdkit to load a plugin and tell about it; VDDK's libraries are large."""

_LIBRARIES = ("script", "libdir")
"""The plugin's parameters without which it does not load."""


@dataclass(frozen=True, slots=True)
class Checked:
    """One thing that was looked at; `error` and `fix` are empty where it is right."""

    thing: str
    found: str = ""
    error: str = ""
    fix: str = ""


@config_app.callback()
def _config() -> None:
    """The settings, and whether they work."""


@config_app.command()
def check(
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the sites' vCenters.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array in place of the lines.")] = False,
) -> None:
    """
    Look whether all that the settings name is there and usable: folders, password files, nbdkit, vCenters.

    Exit status 2 when something is wrong.
    """
    from sendense.settings import load_settings, settings_file

    settings, file = load_settings(), settings_file()
    found = [Checked("settings file", str(file) if file else "none: the defaults, and the environment")]
    found += _check_machine(settings)
    for name, site in settings.sites.items():
        found += _check_site(name, site, offline=offline)
    if as_json:
        print_json([asdict(each) | {"ok": not each.error} for each in found])
    else:
        rows = [[each.thing, "wrong" if each.error else "ok", each.error or each.found] for each in found]
        print_table(["what", "", "found"], rows)
    if wrong := next((each for each in found if each.error), None):
        raise InputError(f"{wrong.thing}: {wrong.error}", wrong.fix)


def _check_machine(settings: "Settings") -> Iterator[Checked]:
    yield _checked("state folder", lambda: _state(settings))
    yield _checked("repository", lambda: _repository(settings))
    if settings.sites:
        yield Checked("sites", ", ".join(settings.sites))
        yield _checked("nbdkit", lambda: _output("nbdkit", "--version").removeprefix("nbdkit "))
    else:
        yield Checked("sites", "none: no VM can be reached from here")


def _check_site(name: str, site: "Site", *, offline: bool) -> Iterator[Checked]:
    yield _checked(f"{name}: password file", lambda: _password(site))
    yield _checked(f"{name}: nbdkit plugin", lambda: _plugin(site))
    if not offline:
        yield _checked(f"{name}: vCenter", lambda: _vcenter(name, site))


def _checked(thing: str, look: Callable[[], str]) -> Checked:
    try:
        return Checked(thing, look())
    except SendenseError as exc:
        return Checked(thing, error=str(exc), fix=exc.hint)


def _state(settings: "Settings") -> str:
    from sendense.hub.folder import check_path

    check_path(settings)
    return _writable(settings.state_dir, "state_dir")


def _repository(settings: "Settings") -> str:
    from sendense.coordinator.context import open_repository
    from sendense.repository.finding import is_new

    path = settings.repository
    if not path:
        return "none is set: migrations need none, backups do"
    usable = _writable(path, "repository")
    if is_new(path):
        return usable
    repository = open_repository(settings, create=False)
    points, broken = len(repository.points()), len(repository.broken())
    bad = f", {broken} of them broken" if broken else ""
    return f"{path}: {points + broken} restore points{bad}, {show_bytes(repository.free())} free"


def _writable(path: Path, setting: str) -> str:
    """The folder, when this user may write there or make it; InputError otherwise."""
    path = path.absolute()
    with _named(setting, path):
        there = next(each for each in (path, *path.parents) if each.exists())
        if not there.is_dir():
            raise InputError(f"{there}: is no folder", f"Set {setting} to a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{there}: may not be written by this user", f"Set {setting} to a folder that may be written.")
    return str(path) if there == path else f"{path}, which will be made"


def _password(site: "Site") -> str:
    path = site.password_file
    with _named("password_file", path):
        mode, size = path.stat().st_mode, path.stat().st_size
        path.open("rb").close()
    if stat.S_IMODE(mode) & 0o077:
        raise InputError(f"{path} is open to others (mode {stat.S_IMODE(mode):04o})", f"Run: chmod 600 {path}")
    if not size:
        raise InputError(f"{path} is empty", "Write the password into it.")
    return f"{path}, mode {stat.S_IMODE(mode):04o}"


def _plugin(site: "Site") -> str:
    options = [f"{key}={site.nbdkit_options[key]}" for key in _LIBRARIES if key in site.nbdkit_options]
    filters = [f"--filter={name}" for name in site.nbdkit_filters]
    told = _output("nbdkit", *filters, "--dump-plugin", site.nbdkit_plugin, *options)
    values = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
    version = values.get("vddk_library_version") or values.get("version", "")
    return f"{site.nbdkit_plugin} {version}".strip()


def _vcenter(name: str, site: "Site") -> str:
    from sendense.vsphere.session import open_session

    with open_session(name, site) as session:
        product = session.call("read its version", lambda: session.content.about.fullName)
    return f"{product} at {site.vcenter}, logged in as {site.user}"


def _output(*command: str) -> str:
    """What a command says; InputError with its complaint when it fails, is missing or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, errors="replace", stdin=subprocess.DEVNULL, timeout=NBDKIT_SECONDS
        )
    except OSError as exc:
        raise InputError(f"{command[0]}: {exc.strerror}", "Run 'sendense doctor' for what this machine needs.") from exc
    except subprocess.TimeoutExpired as exc:
        raise InputError(f"'{' '.join(command)}' did not answer in {NBDKIT_SECONDS:.0f} s", "Try it by hand.") from exc
    if done.returncode:
        said = next(iter(done.stderr.strip().splitlines()), "it does not say why")
        raise InputError(
            said.removeprefix("nbdkit: error: "), f"Set nbdkit_plugin and nbdkit_options; try: {' '.join(command)}"
        )
    return done.stdout.strip()


@contextmanager
def _named(setting: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise InputError(f"{path}: {exc.strerror or exc}", f"Correct {setting}, or the file.") from exc
