"""Fixtures for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backup import Backups, open_backups
from tests.integration.support import Lab, open_lab
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


@pytest.fixture(scope="session")
def tls_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA and a certificate for localhost, for nbdkit(tls=…)."""
    return certificates(tmp_path_factory.mktemp("tls"))
