"""
Carrying one schedule out: a look every few seconds, by one process at a time.

What is about to be begun is entered first, with the id of its job; then the job is submitted under that id, which makes
one job however often it is done. So a crash at any instant neither skips a VM nor backs it up twice.
"""

import math
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TypeVar

from sendense import occurrences
from sendense.beat import Beat
from sendense.coordinator import submission
from sendense.coordinator.asking import ask
from sendense.coordinator.context import Context
from sendense.coordinator.outbox import Outbox
from sendense.coordinator.site import choose_disks
from sendense.errors import ClaimLost, Conflict, InputError, JobFailed, NotFound, SendenseError
from sendense.jobs import presence
from sendense.models import VmInfo, VmRef
from sendense.notices import Told
from sendense.occurrences import Occurrence
from sendense.orders import BackupOrder, PruneOrder
from sendense.repository.settings import read_settings
from sendense.requests import BackupRequest, DeleteRequest, JobView, MigrateRequest
from sendense.schedules import MOST_TROUBLES, Run, Schedule, Seen, Standing, Turn
from sendense.service.operations import Operations
from sendense.service.ordering import request_of
from sendense.service.runs import Runs, told_mark

SITE_SECONDS = 45.0
"""For one answer of a site: a vCenter of thousands takes some ten seconds, and other schedules wait meanwhile."""

PATIENT_SECONDS = 5.0
"""A site that took longer to fail is left alone for a while, by all schedules."""

T = TypeVar("T")


class _Silent(Exception):
    """A site that does not answer now, and why."""


