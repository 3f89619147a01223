"""The tasks of a run: who has which item, and what is known of how each is doing.

A view of a run includes its rounds up to one of them. A round gives items to
tasks of its own, and so does the next with those that it runs again: an item has
the last task that it was given to. Tasks of a dynamic round take their items
while they run, so of some it may not be known (yet) who has them.
"""

from __future__ import annotations

import itertools
from array import array
from typing import TYPE_CHECKING, Any

from slurmlaunch.backends.base import TaskState
from slurmlaunch.client.ledger import Fate
from slurmlaunch.client.taken import Taken
from slurmlaunch.errors import Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from slurmlaunch.backends.base import TaskRecord
    from slurmlaunch.client.held import Held
    from slurmlaunch.client.ledger import Ledger
    from slurmlaunch.runfolder.journal import Round
    from slurmlaunch.runfolder.layout import EndMark, RunFolder
    from slurmlaunch.runfolder.outcomes import Recorded


class TaskPlace:
    """Where a task stands in its run, and in its job.

    Attributes:
        round: its round.
        array: the number of its array in the round.
        element: its place in the array.
        job_id: the id of the array's job, or None where it is not submitted (yet).
    """

    __slots__ = ("array", "element", "job_id", "round")

    def __init__(self, round_: Round, array: int, element: int, job_id: str | None) -> None:
        self.round, self.array, self.element, self.job_id = round_, array, element, job_id

    @property
    def full_id(self) -> str | None:
        """The id as Slurm writes it: ``123_4``."""
        return f"{self.job_id}_{self.element}" if self.job_id else None


