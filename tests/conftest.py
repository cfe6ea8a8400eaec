"""Fixtures for all tests."""

from pathlib import Path

import pytest

from tests.servers import certificates


@pytest.fixture(scope="session")
def tls_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA and a certificate for localhost, for nbdkit(tls=…)."""
    return certificates(tmp_path_factory.mktemp("tls"))
