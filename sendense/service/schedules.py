"""What users do with schedules: they are kept in the repository, and carried out by a hub (`service.scheduling`)."""

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from sendense import occurrences
from sendense.beat import Beat
from sendense.coordinator.context import Context, open_repository
from sendense.errors import ClaimLost, Conflict, InputError, NotFound
from sendense.jobs import broker, presence
from sendense.models import VmRef
from sendense.orders import BackupOrder, Order, ScheduleOrder
from sendense.repository.finding import is_new
from sendense.repository.layout import Layout
from sendense.repository.settings import change_settings, read_settings
from sendense.requests import BackupRequest, JobRequest
from sendense.schedules import Kept, Schedule, Standing
from sendense.service.runs import Runs
from sendense.times import local_zone, zone_of
from sendense.views import ScheduleView

SERVED_SECONDS = 60.0
"""A hub whose routine was silent for longer carries no schedules out."""

ATTEMPTS = 5
"""To change a record that the hub may change at the same moment."""


class Schedules:
    """The schedules of a hub's repository, and how they stand as far as Redis is there."""

    def __init__(self, context: Context, beat: Beat) -> None:
        self._context, self._beat = context, beat

    def all(self) -> list[ScheduleView]:
        """All schedules, by their names, without the VMs of their runs."""
        return self._views(sorted(self._read(), key=lambda each: each.name))

    def one(self, name: str) -> ScheduleView:
        """A schedule, with each VM of its latest run; NotFound for none."""
        return self._views([_named(self._read(), name)], with_run=True)[0]

    def add(
        self, order: ScheduleOrder, request_of: Callable[[Order], tuple[JobRequest, str]], sites: list[str]
    ) -> ScheduleView:
        """
        Make a schedule, or leave one that orders the same as it is.

        Conflict for another one of that name, unless the order says that it is to be replaced. `request_of` says what
        a backup of the VM comes to, and refuses what cannot be backed up; `sites` are those that are there now.
        """
        vm = None
        if order.vm:
            request, _ = request_of(BackupOrder(vm=order.vm, site=order.site))
            assert isinstance(request, BackupRequest)
            vm = request.vm
        elif order.site:
            self._must_know(order.site, sites)
        made = _schedule(order, vm, self._now())

        def change(known: list[Schedule]) -> list[Schedule]:
            there = next((each for each in known if each.name == made.name), None)
            if there and there.is_as(made):
                return known
            if there and not order.replace:
                hint = "Give this one another name (--name), or replace that one: --replace."
                raise Conflict(f"schedule {made.name}: is there already, and orders something else", hint)
            kept = made.model_copy(update={"paused": there.paused}) if there else made
            return [*(each for each in known if each is not there), kept]

        self._change(change, create=True)
        return self.one(made.name)

    def remove(self, name: str) -> None:
        """Delete a schedule: nothing more begins, what runs goes on."""

        def change(known: list[Schedule]) -> list[Schedule]:
            going = _named(known, name)
            return [each for each in known if each is not going]

        left = self._change(change)
        with suppress(*broker.Unavailable):  # then the hub does
            Runs(self._context.ledger.client).keep(each.name for each in left)

    def pause(self, name: str, paused: bool) -> ScheduleView:
        """Have a schedule begin nothing, or have it begin with its next time."""

        def change(known: list[Schedule]) -> list[Schedule]:
            there = _named(known, name)
            if there.paused == paused:
                return known
            update = {"paused": paused, **({} if paused else {"since": self._now()})}
            return [each.model_copy(update=update) if each is there else each for each in known]

        self._change(change)
        return self.one(name)

    def run(self, name: str) -> ScheduleView:
        """Have it run now; Conflict where it is at work, is paused, or nobody carries it out."""
        found = self.one(name)
        if not found.is_served:
            raise Conflict(f"schedule {name}: no hub is up to run it", "Start one: sendense hub")
        if found.schedule.paused:
            raise Conflict(f"schedule {name}: is paused", f"First: sendense schedule resume {name}")
        runs = Runs(self._context.ledger.client)
        for _ in range(ATTEMPTS):
            standing, text = runs.get(name)
            if standing.run and not standing.run.ended:
                break
            with suppress(ClaimLost):
                runs.put(name, text, standing.model_copy(update={"asked": standing.asked or self._now()}))
                return self.one(name)
        hint = f"Look how far it is: sendense schedule show {name}"
        raise Conflict(f"schedule {name}: a run of it is under way", hint)

    def _must_know(self, site: str, sites: list[str]) -> None:
        """Refuse a site that never was there. Where no hub is up, nobody may be there now."""
        path = self._context.settings.repository
        known = set(sites)
        if path and not is_new(path):
            known |= {vm.ref.site for vm in open_repository(self._context.settings, create=False).vms()}
        if known and site not in known:
            raise NotFound(f"site {site}: not known here", f"Known are: {', '.join(sorted(known))}.")

    def _views(self, schedules: list[Schedule], *, with_run: bool = False) -> list[ScheduleView]:
        standings, served = dict[str, Standing](), False
        with suppress(*broker.Unavailable):
            client = self._context.ledger.client
            served = presence.routine_silence(client) < SERVED_SECONDS
            standings = {each.name: Runs(client).get(each.name)[0] for each in schedules}
        now = self._now()
        return [_view(each, standings.get(each.name, Standing()), now, served, with_run) for each in schedules]

    def _read(self) -> list[Schedule]:
        path = self._context.settings.repository
        if path and is_new(path):
            return []
        return read_settings(self._layout(create=False)).schedules

    def _change(self, change: Callable[[list[Schedule]], list[Schedule]], *, create: bool = False) -> list[Schedule]:
        path = self._context.settings.repository
        if not create and path and is_new(path):
            return change([])
        return change_settings(
            self._layout(create=create),
            lambda known: known.model_copy(update={"schedules": change(known.schedules)}),
            self._beat,
        ).schedules

    def _layout(self, *, create: bool) -> Layout:
        return open_repository(self._context.settings, create=create).layout

    def _now(self) -> datetime:
        with suppress(*broker.Unavailable):
            return datetime.fromtimestamp(self._context.jobs.clock(), UTC)
        return datetime.now(UTC)