class Tasks:
    """The tasks of one view of a run. Who changes it holds the lock of the run.

    Attributes:
        rounds: the rounds that the view includes.
        jobs: job ids by round and array; an array that is not there is not submitted (yet).
        ours: the numbers of the rounds that this view submits.
        given_up: the arrays, likewise, that nobody will submit any more.
        started: the tasks that are known to have started.
        attempts: how many attempts of each task are known to have begun.
        states: what the scheduler said last, by task, where it said something.
        told: the same, with all that it said.
        marks: how tasks have ended, where they left a mark.
        notes: what attempts said of themselves, by task and attempt.
        checkpoints: how items are gone on with that attempts began, likewise.
        ends: the tasks of dynamic rounds that take nothing more, and why.
    """

    def __init__(self, folder: RunFolder, rounds: list[Round], ledger: Ledger, held: Held) -> None:
        self.rounds = rounds
        self.jobs: dict[tuple[int, int], str] = {}
        self.ours: set[int] = set()
        self.given_up: set[tuple[int, int]] = set()
        self.started: set[int] = set()
        self.attempts: dict[int, int] = {}
        self.states: dict[int, TaskState] = {}
        self.told: dict[int, TaskRecord] = {}
        self.marks: dict[int, EndMark] = {}
        self.notes: dict[tuple[int, int], list[dict[str, Any]]] = {}
        self.checkpoints: dict[tuple[int, int], dict[int, Recorded]] = {}
        self.ends: dict[int, BaseException] = {}
        self._folder, self._ledger, self._held = folder, ledger, held
        self._last_round: array[int] | None = None
        self._taken: dict[int, Taken] = {}
        self._passed: dict[int, int] = {}
        """How many of the first items of a task have nothing open any more: they need no second look."""
        for number, each in enumerate(rounds):
            self._include(each, first=not number)

    # Rounds, and their jobs.

    def add(self, added: Round) -> None:
        """Take a further round into the view."""
        self.rounds.append(added)
        self._include(added, first=False)

    def _include(self, added: Round, *, first: bool) -> None:
        if added.plan.blocks is not None:
            self._taken[added.number] = Taken(self._folder, added, added.plan.blocks)
        if not first:
            if self._last_round is None:
                self._last_round = array("H", [self.rounds[0].number]) * self._ledger.items
            for item in added.plan.items or ():
                self._last_round[item] = added.number

    def learn_job_ids(self) -> int:
        """Read which arrays have been submitted, perhaps by another client; return how many file operations it took."""
        operations = 0
        for each in self.rounds:
            if any((each.number, number) not in self.jobs for number in range(len(each.plan.arrays))):
                self.jobs.update({(each.number, number): job_id for number, job_id in each.job_ids().items()})
                operations += _JOURNAL_COST
        return operations

    def length_of(self, job_id: str) -> int:
        """Return how many tasks a job has."""
        number, array_ = next(key for key, each in list(self.jobs.items()) if each == job_id)
        return next(each for each in self.rounds if each.number == number).plan.arrays[array_].length

    # Who has what.

    def round_of(self, item: int) -> Round:
        """Return the last round that ran an item."""
        return self.rounds[self._last_round[item] if self._last_round else 0]

    def task_of(self, item: int) -> int:
        """Return the task that an item was last given to.

        Of a dynamic round that is the one that has taken it. While none has, it is the one
        that would have it in a static round: the run is on its way there as much as anywhere.
        """
        its_round = self.round_of(item)
        task = self.task_in(its_round, item)
        return its_round.plan.task_of(item) if task is None else task

    def task_in(self, its_round: Round, item: int) -> int | None:
        """Return the task that has an item of a round; None where no task is known to have taken it."""
        taken = self._taken.get(its_round.number)
        return taken.owner_of(item) if taken else its_round.plan.task_of(item)

    def is_dynamic(self, task: int) -> bool:
        """Whether a task takes its items while it runs."""
        return self.place(task).round.number in self._taken

    def is_given(self, item: int) -> bool:
        """Whether a task has an item: always, save in a dynamic round."""
        return not self._taken or self.task_in(self.round_of(item), item) is not None

    def is_begun(self, item: int) -> bool:
        """Whether the task that has an item has started."""
        return self.is_given(item) and self.task_of(item) in self.started

    def place(self, task: int) -> TaskPlace:
        """Return where a task stands."""
        for each in self.rounds:
            if task in each.plan.tasks:
                array_, element = each.plan.element_of(task)
                return TaskPlace(each, array_, element, self.jobs.get((each.number, array_)))
        raise LookupError(task)

    def __contains__(self, task: int) -> bool:
        """Whether a task is of this view."""
        return any(task in each.plan.tasks for each in self.rounds)

    def items_of(self, task: int) -> Sequence[int]:
        """Return the items that a task has, those left out that a later round took over."""
        parts = list(self._parts_of(task))
        return parts[0] if len(parts) == 1 else [item for part in parts for item in part]

    def _parts_of(self, task: int) -> Iterator[Sequence[int]]:
        its_round = self.place(task).round
        taken = self._taken.get(its_round.number)
        return self.still_in(its_round.number, taken.parts_of(task) if taken else [its_round.plan.items_of(task)])

    def still_in(self, number: int, parts: Iterable[Sequence[int]]) -> Iterator[Sequence[int]]:
        """Yield parts of what a round has, what a later round took over left out."""
        last = self._last_round
        for part in parts:
            yield [item for item in part if last[item] == number] if last else part

    # What is left of it.

    def open_items(self, task: int) -> list[int]:
        """Return the items of a task that have not settled, and are not held for another round."""
        return self._open_in(self._parts_of(task))

    def _open_in(self, parts: Iterable[Sequence[int]]) -> list[int]:
        open_ = (item for part in parts if self._is_open(part) for item in self._ledger.open_among(part))
        return [item for item in open_ if item not in self._held]

    def has_open(self, task: int) -> bool:
        """Whether a task has items that have not settled and are not held, or may yet take some."""
        its_round = self.place(task).round
        taken = self._taken.get(its_round.number)
        if taken and taken.free and task not in self.ends:
            return True
        start, passed = 0, self._passed.get(task, 0)
        for part in taken.parts_of(task) if taken else [its_round.plan.items_of(task)]:
            stop = start + len(part)
            if passed < stop:
                passed += self._settled_before(part[passed - start :], its_round.number)
            self._passed[task] = passed
            if passed < stop:
                return True
            start = stop
        return False

    def _settled_before(self, items: Sequence[int], number: int) -> int:
        """Return how many of the first items have settled, or are held, or were taken over from that round."""
        last = self._last_round
        if isinstance(items, range) and last is None and not self._held:
            return len(items) if self._ledger.all_settled(items) else 0  # it takes no time to look at these again
        for position, item in enumerate(items):
            if self._ledger.is_open(item) and item not in self._held and (last is None or last[item] == number):
                return position
        return len(items)

    def without_work(self, tasks: Iterable[int]) -> list[int]:
        """Return those of the tasks that have nothing open, and can take nothing."""
        shared = {number for number, taken in self._taken.items() if any(map(self._is_open, taken.free_parts()))}
        return [
            task
            for task in tasks
            if self.place(task).round.number not in shared and not any(map(self._is_open, self._parts_of(task)))
        ]

    def _is_open(self, part: Sequence[int]) -> bool:
        if isinstance(part, range):
            return not self._ledger.all_settled(part)
        return bool(self._ledger.count(Fate.OPEN, part))

    def count_running(self, items: Sequence[int] | None = None) -> int:
        """Return how many open items, of these or of all, are in tasks that have started."""
        if items is not None:
            return sum(self.is_begun(i) for i in self._ledger.open_among(items))
        return sum(self._ledger.count(Fate.OPEN, part) for task in tuple(self.started) for part in self._parts_of(task))

    # How they are doing.

    def state_of(self, task: int) -> TaskState:
        """Return what a task is doing, as far as is known without asking again.

        Where all of its items have settled it is the state that it ends in.
        """
        told = self.states.get(task)
        if told is not None and told.is_final:
            return told
        if any(map(self._is_open, self._parts_of(task))):
            waiting = TaskState.PENDING if told is None else told
            return TaskState.RUNNING if task in self.started else waiting
        items = self.items_of(task)
        if items and self._ledger.count(Fate.CANCELLED, items) == len(items):
            return TaskState.CANCELLED
        failed = self._ledger.count(Fate.FAILURE, items) or self._ledger.count(Fate.ENDED, items)
        return TaskState.FAILED if failed else TaskState.COMPLETED

    def state_of_item(self, item: int) -> TaskState:
        """Return what the task is doing that has an item; while none has, the item waits."""
        if self.is_given(item):
            return self.state_of(self.task_of(item))
        return _STATES_OF_NOBODYS[self._ledger.fate(item)]

    def node_of(self, task: int) -> str | None:
        """Return the machine that a task ran on last, as far as is known."""
        told = self.told.get(task)
        node: str | None = self.last_notes(task).get("node", told.node if told else None)
        return node

    def last_notes(self, task: int) -> dict[str, Any]:
        """Return what the last attempt of a task said of itself."""
        attempt = next(attempt for attempt in itertools.count() if (task, attempt) not in self.notes) - 1
        return {key: value for note in self.notes.get((task, attempt), ()) for key, value in note.items()}

    def last_checkpoints(self, items: Iterable[int]) -> dict[int, Recorded]:
        """Return the last checkpoint of each of the items that has one."""
        if not any(self.checkpoints.values()):
            return {}
        last: dict[int, Recorded] = {}
        for _, found in sorted(self.checkpoints.items()):
            last.update(found)
        return {item: last[item] for item in items if item in last}

    def whereabouts(self, task: int) -> Place:
        """Return what an error says of where a task ran."""
        place = self.place(task)
        container = place.round.plan.options.get("container") or {}
        return Place(
            task=task,
            job_id=place.full_id,
            node=self.node_of(task),
            log=str(self.log(task, "err")),
            image=container.get("image"),
        )

    def log(self, task: int, stream: str) -> Path:
        """Return the path of a task's log, *stream* being ``out`` or ``err``."""
        place = self.place(task)
        return self._folder.log(place.round.number, place.array, place.element, stream)

    # Those that take their items while they run.

    def look_for_claims(self) -> int:
        """Take in what tasks have taken; return how many folders were looked at."""
        looked = [taken for taken in self._taken.values() if taken.free]
        for taken in looked:
            taken.look()
        return len(looked)

    def infer_owner(self, task: int, items: range) -> None:
        """Take in that a task recorded these items: then they are its."""
        taken = self._taken.get(self.place(task).round.number) if self._taken else None
        if taken is not None and items.stop <= self._ledger.items:
            taken.infer(items, task)

    def forsaken(self) -> Iterator[Round]:
        """Yield the dynamic rounds of which items are left, and all tasks are over."""
        for each in self.rounds:
            taken = self._taken.get(each.number)
            if taken and taken.free and all(task in self.ends for task in each.plan.tasks):
                yield each

    def untaken(self, its_round: Round) -> list[int]:
        """Return the open items of a dynamic round that nobody is known to have."""
        return self._open_in(self.still_in(its_round.number, self._taken[its_round.number].free_parts()))


_JOURNAL_COST = 7
"""File operations that it takes to read a journal."""

_STATES_OF_NOBODYS = {
    Fate.OPEN: TaskState.PENDING,
    Fate.VALUE: TaskState.COMPLETED,
    Fate.FAILURE: TaskState.FAILED,
    Fate.ENDED: TaskState.FAILED,
    Fate.CANCELLED: TaskState.CANCELLED,
}
"""What is said of an item that no task is known to have: a listing may be behind an outcome."""
