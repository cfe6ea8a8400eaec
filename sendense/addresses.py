"""Addresses as settings have them: HOST:PORT, an IPv6 address in brackets."""

from contextlib import suppress
from ipaddress import ip_address

ADDRESS = r"^$|^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$"
"""HOST:PORT, or nothing."""


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of HOST:PORT."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is of this machine alone."""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"
