"""One local copy from request to result: prepares, drives and finishes a job on a stack of its own."""

import time
import uuid
from functools import partial

from blake3 import blake3

from sendense.errors import InputError, JobFailed
from sendense.files import rename, sync
from sendense.jobs import broker, driver
from sendense.jobs.driver import SURVEY_SILENCE_SECONDS
from sendense.jobs.ledger import Ledger, Record
from sendense.jobs.plan import batch_of
from sendense.jobs.watch import Watcher
from sendense.local.admission import Admission
from sendense.local.request import Target
from sendense.local.stack import SITE, Stack
from sendense.local.state import Unfinished
from sendense.models import CopySummary, Difference, Failure, JobSpec, Progress, SummaryState, Survey
from sendense.nbd import images
from sendense.nbd.serve import serve_source, serve_target
from sendense.nbd.uri import parse
from sendense.settings import Settings

LOOK_SECONDS = 0.05
"""Between two looks at the ledger."""

MOST_SURVEYS = 3
"""Times that a survey is sent before its loss is the copy's failure."""

IDLE_WORKER_SECONDS = 20.0
"""A worker that takes nothing for so long while batches wait has lost its queue, however well its heart beats."""

STOP_SECONDS = 0.5
"""Beyond the tasks' next renewal, until they are killed: within the five seconds of Ctrl-C."""