def _named(known: list[Schedule], name: str) -> Schedule:
    for each in known:
        if each.name == name:
            return each
    names = ", ".join(sorted(each.name for each in known))
    raise NotFound(f"schedule {name}: no such schedule", f"There are: {names}." if names else "There is none yet.")


def _view(schedule: Schedule, standing: Standing, now: datetime, served: bool, with_run: bool) -> ScheduleView:
    run = standing.run
    return ScheduleView(
        schedule=schedule,
        following=None if schedule.paused else occurrences.following(schedule, now).start,
        latest=run.summary() if run else None,
        before=standing.before,
        run=run if with_run else None,
        asked=standing.asked,
        trouble=standing.trouble,
        is_served=served,
    )


def _schedule(order: ScheduleOrder, vm: VmRef | None, now: datetime) -> Schedule:
    timezone = order.timezone or local_zone()
    zone_of(timezone)
    keep = Kept(**order.keep.model_dump()) if order.keep else None
    return Schedule(
        name=order.name or _name_for(vm.name if vm else f"all-{order.site}" if order.site else "all"),
        vm=vm,
        site=vm.site if vm else order.site,
        days=sorted(set(order.days)) if len(set(order.days)) < 7 else [],
        at=order.at,
        until=order.until,
        every_hours=order.every_hours,
        timezone=timezone,
        at_once=order.at_once,
        keep=keep if keep != Kept() else None,
        quiesce=order.quiesce,
        verify=order.verify,
        notify_success=order.notify_success,
        since=now,
    )


def _name_for(text: str) -> str:
    """A name made of a VM's, or of a site's."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:63]
    if not name:
        raise InputError(f"{text}: no name for a schedule can be made of it", "Give it one: --name NAME")
    return name
