"""Looking at one run: what has grown in its folder, and what an absence means.

Files are the truth, states only explain an absence. A look costs a glance at two
folders, a listing of each that has changed (`listing`), and, for each task that may
have grown, the opening of its outcome file, as many of these as the budget allows.
What it cost is counted, call by call.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.backends.base import TaskRecord, TaskState
from slurmlaunch.client import verdict
from slurmlaunch.client.breaker import Breaker
from slurmlaunch.client.listing import Listing
from slurmlaunch.client.retrying import Retrying
from slurmlaunch.client.run import client_token, error_for_each
from slurmlaunch.errors import ItemError, NodeStartError, Place, ResultLost, UnsafeRunFolder
from slurmlaunch.runfolder.layout import EndMark, Status
from slurmlaunch.runfolder.outcomes import OutcomeFile
from slurmlaunch.runfolder.records import Damage
from slurmlaunch.runfolder.rounds import ToldEnd

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurmlaunch.backends.base import Snapshot
    from slurmlaunch.client.run import Run

LATENCY_VARIABLE = "SLURMLAUNCH_LATENCY"

_NETWORK_LATENCY = 70.0
"""Seconds for which a file that exists may be unseen: NFS caches absent names for up to a minute."""

_LOCAL_LATENCY = 1.0

_LOCAL_FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs", "f2fs"})

_CANCELLATIONS_EVERY = _CLAIMS_EVERY = 1.0
_CANCELLATIONS_COST, _CLAIMS_COST = 1, 4
_READ_COST = 4
"""Opening, looking, reading, closing."""

_SILENT_FOR = 30.0
"""Seconds after which a scheduler that has said nothing of a task is held to what it said of it before."""

_UNBOUNDED = float(1 << 40)

_TOLD_BY_THE_SCHEDULER = frozenset({Status.STOPPED, Status.REQUEUE})
"""With these a start ended that something from outside ended, or that another one follows: what came of the task
the scheduler knows."""


# Of the reasons that squeue gives, those that a person has to do away with.
_HELD = re.compile(r"held|hold|never.?satisfied|bad.?constraints|invalid", re.IGNORECASE)

_log = logging.getLogger("slurmlaunch")


def latency_of(folder: Path) -> float:
    """Return for how many seconds a file in a folder may exist and not be seen.

    Where the file system is this machine's own disk, and the nodes reach it
    through this machine, nothing is cached in between.
    """
    given = os.environ.get(LATENCY_VARIABLE)
    if given:
        return float(given)
    return _LOCAL_LATENCY if _file_system(folder) in _LOCAL_FILE_SYSTEMS else _NETWORK_LATENCY


def _file_system(folder: Path) -> str:
    best, kind = "", ""
    try:
        with Path("/proc/self/mounts").open(encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                _, point, this, *_ = line.split(" ")
                inside = os.path.commonpath([point, folder]) == point if point.startswith("/") else False
                if inside and len(point) >= len(best):
                    best, kind = point, this
    except OSError:  # not Linux: then it is taken for a network's
        return ""
    return kind


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


class Look(NamedTuple):
    """What a look came to.

    Attributes:
        news: whether there was anything new.
        glancing: how many file operations it took to see what has begun or ended.
        sampling: how many to read what may have grown.
        collecting: how many to read what tasks that have ended have recorded.
    """

    news: bool
    glancing: int
    sampling: int
    collecting: int


class Lookout:
    """Looks at one run, again and again.

    Attributes:
        run: the run.
        latency: for how many seconds a file may exist and not be seen.
    """

    def __init__(self, run: Run, clock: Callable[[], float] = time.monotonic) -> None:
        self.run = run
        self.latency = latency_of(run.folder.path)
        self._clock = clock
        self._breaker, self._retrying = Breaker(run), Retrying(run)
        network = _file_system(run.folder.path) not in _LOCAL_FILE_SYSTEMS
        self._ended = Listing(run.folder.ended, clock, network=network)
        self._begun = Listing(run.folder.outcomes, clock, network=network)
        self._uncollected: deque[int] = deque()
        self._reading = self._other_costs = 0
        self._files: dict[tuple[int, int], OutcomeFile] = {}
        self._attempts: dict[int, int] = {}
        self._marks = run.tasks.marks
        self._unweighed: set[int] = set()
        self._growing: deque[tuple[int, int]] = deque()
        self._absent: dict[int, _Absence] = {}
        self._damaged: dict[int, tuple[Path, int]] = {}
        self._foreign: set[str] = set()
        self._over: set[int] = set()
        self._rounds = len(run.tasks.rounds)
        self._held_for: set[str] = set()
        self._cancellations_at = 0.0
        self._claims_at = 0.0
        self._forsaken: dict[int, float] = {}
        self._began_at = clock()
        self._believed = False

    def look(self, sampling: float = _UNBOUNDED, collecting: float = _UNBOUNDED) -> Look:
        """Take in what is new.

        Args:
            sampling: how many file operations may be spent on what may have grown.
            collecting: how many on what has ended and is read to its end, once.
        """
        before, costs = self._known(), self._costs()
        now = self._clock()
        if now >= self._cancellations_at:
            self._cancellations_at = now + _CANCELLATIONS_EVERY
            self._other_costs += _CANCELLATIONS_COST
            self.run.look_for_cancellations()
            self._other_costs += self.run.learn_job_ids()
        self._reconsider()
        self._list_ended()
        self._list_outcomes()
        due = bool(self._uncollected) or now >= self._claims_at
        if due:
            self._look_for_claims(now)
        self._reading = 0
        self._read_growing(sampling - _READ_COST)
        grown, self._reading = self._reading, 0
        self._read_ended(collecting)
        self._judge(now)
        if due:
            self._judge_dynamic(now)
        self._retrying.go_on()
        news = before != self._known()
        if news:
            self._other_costs += self.run.learn_job_ids()  # what another client submits may be over before that is due
        return Look(news, self._costs() - costs, grown, self._reading)

    @property
    def all_ended(self) -> bool:
        """Whether every task has left a mark, be it of an earlier start."""
        return len(self._marks) == sum(len(each.plan.tasks) for each in self.run.tasks.rounds)

    def _known(self) -> tuple[int, ...]:
        return self.run.ledger.open, len(self._files), len(self._marks)

    def _costs(self) -> int:
        return self._ended.operations + self._begun.operations + self._other_costs

    def _reconsider(self) -> None:
        """Look again at what was passed over, where a round has come into the view: it may be the round's."""
        if len(self.run.tasks.rounds) != self._rounds:
            self._rounds = len(self.run.tasks.rounds)
            self._ended.forget(self._foreign)
            self._begun.forget(self._foreign)
            self._foreign.clear()

    def _is_ours(self, task: int, name: str) -> bool:
        """Whether a file is of a task of the view; else it is passed over."""
        if task in self.run.tasks:
            return True
        self._foreign.add(name)
        return False

    def _list_ended(self) -> None:
        """Note the tasks that have ended since the last look."""
        for mark in filter(None, map(EndMark.parse, sorted(self._ended.new()))):
            last = self._marks.get(mark.task)
            if self._is_ours(mark.task, mark.filename) and (last is None or mark.start >= last.start):
                self._marks[mark.task] = mark
                self._uncollected.append(mark.task)
                if self._attempts.get(mark.task, 0) <= mark.start:
                    self._begun.forget(set())  # its file of outcomes, if there is one, was there before the mark

    def _look_for_claims(self, now: float) -> None:
        """Take in what tasks have taken, which is done before one that has ended is judged."""
        self._claims_at = now + _CLAIMS_EVERY
        self._other_costs += self.run.tasks.look_for_claims() * _CLAIMS_COST

    def _list_outcomes(self) -> None:
        """Note the attempts that have begun since the last look."""
        for name in sorted(self._begun.new()):
            first, _, second = name.partition(".")
            if first.isdigit() and second.isdigit() and self._is_ours(int(first), name):
                task, attempt = int(first), int(second)
                folder = self.run.folder
                file = self._files[task, attempt] = OutcomeFile(folder.outcome_file(task, attempt), folder.salt)
                self.run.tasks.notes[task, attempt] = file.notes
                self.run.tasks.checkpoints[task, attempt] = file.checkpoints
                self._attempts[task] = max(attempt + 1, self._attempts.get(task, 0))
                self._growing.append((task, attempt))
                self.run.tasks.started.add(task)

    def _read_ended(self, most: float) -> None:
        """Read what tasks that have ended have recorded; they can be judged then."""
        while self._uncollected and self._reading < most:
            task = self._uncollected.popleft()
            self._absent.pop(task, None)
            for attempt in range(self._attempts.get(task, 0)):
                self._read(task, attempt, final=False)
            self._unweighed.add(task)

    def _read_growing(self, most: float) -> None:
        """Look at some of the files that may have grown, in turn."""
        for _ in range(len(self._growing)):
            if self._reading > most:
                return
            task, attempt = self._growing.popleft()
            self._read(task, attempt, final=False)
            if self._has_open(task):
                self._growing.append((task, attempt))

    def _read(self, task: int, attempt: int, *, final: bool) -> None:
        file = self._files.get((task, attempt))
        if file is None:
            return  # removed, or not listed yet, while that of a later attempt is
        before = file.operations
        try:
            for found in file.read(final=final):
                if isinstance(found, Damage):
                    self._damaged.setdefault(task, (file.path, found.offset))
                    self._lost(file, found)
                else:
                    failure = self.run.recorded(found)
                    if failure is not None:
                        self._breaker.note(task, failure)
        except UnsafeRunFolder as error:
            message = str(error)
            self.run.ended(self.run.tasks.open_items(task), lambda _: ResultLost(message, file=str(file.path)))
        except FileNotFoundError:
            pass  # a listing may be ahead of the file, and behind it
        finally:
            self._reading += file.operations - before

    def _lost(self, file: OutcomeFile, damage: Damage) -> None:
        header = damage.header
        if header is None or damage.stop > file.path.stat().st_size:
            return  # a torn tail: what it would have said was never finished
        what = "the outcome was recorded, but its record is damaged"
        self.run.ended(
            range(header.first, header.stop),
            lambda _: ResultLost(what, file=str(file.path), offset=damage.offset),
        )

    def _has_open(self, task: int) -> bool:
        return bool(self.run.ledger.open) and self.run.tasks.has_open(task)

    # What an absence means.

    def hear(self, snapshot: Snapshot) -> None:
        """Take in what the scheduler says."""
        for each in self.run.tasks.rounds:
            for number, array in enumerate(each.plan.arrays):
                job_id = self.run.tasks.jobs.get((each.number, number))
                if job_id is None:
                    continue
                for element in range(array.length):
                    task = array.first_task + element
                    record = None if task in self._over else snapshot.get(job_id, element)
                    if record is not None:
                        self._hear_of(task, job_id, record)

    def _hear_of(self, task: int, job_id: str, record: TaskRecord) -> None:
        self.run.tasks.states[task], self.run.tasks.told[task] = record.state, record
        if not record.state.is_final:
            if record.state.is_queued:
                self._warn_of_hold(job_id, record.reason)
            else:
                self.run.tasks.started.add(task)
            self._absent.pop(task, None)
            if self.run.tasks.ends.pop(task, None) and task in self._marks:
                self._unweighed.add(task)
        elif self._has_open(task):
            self._suspect(task, functools.partial(self._by_state, task, record), record)

    def _warn_of_hold(self, job_id: str | None, reason: str | None) -> None:
        """Say, once, that a job waits for a person: it is no end, but will not go on by itself."""
        if reason and reason not in self._held_for and _HELD.search(reason):
            self._held_for.add(reason)
            advice = f"what holds it is to be mended, and then: scontrol release {job_id}; or cancel it"
            _log.warning("slurmlaunch waits for job %s, which Slurm will not start (%s): %s", job_id, reason, advice)

    def _suspect(self, task: int, error: Callable[[], ItemError], told: TaskRecord | None = None) -> None:
        earlier = self._absent.get(task)
        self._absent[task] = _Absence(earlier.since if earlier else self._clock(), error, told)

    def _judge(self, now: float) -> None:
        """Settle the items of tasks whose end explains that there is no outcome."""
        for task in list(self._unweighed):
            if not self._has_open(task):
                self._unweighed.remove(task)
                self._over.add(task)
            elif task not in self._absent and self._is_last_start(self._marks[task]):
                self._weigh(task, self._marks[task])
        if not self._believed and now >= self._began_at + _SILENT_FOR:
            self._believe_others()
        late = [(task, each) for task, each in self._absent.items() if now - each.since >= self.latency]
        for task, absence in late:
            self._settle(task, absence.error())
        self._write_down([(task, absence.told) for task, absence in late if absence.told])

    def _believe_others(self) -> None:
        """Take in what earlier clients were told of ends, where the scheduler says nothing now."""
        self._believed = True
        for each in self.run.tasks.rounds:
            for end in each.ends():
                known = self._attempts.get(end.task, 0) > end.attempts or end.task in self.run.tasks.states
                if not known and end.task in each.plan.tasks and self._has_open(end.task):
                    record = TaskRecord(TaskState.parse(end.state), end.exit_code, end.node, end.reason)
                    self.run.tasks.told[end.task] = record
                    self._suspect(end.task, functools.partial(self._by_state, end.task, record))

    def _write_down(self, ends: list[tuple[int, TaskRecord]]) -> None:
        """Write down what the scheduler said of ends: it forgets, and a copy of the folder knows no scheduler."""
        for each in self.run.tasks.rounds:
            told = [
                ToldEnd(task, self._attempts.get(task, 0), it.state.value, it.exit_code, it.node, it.reason)
                for task, it in ends
                if task in each.plan.tasks
            ]
            if told:
                with contextlib.suppress(OSError):  # a folder that may only be read: then nobody is helped by it
                    each.told(client_token(), told)

    def _judge_dynamic(self, now: float) -> None:
        """Settle what was taken by tasks that are over, and only seen later; then what nobody has taken."""
        for task, error in list(self.run.tasks.ends.items()):
            missed = self.run.tasks.open_items(task)
            if missed:
                self.run.ended(missed, error_for_each(error))
        forsaken = {each.number: each for each in self.run.tasks.forsaken()}
        self._forsaken = {number: self._forsaken.get(number, now) for number in forsaken}
        for number, since in self._forsaken.items():
            plan = forsaken[number].plan
            if now - since >= self.latency or self.run.tasks.started.isdisjoint(plan.tasks):
                self.run.end_untaken(forsaken[number])

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
        return self._attempts.get(mark.task, 0) <= mark.start + 1

    def _tells(self, mark: EndMark) -> bool:
        """Whether a mark says how its task ended, and not only one of its starts."""
        return mark.status not in _TOLD_BY_THE_SCHEDULER and self._is_last_start(mark)

    def _by_state(self, task: int, record: TaskRecord) -> ItemError:
        mark = self._marks.get(task)
        if mark and self._tells(mark) and not verdict.names_a_cause(record):
            return verdict.of_status(mark.status, self._place(task))
        return verdict.of_state(record, self._place(task), began=task in self._attempts)

    def _settle(self, task: int, error: ItemError) -> None:
        for attempt in range(self._attempts.get(task, 0)):
            self._read(task, attempt, final=True)
        error = self._with_file(task, error)
        self._absent.pop(task, None)
        self.run.ended(self.run.tasks.open_items(task), error.for_item)
        if self.run.tasks.is_dynamic(task):
            self.run.tasks.ends[task] = error
        self._breaker.note(task, error)

    def _with_file(self, task: int, error: ItemError) -> ItemError:
        """Have the loss of an outcome say which file it stood in, or should stand in, and where."""
        attempts = self._attempts.get(task, 0)
        if isinstance(error, NodeStartError) and error.exit_code == Status.FAILURES and attempts:
            error = ResultLost("the task ended, but the item's outcome is not on disk", place=error.place)
        if isinstance(error, ResultLost) and error.file is None:
            last = self.run.folder.outcome_file(task, max(0, attempts - 1))
            file, offset = self._damaged.get(task) or (last, last.stat().st_size if last.exists() else 0)
            error.file, error.offset = str(file), offset
        return error

    def _place(self, task: int) -> Place:
        return self.run.tasks.whereabouts(task)
