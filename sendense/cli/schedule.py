"""The `sendense schedule` commands."""

import re
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from sendense.cli.amounts import read_days, read_time
from sendense.cli.opening import is_remote, open_hub, to_stderr
from sendense.cli.tables import Note, print_fields, print_json, print_table, say
from sendense.errors import InputError
from sendense.times import show_days

if TYPE_CHECKING:
    from sendense.schedules import RunSummary, Schedule
    from sendense.views import ScheduleView

schedule_app = typer.Typer(help="Backups that the hub begins by itself, and what it keeps of them.")

MOST_NAMED = 3
"""Other schedules that are named of those that may have VMs in common."""

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@schedule_app.callback(invoke_without_command=True)
def list_if_alone(context: typer.Context, as_json: _Json = False) -> None:
    """Backups that the hub begins by itself, and what it keeps of them; without a command, a list of them."""
    if not context.invoked_subcommand:
        _list(as_json=as_json)


@schedule_app.command("list")
def list_schedules(as_json: _Json = False) -> None:
    """The schedules: when they run next, how the last run ended, and what runs now."""
    _list(as_json=as_json)


def _list(*, as_json: bool) -> None:
    with open_hub() as hub:
        found = hub.schedules()
    if as_json:
        print_json(found)
        return
    if not found:
        say("there is no schedule yet; make one: sendense schedule add VM --daily 02:00")
        return
    rows: list[list[str] | Note] = []
    for each in found:
        latest, before = each.latest, each.before
        following = _short(each.following) if each.following else "paused"
        ended = latest if latest and latest.ended else before
        last = f"{_short(ended.start)} {_counted(ended)}" if ended else "never"
        rows.append([each.schedule.name, _what(each.schedule), _when(each.schedule), following, last])
        if latest and not latest.ended:
            progress = _counted(latest) if latest.count else "looks which VMs there are"
            rows.append(Note(f"now: the run of {_short(latest.start)}: {progress}"))
        rows += [Note(text) for text in filter(None, [each.trouble, *(latest.troubles[:3] if latest else [])])]
    print_table(["schedule", "of", "when", "next", "last"], rows)
    _warn(found)


