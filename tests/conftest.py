"""Fixtures for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import receivers
from tests.api import Api, open_api
from tests.backup import Backups, open_backups
from tests.debian import open_base
from tests.fleet import Fleet, open_fleet
from tests.hub import Hub, open_hub
from tests.integration.support import Lab, open_lab
from tests.receivers import Webhook
from tests.servers import certificates
from tests.site import LabSite


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A folder for disks and a state folder; no process that knows it is left in the end."""
    with open_lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def backups(site: LabSite) -> Iterator[Backups]:
    """A repository, and a hub that stays up, for the `site` of a module of tests."""
    with open_backups(site) as backups:
        with backups.hub():
            yield backups
        assert backups.leftovers() == []


@pytest.fixture(scope="module")
def api(backups: Backups) -> Iterator[Api]:
    """The API of a module's hub."""
    with open_api(backups) as api:
        yield api


@pytest.fixture(scope="module")
def redis_hub() -> Iterator[Hub]:
    """One Redis for all tests of a module."""
    with open_hub() as hub:
        yield hub


@pytest.fixture
def hub(redis_hub: Hub) -> Hub:
    """The module's Redis, with nothing in it."""
    redis_hub.client.flushall()
    return redis_hub


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """A hub without nodes."""
    with open_fleet() as fleet:
        yield fleet


@pytest.fixture
def hook() -> Iterator[Webhook]:
    """A webhook."""
    with receivers.webhook() as hook:
        yield hook


@pytest.fixture(scope="session")
def debian_base() -> Iterator[Path]:
    """For open_debian."""
    with open_base() as base:
        yield base


@pytest.fixture(scope="session")
def tls_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA and a certificate for localhost, for nbdkit(tls=…)."""
    return certificates(tmp_path_factory.mktemp("tls"))
