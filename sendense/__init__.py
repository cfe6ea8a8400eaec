"""Sendense copies virtual disks over NBD into QCOW2: in parallel, resumable, and never hanging silently."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sendense.client import AsyncClient as AsyncClient
    from sendense.client import Client as Client

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """The clients, loaded when they are first named: a worker needs none."""
    if name in ("Client", "AsyncClient"):
        from sendense import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