@schedule_app.command()
def add(
    vm: Annotated[
        str, typer.Argument(metavar="[VM]", help="Name, inventory path, UUID or moref.", show_default=False)
    ] = "",
    every_vm: Annotated[bool, typer.Option("--all", help="All VMs, as the site has them at each run.")] = False,
    site: Annotated[str, typer.Option(help="The VM's site; with --all: of this site only.")] = "",
    daily: Annotated[str, typer.Option(metavar="HH:MM", help="Each day at this time.")] = "",
    weekly: Annotated[
        str, typer.Option(metavar="DAYS@HH:MM", help="On these days: sun,wed@02:00 or mon-fri@22:00")
    ] = "",
    every: Annotated[str, typer.Option(metavar="Nh", help="Every 1, 2, 3, 4, 6, 8 or 12 hours.")] = "",
    start: Annotated[str, typer.Option("--from", metavar="HH:MM", help="With --every: the first time of a day.")] = "",
    until: Annotated[
        str,
        typer.Option(metavar="HH:MM", help="Begin nothing later, and cancel what still runs: it goes on next time."),
    ] = "",
    days: Annotated[str, typer.Option(metavar="DAYS", help="With --every or --daily: mon-fri, or sat,sun.")] = "",
    timezone: Annotated[
        str, typer.Option(metavar="ZONE", help="Of these times, such as Europe/Oslo; else the hub's own.")
    ] = "",
    at_once: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Backups at one time.")] = 2,
    keep_last: Annotated[int, typer.Option(metavar="N", min=0, help="Keep the N newest restore points.")] = 0,
    keep_daily: Annotated[int, typer.Option(metavar="N", min=0, help="And the newest of each of N days.")] = 0,
    keep_weekly: Annotated[int, typer.Option(metavar="N", min=0, help="And of each of N weeks.")] = 0,
    keep_monthly: Annotated[int, typer.Option(metavar="N", min=0, help="And of each of N months.")] = 0,
    keep_yearly: Annotated[int, typer.Option(metavar="N", min=0, help="And of each of N years.")] = 0,
    quiesce: Annotated[bool, typer.Option("--quiesce/--no-quiesce", help="Have the guest write out its data.")] = True,
    verify: Annotated[bool, typer.Option("--verify", help="Read each image back and compare the digests.")] = False,
    notify_success: Annotated[
        bool, typer.Option("--notify-success", help="Tell also of what succeeded (docs/notices.md).")
    ] = False,
    name: Annotated[str, typer.Option(help="Its name; the VM's, or all, otherwise.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Instead of the one of this name.")] = False,
    as_json: _Json = False,
) -> None:
    """
    Have VMs backed up at certain times. Without a --keep option all restore points stay.

    What was missed, as no hub was up, is made up for once. Of one that is there already, and orders the same, nothing
    changes.
    """
    from sendense.orders import ScheduleOrder, make_order
    from sendense.schedules import NAME

    if bool(vm) == every_vm:
        raise InputError(
            f"{vm} and --all exclude each other" if vm else "name a VM, or give --all", "'sendense vms' lists the VMs."
        )
    if name and not re.fullmatch(NAME, name):
        raise InputError(f"--name {name}: no name for a schedule", "Use letters, digits, '.', '_' and '-', 63 at most.")
    kept = {"last": keep_last, "daily": keep_daily, "weekly": keep_weekly, "monthly": keep_monthly}
    order = make_order(
        ScheduleOrder,
        name=name,
        vm=vm,
        site=site,
        **_times(daily, weekly, every, start, days),
        until=read_time("--until", until) if until else "",
        timezone=timezone,
        at_once=at_once,
        keep={**kept, "yearly": keep_yearly},
        quiesce=quiesce,
        verify=verify,
        notify_success=notify_success,
        replace=replace,
    )
    with open_hub() as hub:
        found = hub.add_schedule(order)
        known = [] if as_json else [each.schedule for each in hub.schedules()]
    if as_json:
        print_json(found)
        return
    following = f", next on {_long(found.following)}" if found.following else "; it is paused"
    say(f"schedule {found.schedule.name}: {_what(found.schedule)}, {_when(found.schedule)}{following}")
    if not found.schedule.keep:
        say("all restore points stay: give --keep-daily N or the like to have old ones deleted")
    others = [each for each in known if each.name != found.schedule.name and each.may_share(found.schedule)]
    if others and any(each.keep for each in (found.schedule, *others)):
        names = ", ".join([*(each.name for each in others[:MOST_NAMED]), *["others"] * (len(others) > MOST_NAMED)])
        say(f"VMs in common with {names}: a restore point stays as long as one of its VM's schedules keeps it")
    _warn([found])


@schedule_app.command()
def show(name: _Name, as_json: _Json = False) -> None:
    """A schedule, and each VM of its latest run."""
    with open_hub() as hub:
        found = hub.schedule(name)
    if as_json:
        print_json(found)
        return
    schedule, run, before = found.schedule, found.run, found.before
    say(f"schedule {schedule.name}")
    keep = schedule.keep.model_dump() if schedule.keep else {}
    print_fields(
        [
            ("of", _what(schedule)),
            ("when", f"{_when(schedule)}, {schedule.timezone}"),
            ("next", _long(found.following) if found.following else "paused"),
            ("at once", str(schedule.at_once)),
            ("keeps", ", ".join(f"{count} {rule}" for rule, count in keep.items() if count) or "all restore points"),
            ("quiesced", "" if schedule.quiesce else "no"),
            ("verified", "yes" if schedule.verify else ""),
            ("asked", f"to run now, at {_long(found.asked)}" if found.asked else ""),
            ("before", f"{_long(before.start)}: {_counted(before)}" if before else ""),
            ("trouble", found.trouble),
        ]
    )
    if run:
        print()
        state = f"ended {_long(run.ended)}" if run.ended else "under way"
        say(f"run of {_long(run.start)}{' (asked for)' if run.asked else ''}: {state}")
        rows: list[list[str] | Note] = []
        for turn in run.turns:
            rows.append([turn.vm.name, turn.vm.site, _STATES.get(turn.state, turn.state), turn.job])
            rows += [Note(turn.note)] if turn.note else []
        if rows:
            print_table(["vm", "site", "state", "job"], rows)
        for site, why in run.sites.items():
            say(f"{f'site {site}' if site else 'sites'}: VMs not known yet: {why}")
    _warn([found])


