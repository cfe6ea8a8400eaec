"""Settings: every number that an operator may change, from the environment (SENDENSE_…), each with unit and reason."""

import math
import os
from pathlib import Path

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from sendense.errors import InputError
from sendense.retry import BASE_DELAY_SECONDS
from sendense.units import KiB, MiB

PREFIX = "SENDENSE_"

WORKER_VARIABLES = {"SENDENSE_REDIS", "SENDENSE_WORKER"}
"""What whoever starts a worker tells it: no settings."""


def _state_home() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "sendense"


class Settings(BaseSettings):
    """Read once at the start of a process; workers inherit them through the environment."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    state_dir: Path = Field(default_factory=_state_home)
    """Where unfinished copies keep their ledger and sockets."""

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

    @field_validator("renew_seconds")
    @classmethod
    def _renew_in_time(cls, value: float, info: ValidationInfo) -> float:
        lasts = info.data.get("claim_seconds", math.inf)
        if value > lasts / 2:
            raise ValueError(f"more than half of SENDENSE_CLAIM_SECONDS ({lasts}): claims would lapse")
        return value


def load_settings() -> Settings:
    """The settings of this process; InputError names the variable that is wrong."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | WORKER_VARIABLES
    if unknown := sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known):
        raise InputError(f"{unknown[0]}: no such setting", f"Known are: {', '.join(sorted(known - WORKER_VARIABLES))}.")
    try:
        return Settings()
    except ValidationError as exc:
        first = exc.errors()[0]
        name = PREFIX + "_".join(map(str, first["loc"])).upper()
        raise InputError(
            f"{name}={first['input']}: {first['msg'].removeprefix('Value error, ')}", f"Correct or unset {name}."
        ) from exc
