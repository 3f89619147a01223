"""What it means that there is no outcome: from end marks, states and time to what items have come to.

Files are the truth, and states only explain an absence. A task that has ended, as it
says itself or the scheduler does, gets for its outcomes the time that the file system
takes to show them; then its open items end as the task has.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.backends.base import TaskRecord, TaskState
from slurmlaunch.client import verdict
from slurmlaunch.client.run import error_for_each
from slurmlaunch.errors import ItemError, NodeStartError, Place, ResultLost
from slurmlaunch.runfolder.changes import latency_of
from slurmlaunch.runfolder.clients import writer_name
from slurmlaunch.runfolder.journal import SchedulerEnd
from slurmlaunch.runfolder.layout import EndMark, Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from slurmlaunch.backends.base import Snapshot
    from slurmlaunch.client.breaker import Breaker
    from slurmlaunch.client.run import Run
    from slurmlaunch.runfolder.plan import ArrayPlan

_SILENT_FOR = 30.0
"""Seconds after which a scheduler that has said nothing of a task is held to what it said of it before."""

_TOLD_BY_THE_SCHEDULER = frozenset({Status.STOPPED, Status.REQUEUE})
"""With these a start ended that something from outside ended, or that another one follows: what came of the task
the scheduler knows."""


# Of the reasons that squeue gives, those that a person has to do away with.
_HELD = re.compile(r"held|hold|never.?satisfied|bad.?constraints|invalid", re.IGNORECASE)

_log = logging.getLogger("slurmlaunch")


class _Absence(NamedTuple):
    """Items that should have outcomes and have none.

    Attributes:
        since: when that was seen first.
        error: what it comes to if it lasts.
        told: what the scheduler said, where it was that, and it stands nowhere else.
    """

    since: float
    error: Callable[[], ItemError]
    told: TaskRecord | None = None


class Absences:
    """The tasks of one run that should have outcomes and have none.

    Attributes:
        latency: for how many seconds a file may exist and not be seen.
    """

    def __init__(
        self,
        run: Run,
        breaker: Breaker,
        collect: Callable[[int], tuple[Path, int] | None],
        clock: Callable[[], float],
    ) -> None:
        """Begin with none.

        Args:
            run: the run.
            breaker: is told how tasks died.
            collect: reads all that a task has recorded, now that nothing more will come; returns
                the file and the place of what is damaged, if anything is.
            clock: tells the time.
        """
        self.latency = latency_of(run.folder.path)
        self._run, self._tasks = run, run.tasks
        self._breaker, self._collect, self._clock = breaker, collect, clock
        self._absent: dict[int, _Absence] = {}
        self._unweighed: set[int] = set()
        self._over: set[int] = set()
        self._held_for: set[str] = set()
        self._forsaken: dict[int, float] = {}
        self._began_at = clock()
        self._believed = False

    def hear(self, snapshot: Snapshot) -> None:
        """Take in what the scheduler says: of all tasks at once, so that nobody sees the half of an answer."""
        queued_for: dict[str, str] = {}
        with self._run.changed:
            for each in self._tasks.rounds:
                for number, array in enumerate(each.plan.arrays):
                    job_id = self._tasks.jobs.get((each.number, number))
                    if job_id is not None:
                        reasons = self._hear_of_array(array, job_id, snapshot)
                        queued_for.update((reason, job_id) for reason in reasons - self._held_for)
        # Not under the lock: a handler of the user's may wait for who shows, or asks for, the state of this run.
        for reason, job_id in queued_for.items():
            self._warn_of_hold(job_id, reason)

    def _hear_of_array(self, array: ArrayPlan, job_id: str, snapshot: Snapshot) -> set[str]:
        """Take in what it says of an array; return why elements of it are queued."""
        reasons = set()
        for element in range(array.length):
            task = array.first_task + element
            record = None if task in self._over else snapshot.get(job_id, element)
            if record is not None:
                self._hear_of(task, record)
                if record.state.is_queued and record.reason:
                    reasons.add(record.reason)
        return reasons

    def _hear_of(self, task: int, record: TaskRecord) -> None:
        self._tasks.states[task], self._tasks.told[task] = record.state, record
        if not record.state.is_final:
            if not record.state.is_queued:
                self._tasks.started.add(task)
            self._absent.pop(task, None)
            if self._tasks.ends.pop(task, None) and task in self._tasks.marks:
                self._unweighed.add(task)
        elif self._has_open(task):
            self._suspect(task, functools.partial(self._by_state, task, record), record)

    def _warn_of_hold(self, job_id: str, reason: str) -> None:
        """Say, once, that a job waits for a person: it is no end, but will not go on by itself."""
        if _HELD.search(reason):
            self._held_for.add(reason)
            advice = f"what holds it is to be mended, and then: scontrol release {job_id}; or cancel it"
            _log.warning("slurmlaunch waits for job %s, which Slurm will not start (%s): %s", job_id, reason, advice)

    def weigh(self, task: int) -> None:
        """Take in that a task has ended, and that what it recorded was read: what is missing is missing."""
        self._absent.pop(task, None)
        self._unweighed.add(task)

    def _suspect(self, task: int, error: Callable[[], ItemError], told: TaskRecord | None = None) -> None:
        earlier = self._absent.get(task)
        self._absent[task] = _Absence(earlier.since if earlier else self._clock(), error, told)

    def judge(self, now: float) -> None:
        """Settle the items of tasks whose end explains that there is no outcome."""
        for task in list(self._unweighed):
            if not self._has_open(task):
                self._unweighed.remove(task)
                self._over.add(task)
            elif task not in self._absent and self._is_last_start(self._tasks.marks[task]):
                self._weigh(task, self._tasks.marks[task])
        if not self._believed and now >= self._began_at + _SILENT_FOR:
            self._believe_others()
        late = [(task, each) for task, each in self._absent.items() if now - each.since >= self.latency]
        for task, absence in late:
            self._settle(task, absence.error())
        self._write_down([(task, absence.told) for task, absence in late if absence.told])

    def _believe_others(self) -> None:
        """Take in what earlier clients were told of ends, where the scheduler says nothing now."""
        self._believed = True
        for each in self._tasks.rounds:
            for end in each.ends():
                known = self._tasks.attempts.get(end.task, 0) > end.attempts or end.task in self._tasks.states
                if not known and end.task in each.plan.tasks and self._has_open(end.task):
                    record = TaskRecord(TaskState.parse(end.state), end.exit_code, end.node, end.reason)
                    self._tasks.told[end.task] = record
                    self._suspect(end.task, functools.partial(self._by_state, end.task, record))

    def _write_down(self, ends: list[tuple[int, TaskRecord]]) -> None:
        """Write down what the scheduler said of ends: it forgets, and a copy of the folder knows no scheduler."""
        for each in self._tasks.rounds:
            told = [
                SchedulerEnd(task, self._tasks.attempts.get(task, 0), it.state.value, it.exit_code, it.node, it.reason)
                for task, it in ends
                if task in each.plan.tasks
            ]
            if told:
                with contextlib.suppress(OSError):  # a folder that may only be read: then nobody is helped by it
                    each.record_ends(writer_name(), told)

    def judge_dynamic(self, now: float) -> None:
        """Settle what was taken by tasks that are over, and only seen later; then what nobody has taken."""
        for task, error in list(self._tasks.ends.items()):
            missed = self._tasks.open_items(task)
            if missed:
                self._run.ended(missed, error_for_each(error))
        forsaken = {each.number: each for each in self._tasks.forsaken()}
        self._forsaken = {number: self._forsaken.get(number, now) for number in forsaken}
        for number, since in self._forsaken.items():
            plan = forsaken[number].plan
            if now - since >= self.latency or self._tasks.started.isdisjoint(plan.tasks):
                self._run.end_untaken(forsaken[number])

    def _weigh(self, task: int, mark: EndMark) -> None:
        if mark.status in _TOLD_BY_THE_SCHEDULER:
            return
        if mark.status in (Status.VALUES, Status.FAILURES):
            # The outcomes were on disk before the mark, so they are only not visible yet. Or
            # Python itself did not come up: its own status for that is 1, too.
            self._suspect(task, lambda: verdict.of_status(mark.status, self._place(task)))
        else:
            self._settle(task, verdict.of_status(mark.status, self._place(task)))

    def _is_last_start(self, mark: EndMark) -> bool:
        return self._tasks.attempts.get(mark.task, 0) <= mark.start + 1

    def _tells(self, mark: EndMark) -> bool:
        """Whether a mark says how its task ended, and not only one of its starts."""
        return mark.status not in _TOLD_BY_THE_SCHEDULER and self._is_last_start(mark)

    def _by_state(self, task: int, record: TaskRecord) -> ItemError:
        mark = self._tasks.marks.get(task)
        if mark and self._tells(mark) and not verdict.names_a_cause(record):
            return verdict.of_status(mark.status, self._place(task))
        return verdict.of_state(record, self._place(task), began=task in self._tasks.attempts)

    def _settle(self, task: int, error: ItemError) -> None:
        error = self._with_file(task, error, self._collect(task))
        self._absent.pop(task, None)
        self._run.ended(self._tasks.open_items(task), error.for_item)
        if self._tasks.is_dynamic(task):
            self._tasks.ends[task] = error
        self._breaker.note(task, error)

    def _with_file(self, task: int, error: ItemError, damage: tuple[Path, int] | None) -> ItemError:
        """Have the loss of an outcome say which file it stood in, or should stand in, and where."""
        attempts = self._tasks.attempts.get(task, 0)
        if isinstance(error, NodeStartError) and error.exit_code == Status.FAILURES and attempts:
            error = ResultLost("the task ended, but the item's outcome is not on disk", place=error.place)
        if isinstance(error, ResultLost) and error.file is None:
            last = self._run.folder.outcome_file(task, max(0, attempts - 1))
            file, offset = damage or (last, last.stat().st_size if last.exists() else 0)
            error.file, error.offset = str(file), offset
        return error

    def _place(self, task: int) -> Place:
        return self._tasks.whereabouts(task)

    def _has_open(self, task: int) -> bool:
        return bool(self._run.ledger.open) and self._tasks.has_open(task)
