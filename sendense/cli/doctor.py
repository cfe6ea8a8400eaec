"""The `sendense doctor` command."""

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sendense.diagnosis.finding import Check as Look
    from sendense.diagnosis.finding import Finding
    from sendense.nbd.machine import Check
    from sendense.nbd.probe import Report
    from sendense.settings import Settings

_STYLES = {
    "ok": "green",
    "warning": "yellow",
    **dict.fromkeys(("failed", "missing", "too old", "wrong", "unknown"), "bold red"),
    "stalled": "bold yellow",
}


def doctor(
    uri: Annotated[
        str | None,
        typer.Argument(
            metavar="URI", help="An export, as nbd://HOST:PORT/EXPORT. Without: this machine.", show_default=False
        ),
    ] = None,
    hub: Annotated[bool, typer.Option("--hub", help="Check the hub on this machine from end to end.")] = False,
    node: Annotated[
        bool, typer.Option("--node", help="Check the node on this machine, and its way to the hub.")
    ] = False,
    site: Annotated[str, typer.Option("--site", help="With --node: its site, where the settings have several.")] = "",
    name: Annotated[str, typer.Option("--name", help="With --node: its name, if it has one of its own.")] = "",
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Time limit for each stage.")] = 5.0,
    write: Annotated[
        bool,
        typer.Option("--write", help="Also write the first bytes back as they are: only where nobody else writes."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """
    Find out what is wrong with an NBD server, with this machine, or with the hub or the node on it.

    Goes through all that a copy does with a server, each stage under a time limit, and says what stopped where,
    and what to do. Without a URI, checks that this machine has what Sendense needs; with --hub or --node, that the
    installation on it works from end to end. docs/troubleshooting.md explains every verdict.

    Exit status: 0 all is well, 1 it is not, 2 wrong usage.
    """
    if not 0 < timeout < math.inf:
        raise typer.BadParameter("give a number of seconds above 0", param_hint="'--timeout'")
    if hub or node:
        if uri is not None or write:
            what = "checks the hub on this machine, and takes no URL" if hub else "checks the node on this machine"
            raise typer.BadParameter(what, param_hint="'--hub'" if hub else "'--node'")
        if hub and node:
            raise typer.BadParameter("not together with --hub: run it once for each", param_hint="'--node'")
    if (site or name) and not node:
        raise typer.BadParameter("goes with --node", param_hint="'--site'" if site else "'--name'")
    if hub or node:
        _doctor_installation("hub" if hub else "node", site, name, as_json)
    elif uri is None:
        if write:
            raise typer.BadParameter("needs a URI", param_hint="'--write'")
        _doctor_machine(as_json)
    else:
        _doctor_server(uri, timeout, write, as_json)


def _doctor_server(uri: str, timeout: float, write: bool, as_json: bool) -> None:
    from rich.console import Console

    from sendense.nbd.probe import probe

    with Console(stderr=True).status("asking the server"):
        report = probe(uri, timeout, write)
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        _show_report(report, Console(highlight=False, markup=False))
    raise typer.Exit(0 if report.verdict == "ok" else 1)


def _show_report(report: "Report", console: "Console") -> None:
    rows: list[tuple[str, ...]] = []
    for stage in report.stages:
        took = "" if stage.milliseconds is None else f"{stage.milliseconds:.1f}"
        rows.append((stage.name, stage.result, took, stage.detail))
    _show_table(console, ("stage", "result", "ms", "detail"), rows)
    found = report.finding
    where = f" in stage '{found.stage}'" if found.stage else ""
    stalled = any(stage.name == found.stage and stage.result == "stalled" for stage in report.stages)
    state = f"; libnbd waits in {found.state}" if stalled and found.state else ""
    _say(console, f"{found.verdict}{where}: {found.detail}{state}")
    if found.verdict != "ok":
        _say(console, f"Fix: {found.fix}")


def _doctor_machine(as_json: bool) -> None:
    from rich.console import Console

    from sendense.nbd.machine import check_machine

    checks = check_machine()
    ready = all(check.ok for check in checks if check.required)
    if as_json:
        fields = ("name", "found", "needed", "ok", "fix", "required")
        listed = [{field: getattr(check, field) for field in fields} for check in checks]
        print(json.dumps({"verdict": "ok" if ready else "not-ready", "checks": listed}))
    else:
        _show_checks(checks, ready, Console(highlight=False, markup=False))
    raise typer.Exit(0 if ready else 1)


def _show_checks(checks: "list[Check]", ready: bool, console: "Console") -> None:
    rows: list[tuple[str, ...]] = []
    for check in checks:
        result = "ok" if check.ok else "too old" if check.found else "missing" if check.required else "not here"
        rows.append((check.name, result, check.found, check.needed))
    _show_table(console, ("part", "result", "found", "needed"), rows)
    for check in checks:
        if not check.ok:
            _say(console, f"{check.name}: {check.fix}")
    _say(console, "This machine has what Sendense needs." if ready else "This machine is not ready for Sendense.")


def _doctor_installation(role: str, site: str, name: str, as_json: bool) -> None:
    from rich.console import Console

    from sendense.diagnosis.finding import Finding
    from sendense.diagnosis.walk import examine
    from sendense.errors import InputError
    from sendense.settings import give, load_settings, settings_file

    if name:
        give("node_name", name, "--name")
    try:
        settings, file = load_settings(), settings_file()
        checks = _checks(role, settings, site)
    except InputError as exc:
        findings = [Finding("settings", "wrong", "settings", str(exc), exc.hint)]
    else:
        findings = [Finding("settings", "ok", detail=str(file) if file else "no file: the defaults, and SENDENSE_…")]
        with Console(stderr=True).status(f"looking at the {role}") as status:
            findings += examine(checks, told=lambda name: status.update(f"looking at: {name}"))
    first = next((found for found in findings if found.is_fault), None)
    if as_json:
        listed = [found.as_json() for found in findings]
        print(json.dumps({"verdict": first.verdict if first else "ok", "findings": listed}))
    else:
        _show_findings(findings, f"The {role} is well", Console(highlight=False, markup=False))
    raise typer.Exit(1 if first else 0)


def _checks(role: str, settings: "Settings", site: str) -> "list[Look]":
    from sendense.diagnosis.hub import HubCheckup
    from sendense.diagnosis.node import NodeCheckup
    from sendense.errors import InputError

    if role == "hub":
        return HubCheckup(settings).checks
    if not site and len(settings.sites) != 1:
        known = ", ".join(settings.sites)
        hint = f"Name the node's with --site: {known}." if known else "Describe its site under [sites.NAME]."
        raise InputError("the settings have several sites" if known else "the settings have no site", hint)
    return NodeCheckup(settings, site or next(iter(settings.sites))).checks


def _show_findings(findings: "list[Finding]", well: str, console: "Console") -> None:
    rows = [(found.check, found.result, found.detail) for found in findings]
    _show_table(console, ("check", "result", "detail"), rows)
    wrong = [found for found in findings if found.is_fault]
    warnings = [found for found in findings if found.result == "warning"]
    for found in [*wrong, *warnings]:
        _say(console, f"{found.verdict} ({found.check}): {found.detail}")
        _say(console, f"Fix: {found.fix}")
    if not wrong:
        number = len(warnings)
        but = f", but for the {f'{number} warnings' if number > 1 else 'warning'} above" if warnings else ""
        _say(console, f"{well}{but}.")
    elif len(wrong) > 1:
        _say(console, f"{len(wrong)} things are wrong. Begin with the first: others may come from it.")


def _show_table(console: "Console", headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        last = heading == headings[-1]
        table.add_column(heading, justify="right" if heading == "ms" else "left", no_wrap=not last, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "dim" if row[1] == "skipped" else "")) for cell in row))
    console.print(table)


def _say(console: "Console", text: str) -> None:
    """A paragraph: wrapped on a terminal, one line for whoever reads a pipe."""
    console.print(text, soft_wrap=not console.is_terminal)
