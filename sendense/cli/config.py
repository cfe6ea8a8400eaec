"""The `sendense config` commands."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sendense.cli.tables import print_json, print_table
from sendense.errors import InputError, SendenseError
from sendense.units import show_bytes

if TYPE_CHECKING:
    from sendense.receivers import Notices
    from sendense.settings import Settings, Site

config_app = typer.Typer(help="The settings, and whether they work.", no_args_is_help=True)

NBDKIT_SECONDS = 20.0
"""For nbdkit to tell its version."""

CONNECT_SECONDS = 5.0
"""For a hub's exports to take a connection: more is a wrong address, or a firewall."""

NBD_PORT = 10809
"""Where an NBD URI names none."""


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
    offline: Annotated[bool, typer.Option("--offline", help="Ask neither vCenters nor receivers of notices.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array in place of the lines.")] = False,
) -> None:
    """
    Look whether all that the settings name is there and usable: folders, files, nbdkit, vCenters, who gets notices.

    Exit status 2 when something is wrong.
    """
    from sendense.settings import load_settings, settings_file

    settings, file = load_settings(), settings_file()
    found = [Checked("settings file", str(file) if file else "none: the defaults, and the environment")]
    found += _check_machine(settings)
    for name, site in settings.sites.items():
        found += _check_site(name, site, offline=offline)
    found += _check_roles(settings, offline=offline)
    found += _check_notices(settings.notices, offline=offline)
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
    from sendense.diagnosis import sites
    from sendense.vsphere import plugin

    yield _checked(f"{name}: password file", lambda: sites.password(site.password_file))
    yield _checked(f"{name}: nbdkit plugin", lambda: plugin.describe(site))
    if not offline:
        yield _checked(f"{name}: vCenter", lambda: _vcenter(name, site))


def _check_roles(settings: "Settings", *, offline: bool) -> Iterator[Checked]:
    """What a hub or a node needs; where none of it is set, nothing is said."""
    from sendense import pki
    from sendense.diagnosis import machine
    from sendense.diagnosis.redis import RedisLooks
    from sendense.files import read_secret

    if folder := settings.tls_dir:
        kinds = (pki.SERVER_CERT,) if (folder / pki.SERVER_CERT).exists() else ()
        yield _checked("certificates", lambda: machine.certificates(folder, (pki.CA_CERT, pki.CLIENT_CERT, *kinds)))
    if (file := settings.redis_password_file) and (settings.redis or file.exists()):  # else a hub makes it
        yield _checked("redis password", lambda: read_secret(file, "redis_password_file") and str(file))
    if settings.redis and not offline:
        redis = RedisLooks(settings)
        yield _checked("redis", lambda: f"{redis.reach()}: {redis.answer()}")
    if settings.exports and not offline:
        yield _checked("exports", lambda: _reach(settings.exports))
    for setting in ("redis_listen", "exports_listen", "api_listen", "flower_listen"):
        address = getattr(settings, setting)
        if address and setting in settings.model_fields_set:  # by default a machine that is no hub has them as well
            yield _checked(setting, partial(_listens, settings, setting, address))


def _reach(uri: str) -> str:
    from urllib.parse import urlsplit

    parts = urlsplit(uri)
    try:
        socket.create_connection((parts.hostname or "", parts.port or NBD_PORT), CONNECT_SECONDS).close()
    except OSError as exc:
        hint = "Start the hub, or the tunnel; or correct exports. More: sendense doctor --node"
        raise InputError(f"{uri}: {exc.strerror or exc}", hint) from exc
    return uri


def _listens(settings: "Settings", setting: str, address: str) -> str:
    """Whether the hub that runs listens there, or one that is started could."""
    from sendense.hub.folder import is_locked, service_lock
    from sendense.settings import host_and_port
    from sendense.supervise.child import is_heard_of
    from sendense.supervise.web import refusal

    lock, why = service_lock(settings.hub_dir), refusal(address)
    if why and is_locked(lock) and is_heard_of(lock, host_and_port(address)[1]):
        return f"{address}, of the hub that runs"
    if why:
        raise InputError(f"{address}: {why}", f"Set {setting} to an address of this machine and a free port.")
    return address


def _check_notices(notices: "Notices", *, offline: bool) -> Iterator[Checked]:
    from sendense.diagnosis import receivers

    for receiver in notices.receivers:
        yield _checked(f"notices: {receiver}", partial(receivers.look, notices, receiver, offline=offline))


def _checked(thing: str, look: Callable[[], str]) -> Checked:
    from sendense.diagnosis.finding import Trouble

    try:
        return Checked(thing, look())
    except SendenseError as exc:
        return Checked(thing, error=str(exc), fix=exc.hint)
    except Trouble as exc:
        if exc.result == "warning":
            return Checked(thing, f"{exc.detail}: {exc.fix}")
        return Checked(thing, error=exc.detail, fix=exc.fix)


def _state(settings: "Settings") -> str:
    from sendense.hub.folder import check_path

    check_path(settings)
    return _writable(settings.state_dir, "state_dir")


def _writable(path: Path, setting: str) -> str:
    """The folder, when this user may write there or make it; InputError otherwise."""
    from sendense.diagnosis.machine import writable

    path = path.absolute()
    return str(path) if writable(path, setting) == path else f"{path}, which will be made"


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
    sound, broken = repository.sound_and_broken()
    bad = f", {len(broken)} of them broken" if broken else ""
    return f"{path}: {len(sound) + len(broken)} restore points{bad}, {show_bytes(repository.free())} free"


def _vcenter(name: str, site: "Site") -> str:
    from sendense.vsphere.session import open_session

    with open_session(name, site) as session:
        product = session.call("read its version", lambda: session.content.about.fullName)
    return f"{product} at {site.vcenter}, logged in as {site.user}"


def _output(*command: str) -> str:
    """What a command says; InputError when it is missing or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, errors="replace", stdin=subprocess.DEVNULL, timeout=NBDKIT_SECONDS
        )
    except OSError as exc:
        raise InputError(f"{command[0]}: {exc.strerror}", "Run 'sendense doctor' for what this machine needs.") from exc
    except subprocess.TimeoutExpired as exc:
        raise InputError(f"'{' '.join(command)}' did not answer in {NBDKIT_SECONDS:.0f} s", "Try it by hand.") from exc
    return done.stdout.strip() if not done.returncode else "does not tell its version"