class Attendance:
    """One look at one schedule. `run` is the run as it is known here, and is stored by `_save`."""

    def __init__(self, context: Context, runs: Runs, schedule: Schedule, beat: Beat) -> None:
        self._context, self._jobs, self._runs, self._schedule = context, context.jobs, runs, schedule
        self._beat = beat
        self._deadline = math.inf
        """Of what a site is being asked, by the monotonic clock."""
        self._standing, self._text = runs.get(schedule.name)
        self._now = self._clock()
        self._hub = Operations(context, self._beat_in_time)
        self._silent: dict[str, str] = {}

    def look(self) -> None:
        """Begin a run that is due, and carry on with the one that there is."""
        if occurrence := self._due():
            self._begin_run(occurrence, asked=False)
        elif asked := self._standing.asked:
            if self._schedule.paused or self._is_outdated(asked):
                self._put(self._standing.model_copy(update={"asked": None}))
            else:
                self._begin_run(Occurrence(asked, None), asked=True)
        run = self._standing.run
        if run and not run.ended:
            self._carry_on(run)

    def say(self, trouble: str) -> None:
        """Enter what kept the look from its end, if anything did."""
        if trouble != self._standing.trouble:
            self._put(self._standing.model_copy(update={"trouble": trouble}))

    def _clock(self) -> datetime:
        return datetime.fromtimestamp(self._jobs.clock(), UTC)

    def _is_outdated(self, time: datetime) -> bool:
        """Whether the schedule was replaced or resumed after that; what is of the future is by a clock set back."""
        return time < self._schedule.since <= self._now

    def _is_over(self, run: Run) -> bool:
        """Whether it begins nothing more."""
        return bool(run.end and self._now >= run.end) or self._is_outdated(run.start)

    def _due(self) -> Occurrence | None:
        """The latest time at which it was due, if there has been no run of it and there still may be one."""
        schedule, run = self._schedule, self._standing.run
        if schedule.paused:
            return None
        found = occurrences.last(schedule, self._now)
        if self._is_outdated(found.start) or (found.end and found.end <= self._now):
            return None
        # A run of the future was entered before the clock was set back.
        if run and found.start <= run.start <= self._now:
            return None
        return found

    def _begin_run(self, occurrence: Occurrence, *, asked: bool) -> None:
        old, before, schedule = self._standing.run, self._standing.before, self._schedule
        carried: list[Turn] = []
        if old:
            carried = [each for turn in old.turns if (each := _carried(self._follow(old, turn)))]
            old = old if old.ended else self._ended(old)
            before = old.summary()
        if schedule.vm:
            turns = [turn for turn in carried if turn.vm.uuid == schedule.vm.uuid] or [Turn(vm=schedule.vm)]
            sites = set[str]()
        else:
            turns = [turn for turn in carried if not schedule.site or turn.vm.site == schedule.site]
            sites = {schedule.site} if schedule.site else self._all_sites(turns)
            self._know_before(sites)
        run = Run(
            schedule=schedule,
            start=occurrence.start,
            end=occurrence.end,
            began=self._now,
            asked=asked,
            sites=dict.fromkeys(sorted(sites), "not asked yet"),
            turns=turns,
        )
        self._put(Standing(run=run, before=before))

    def _all_sites(self, turns: list[Turn]) -> set[str]:
        """Those that there are, and those that had VMs at the last look, even if nobody is there now."""
        seen = self._runs.seen(self._schedule.name) or {}
        return self._reachable() | {each.vm.site for each in seen.values()} | {turn.vm.site for turn in turns} or {""}

    def _know_before(self, sites: set[str]) -> None:
        """Before its first run its VMs are those that were backed up before: what is gone since is told of as well."""
        schedule = self._schedule
        if self._runs.seen(schedule.name) is None:
            refs = [known.ref for known in self._context.repository.vms(self._beat) if known.ref.site in sites]
            if refs:
                before = {ref.uuid: Seen(vm=ref, since=schedule.since) for ref in refs}
                self._runs.put_seen(schedule.name, before)

    def _reachable(self) -> set[str]:
        """As of now: workers come and go in the middle of a look."""
        return {*self._context.settings.sites, *presence.controlled_sites(self._context.ledger.client)}

    def _carry_on(self, run: Run) -> None:
        run = self._save(run, [self._follow(run, turn) for turn in run.turns])
        is_over, paused = self._is_over(run), self._schedule.paused
        if is_over or paused:
            run = self._save(run, [self._unbegun(turn) for turn in run.turns])
        if run.end and self._now >= run.end:
            run = self._save(run, [self._end_with_window(turn) for turn in run.turns])
        run = self._save(run, [self._act(run, turn) for turn in run.turns])
        if not is_over and not paused:
            for site in sorted(run.sites):
                run = self._ask(run, site)
            self._now = self._clock()  # sites take their time
            is_over = self._is_over(run)
        if not is_over and not paused:
            run = self._save(run, self._choose(run))
            run = self._save(run, [self._act(run, turn) for turn in run.turns])
        left = [turn for turn in run.turns if turn.is_open and not (is_over and turn.state == "waiting")]
        if not left and (is_over or not run.sites):
            run = self._ended(run)
            self._put(self._standing.model_copy(update={"run": run}))

    def _follow(self, run: Run, turn: Turn) -> Turn:
        """A turn after a look at its job."""
        if turn.state == "pruning":
            return self._follow_pruning(turn)
        if not turn.is_under_way:
            return turn
        view = self._jobs.get(turn.job)
        if not view or _is_to_resume(turn, view):
            return turn
        if not view.ended:
            return turn.model_copy(update={"again": None, "note": view.waiting})
        if view.state == "succeeded":
            return turn.model_copy(update={"state": "pruning" if run.schedule.keep else "succeeded", "note": ""})
        if view.state == "cancelled":
            state, note = ("cut", "") if turn.state == "ending" else ("cancelled", "by a user")
            return turn.model_copy(update={"state": state, "note": note})
        note = view.error.message if view.error else view.state
        return turn.model_copy(update={"state": "failed", "note": note})

    def _follow_pruning(self, turn: Turn) -> Turn:
        if not turn.prune:
            return turn
        view = self._jobs.get(turn.prune)
        if view and not view.ended:
            return turn
        note = turn.note
        if view and view.state != "succeeded":
            note = f"what is not to be kept could not be deleted: job {view.id} {view.state}"
        return turn.model_copy(update={"state": "succeeded", "note": note})

    def _unbegun(self, turn: Turn) -> Turn:
        """A turn that was to begin, and did not, when nothing begins any more."""
        if turn.state != "begun":
            return turn
        view = self._jobs.get(turn.job)
        if not view:
            return turn.model_copy(update={"state": "waiting", "job": ""})
        if _is_to_resume(turn, view):
            return turn.model_copy(update={"state": "cut", "again": None})
        return turn

    def _end_with_window(self, turn: Turn) -> Turn:
        view = self._jobs.get(turn.job) if turn.state == "begun" else None
        if not view or view.cancelled:  # by a user
            return turn
        return turn.model_copy(update={"state": "ending"})

    def _act(self, run: Run, turn: Turn) -> Turn:
        """Do what has been entered: safe to be done again."""
        self._beat()
        if turn.state == "begun":
            return self._begin(run, turn)
        if turn.state == "ending":
            view = self._jobs.get(turn.job)
            if view and not view.ended and not view.cancelled:
                self._jobs.event(
                    turn.job, f"the window of schedule {run.schedule.name} is over: it goes on in the next"
                )
                with suppress(Conflict):  # it has ended
                    self._hub.cancel(turn.job)
        elif turn.state == "pruning" and not turn.prune:
            return self._prune(run, turn)
        return turn

    def _begin(self, run: Run, turn: Turn) -> Turn:
        view = self._jobs.get(turn.job)
        if view and not _is_to_resume(turn, view):
            return turn  # it has begun
        newest = self._context.repository.latest(turn.vm.uuid)
        if newest and newest.job == turn.job:  # so long ago that the job is forgotten
            return turn.model_copy(update={"state": "pruning" if run.schedule.keep else "succeeded", "note": ""})
        waits: dict[str, object] = {"state": "waiting", "job": turn.job if turn.again else "", "again": None}
        if turn.vm.site in self._silent:
            return turn.model_copy(update={**waits, "note": self._silent[turn.vm.site]})
        try:
            if turn.again:
                return self._resume(turn, waits)
            return self._submit(run, turn, waits)
        except _Silent as exc:
            self._silent[turn.vm.site] = why = str(exc)
            return turn.model_copy(update={**waits, "note": why})

    def _resume(self, turn: Turn, waits: dict[str, object]) -> Turn:
        try:
            submission.resume(self._context, turn.job)
        except NotFound:
            return turn.model_copy(update={**waits, "job": ""})
        except Conflict as exc:  # another job is at work on the VM
            return turn.model_copy(update={**waits, "note": str(exc)})
        return turn.model_copy(update={"again": None, "note": ""})

    def _submit(self, run: Run, turn: Turn, waits: dict[str, object]) -> Turn:
        schedule, site, uuid = run.schedule, turn.vm.site, turn.vm.uuid
        order = BackupOrder(vm=uuid, site=site, quiesce=schedule.quiesce, verify=schedule.verify)
        is_failure = True
        try:
            info: VmInfo = self._within(
                site, lambda: ask(self._context, site, "vm", seconds=SITE_SECONDS, beat=self._beat_in_time, vm=uuid)
            )
            is_failure = schedule.vm is not None  # what follows says that the VM cannot be backed up
            request, name = request_of(order, lambda *_: info, lambda: self._context.repository)
        except InputError as exc:
            left_out = not schedule.vm and (isinstance(exc, NotFound) or not is_failure)
            return turn.model_copy(update={"state": "left out" if left_out else "failed", "job": "", "note": str(exc)})
        assert isinstance(request, BackupRequest)
        self._beat()
        try:
            named = request.model_copy(update={"schedule": schedule.name})
            submission.submit(self._context, turn.job, named, name)
        except Conflict as exc:  # another job is at work on the VM
            return turn.model_copy(update={**waits, "note": str(exc)})
        return turn.model_copy(update={"note": ""})

    def _prune(self, run: Run, turn: Turn) -> Turn:
        settings = read_settings(self._context.repository.layout)
        rules = [run.schedule, *(each for each in settings.schedules if each.covers(turn.vm))]
        if name := next((each.name for each in rules if not each.keep), ""):
            note = f"all its restore points stay: schedule {name} keeps them"
            return turn.model_copy(update={"state": "succeeded", "note": note})
        order, *beside = [_prune_order(each, turn.vm) for each in rules]
        try:
            found = self._hub.prune(order, f"schedule {run.schedule.name} {run.start.isoformat()}", beside)
        except Conflict:  # another job is at work on the VM
            return turn
        except (InputError, JobFailed) as exc:
            return turn.model_copy(update={"state": "succeeded", "note": f"nothing was pruned: {exc}"})
        job = next((each.job.id for each in found if each.job), "")
        return turn.model_copy(update={"prune": job} if job else {"state": "succeeded"})

    def _ask(self, run: Run, site: str) -> Run:
        """Learn which VMs a site has; entered in the run."""
        try:
            found = self._within(site, lambda: self._hub.vms(site))
        except (_Silent, InputError) as exc:
            self._silent[site] = why = str(exc)
            return self._save(run.model_copy(update={"sites": {**run.sites, site: why}}), run.turns)
        there = {vm.ref.uuid for vm in found}
        # What another site has no more has moved here.
        old = [turn for turn in run.turns if not (turn.dropped and turn.vm.uuid in there)]
        known = {turn.vm.uuid for turn in old if turn.vm.uuid}
        new = [_first_turn(vm) for vm in found if vm.ref.uuid not in known]
        # Where a window is too short for all, each has its turn in some night.
        turns = [*old, *sorted(new, key=self._newest)]
        refused = {turn.vm.uuid for turn in turns if turn.state == "left out"}
        seen = self._runs.seen(self._schedule.name) or {}
        lost = {vm.ref.moref for vm in found if not vm.ref.uuid}
        others = {uuid: each for uuid, each in seen.items() if each.vm.site != site or each.vm.moref in lost}
        here = {
            vm.ref.uuid: Seen(vm=vm.ref, since=seen[vm.ref.uuid].since if vm.ref.uuid in seen else self._now)
            for vm in found
            if vm.ref.uuid not in refused
        }
        open_turns = {turn.vm.uuid for turn in turns if turn.state != "left out"}  # each ends in its own way
        others |= {uuid: each for uuid, each in seen.items() if uuid in open_turns and uuid not in here}
        gone = [each.vm for uuid, each in seen.items() if uuid not in others and uuid not in here]
        sites = {name: why for name, why in run.sites.items() if name != site}
        # First, so that no crash keeps what is gone from being told.
        run = self._save(run.model_copy(update={"sites": sites}), self._dropped(turns, gone))
        self._runs.put_seen(self._schedule.name, {**others, **here})
        return run

    def _dropped(self, turns: list[Turn], gone: list[VmRef]) -> list[Turn]:
        """The turns, with those of VMs that the schedule has no more and that have restore points."""
        found = {turn.vm.uuid: turn for turn in turns}
        dropped = {}
        for vm in gone:
            self._beat()
            if self._context.repository.latest(vm.uuid):
                turn = found.get(vm.uuid) or Turn(vm=vm, state="left out", note=f"site {vm.site} does not have it now")
                dropped[vm.uuid] = turn.model_copy(update={"dropped": True})
        return [turn for turn in turns if turn.vm.uuid not in dropped] + list(dropped.values())

    def _newest(self, turn: Turn) -> datetime:
        self._beat()
        newest = self._context.repository.latest(turn.vm.uuid) if turn.state == "waiting" else None
        return newest.created if newest else datetime.min.replace(tzinfo=UTC)

    def _choose(self, run: Run) -> list[Turn]:
        """The turns, those that are to be begun now with the ids of their jobs."""
        at_work = self._at_work()
        free = run.schedule.at_once - sum(turn.is_under_way for turn in run.turns)
        turns = []
        for turn in run.turns:
            if turn.state == "waiting" and turn.vm.site not in self._silent and free > 0:
                turn = self._chosen(run, turn, at_work.get(turn.vm.uuid))
                free -= turn.is_under_way
            turns.append(turn)
        return turns

    def _chosen(self, run: Run, turn: Turn, at_work: JobView | None) -> Turn:
        self._beat()
        if at_work and at_work.id == turn.job and not at_work.cancelled:
            return turn.model_copy(update={"state": "begun", "note": ""})  # somebody has it go on already
        if at_work:
            return turn.model_copy(update={"note": f"waits for job {at_work.id}, which is at work on it"})
        newest = self._context.repository.latest(turn.vm.uuid)
        if newest and run.start <= newest.created <= self._now:
            state = "pruning" if run.schedule.keep else "succeeded"
            return turn.model_copy(update={"state": state, "job": newest.job, "note": f"has {newest.id} already"})
        cut = self._jobs.get(turn.job) if turn.job else None
        if cut and cut.state in ("failed", "cancelled"):
            return turn.model_copy(update={"state": "begun", "again": cut.ended, "note": ""})
        return turn.model_copy(update={"state": "begun", "job": uuid.uuid4().hex[:12], "note": ""})

    def _at_work(self) -> dict[str, JobView]:
        """The jobs that have a VM to themselves, by its UUID."""
        views = filter(None, map(self._jobs.get, self._jobs.active()))
        return {uuid: view for view in views if (uuid := _vm_of(view))}

    # What is stored, and what is told

    def _save(self, run: Run, turns: list[Turn]) -> Run:
        run = run.model_copy(update={"turns": turns})
        self._put(self._standing.model_copy(update={"run": run}))
        return run

    def _put(self, standing: Standing) -> None:
        self._beat()
        self._text = self._runs.put(self._schedule.name, self._text, standing)
        self._standing = standing

    def _ended(self, run: Run) -> Run:
        """The run as it ends now; what did not come to pass is told, once."""
        turns = [
            turn.model_copy(update={"state": "not begun"}) if turn.state == "waiting" else turn for turn in run.turns
        ]
        run = run.model_copy(update={"ended": self._now, "turns": turns})
        if troubles := run.troubles():
            outbox, mark, start = Outbox(self._context.ledger.client), told_mark(run.schedule.name), str(run.start)
            said = outbox.marks().get(mark, "")
            if said != start:
                outbox.enter("schedule.failed", _told(run, troubles).model_dump_json(), {mark: (said, start)})
        return run

    # Asking sites

    def _within(self, site: str, ask: Callable[[], T]) -> T:
        """What a site answers within SITE_SECONDS; _Silent when it does not, InputError where it refuses."""
        if site and site not in self._reachable():
            raise _Silent(f"site {site}: nobody there speaks to its vCenter now")
        if why := self._runs.silence(site):
            raise _Silent(why)
        began = time.monotonic()
        self._deadline = began + SITE_SECONDS
        try:
            found = ask()
        except ClaimLost:
            raise
        except InputError:
            self._runs.say_heard(site)
            raise
        except SendenseError as exc:
            if time.monotonic() - began > PATIENT_SECONDS:
                self._runs.say_silent(site, str(exc))
            raise _Silent(str(exc)) from exc
        finally:
            self._deadline = math.inf
        self._runs.say_heard(site)
        return found

    def _beat_in_time(self) -> None:
        self._beat()
        if time.monotonic() > self._deadline:
            raise JobFailed(f"the site did not answer within {SITE_SECONDS:.0f} s", "Look at its control worker.")


