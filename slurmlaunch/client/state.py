"""The state machine of one run: events in, effects out (`events` lists both).

`RunState.handle(event, now)` makes every decision about a run: which items have settled,
why a task left items without outcomes, which items to retry, which jobs to cancel.
It is pure: it reads no file and no clock, starts no thread, takes no lock and writes no
log, so that tests are tables of events and effects.

Files are the truth; scheduler states only explain a missing outcome. A task that has
ended, as its end mark or the scheduler says, gets the time that the file system takes to
show its outcomes (`latency`); then its open items end as the task has.
"""

from __future__ import annotations

import functools
import math
import re
from itertools import groupby
from typing import TYPE_CHECKING, Any

from slurmlaunch.backends.base import TaskRecord, TaskState
from slurmlaunch.backends.pending_reasons import explain
from slurmlaunch.client import ends, events
from slurmlaunch.client.ledger import ItemStatus, Ledger, consecutive
from slurmlaunch.client.options import Options
from slurmlaunch.client.retries import Cause, PendingRetries, is_left, next_options
from slurmlaunch.client.tasks import End, RoundView, Stopped, Tasks
from slurmlaunch.errors import (
    FunctionExited,
    ItemError,
    NodeStartError,
    ResultLost,
    StorageFailure,
    TimeLimitExceeded,
    WorkerDied,
)
from slurmlaunch.outcome import add_note
from slurmlaunch.runfolder.layout import Status
from slurmlaunch.runfolder.records import Kind
from slurmlaunch.runfolder.rounds import SchedulerEnd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from slurmlaunch.client.tasks import TaskView
    from slurmlaunch.runfolder.layout import RunFolder
    from slurmlaunch.runfolder.plan import RoundPlan

SAME_DEATHS = 3
"""How many tasks have to fail to start in the same way until the rest of the run is cancelled."""

MANY_TASKS, SHORT_TASK = 50, 0.3
"""After a run of so many tasks with one item each, which worked for fewer seconds on average, a line says so."""

RETRY_AFTER = 60.0
"""Seconds that an item waits for its retry while other items of the run are open: further ones may join it."""

SCHEDULER_SILENT_FOR = 30.0
"""Seconds after which ends that earlier clients recorded count for tasks of which the scheduler says nothing."""


