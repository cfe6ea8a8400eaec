"""The way to the hub's exports, gone as a copy goes it."""

from sendense.diagnosis.finding import Trouble
from sendense.exports import hub_export, reach
from sendense.nbd.probe import probe
from sendense.settings import Settings

STAGE_SECONDS = 5.0
"""For each stage, as the doctor has it for any NBD server."""

TUNNEL = "On this way lies a tunnel, or TLS: docs/tunnel.md."


def read_export(name: str, settings: Settings) -> str:
    """Connect, negotiate and read an export of the hub; the verdicts are those of `sendense doctor URI`."""
    uri = reach(hub_export(name), settings)
    where = uri.partition("?")[0]
    report = probe(uri, STAGE_SECONDS)
    found = report.finding
    if found.verdict != "ok":
        detail = f"{where}: {found.detail}" + (f" (stage {found.stage})" if found.stage else "")
        raise Trouble(found.verdict, detail, f"{found.fix} {TUNNEL}")
    took = sum(stage.milliseconds or 0 for stage in report.stages)
    return f"read at {where} in {took:.0f} ms"
