"""Addresses as settings have them: HOST:PORT, an IPv6 address in brackets."""

import re
from contextlib import suppress
from ipaddress import ip_address

ADDRESS = r"^$|^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$"
"""HOST:PORT, or nothing."""


_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*\.?")
"""A name that can be looked up (RFC 1035, 2.3.4), and the underscores of container networks."""


def is_host(text: str) -> bool:
    """Whether it can be a host's name or address (one of IPv6 without brackets)."""
    with suppress(ValueError):
        return bool(ip_address(text))
    return bool(_NAME.fullmatch(text))


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of HOST:PORT."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is of this machine alone."""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"
