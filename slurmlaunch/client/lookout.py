"""Looking at one run: what has begun, grown and ended in its folder.

A look costs a glance at two folders, a listing of each that has changed (`listing`), and, for each task that may
have grown, the opening of its outcome file, as many of these as the budget allows.
What it cost is counted, call by call.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.client.absences import Absences
from slurmlaunch.client.breaker import Breaker
from slurmlaunch.client.retrying import Retrying
from slurmlaunch.errors import ResultLost, UnsafeRunFolder
from slurmlaunch.runfolder.changes import NewNames, is_on_network
from slurmlaunch.runfolder.layout import EndMark
from slurmlaunch.runfolder.outcomes import OutcomeFile
from slurmlaunch.runfolder.records import Damage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from slurmlaunch.client.run import Run

_CANCELLATIONS_EVERY = _CLAIMS_EVERY = 1.0
_CLAIMS_COST = 4
_READ_COST = 4
"""Opening, looking, reading, closing."""

_FIRST_GAP = 0.02
"""Seconds after which a folder that has changed is listed again."""

_UNBOUNDED = float(1 << 40)


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
        absences: what it means where there is no outcome.
    """

    def __init__(self, run: Run, clock: Callable[[], float] = time.monotonic) -> None:
        self.run = run
        self._clock = clock
        self._breaker, self._retrying = Breaker(run), Retrying(run)
        self.absences = Absences(run, self._breaker, self._read_to_the_end, clock)
        network = is_on_network(run.folder.path)
        self._ended = NewNames(run.folder.ended, clock, network=network, first_gap=_FIRST_GAP)
        self._begun = NewNames(run.folder.outcomes, clock, network=network, first_gap=_FIRST_GAP)
        self._uncollected: deque[int] = deque()
        self._reading = self._other_costs = 0
        self._files: dict[tuple[int, int], OutcomeFile] = {}
        self._marks = run.tasks.marks
        self._growing: deque[tuple[int, int]] = deque()
        self._damaged: dict[int, tuple[Path, int]] = {}
        self._foreign: set[str] = set()
        self._rounds = len(run.tasks.rounds)
        self._cancellations_at = 0.0
        self._claims_at = 0.0

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
            self._other_costs += self.run.look_for_cancellations()
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
        self.absences.judge(now)
        if due:
            self.absences.judge_dynamic(now)
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
                if self.run.tasks.attempts.get(mark.task, 0) <= mark.start:
                    self._begun.forget()  # its file of outcomes, if there is one, was there before the mark

    def _look_for_claims(self, now: float) -> None:
        """Take in what tasks have taken, which is done before one that has ended is judged."""
        self._claims_at = now + _CLAIMS_EVERY
        with self.run.changed:
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
                self.run.tasks.attempts[task] = max(attempt + 1, self.run.tasks.attempts.get(task, 0))
                self._growing.append((task, attempt))
                self.run.tasks.started.add(task)

    def _read_ended(self, most: float) -> None:
        """Read what tasks that have ended have recorded; they can be judged then."""
        while self._uncollected and self._reading < most:
            task = self._uncollected.popleft()
            for attempt in range(self.run.tasks.attempts.get(task, 0)):
                self._read(task, attempt, final=False)
            self.absences.weigh(task)

    def _read_growing(self, most: float) -> None:
        """Look at some of the files that may have grown, in turn."""
        for _ in range(len(self._growing)):
            if self._reading > most:
                return
            task, attempt = self._growing.popleft()
            self._read(task, attempt, final=False)
            if self.run.ledger.open and self.run.tasks.has_open(task):
                self._growing.append((task, attempt))

    def _read_to_the_end(self, task: int) -> tuple[Path, int] | None:
        for attempt in range(self.run.tasks.attempts.get(task, 0)):
            self._read(task, attempt, final=True)
        return self._damaged.get(task)

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
