"""What deploy/grafana ships, by promtool: the example settings, the rules and what they fire for, and the dashboard."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands import GENERAL, command_of, unknown_options
from tests.integration.support import tool
from tests.prometheus import SHIPPED

CASES = Path(__file__).with_name("alerts.yml")


def test_rules_fire_for_what_they_are_for(tmp_path: Path) -> None:
    """Each case has what fires, what does not yet, and what never does."""
    shutil.copy(SHIPPED / "alerts.yml", tmp_path)
    cases = tmp_path / "cases.yml"
    shutil.copy(CASES, cases)
    assert "SUCCESS" in tool("promtool", "test", "rules", cases)


def test_rules_and_settings_are_valid(tmp_path: Path) -> None:
    """Prometheus takes both; the example names the rules that lie next to it."""
    assert "SUCCESS" in tool("promtool", "check", "rules", SHIPPED / "alerts.yml")
    for name in ("alerts.yml", "prometheus.yml"):
        text = (SHIPPED / name).read_text().replace("/etc/prometheus/", f"{tmp_path}/")
        (tmp_path / name).write_text(text)
    (tmp_path / "sendense.token").write_text("token")
    settings = tmp_path / "prometheus.yml"
    assert "1 rule files found" in tool("promtool", "check", "config", settings)
    over_tls = re.sub(r"(?m)^( +)# (scheme|tls_config|  ca_file)", r"\1\2", settings.read_text())
    (job,) = yaml.safe_load(over_tls)["scrape_configs"]
    assert (job["scheme"], job["tls_config"]) == ("https", {"ca_file": f"{tmp_path}/sendense-ca.pem"})
    settings.write_text(over_tls)
    (tmp_path / "sendense-ca.pem").touch()
    assert "SUCCESS" in tool("promtool", "check", "config", settings)


def test_alerts_say_what_to_do() -> None:
    """Each has a severity, a summary and a description; every command that one names is a command."""
    for rule in yaml.safe_load((SHIPPED / "alerts.yml").read_text())["groups"][1]["rules"]:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}
        for words in re.findall(r"`sendense ([^`]*)`", rule["annotations"]["description"]):
            assert command_of(words.split()) is not GENERAL, words
            assert unknown_options(words.split()) == set(), words


@pytest.fixture
def dashboard() -> dict[str, Any]:
    """The dashboard."""
    found: dict[str, Any] = json.loads((SHIPPED / "dashboard.json").read_text())
    return found


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    """The panels' queries, with a value for each of Grafana's variables."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            text: str = target["expr"]
            yield text.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$site", ".*")


def test_dashboard_asks_rightly(dashboard: dict[str, Any], tmp_path: Path) -> None:
    """Prometheus takes each query; none has a variable that the dashboard does not define."""
    found = list(expressions(dashboard))
    assert len(found) > 20
    assert not [text for text in found if "$" in text]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(found)]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(found)} rules found" in tool("promtool", "check", "rules", file)


def test_dashboard_can_be_imported(dashboard: dict[str, Any]) -> None:
    """It asks for a Prometheus when it is imported; each panel has a title, an id and a place of its own."""
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    ids, taken = set[int](), set[tuple[int, int]]()
    for panel in dashboard["panels"]:
        assert panel["title"]
        ids.add(panel["id"])
        if panel["type"] != "row":
            assert {panel["datasource"]["uid"]} | {each["datasource"]["uid"] for each in panel["targets"]} == {
                "${datasource}"
            }
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len(ids) == len(dashboard["panels"])
