"""The `sendense lab` commands: a simulated VMware site to try Sendense with."""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from sendense.cli.amounts import read_bytes
from sendense.errors import InputError
from sendense.units import show_bytes

lab_app = typer.Typer(name="lab", no_args_is_help=True, help="A simulated VMware site to try Sendense with.")

_FolderOption = Annotated[Path, typer.Option("--folder", metavar="DIR", help="Where the site lives.")]


def _default_folder() -> Path:
    """The site whose settings file this process uses, if it is one of the lab."""
    folder = Path(os.environ.get("SENDENSE_CONFIG", "")).parent
    return folder if (folder / "state.json").exists() else Path("sendense-lab")


_DEFAULT_FOLDER = _default_folder()


@lab_app.command()
def up(
    folder: _FolderOption = _DEFAULT_FOLDER,
    vms: Annotated[int, typer.Option("--vms", help="Virtual machines, beside those for special cases.")] = 2,
    disks: Annotated[int, typer.Option("--disks", help="Disks of each.")] = 2,
    disk_size: Annotated[str, typer.Option("--disk-size", metavar="SIZE", help="Of each disk.")] = "1G",
    fill: Annotated[
        str | None, typer.Option("--fill", metavar="SIZE", help="Of files on each disk; a quarter of it, at most 200M.")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", help="On 127.0.0.1; any, and the same one afterwards.")] = None,
) -> None:
    """
    Run a simulated VMware site until Ctrl-C.

    What belongs to it is kept in the folder: started again there, it goes on as it was, whatever ended it.
    """
    from sendense.lab.up import Plan, start

    if not (folder / "state.json").exists():
        print(f"making the disks of a new site in {folder}", file=sys.stderr)
    running = start(folder, Plan(vms, disks, read_bytes(disk_size), None if fill is None else read_bytes(fill)), port)

    def stop(signum: int, frame: object) -> None:
        threading.Thread(target=running.server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(f"vCenter of the lab listens on https://127.0.0.1:{running.port}/sdk", flush=True)
    print(f"export SENDENSE_CONFIG={running.config}", flush=True)
    running.server.serve_forever(poll_interval=0.1)
    running.server.server_close()


@lab_app.command()
def status(
    folder: _FolderOption = _DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Show the machines, their disks and snapshots, and what is open."""
    from sendense.lab.client import LabClient

    client = LabClient(folder)
    if as_json:
        print(json.dumps(client.status()))
        return
    for vm in client.vms():
        power = "on" if vm.powered_on else "off"
        print(f"{vm.name}  {vm.id}  {vm.host}  power {power}  change tracking {'on' if vm.tracking_enabled else 'off'}")
        for disk in vm.disks:
            reading = f"  open {disk.open}" if disk.open else ""
            print(f"  disk {disk.key}  {show_bytes(disk.size)}  {disk.mode}  {disk.file}{reading}")
        for snapshot in vm.snapshots:
            print(f"  {snapshot.id}  {snapshot.name}{'  quiesced' if snapshot.quiesced else ''}")


@lab_app.command()
def write(
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or managed object id.")],
    disk: Annotated[int | None, typer.Option("--disk", metavar="KEY", help="The first one, if not given.")] = None,
    files: Annotated[int, typer.Option("--files", help="New files.")] = 8,
    size: Annotated[str, typer.Option("--bytes", metavar="SIZE", help="In new and changed files together.")] = "4M",
    folder: _FolderOption = _DEFAULT_FOLDER,
) -> None:
    """Have the guest of a running machine add, change and delete files."""
    from sendense.lab.client import LabClient

    done = LabClient(folder).write_files(vm, disk, files=files, size=read_bytes(size))
    for verb, names in (("added", done.added), ("changed", done.changed), ("deleted", done.deleted)):
        print(f"{verb} {len(names)}: {' '.join(names)}".rstrip(": "))
    print(f"disk {done.key}: {show_bytes(done.bytes)} in {len(done.areas)} areas changed")


@lab_app.command("disk")
def disk_path(
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or managed object id.")],
    key: Annotated[int, typer.Argument(metavar="KEY", help="Device key.")] = 2000,
    folder: _FolderOption = _DEFAULT_FOLDER,
) -> None:
    """Print the path of the raw file with the present content of a disk."""
    from sendense.lab.client import LabClient

    found = LabClient(folder).vm(vm)
    for disk in found.disks:
        if disk.key == key:
            print(disk.path)
            return
    raise InputError(f"{vm} has no disk {key}", f"It has: {', '.join(str(disk.key) for disk in found.disks)}.")


@lab_app.command()
def power(
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or managed object id.")],
    state: Annotated[str, typer.Argument(metavar="on|off")],
    folder: _FolderOption = _DEFAULT_FOLDER,
) -> None:
    """Turn a machine on or off."""
    from sendense.lab.client import LabClient

    if state not in ("on", "off"):
        raise typer.BadParameter("give 'on' or 'off'")
    LabClient(folder).power(vm, state == "on")


@lab_app.command("set")
def set_knobs(
    settings: Annotated[list[str], typer.Argument(metavar="KNOB=VALUE...")],
    vm: Annotated[str | None, typer.Option("--vm", metavar="VM", help="For this machine only.")] = None,
    folder: _FolderOption = _DEFAULT_FOLDER,
) -> None:
    """
    Turn knobs of the running site.

    Everywhere, or with --vm for one machine: snapshot-seconds, task-seconds, shutdown-seconds, window-bytes,
    area-limit, read-rate (bytes per second), latency-ms, read-errors (a percentage, or OFFSET+LENGTH,…).
    The site's own: session-seconds, connection-limit, fail-next=METHOD:FAULT, expire-sessions=now.
    A machine's own: cbt-reset=now, tools-running=true|false.
    """
    from sendense.lab.client import LabClient

    client, values = LabClient(folder), {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        name = name.replace("-", "_")
        if not equals:
            raise typer.BadParameter(f"{setting}: give KNOB=VALUE")
        if name == "expire_sessions":
            print(f"{client.expire_sessions()} sessions ended")
        elif name == "cbt_reset":
            if vm is None:
                raise typer.BadParameter("cbt-reset needs --vm")
            client.reset_tracking(vm)
        elif name == "fail_next":
            method, _, fault = value.partition(":")
            client.fail_next(method, fault or "SystemError")
        else:
            values[name] = _knob(name, value)
    if values:
        client.set(vm, **values)


def _knob(name: str, text: str) -> Any:
    try:
        return _value(name, text)
    except (ValueError, InputError) as exc:
        hint = "docs/lab.md says what it takes."
        if name == "read_errors":
            hint = "Give a percentage of the reads, as 5%, or the areas that fail, as 4096+512 or 4M+64K,8M+4K."
        raise InputError(f"{name.replace('_', '-')}={text}: no such value", hint) from exc


def _value(name: str, text: str) -> Any:
    if name == "read_errors":
        if text in ("none", "0"):
            return {}
        if "+" not in text:
            return {"percent": float(text.removesuffix("%"))}
        areas = [part.partition("+") for part in text.split(",")]
        return {"areas": [(read_bytes(offset), read_bytes(length)) for offset, _, length in areas]}
    if name in ("read_rate", "window_bytes"):
        return read_bytes(text)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return float(text) if "." in text else text