class LocalCopy:
    """The copy of one source onto one target, on a stack that was started for it. Used once."""

    def __init__(self, admission: Admission, stack: Stack, settings: Settings, watcher: Watcher) -> None:
        self._admission, self._stack, self._settings, self._watcher = admission, stack, settings, watcher
        self._request, self._folder = admission.request, admission.folder
        self._source, self._target = admission.source, admission.target
        stack.note = watcher.note
        self._ledger = Ledger(stack.client)
        self._app = broker.make_app(stack.redis_url)
        self._spec = admission.unfinished.spec if admission.unfinished else _new_spec(self._target)
        self.summary: CopySummary | None = None
        """How it ended, or how far it came."""

    def run(self) -> CopySummary:
        """
        Copy, and verify if asked.

        Raises InputError before anything is written, JobFailed when it cannot be finished; what is stored by then is
        not copied again.
        """
        try:
            survey = self._open()
            self._use_processes(survey)
            self._drive(self._spec)
            records = self._ledger.records(self._spec.id)
            differences = self._verify(records, survey) if self._request.verify else []
            summary = self._summarize("different" if differences else "succeeded", records, differences)
            if not differences:
                self._deliver()
            return summary
        except BaseException as exc:
            self._summarize_end(exc)
            raise

    def _open(self) -> Survey:
        """Have the endpoints served and surveyed, and a new target made; from here on the copy can be resumed."""
        source, target, resumed = self._source, self._target, self._admission.unfinished is not None
        update: dict[str, object] = {"source": source.uri, "target": target.uri}
        if source.image:
            update["source"] = self._stack.serve("source", partial(serve_source, source.image))
        self._stack.await_redis()
        if not resumed:
            update["target_is_zero"] = self._request.target_is_zero or not target.uri
        elif not target.uri:
            self._remake_target()
            update["target"] = self._serve_target()
        self._spec = self._spec.model_copy(update=update)
        self._ledger.prepare(self._spec)
        survey = self._survey()
        if not resumed:
            self._folder.save(self._unfinished())
        if not self._spec.target:
            images.create(target.partial, target.format, survey.size)
            self._spec = self._spec.model_copy(update={"target": self._serve_target()})
        return survey

    def _remake_target(self) -> None:
        """A copy that ended before it had made its target makes it now; one that lost its target cannot go on."""
        target, survey = self._target, self._ledger.survey(self._spec.id)
        if target.partial.exists():
            return
        if not survey or self._need(self._ledger.progress(self._spec.id)).done:
            raise InputError(f"{target.partial}: is gone, and with it what was copied", "Start over with --force.")
        images.create(target.partial, target.format, survey.size)

    def _unfinished(self) -> Unfinished:
        return Unfinished(spec=self._spec, source=self._source.label, fingerprint=self._source.fingerprint)

    def _serve_target(self) -> str:
        target = self._target

        def repair() -> None:
            if target.format == "qcow2":
                images.repair_leaks(target.partial)

        return self._stack.serve("target", partial(serve_target, target.partial, target.format), repair)

    def _survey(self) -> Survey:
        """Have a worker look at the endpoints; its handles stay open for the copy."""
        job, tries = self._spec.id, 0
        beats, heard = -1, 0.0
        while True:
            now = time.monotonic()
            try:
                self._stack.supervise()
                state, beat = self._ledger.state(job), self._ledger.beats(job)
                if beat != beats:
                    beats, heard = beat, now
                if not tries or now - heard > SURVEY_SILENCE_SECONDS:
                    self._send_survey(tries)
                    tries, heard = tries + 1, now
            except broker.Unavailable as exc:
                self._stack.missed_redis(exc)
                time.sleep(LOOK_SECONDS)
                continue
            survey = self._ledger.survey(job) if state == "ready" else None
            if survey:
                return survey
            if state == "failed":
                raise self._error(self._ledger.failures(job)[-1:])
            time.sleep(LOOK_SECONDS / 2)

    def _send_survey(self, tries: int) -> None:
        if tries >= MOST_SURVEYS:
            raise JobFailed(f"the survey of {self._source.label} was lost {tries} times", "Look at the worker's log.")
        if tries:
            self._stack.restart_worker()
        broker.send_survey(self._app, self._spec)

    def _use_processes(self, survey: Survey) -> None:
        if survey.multi_conn:
            more = self._request.workers - self._stack.processes
            if more > 0:
                broker.grow_pool(self._app, more)
                self._stack.processes = self._request.workers
        else:
            self._watcher.note("source or target takes one client only (no multi-conn): copying over one connection")
        if not survey.flush:
            self._watcher.note("the target cannot flush: whether its writes survive a power cut is its own affair")

    def _drive(self, spec: JobSpec) -> None:
        """Have the job's batches copied; supervises the stack meanwhile."""
        job, seen, ticked = spec.id, len(self._ledger.failures(spec.id)), 0.0
        epoch, window = self._ledger.begin(spec), driver.WINDOW_PER_PROCESS * self._stack.processes
        total, taken = self._need(self._ledger.progress(job)).batches, time.monotonic()
        dispatch = broker.chord_dispatch(self._app, self._ledger, spec, total, window)
        while True:
            try:
                self._stack.supervise()
                if time.monotonic() - ticked > self._settings.tick_seconds:
                    ticked = time.monotonic()
                    for _, owner in driver.tick(self._ledger, job, epoch, window, dispatch)[1]:
                        self._stack.claim_lapsed(owner)
                for failure in self._ledger.failures(job, seen):
                    seen += 1
                    self._watcher.note(self._plain(failure.message))
                    if failure.stalled:
                        self._stack.look_at_server(failure.uri)
                progress = self._need(self._ledger.progress(job))
                if progress.active or not progress.waiting:
                    taken = time.monotonic()
                elif time.monotonic() - taken > IDLE_WORKER_SECONDS:
                    self._watcher.note("batches wait and the worker takes none: killing it and starting another")
                    self._stack.restart_worker()
                    taken = time.monotonic()
            except broker.Unavailable as exc:
                self._stack.missed_redis(exc)
                time.sleep(LOOK_SECONDS)
                continue
            self._watcher.show("verifying" if spec.of else "copying", progress)
            if progress.state == "copied":
                return
            if progress.state != "copying":
                raise self._error(self._ledger.given_up(job) or self._ledger.failures(job)[-1:])
            time.sleep(LOOK_SECONDS)

    def _need(self, progress: Progress | None) -> Progress:
        if not progress:
            raise JobFailed("the ledger of this copy is lost", "Start over with --force.")
        return progress

    def _error(self, failures: list[Failure]) -> InputError | JobFailed:
        """The job's failures as one error: the first, and how many more."""
        if not failures:
            return JobFailed("the copy ended without saying why", f"Logs: {self._folder.path}")
        first, message = failures[0], self._plain(failures[0].message)
        if first.usage:
            return InputError(message, first.hint)
        more = f" (and {len(failures) - 1} more batches)" if len(failures) > 1 else ""
        resume = f" Then go on: {self._admission.resume_command}" if self._folder.is_unfinished else ""
        return JobFailed(message + more, first.hint + resume)

    def _plain(self, text: str) -> str:
        """A message with the endpoints as the user named them, instead of this copy's own sockets."""
        for uri, label in ((self._spec.source, self._source.label), (self._spec.target, self._target.label)):
            text = text.replace(uri, label) if uri else text
        return text

    def _verify(self, records: list[Record], survey: Survey) -> list[Difference]:
        """Read the target back; batches whose digest differs are to do again when the copy is resumed."""
        copied = self._spec
        spec = copied.verification()
        self._ledger.delete(spec.id)
        self._ledger.prepare(spec)
        self._ledger.write_plan(spec.id, survey, (batch_of(record.extents) for record in records))
        self._drive(spec)
        found = {record.batch: record.digest for record in self._ledger.records(spec.id)}
        wrong = [record for number, record in enumerate(records) if found.get(number) != record.digest]
        self._ledger.reopen(copied.id, wrong)
        if wrong:  # whatever is there instead need not be zero
            self._spec = copied.model_copy(update={"target_is_zero": False})
            self._folder.save(self._unfinished())
        return [
            Difference(offset=record.extents[0].offset, length=record.extents[-1].end - record.extents[0].offset)
            for record in wrong
        ]

    def _deliver(self) -> None:
        """Make the target what it was asked for: closed by its server, durable, under its own name."""
        self._stack.end_worker()
        if not self._target.uri:
            self._stack.end_server(self._spec.target)
            sync(self._target.partial)
            rename(self._target.partial, self._target.path)
        self._folder.finish()

    def _summarize(
        self, state: SummaryState, records: list[Record], differences: list[Difference], error: str = ""
    ) -> CopySummary:
        progress = self._need(self._ledger.progress(self._spec.id))
        self.summary = CopySummary(
            job=self._spec.id,
            state=state,
            size=progress.size,
            data=progress.data,
            zero=progress.zero,
            copied=progress.copied,
            already_done=progress.already_done,
            batches=progress.batches,
            retries=progress.retries,
            stalls=progress.stalls,
            seconds=round(self._ledger.seconds(self._spec.id), 3),
            digest=blake3(b"".join(record.digest for record in records)).hexdigest(),
            verified=self._request.verify and state == "succeeded",
            differences=differences,
            error=error,
        )
        return self.summary

    def _summarize_end(self, exc: BaseException) -> None:
        """How far it came, as far as that can still be found out."""
        interrupted = isinstance(exc, KeyboardInterrupt)
        try:
            if interrupted:
                self._stop()
            self._summarize("interrupted" if interrupted else "failed", [], [], "" if interrupted else str(exc))
        except (*broker.Unavailable, JobFailed):
            self.summary = None

    def _stop(self) -> None:
        """Have the tasks give their batches back, and close their connections in good order."""
        if self._ledger.state(self._spec.id) != "copying":
            return
        self._ledger.stop(self._spec.id)
        deadline = time.monotonic() + self._settings.renew_seconds + STOP_SECONDS
        while self._need(self._ledger.progress(self._spec.id)).active and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)


def _new_spec(target: Target) -> JobSpec:
    name = target.path.name or parse(target.uri).export or target.label
    return JobSpec(id=uuid.uuid4().hex[:12], kind="copy", site=SITE, name=name, source="")