class RunState:
    """The state of one view of a run.

    Attributes:
        ledger: the status of each item.
        tasks: the rounds, the record of each task, and which task has which item.
        pending: the items that wait for a retry.
    """

    def __init__(
        self,
        folder: RunFolder,
        items: int,
        rounds: Iterable[tuple[int, RoundPlan]],
        *,
        latency: float = 0.0,
        clock_offset: float = 0.0,
    ) -> None:
        """Begin with all items open.

        Args:
            folder: the run folder, which only names files here.
            items: the number of items.
            rounds: the number and the plan of each round.
            latency: for how many seconds a file may exist and not be visible.
            clock_offset: seconds to add to *now* for the time since the epoch.
        """
        self.latency = latency
        self.ledger = Ledger(items)
        self.pending = PendingRetries()
        self.tasks = Tasks(folder, self.ledger, self.pending)
        self._called = False  # as far as is known: the function has raised something
        self._folder, self._clock_offset = folder, clock_offset
        self._now = 0.0
        self._effects: list[events.Effect] = []
        self._began = math.inf
        self._ends_known = self._claims_fresh = self._cancelled_rest = False
        self._ended: set[int] = set()  # tasks with an end mark, until all of their items have settled
        self._missing: dict[int, End] = {}  # by task: ends after which outcomes may yet appear
        self._retrying: dict[int, Cause] | None = None  # the items of the round that is being submitted
        self._recording = 0  # how many requests to cancel are being written
        self._deferred: list[events.Event] = []  # to be handled again after that
        self._warned: set[str] = set()  # the reasons of pending jobs that were warned of
        self._deaths: dict[str, set[int]] = {}  # tasks that could not start, by why
        for number, plan in rounds:
            self._add_round(number, plan)

    def handle(self, event: events.Event, now: float) -> list[events.Effect]:
        """Update the state; return the effects to execute. *now* is in seconds of a clock that never goes back."""
        self._now, self._began = now, min(self._began, now)
        _handler(type(event))(self, event)
        if self._recording and isinstance(event, _SETTLING):
            self._deferred.append(event)  # an item that is being cancelled ignored it, and may yet need it
        # They may include those of an earlier event whose handling an exception has ended.
        effects, self._effects = self._effects, []
        return effects

    @property
    def wants_errors(self) -> bool:
        """Whether recorded failures need to be unpickled: later ones make no difference to a run without retries."""
        return self.pending.enabled or not (self._called or self.ledger.count(ItemStatus.VALUE))

    @property
    def wants_classes(self) -> bool:
        """Whether the class of an exception of the function decides about a retry."""
        return self.pending.options is not None and bool(self.pending.options.retry_exceptions)

    @property
    def adopts_round(self) -> bool:
        """Whether items wait for a retry that this process does not submit: another client may have made the round."""
        return bool(self.pending) and self._retrying is None

    # The run folder.

    def _attempt_seen(self, event: events.AttemptSeen) -> None:
        view, attempt = self.tasks.view(event.task), event.attempt
        view.started = True
        view.attempts = max(view.attempts, attempt + 1)
        if event.notes:
            view.notes = {**view.notes, attempt: {**view.notes.get(attempt, {}), **event.notes}}
        if event.checkpoints:
            view.checkpoints = {**view.checkpoints, attempt: dict(event.checkpoints)}

    def _outcomes_seen(self, event: events.OutcomesSeen) -> None:
        recorded, error = event.recorded, event.error
        items = self._within(range(recorded.header.first, recorded.header.stop))
        if not items:
            return
        round_ = self.tasks.view(event.task).round
        if round_.claims:
            round_.claims.infer(items, event.task)
        if recorded.header.kind != Kind.FAILURE:
            self._settle(ItemStatus.VALUE, self.ledger.record(recorded))
            return
        # Items that a later round has got wait for the outcome of that round.
        parts = [part for part in self.tasks.still_in(round_.number, [items]) if part]
        for part in parts:
            failed = part if error is None else self._not_retried(part, error, recorded=True)
            for each in consecutive(failed):
                self._settle(ItemStatus.FAILURE, self.ledger.record(recorded, each))
        if error is None or not parts:
            return
        if isinstance(error, FunctionExited) or not isinstance(error, ItemError):
            self._called = True
        elif round_.claims:
            round_.start_error = error
        self._count_death(event.task, error)

    def _damage_seen(self, event: events.DamageSeen) -> None:
        view = self.tasks.view(event.task)
        view.damage = view.damage or (event.file, event.offset)
        if event.items is not None:
            what = "the outcome was recorded, but its record is damaged"
            for part in self.tasks.still_in(view.round.number, [self._within(event.items)]):
                self._end(part, ResultLost(what, file=str(event.file), offset=event.offset))

    def _unsafe_seen(self, event: events.UnsafeSeen) -> None:
        self._end(self.tasks.open_items(event.task), ResultLost(event.reason, file=str(event.file)))

    def _end_mark_seen(self, event: events.EndMarkSeen) -> None:
        view = self.tasks.view(event.mark.task)
        if view.end_mark is None or event.mark.start >= view.end_mark.start:
            view.end_mark = event.mark
            end = self._missing.get(view.index)
            if end is not None and (end.record is None or ends.explains_end(event.mark, view.attempts)):
                del self._missing[view.index]  # else the scheduler's report stays, which it may never repeat
            self._ended.add(view.index)

    def _claims_seen(self, event: events.ClaimsSeen) -> None:
        claims = self.tasks.rounds[event.round].claims
        if claims is not None:
            for positions, task in event.claims:
                claims.add(positions, task)
        self._claims_fresh = True

    def _cancellation_seen(self, event: events.CancellationSeen) -> None:
        for part in self.tasks.still_in(event.round, [self._within(event.items)]):
            for each in consecutive(part):
                self._settle(ItemStatus.CANCELLED, self.ledger.cancel(each))

    def _jobs_seen(self, event: events.JobsSeen) -> None:
        self.tasks.rounds[event.round].jobs.update(event.jobs)
        if event.ours and not self.ledger.open:
            self._cancel_jobs(_whole(event.jobs.values()), "its items settled while it was submitted")

    def _run_lost(self, event: events.RunLost) -> None:
        self._end(range(self.ledger.items), event.error, final=True)

    # The scheduler.

    def _scheduler_reported(self, event: events.SchedulerReported) -> None:
        waiting: dict[str, str] = {}
        taken = event.snapshot.taken - self._clock_offset
        for round_ in self.tasks.rounds:
            for number, job_id in round_.jobs.items():
                for element, task in enumerate(round_.tasks_of(number)):
                    known = self.tasks.views.get(task)
                    unclear = known and not known.closed and known.began_again < taken
                    record = event.snapshot.get(job_id, element) if known is None or unclear else None
                    if record is not None:
                        record = ends.as_ended(record)
                        self._update_record(known or self.tasks.view(task), record)
                        if record.state.is_queued and record.reason:
                            waiting[record.reason] = job_id
        for text, job_id in waiting.items():
            reason = explain(text).of_job(job_id, self.tasks.clusters)
            if text not in self._warned and reason.never_starts:
                self._warned.add(text)
                self._effects.append(
                    events.Warn(
                        f"Slurm says {reason.word} of job {job_id}: {reason.meaning}; unless the request or the site "
                        f"changes, the job will not start. To change it: {reason.advice}; or cancel the job"
                    )
                )

    def _update_record(self, view: TaskView, record: TaskRecord) -> None:
        view.record = record
        if record.state.is_final:
            if self.tasks.has_open(view.index):
                self._set_missing(view, record)
            return
        if record.state.has_begun:
            view.started = True
        self._missing.pop(view.index, None)
        if view.stopped is not None:  # it was taken for ended, and may claim more after all
            view.stopped = None
            if view.end_mark is not None:
                self._ended.add(view.index)

    def _ends_read(self, event: events.EndsRead) -> None:
        self._ends_known = True
        for end in event.ends:
            view = self.tasks.view(end.task) if end.task in self.tasks and self.tasks.has_open(end.task) else None
            if view is not None and view.attempts <= end.attempts and view.record is None:
                view.record = TaskRecord(TaskState.parse(end.state), end.exit_code, end.node, end.reason)
                self._set_missing(view, view.record, is_recorded=True)

    # Tasks that have ended without all of their outcomes.

    def _tick(self, _: events.Tick) -> None:
        for task in sorted(self._ended):
            view = self.tasks.view(task)
            if not self.tasks.has_open(task):
                self._ended.discard(task)
                view.closed = True
            elif task not in self._missing and view.end_mark and ends.explains_end(view.end_mark, view.attempts):
                self._set_missing(view, None)
        if not self._ends_known and self._now >= self._began + SCHEDULER_SILENT_FOR:
            self._effects.append(events.ReadEnds())  # again after each tick, until they can be read
        for task, end in list(self._missing.items()):
            self._check_end(self.tasks.view(task), end)
        late = {task: end for task, end in sorted(self._missing.items()) if end.is_late}
        if late:  # files that could not be read after the last tick are requested again
            logged = NodeStartError, StorageFailure, WorkerDied
            errors = {task: self._error_of_end(self.tasks.view(task), end) for task, end in late.items()}
            logs = tuple(task for task, error in errors.items() if isinstance(error, logged))
            self._effects.append(events.ReadTasks(tuple(late), logs))
        if self._claims_fresh:
            self._claims_fresh = False
            self._check_claims()
        self._check_retries()

    def _check_end(self, view: TaskView, end: End) -> None:
        runs_again = end.record is None and not ends.explains_end(view.end_mark, view.attempts)
        if runs_again or not self.tasks.has_open(view.index):
            del self._missing[view.index]
        else:
            end.is_late = self._now - end.since >= self.latency or self._is_all_visible(view)

    @staticmethod
    def _is_all_visible(view: TaskView) -> bool:
        """Whether the end mark of a task says that none of its outcomes can be on disk and not visible yet."""
        mark = view.end_mark
        if mark is None or not ends.explains_end(mark, view.attempts) or ends.recorded_everything(mark):
            return False
        return "ended" in view.last_notes or not (view.attempts and ends.left_items(mark))

    def _set_missing(self, view: TaskView, record: TaskRecord | None, *, is_recorded: bool = False) -> None:
        if view.index not in self._missing:
            view.end = self._missing[view.index] = End(self._now, view.attempts)
        end = self._missing[view.index]
        end.record, end.is_recorded = record, is_recorded

    def _tasks_read(self, event: events.TasksRead) -> None:
        if self._recording:
            return  # items that are being cancelled may need their end after all: the next tick requests it again
        to_record: dict[int, list[SchedulerEnd]] = {}
        for files in event.tasks:
            view = self.tasks.view(files.task)
            end = self._missing.get(view.index)
            if end is None or not end.is_late:
                continue  # it runs again, as the scheduler said meanwhile
            error, record = self._with_file(view, self._error_of_end(view, end, files.log_tail), files.size), end.record
            del self._missing[view.index]
            self._end(self.tasks.open_items(view.index), error)
            if view.round.claims:
                view.stopped = Stopped(error, end.since)
            self._count_death(view.index, error)
            if record is not None and not end.is_recorded:
                new = SchedulerEnd(
                    view.index, view.attempts, record.state.value, record.exit_code, record.node, record.reason
                )
                to_record.setdefault(view.round.number, []).append(new)
                if ends.is_held(record):
                    self._cancel_jobs(_jobs_of([view]), "its node could not launch it")
        self._effects += [events.RecordEnds(number, tuple(some)) for number, some in to_record.items()]

    def _error_of_end(self, view: TaskView, end: End, log_tail: str = "") -> ItemError:
        """Return the error of the open items of a task that has ended, by its end mark or the scheduler's record."""
        error = self._reason_of_end(view, end.record, log_tail)
        if isinstance(error, TimeLimitExceeded) and error.state != TaskState.DEADLINE.value:
            return error.with_limit(view.round.plan.time_limit)
        return error

    def _reason_of_end(self, view: TaskView, record: TaskRecord | None, log_tail: str) -> ItemError:
        mark, place = view.end_mark, self.tasks.place_of(view.index)
        explained = ends.explains_end(mark, view.attempts, record)
        if mark is not None and (record is None or (explained and not ends.names_cause(record))):
            return ends.error_of_status(mark.status, place, log_tail, started=view.attempts > 0)
        record = record or TaskRecord(TaskState.UNKNOWN)
        return ends.error_of_state(record, place, started=view.attempts > 0, log_tail=log_tail)

    def _with_file(self, view: TaskView, error: ItemError, size: int) -> ItemError:
        """Have an error about a lost outcome name the file that should hold it."""
        if isinstance(error, NodeStartError) and error.exit_code == Status.FAILURES and view.attempts:
            error = ResultLost("the task ended, but the item's outcome is not on disk", place=error.place)
        if isinstance(error, ResultLost) and error.file is None:
            last = self._folder.outcome_file(view.index, max(0, view.attempts - 1))
            file, offset = view.damage or (last, size)
            error.file, error.offset = str(file), offset
        return error

    def _check_claims(self) -> None:
        """End the items that ended tasks had claimed, and those that nobody will claim."""
        for round_ in self.tasks.rounds:
            if round_.claims is None:
                continue
            views = [view for view in map(self.tasks.views.get, round_.plan.tasks) if view is not None]
            stopped = {view: view.stopped for view in views if view.stopped is not None}
            for view, why in stopped.items():
                self._end(self.tasks.open_items(view.index), why.error)
            if not round_.claims.unclaimed:
                self._cancel_surplus(round_)
            if not round_.claims.unclaimed or len(stopped) < len(round_.plan.tasks):
                continue
            # The last claim of a task is visible as late as its last outcome, for which the wait has been as long.
            late = self._now - max(why.since for why in stopped.values()) >= self.latency
            if late or not any(view.started for view in stopped):
                telling = [why.error for why in stopped.values() if not isinstance(why.error, ResultLost)]
                error = ends.error_of_unclaimed(telling[-1] if telling else round_.start_error)
                self._end(self.tasks.unclaimed_items(round_), error)

    def _count_death(self, task: int, error: BaseException) -> None:
        """Cancel the rest of the run when the first tasks all fail to start in the same way.

        A missing module or a full quota keeps a thousand nodes from calling the function as it keeps three.
        """
        final = (NodeStartError,) if self.pending.enabled else (NodeStartError, StorageFailure)
        if not isinstance(error, final) or self._called or self.ledger.count(ItemStatus.VALUE):
            return
        tasks = self._deaths.setdefault(error.what.partition("\n")[0], set())
        tasks.add(task)
        if len(tasks) < SAME_DEATHS or self._cancelled_rest:
            return
        self._cancelled_rest = True
        what = f"not started, since the first {SAME_DEATHS} tasks died in the same way: {error.what}"
        not_started = type(error)(what, advice=error.advice, exit_code=error.exit_code)
        self._end(range(self.ledger.items), not_started, final=True)
        self._cancel_jobs(_whole(self.tasks.job_ids), "its first tasks could not start")

    # Rounds and retries.

    def _add_round(self, number: int, plan: RoundPlan) -> None:
        self.tasks.add(RoundView(number, plan))
        self.pending.add_round(plan)

    def _round_added(self, event: events.RoundAdded) -> None:
        if event.round < len(self.tasks.rounds):
            return
        if event.reopen:
            self.ledger.grow(event.plan.manifest.get("items", self.ledger.items))
        self._add_round(event.round, event.plan)
        if event.reopen:
            failed = [item for item in event.plan.items or () if self.ledger.status(item) != ItemStatus.VALUE]
            self.ledger.reopen(failed)
            self._called = self._cancelled_rest = False
            self._deaths.clear()

    def _array_not_needed(self, event: events.ArrayNotNeeded) -> None:
        self.tasks.rounds[event.round].given_up.add(event.array)

    def _array_refused(self, event: events.ArrayRefused) -> None:
        round_ = self.tasks.rounds[event.round]
        round_.given_up.add(event.array)
        for task in round_.tasks_of(event.array):
            if round_.claims:
                self.tasks.view(task).stopped = Stopped(event.error)  # other tasks may claim its items
            else:
                self._end(self.tasks.items_of(task), event.error)

    def _check_retries(self) -> None:
        pending = self.pending
        if not pending or pending.options is None or self._retrying is not None or self._recording:
            return  # a cancellation that is being written may be that of a pending item
        if self._now - pending.since > RETRY_AFTER or self.ledger.open == len(pending):
            self._retrying = dict(pending)
            options = next_options(pending.options, self._retrying.values())
            self._effects.append(events.SubmitRound(tuple(sorted(self._retrying)), options))

    def _retry_ended(self, event: events.RetryEnded) -> None:
        if self._recording:
            self._deferred.append(event)  # the items of a cancellation that fails need an end
            return
        causes, self._retrying = self._retrying or {}, None
        if event.error is None:
            return
        self.pending.discard(causes)
        note = f"it could not be run again: {event.error}"
        for items in [list(group) for _, group in groupby(sorted(causes), lambda item: id(causes[item].error))]:
            error = _for_item(causes[items[0]].error, items[0])  # others that ended with this error get no note
            if note not in getattr(error, "__notes__", ()):
                add_note(error, note)
            self._end(items, error, final=True)

    def _tasks_began_again(self, event: events.TasksBeganAgain) -> None:
        """Leave to the tasks what they had left: it waits for no retry any more."""
        for task, attempts in event.attempts.items():
            view = self.tasks.view(task)
            self._missing.pop(task, None)
            view.attempts, view.began_again = max(view.attempts, attempts), self._now
            view.record = view.stopped = view.end = None
            view.started, view.closed, view.settled_items = True, False, 0
            self.pending.forget(self.tasks.items_of(task))
            self.pending.forget(self.tasks.unclaimed_in(view.round))
            if view.end_mark is not None:
                self._ended.add(task)

    def _not_retried(self, items: Sequence[int], error: BaseException, *, recorded: bool = False) -> Sequence[int]:
        """Have those of the open items wait for a retry that are worth one; return the others."""
        if not (self.pending.enabled or is_left(error)):
            return items
        # One for each task, not for each item.
        cause_of = functools.cache(lambda task: self._cause(error, task)._replace(recorded=recorded))
        for item in items:
            if self.ledger.is_open(item) and item not in self.pending and self.pending.wants(item, error):
                self.pending.add(item, cause_of(self.tasks.claimant_of(item)), self._now)
        return [item for item in items if not (self.ledger.is_open(item) and item in self.pending)]

    def _cause(self, error: BaseException, task: int | None) -> Cause:
        if task is None:
            return Cause(error)
        view = self.tasks.view(task)
        notes = view.last_notes
        ended = notes.get("ended", self._now + self._clock_offset)
        seconds = ended - notes["started"] if "started" in notes else None
        return Cause(error, view.node, notes.get("peak"), seconds)

    # Cancelling.

    def _cancel_requested(self, event: events.CancelRequested) -> None:
        by_round: dict[int, list[int]] = {}
        for item in self.ledger.open_among(event.items):
            if not (event.only_queued and self.tasks.is_started(item)):
                by_round.setdefault(self.tasks.round_of(item).number, []).append(item)
        ranges = tuple((number, tuple(consecutive(sorted(some)))) for number, some in by_round.items())
        if ranges:
            self._recording += 1
            self._effects.append(events.RecordCancellations(ranges))
            for each in events.ranges_in(ranges):
                self.ledger.reserve(each)

    def _cancellations_recorded(self, event: events.CancellationsRecorded) -> None:
        self._recording -= 1
        for each in events.ranges_in(event.written):
            self._settle(ItemStatus.CANCELLED, self.ledger.cancel(each))
        for each in events.ranges_in(event.failed):
            self.ledger.release(each)
        deferred, self._deferred = self._deferred, []
        for missed in deferred if event.failed or not self._recording else ():
            _handler(type(missed))(self, missed)
        if self._recording:
            self._deferred = deferred  # the items of the other cancellations may need them, too
        if event.written:
            tasks = sorted({self.tasks.task_of(item) for each in events.ranges_in(event.written) for item in each})
            idle = _jobs_of(self.tasks.without_work(tasks)) if self.ledger.open else _whole(self.tasks.job_ids)
            self._cancel_jobs(idle, "all of its items were cancelled")

    def _watch_ended(self, _: events.WatchEnded) -> None:
        for each in self.tasks.rounds:
            if each.claims:
                self._cancel_surplus(each)
            elif each.plan.slices.chunksize == 1 and len(each.plan.tasks) >= MANY_TASKS:
                self._report_short_tasks(each)

    def _report_short_tasks(self, round_: RoundView) -> None:
        """Say that the tasks of a round with single items worked for less time than a task takes to start."""
        notes = [self.tasks.view(task).last_notes for task in round_.plan.tasks]
        seconds = [note["ended"] - note["started"] for note in notes if note.keys() >= {"started", "ended"}]
        mean = sum(seconds) / len(seconds) if seconds else math.inf
        if mean < SHORT_TASK:
            self._effects.append(
                events.Warn(
                    f"the {len(notes)} tasks of {self._folder.path} worked for {mean:.2f} s each, which is less than a "
                    "task takes to start: without chunksize=1 they share the items"
                )
            )

    def _cancel_surplus(self, round_: RoundView) -> None:
        """Cancel the tasks of a dynamic round that never began: no item is left for them.

        They are named one by one. A requeued task waits in the queue, too, and has items.
        """
        if not round_.needed:
            return
        round_.needed = False
        if "dependency" in Options.from_json(round_.plan.options).slurm:
            return  # jobs of the user may depend on each other in ways that only they know
        views = [self.tasks.view(task) for task in round_.plan.tasks]
        begun = [view.started or view.attempts or round_.has_claimed(view.index) for view in views]
        ended = [view.state is not None and view.state.is_final for view in views]
        surplus = [view for i, view in enumerate(views) if not (begun[i] or ended[i])]
        self._cancel_jobs(_jobs_of(surplus), "no item is left for it")

    def _cancel_jobs(self, jobs: events.Jobs, why: str) -> None:
        if jobs:
            self._effects.append(events.CancelJobs(jobs, why))

    # Settling.

    def _within(self, items: range) -> range:
        """Return those of the items that the run has: damage may name others."""
        return range(items.start, min(items.stop, self.ledger.items))

    def _end(self, items: Sequence[int], error: BaseException, *, final: bool = False) -> None:
        """Settle open items with an error, or have them wait for a retry, unless this is *final*."""
        error_of = functools.partial(_for_item, error)
        for part in consecutive(items if final else self._not_retried(items, error)):
            self._settle(ItemStatus.ENDED, self.ledger.end(part, error_of))

    def _settle(self, status: ItemStatus, ranges: Iterable[range]) -> None:
        for each in ranges:
            self.pending.discard(each)
            self._effects.append(events.Settle(each, status))


def _for_item(error: BaseException, item: int) -> BaseException:
    return error.for_item(item) if isinstance(error, ItemError) else error


@functools.cache
def _handler(event: type) -> Callable[[RunState, Any], None]:
    """Return the method that handles events of a class: ``_end_mark_seen`` for `EndMarkSeen`."""
    method: Callable[[RunState, Any], None] = getattr(RunState, re.sub("([A-Z])", r"_\1", event.__name__).lower())
    return method


def _whole(job_ids: Iterable[str]) -> events.Jobs:
    return tuple((job_id, None) for job_id in job_ids)


def _jobs_of(views: Iterable[TaskView]) -> events.Jobs:
    """Return the elements of tasks by job; None stands for all elements of a job."""
    elements: dict[str, list[TaskView]] = {}
    for view in views:
        if view.job_id:
            elements.setdefault(view.job_id, []).append(view)
    whole = {job_id for job_id, some in elements.items() if len(some) == len(some[0].round.tasks_of(some[0].array))}
    return tuple(
        (job_id, None if job_id in whole else tuple(view.element for view in some)) for job_id, some in elements.items()
    )


_SETTLING = (events.OutcomesSeen, events.DamageSeen, events.UnsafeSeen, events.ArrayRefused, events.RunLost)