def _first_turn(vm: VmInfo) -> Turn:
    if not vm.ref.uuid:
        return Turn(vm=vm.ref, state="left out", note=f"{vm.ref.name}: vCenter does not have its configuration now")
    try:
        choose_disks(vm, [])
    except Conflict as exc:
        return Turn(vm=vm.ref, state="left out", note=str(exc))
    return Turn(vm=vm.ref)


def _prune_order(schedule: Schedule, vm: VmRef) -> PruneOrder:
    assert schedule.keep
    return PruneOrder(vm=vm.uuid, timezone=schedule.timezone, **schedule.keep.model_dump())


def _carried(turn: Turn) -> Turn | None:
    """What the next run takes over: a backup that still runs is its own; what was cut, or failed, it goes on with."""
    if turn.state == "begun":
        return turn
    if turn.state in ("ending", "cut"):
        return Turn(vm=turn.vm, job=turn.job)
    if turn.state == "failed" and turn.job and not turn.failed_before:
        return Turn(vm=turn.vm, job=turn.job, failed_before=True)
    return None


def _is_to_resume(turn: Turn, view: JobView) -> bool:
    """Whether the turn's job is as it was when it was entered that it is to be resumed."""
    return turn.again is not None and view.ended == turn.again


def _told(run: Run, troubles: list[str]) -> Told:
    name, shown = run.schedule.name, troubles[:MOST_TROUBLES]
    more = [f"and {len(troubles) - len(shown)} more"] if len(troubles) > len(shown) else []
    return Told(
        subject=f"schedule {name}: {len(troubles)} did not come to pass",
        text="\n".join([f"In its run of {run.start:%Y-%m-%d %H:%M %Z}:", *shown, *more]),
        hint="Its next run tries again; what must not wait for that, back up by hand. "
        "What is backed up no more is told of this once: its restore points stay until you delete them.",
        commands=[f"sendense schedule show {name}", f"sendense schedule run {name}"],
        schedule=name,
    )


def _vm_of(view: JobView) -> str:
    """The UUID of the VM that a job has to itself; empty for none."""
    request = view.request
    return request.vm.uuid if isinstance(request, BackupRequest | MigrateRequest | DeleteRequest) else ""
