"""The `sendense doctor` command."""

import json
import math
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sendense.nbd.machine import Check
    from sendense.nbd.probe import Report

_STYLES = {"ok": "green", "failed": "bold red", "stalled": "bold yellow", "missing": "bold red", "too old": "bold red"}


def doctor(
    uri: Annotated[
        str | None,
        typer.Argument(
            metavar="URI", help="An export, as nbd://HOST:PORT/EXPORT. Without: this machine.", show_default=False
        ),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Time limit for each stage.")] = 5.0,
    write: Annotated[
        bool,
        typer.Option("--write", help="Also write the first bytes back as they are: only where nobody else writes."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """
    Find out what is wrong with an NBD server, or with this machine.

    Goes through all that a copy does with a server, each stage under a time limit, and says what stopped where,
    and what to do. Without a URI, checks that this machine has what Sendense needs.

    Exit status: 0 all is well, 1 it is not, 2 wrong usage.
    """
    if not 0 < timeout < math.inf:
        raise typer.BadParameter("give a number of seconds above 0", param_hint="'--timeout'")
    if uri is None:
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


def _show_table(console: "Console", headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
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
