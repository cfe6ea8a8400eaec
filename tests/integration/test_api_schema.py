"""The OpenAPI document against a live hub: schemathesis asks everything that it describes, rightly and wrongly."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api import Api, open_api
from tests.backup import Backups
from tests.site import LabSite, MiB, open_site

EXAMPLES = 12
"""For each route, beside those that cover each bound of each parameter: half a minute in all."""

RUN_SECONDS = 300.0
"""The longest that it may take."""

NOT_CHECKED = "use_after_free"
"""That a deleted restore point is gone at once: it is deleted by a job, which the answer (202) names."""

HERE = """
[parameters]
"path.vm" = "web01"
"path.job" = "{job}"
"path.point" = "{point}"
"path.export" = "{export}"
"""
"""What is there, so that more than refusals are looked at."""


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """Small VMs."""
    with open_site(vms=1, disks=1, disk_size=16 * MiB) as site:
        yield site


@pytest.fixture
def api(backups: Backups) -> Iterator[Api]:
    """The API of the module's hub, without its usual rate."""
    with open_api(backups, api_rate=1_000_000) as api:
        yield api


@pytest.mark.timeout(RUN_SECONDS + 60)
def test_schemathesis(api: Api, backups: Backups, tmp_path: Path) -> None:
    """No answer that the document does not describe, no fault, no invalid request taken, no valid one refused."""
    job = backups.backup("web01")
    token = api.token()
    (served,) = api.client(token).post("/api/v1/points/web01@latest/serve").json()
    config = tmp_path / "schemathesis.toml"
    config.write_text(HERE.format(job=job.id, point=job.point, export=served["export"]))
    command = [
        *(str(Path(sys.executable).with_name("st")), "--config-file", str(config), "run", f"{api.url}/openapi.json"),
        *("--header", f"Authorization: Bearer {token}", "--max-examples", str(EXAMPLES), "--seed", "1"),
        *("--exclude-checks", NOT_CHECKED, "--warnings", "off", "--no-color"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Selected: (\d+)/\1\s+Tested: \1\s", done.stdout), done.stdout
    assert "Traceback" not in api.log.read_text()
