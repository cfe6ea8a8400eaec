"""Settings: what an operator may change, from a TOML file and SENDENSE_…, each with its unit and reason."""

import math
import os
import re
import socket
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from sendense.addresses import ADDRESS
from sendense.addresses import host_and_port as host_and_port
from sendense.addresses import is_loopback as is_loopback
from sendense.errors import InputError, NotFound
from sendense.models import HUB_SITE, LOCAL_SITE
from sendense.receivers import Notices
from sendense.retry import BASE_DELAY_SECONDS
from sendense.units import KiB, MiB
from sendense.wording import plain_words

PREFIX = "SENDENSE_"

WORKER_VARIABLES = {"SENDENSE_REDIS", "SENDENSE_WORKER"}
"""What whoever starts a worker tells it: no settings."""

TOKEN_VARIABLE = "SENDENSE_TOKEN"
"""The token for a hub elsewhere, where no file has it. No setting: a setting may be shown."""

CONFIG_VARIABLE = "SENDENSE_CONFIG"
"""Names the settings file; without it the first of CONFIG_FILES that is there is read, or none."""

_SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""It becomes a part of queues' names."""

_HUB = re.compile(r"https?://[^@/?#\s]+/?")

_FORMS = {
    "node_name": (r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", "is no name: 63 letters, digits, '.', '_' and '-' at most"),
    "redis": (
        r"(|rediss?://[^@/?]+|unix:///.+)",
        "is no redis://HOST:PORT or rediss://HOST:PORT without a password",
    ),
    "exports": (r"(|nbds?://[^@/?]+)", "is no nbd://HOST:PORT, nor nbds://HOST:PORT"),
}
"""What a setting has to look like, and what is said of one that does not."""

_PASSWORD = re.compile(r"//[^/@]*@")
"""What stands in a URL before the host, where nothing may."""

_HIDDEN = ("notices", "webhook")
"""A value that is not shown, as its path may be a secret."""


def _state_home() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "sendense"


def config_files() -> list[Path]:
    """Where a settings file is looked for when SENDENSE_CONFIG names none."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [home / "sendense" / "sendense.toml", Path("/etc/sendense/sendense.toml")]


class Site(BaseModel):
    """A VMware site: its vCenter, and how its disks are read there. Used only on machines of that site."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vcenter: str = Field(min_length=1)
    """HOST or HOST:PORT."""

    user: str = Field(min_length=1)

    password_file: Path
    """A file that only its owner may read; the password goes nowhere else."""

    thumbprint: str = Field(default="", pattern=r"^$|^([0-9A-Fa-f]{2}:){19}[0-9A-Fa-f]{2}$")
    """SHA-1 of vCenter's certificate, as VDDK wants it: with it that very certificate is taken, whoever signed it."""

    ca_file: Path | None = None
    """Who may have signed vCenter's certificate, where no thumbprint is given; unset: whom the system trusts."""

    nbdkit_plugin: str = "vddk"
    """Name or path of the nbdkit plugin that reads disks."""

    nbdkit_options: dict[str, str] = Field(default_factory=dict)
    """More of the plugin's parameters: libdir, transports, compression, nfchostport."""

    nbdkit_filters: list[str] = Field(default_factory=list)
    """nbdkit's filters in front of the plugin; their parameters are among nbdkit_options."""

    connections: int = Field(default=52, ge=1)
    """Disks open at once through vCenter, on all nodes together: VDDK's documentation allows 52."""

    host_connections: int = Field(default=50, ge=1)
    """Disks open at once on one ESXi host, on all nodes together: its NFC memory suffices for some 50."""

    snapshot_seconds: float = Field(default=900.0, gt=0)
    """Seconds that vCenter may take to make or remove one snapshot: consolidation of a busy disk takes minutes."""

    shutdown_seconds: float = Field(default=300.0, gt=0)
    """Seconds that a guest may take to shut down before its VM is powered off."""

    @property
    def host(self) -> str:
        """vCenter's host name or address."""
        return self._address[0]

    @property
    def port(self) -> int:
        """vCenter's HTTPS port."""
        return self._address[1]

    @property
    def _address(self) -> tuple[str, int]:
        host, _, port = self.vcenter.rpartition(":")
        return (host, int(port)) if host and port.isdigit() else (self.vcenter, 443)


class Settings(BaseSettings):
    """Read once at the start of a process; workers inherit them through the environment."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    state_dir: Path = Field(default_factory=_state_home)
    """Where unfinished copies and running jobs keep their ledger, sockets and logs."""

    repository: Path | None = None
    """The folder of the restore points."""

    sites: dict[str, Site] = Field(default_factory=dict)
    """The VMware sites, by name; only in the file."""

    notices: Notices = Notices()
    """Who is told of failures; only in the file, on a hub."""

    node_name: str = Field(default_factory=socket.gethostname, validate_default=True)
    """What this machine is called among the nodes of a hub."""

    tls_dir: Path | None = None
    """Certificates that `sendense pki` made: with them, what listens on an address speaks TLS only."""

    redis: str = ""
    """Where the hub's Redis is, without a password: redis:// or rediss://HOST:PORT. Unset, a hub has one of its own."""

    redis_password_file: Path | None = None
    """Holds the password of Redis, readable by its owner alone. Unset: a hub makes one in its state folder."""

    redis_listen: str = ""
    """HOST:PORT at which a hub's own Redis takes nodes; unset, it has only its Unix socket."""

    exports: str = ""
    """Where a node reaches the hub's exports: nbd:// or nbds://HOST:PORT; on the hub itself it is known."""

    exports_listen: str = ""
    """HOST:PORT at which a hub serves its exports; unset, it has only its Unix socket."""

    api_listen: str = "127.0.0.1:7780"
    """HOST:PORT of a hub's API; empty for none."""

    api_rate: int = Field(default=1200, ge=1)
    """Requests a minute that the API takes with one token: a program that follows ten jobs makes half as many."""

    flower_listen: str = "127.0.0.1:5555"
    """HOST:PORT of Flower beside a hub; empty for none."""

    hub: str = ""
    """The API of a hub elsewhere, http(s)://HOST:PORT, which commands then ask; unset, the hub is this machine."""

    token_file: Path | None = None
    """Holds the token for that hub, readable by its owner alone."""

    processes: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=64)
    """Copying processes of a site's worker on this machine."""

    connect_timeout: float = Field(default=10.0, gt=0)
    """Seconds for each stage of a connection: a greeting over a slow tunnel takes well under one."""

    no_progress_timeout: float = Field(default=30.0, gt=0)
    """Seconds without one completed request before a server counts as stalled: a busy disk answers within 10."""

    claim_seconds: float = Field(default=8.0, gt=0)
    """Seconds that a claim lasts unless renewed: four missed renewals."""

    renew_seconds: float = Field(default=2.0, gt=0)
    """Seconds between two renewals of a claim: at most half of what it lasts."""

    tick_seconds: float = Field(default=2.0, gt=0)
    """Seconds between two sweeps of the ledger for lapsed claims and lost messages."""

    retry_seconds: float = Field(default=BASE_DELAY_SECONDS, gt=0)
    """Seconds before a failed batch is tried again, doubled with each attempt: six attempts last over a minute."""

    task_time_limit: float = Field(default=1800.0, gt=0)
    """Seconds until Celery kills a process that Python cannot wake: 128 MiB at 75 kB/s."""

    request_bytes: int = Field(default=1 * MiB, ge=64 * KiB, le=32 * MiB, multiple_of=64 * KiB)
    """Bytes of one NBD request: 512 KiB to 2 MiB measured alike, 256 KiB slower. Whole clusters, as digests are."""

    requests_in_flight: int = Field(default=16, ge=1, le=128)
    """Requests of one process under way at once: with 1 MiB each, what nbdcopy's speed takes."""

    def site(self, name: str) -> Site:
        """A site by its name; InputError when there is none."""
        if name not in self.sites:
            known = ", ".join(self.sites) or "none"
            raise NotFound(f"site {name}: not in the settings", f"Known are: {known}.")
        return self.sites[name]

    @property
    def hub_dir(self) -> Path:
        """Where a hub has its Redis, its sockets and its logs."""
        return self.state_dir.absolute() / "hub"

    @property
    def qmp_socket(self) -> Path:
        """Where the exports daemon takes commands."""
        return self.hub_dir / "exports.sock"

    @property
    def nbd_socket(self) -> Path:
        """Where the exports daemon serves."""
        return self.hub_dir / "nbd.sock"

    @property
    def exports_address(self) -> str:
        """Where the exports daemon serves: exports_listen, or else its socket's path."""
        return self.exports_listen or str(self.nbd_socket)

    @property
    def migrations_dir(self) -> Path:
        """What is known of the targets of migrations."""
        return self.state_dir.absolute() / "migrations"

    @field_validator("renew_seconds")
    @classmethod
    def _renew_in_time(cls, value: float, info: ValidationInfo) -> float:
        lasts = info.data.get("claim_seconds", math.inf)
        if value > lasts / 2:
            raise ValueError(f"more than half of SENDENSE_CLAIM_SECONDS ({lasts}): claims would lapse")
        return value

    @field_validator("redis_listen", "exports_listen", "api_listen", "flower_listen")
    @classmethod
    def _safe_to_listen(cls, value: str, info: ValidationInfo) -> str:
        if not value:
            return value
        if not re.fullmatch(ADDRESS, value):
            raise ValueError("is no HOST:PORT, such as 127.0.0.1:6379")
        host, port = host_and_port(value)
        if not 0 < port < 65536:
            raise ValueError(f"{port} is no port: 1 to 65535")
        if not is_loopback(host) and not info.data.get("tls_dir"):
            raise ValueError(
                "is reached from other machines, so it needs TLS: set tls_dir to the folder that 'sendense pki init' "
                "made, or listen on 127.0.0.1, for which nodes have a tunnel (docs/tunnel.md)"
            )
        return value

    @field_validator("state_dir", "repository", "tls_dir", "redis_password_file", "token_file", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if value == "":
            raise ValueError("names nothing")  # as a path it would be the current one
        return value

    @field_validator(*_FORMS)
    @classmethod
    def _has_its_form(cls, value: str, info: ValidationInfo) -> str:
        form, words = _FORMS[info.field_name or ""]
        if not re.fullmatch(form, value):
            raise ValueError(words)
        return value

    @field_validator("hub")
    @classmethod
    def _is_url(cls, value: str) -> str:
        if value and not _HUB.fullmatch(value):
            raise ValueError("is no http://HOST:PORT or https://HOST:PORT")
        return value.rstrip("/")

    @field_validator("sites")
    @classmethod
    def _sites_have_names(cls, value: dict[str, Site]) -> dict[str, Site]:
        reserved = (HUB_SITE, LOCAL_SITE)
        if wrong := [name for name in value if not _SITE_NAME.fullmatch(name) or name in reserved]:
            raise ValueError(f"'{wrong[0]}' cannot be a site's name: small letters, digits and '-', not hub or local")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, which `load_settings` passes in."""
        return env_settings, init_settings


_options: dict[str, str] = {}
"""The option of a command that a variable is from."""


def give(setting: str, value: str, option: str) -> None:
    """Set a setting, for this process and its children, that the user gave by an option."""
    variable = f"{PREFIX}{setting.upper()}"
    os.environ[variable], _options[variable] = value, option


def settings_file() -> Path | None:
    """The settings file of this process; InputError when SENDENSE_CONFIG names one that is not there."""
    if named := os.environ.get(CONFIG_VARIABLE):
        path = Path(named).absolute()
        if not path.is_file():
            raise InputError(f"{CONFIG_VARIABLE}={named}: no such file", f"Correct or unset {CONFIG_VARIABLE}.")
        return path
    return next((path for path in config_files() if path.is_file()), None)


def load_settings() -> Settings:
    """The settings of this process; InputError names the key or the variable that is wrong."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | {CONFIG_VARIABLE, TOKEN_VARIABLE}
    known |= WORKER_VARIABLES
    if unknown := sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known):
        raise InputError(f"{unknown[0]}: no such setting", f"Known are: {', '.join(sorted(known - WORKER_VARIABLES))}.")
    path = settings_file()
    try:
        return Settings(**_read(path) if path else {})
    except SettingsError as exc:
        field = re.search(r'field "(\w+)"', str(exc))
        hint = "Rather describe it in the settings file (docs/settings.md)."
        raise InputError(f"{PREFIX}{field[1].upper() if field else '…'}: is no JSON", hint) from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        where = _where(path, first["loc"])
        if first["type"] == "extra_forbidden":
            raise InputError(f"{where}: no such setting", "docs/settings.md lists them all.") from exc
        hidden = first["type"] == "missing" or first["loc"][:2] == _HIDDEN or isinstance(first["input"], dict)
        value = "" if hidden else _PASSWORD.sub("//…@", f" = {first['input']!r}")
        raise InputError(f"{where}{value}: {plain_words(first['msg'])}", "Correct it, or take it out.") from exc


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise InputError(f"{path}: {exc}", "Correct the file, or name another in SENDENSE_CONFIG.") from exc
    return {key: value for key, value in values.items() if f"{PREFIX}{key.upper()}" not in os.environ}


def _where(path: Path | None, loc: tuple[int | str, ...]) -> str:
    """The place of a value that is wrong: the variable, or the file and the key."""
    variable = f"{PREFIX}{str(loc[0]).upper()}" if loc else ""
    if path and variable not in os.environ:
        return f"{path}: {'.'.join(map(str, loc))}"
    return ".".join([_options.get(variable, variable), *map(str, loc[1:])])