@schedule_app.command()
def remove(name: _Name) -> None:
    """Delete a schedule: nothing more begins, what runs goes on. Restore points stay."""
    with open_hub() as hub:
        hub.remove_schedule(name)
    say(f"schedule {name} is deleted")


@schedule_app.command()
def pause(name: _Name, as_json: _Json = False) -> None:
    """Have a schedule begin nothing more; what runs goes on. It stays so until 'resume'."""
    with open_hub() as hub:
        found = hub.pause_schedule(name)
    _say_one(found, f"schedule {name} begins nothing more; go on with: sendense schedule resume {name}", as_json)


@schedule_app.command()
def resume(name: _Name, as_json: _Json = False) -> None:
    """Have a schedule begin again, with its next time: what it missed meanwhile is not made up for."""
    with open_hub() as hub:
        found = hub.resume_schedule(name)
    following = f", next on {_long(found.following)}" if found.following else ""
    _say_one(found, f"schedule {name} goes on{following}", as_json)


@schedule_app.command()
def run(name: _Name, as_json: _Json = False) -> None:
    """Have a schedule run now, whatever its times; it begins within seconds."""
    with open_hub() as hub:
        found = hub.run_schedule(name)
    _say_one(found, f"schedule {name} runs now; look with: sendense schedule show {name}", as_json)


def _say_one(found: "ScheduleView", text: str, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        say(text)
        _warn([found])


def _warn(found: "list[ScheduleView]") -> None:
    if not any(each.is_served for each in found):
        where = "there" if is_remote() else "here"
        to_stderr(f"no hub is up {where}: schedules run only while 'sendense hub' does")


def _times(daily: str, weekly: str, every: str, start: str, days: str) -> dict[str, Any]:
    """The fields of the order that say when."""
    from sendense.schedules import EveryHours

    given = [name for name, value in (("--daily", daily), ("--weekly", weekly), ("--every", every)) if value]
    if len(given) != 1:
        many = f"{' and '.join(given)} exclude each other" if given else "it does not say when"
        raise InputError(many, "Give one of --daily 02:00, --weekly sun,wed@02:00 and --every 4h.")
    if start and not every:
        raise InputError(f"--from is for --every, not for {given[0]}", f"{given[0]} has its time itself.")
    if weekly:
        named, _, time = weekly.replace(" ", "@", 1).partition("@")
        if days or not time:
            raise InputError(f"--weekly {weekly}: no days and time", "Give both together: --weekly sun,wed@02:00")
        return {"days": read_days(named), "at": read_time("--weekly", time)}
    on = read_days(days) if days else []
    if daily:
        return {"days": on, "at": read_time("--daily", daily)}
    hours = every.lower().removesuffix("h")
    if hours not in map(str, get_args(EveryHours)):
        hint = "Give --every 1h, 2h, 3h, 4h, 6h, 8h or 12h: what a day is a multiple of."
        raise InputError(f"--every {every}: not such a time", hint)
    return {"days": on, "at": read_time("--from", start or "00:00"), "every_hours": int(hours)}


def _what(schedule: "Schedule") -> str:
    if schedule.vm:
        return schedule.vm.name
    return f"all VMs of {schedule.site}" if schedule.site else "all VMs"


def _when(schedule: "Schedule") -> str:
    days = f"{show_days(schedule.days)} " if schedule.days else ""
    frequent, next_day = schedule.every_hours < 24, schedule.until == schedule.at
    to = " until " if frequent or next_day else "-"
    until = f"{to}{schedule.until}{' of the next day' * next_day}" if schedule.until else ""
    return f"{f'every {schedule.every_hours}h {days}from ' if frequent else days or 'daily '}{schedule.at}{until}"


_STATES = {"begun": "at work", "ending": "is cancelled", "pruning": "prunes", "cut": "cut by the window"}


def _counted(run: "RunSummary") -> str:
    return ", ".join(f"{number} {_STATES.get(state, state)}" for state, number in run.count.items()) or "no VMs"


def _short(time: datetime) -> str:
    return f"{time.astimezone():%a %d %b %H:%M}"


def _long(time: datetime) -> str:
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S %Z}"
