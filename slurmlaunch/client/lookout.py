"""Looking at one run: what has grown in its folder, and what an absence means.

Files are the truth, states only explain an absence. A look costs two listings
and, for each task that may have grown, the opening of its outcome file, as many
of these as the budget allows.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.client import verdict
from slurmlaunch.errors import NodeStartError, Place, ResultLost, UnsafeRunFolder
from slurmlaunch.runfolder.layout import EndMark, Status
from slurmlaunch.runfolder.outcomes import OutcomeFile
from slurmlaunch.runfolder.records import Damage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from slurmlaunch.backends.base import Snapshot, TaskRecord
    from slurmlaunch.client.run import Run
    from slurmlaunch.errors import ItemError

LATENCY_VARIABLE = "SLURMLAUNCH_LATENCY"

_NETWORK_LATENCY = 70.0
"""Seconds for which a file that exists may be unseen: NFS caches absent names for up to a minute."""

_LOCAL_LATENCY = 1.0

_LOCAL_FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs", "f2fs"})

_CANCELLATIONS_EVERY = 1.0
_LOOK_COST, _READ_COST = 4, 3
_UNBOUNDED = 1 << 40


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


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder))  # noqa: PTH208  (a Path for each name of each look is felt at many tasks)


class _Absence(NamedTuple):
    """Items that should have outcomes and have none.

    Attributes:
        since: when that was seen first.
        error: what it comes to if it lasts.
    """

    since: float
    error: Callable[[], ItemError]


class Lookout:
    """Looks at one run, again and again.

    Attributes:
        run: the run.
        latency: for how many seconds a file may exist and not be seen.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.latency = latency_of(run.folder.path)
        self._files: dict[tuple[int, int], OutcomeFile] = {}
        self._attempts: dict[int, int] = {}
        self._marks = run.marks
        self._unweighed: set[int] = set()
        self._growing: deque[tuple[int, int]] = deque()
        self._absent: dict[int, _Absence] = {}
        self._damaged: dict[int, tuple[Path, int]] = {}
        self._seen_marks: set[str] = set()
        self._seen_files: set[str] = set()
        self._foreign: set[str] = set()
        self._rounds = len(run.rounds)
        self._held_for: set[str] = set()
        self._cancellations_at = 0.0

    def look(self, budget: float = _UNBOUNDED) -> tuple[bool, int]:
        """Take in what is new; return whether there was anything, and what it cost in file operations."""
        before = self.run.ledger.open, len(self._files), len(self._marks)
        now = time.monotonic()
        if now >= self._cancellations_at:
            self._cancellations_at = now + _CANCELLATIONS_EVERY
            self.run.look_for_cancellations()
            self.run.learn_job_ids()
        self._reconsider()
        ended = self._list_ended()
        self._list_outcomes()
        reads = self._read_ended(ended)
        reads += self._read_growing(int((budget - _LOOK_COST) // _READ_COST))
        self._judge(now)
        self.run.retrying.go_on()
        news = before != (self.run.ledger.open, len(self._files), len(self._marks))
        if news:
            self.run.learn_job_ids()  # what another client submits may be over before that is due
        return news, _LOOK_COST + reads * _READ_COST

    def _reconsider(self) -> None:
        """Look again at what was passed over, where a round has come into the view: it may be the round's."""
        if len(self.run.rounds) != self._rounds:
            self._rounds = len(self.run.rounds)
            self._seen_marks -= self._foreign
            self._seen_files -= self._foreign
            self._foreign.clear()

    def _is_ours(self, task: int, name: str) -> bool:
        """Whether a file is of a task of the view; else it is passed over."""
        if self.run.has_task(task):
            return True
        self._foreign.add(name)
        return False

    def _list_ended(self) -> list[int]:
        """Note the tasks that have ended since the last look; return them."""
        new = _names(self.run.folder.ended) - self._seen_marks
        self._seen_marks |= new
        ended = []
        for mark in filter(None, map(EndMark.parse, sorted(new))):
            last = self._marks.get(mark.task)
            if self._is_ours(mark.task, mark.filename) and (last is None or mark.start >= last.start):
                self._marks[mark.task] = mark
                self._unweighed.add(mark.task)
                ended.append(mark.task)
        return ended

    def _list_outcomes(self) -> None:
        """Note the attempts that have begun since the last look."""
        new = _names(self.run.folder.outcomes) - self._seen_files
        self._seen_files |= new
        for name in sorted(new):
            first, _, second = name.partition(".")
            if first.isdigit() and second.isdigit() and self._is_ours(int(first), name):
                task, attempt = int(first), int(second)
                folder = self.run.folder
                file = self._files[task, attempt] = OutcomeFile(folder.outcome_file(task, attempt), folder.salt)
                self.run.notes[task, attempt] = file.notes
                self.run.checkpoints[task, attempt] = file.checkpoints
                self._attempts[task] = max(attempt + 1, self._attempts.get(task, 0))
                self._growing.append((task, attempt))
                self.run.started.add(task)

    def _read_ended(self, tasks: Iterable[int]) -> int:
        reads = 0
        for task in tasks:
            self._absent.pop(task, None)
            for attempt in range(self._attempts.get(task, 0)):
                self._read(task, attempt, final=False)
                reads += 1
        return reads

    def _read_growing(self, most: int) -> int:
        """Look at some of the files that may have grown, in turn."""
        reads = 0
        for _ in range(min(len(self._growing), max(1, most))):
            task, attempt = self._growing.popleft()
            self._read(task, attempt, final=False)
            reads += 1
            if self._has_open(task):
                self._growing.append((task, attempt))
        return reads

    def _read(self, task: int, attempt: int, *, final: bool) -> None:
        file = self._files.get((task, attempt))
        if file is None:
            return  # removed, or not listed yet, while that of a later attempt is
        try:
            for found in file.read(final=final):
                if isinstance(found, Damage):
                    self._damaged.setdefault(task, (file.path, found.offset))
                    self._lost(file, found)
                else:
                    self.run.recorded(found)
        except UnsafeRunFolder as error:
            message = str(error)
            self.run.ended(self.run.open_items(task), lambda _: ResultLost(message, file=str(file.path)))
        except FileNotFoundError:
            pass  # a listing may be ahead of the file, and behind it

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
        return bool(self.run.ledger.open) and bool(self.run.open_items(task))

    # What an absence means.

    def hear(self, snapshot: Snapshot) -> None:
        """Take in what the scheduler says."""
        for task in (task for each in self.run.rounds for task in each.plan.tasks):
            place = self.run.place(task)
            record = snapshot.get(place.job_id, place.element) if place.job_id else None
            if record is None:
                continue
            self.run.states[task], self.run.told[task] = record.state, record
            if not record.state.is_final:
                if record.state.is_queued:
                    self._warn_of_hold(place.job_id, record.reason)
                else:
                    self.run.started.add(task)
                self._absent.pop(task, None)
            elif self._has_open(task):
                self._suspect(task, functools.partial(self._by_state, task, record))

    def _warn_of_hold(self, job_id: str | None, reason: str | None) -> None:
        """Say, once, that a job waits for a person: it is no end, but will not go on by itself."""
        if reason and reason not in self._held_for and _HELD.search(reason):
            self._held_for.add(reason)
            advice = f"what holds it is to be mended, and then: scontrol release {job_id}; or cancel it"
            _log.warning("slurmlaunch waits for job %s, which Slurm will not start (%s): %s", job_id, reason, advice)

    def _suspect(self, task: int, error: Callable[[], ItemError]) -> None:
        earlier = self._absent.get(task)
        self._absent[task] = _Absence(earlier.since if earlier else time.monotonic(), error)

    def _judge(self, now: float) -> None:
        """Settle the items of tasks whose end explains that there is no outcome."""
        for task in list(self._unweighed):
            if not self._has_open(task):
                self._unweighed.remove(task)
            elif task not in self._absent and self._is_last_start(self._marks[task]):
                self._weigh(task, self._marks[task])
        for task, absence in list(self._absent.items()):
            if now - absence.since >= self.latency:
                self._settle(task, absence.error())

    def _weigh(self, task: int, mark: EndMark) -> None:
        if mark.status in (Status.STOPPED, Status.REQUEUE):
            return  # something from outside ended it: the scheduler knows what
        if mark.status in (Status.VALUES, Status.FAILURES):
            # The outcomes were on disk before the mark, so they are only not visible yet. Or
            # Python itself did not come up: its own status for that is 1, too.
            self._suspect(task, lambda: verdict.of_status(mark.status, self._place(task)))
        else:
            self._settle(task, verdict.of_status(mark.status, self._place(task)))

    def _is_last_start(self, mark: EndMark) -> bool:
        return self._attempts.get(mark.task, 0) <= mark.start + 1

    def _by_state(self, task: int, record: TaskRecord) -> ItemError:
        mark = self._marks.get(task)
        if mark and mark.status != Status.STOPPED and not verdict.names_a_cause(record):
            return verdict.of_status(mark.status, self._place(task))
        return verdict.of_state(record, self._place(task), began=task in self._attempts)

    def _settle(self, task: int, error: ItemError) -> None:
        for attempt in range(self._attempts.get(task, 0)):
            self._read(task, attempt, final=True)
        error = self._with_file(task, error)
        self._absent.pop(task, None)
        self.run.ended(self.run.open_items(task), error.for_item)
        self.run.breaker.note(task, error)

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
        return self.run.whereabouts(task)
