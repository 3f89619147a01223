"""The tasks of a run: one record per task, and which task has which item.

A view of a run covers its rounds up to one of them. Each round gives items to tasks of
its own, so an item belongs to the last task that got it. In a dynamic round tasks claim
items while they run, so some items may have no task yet. `RunState` changes these
records; futures and errors read them. Nothing here reads a file, a clock or the scheduler.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from operator import itemgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.backends.base import TaskState
from slurmlaunch.backends.pending_reasons import in_words
from slurmlaunch.client.ledger import ItemStatus, common
from slurmlaunch.errors import Place

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

    from slurmlaunch.backends.base import TaskRecord
    from slurmlaunch.client.ledger import Ledger
    from slurmlaunch.errors import ItemError
    from slurmlaunch.runfolder.files import Location
    from slurmlaunch.runfolder.layout import EndMark, RunFolder
    from slurmlaunch.runfolder.outcomes import Recorded
    from slurmlaunch.runfolder.plan import RoundPlan

_NOTHING: Mapping[Any, Any] = MappingProxyType({})
_FIRST = itemgetter(0)


@dataclass(slots=True, eq=False)
class End:
    """An end of a task that left items open, as long as it may be one.

    Attributes:
        since: when it became known.
        attempts: how many attempts of the task were known then.
        record: the scheduler's record that says so; None where the end mark does.
        is_recorded: whether that record comes from the run folder.
        is_late: whether the outcomes of the task had their time to appear, and are read for the last time.
    """

    since: float
    attempts: int
    record: TaskRecord | None = None
    is_recorded: bool = False
    is_late: bool = False


class Stopped(NamedTuple):
    """Why a task of a dynamic round claims no more items, and since when."""

    error: BaseException
    since: float = -math.inf


@dataclass(slots=True, eq=False)
class TaskView:
    """Everything that this process knows about one task.

    Attributes:
        array: the number of its array in the round.
        attempts: how many of its attempts are known.
        record: the scheduler's last report, to this or an earlier client.
        end_mark: the mark of the last start that has ended, once its outcomes were read.
        notes: the notes of each attempt about itself.
        checkpoints: the checkpoints that each attempt recorded, by item.
        end: its last end that left items open; it may run again since.
        stopped: why it takes no more items, in a dynamic round.
        began_again: since when it is known that another attempt has begun although it was taken for ended.
        damage: the file and offset of its first damaged record.
        closed: whether it has ended and none of its items is open.
        settled_items: how many of its first items need no further check.
    """

    index: int
    round: RoundView
    array: int
    element: int
    started: bool = False
    attempts: int = 0
    record: TaskRecord | None = None
    end_mark: EndMark | None = None
    notes: Mapping[int, Mapping[str, Any]] = field(default_factory=lambda: _NOTHING)
    checkpoints: Mapping[int, Mapping[int, Recorded]] = field(default_factory=lambda: _NOTHING)
    end: End | None = None
    stopped: Stopped | None = None
    began_again: float = -math.inf
    damage: tuple[Location, int] | None = None
    closed: bool = False
    settled_items: int = 0

    @property
    def state(self) -> TaskState | None:
        """The scheduler's last word, if any."""
        return self.record.state if self.record else None

    @property
    def job_id(self) -> str | None:
        """The id of its job; None while it is not submitted."""
        return self.round.jobs.get(self.array)

    @property
    def full_id(self) -> str | None:
        """The id of the task as Slurm writes it: ``123_4``, with a semicolon and its cluster as the job's id has it."""
        number, separator, cluster = (self.job_id or "").partition(";")
        return f"{number}_{self.element}{separator}{cluster}" if number else None

    @property
    def last_notes(self) -> Mapping[str, Any]:
        """The notes of its last attempt about itself."""
        return self.notes.get(self.attempts - 1, _NOTHING)

    @property
    def node(self) -> str | None:
        """The machine on which it ran last, if known."""
        node: str | None = self.last_notes.get("node", self.record.node if self.record else None)
        return node


class RoundView:
    """Everything that this process knows about one round beside its tasks.

    Attributes:
        jobs: the job id of each array that has been submitted.
        given_up: the arrays that nobody will submit any more.
        claims: which task has claimed which items; None in a static round.
        needed: whether its tasks may find items, in a dynamic round; its arrays need no submission otherwise.
        start_error: the error with which tasks recorded that they cannot run items, in a dynamic round.
    """

    def __init__(self, number: int, plan: RoundPlan) -> None:
        self.number, self.plan = number, plan
        self.jobs: dict[int, str] = {}
        self.given_up: set[int] = set()
        self.claims = None if plan.blocks is None else Claims(plan)
        self.needed = True
        self.start_error: ItemError | None = None

    @property
    def missing_arrays(self) -> list[int]:
        """The arrays that may yet be submitted, as far as is known."""
        return [n for n in range(len(self.plan.arrays)) if n not in self.jobs and n not in self.given_up]

    def claimant_of(self, item: int) -> int | None:
        """Return the task that has an item of the round; None while it is unclaimed."""
        return self.claims.claimant_of(item) if self.claims else self.plan.task_of(item)

    def has_claimed(self, task: int) -> bool:
        """Whether a task of a dynamic round is known to have claimed anything."""
        return self.claims is not None and self.claims.has_any(task)

    def tasks_of(self, number: int) -> range:
        """Return the tasks of an array."""
        planned = self.plan.arrays[number]
        return range(planned.first_task, planned.first_task + planned.length)


class Claims:
    """Which task has claimed which positions of a dynamic round, as far as this process knows.

    A claim is never taken back. *unclaimed* is the number of positions without a known claimant. The memory grows with
    the claims and not with the items.
    """

    def __init__(self, plan: RoundPlan) -> None:
        self._plan = plan
        # In order and without overlaps: the first position, the end and the task of each known part. Each change
        # makes a new list, because other threads read it.
        self._known: list[tuple[int, int, int]] = []
        self._parts_of: dict[int, list[range]] = {}
        self.unclaimed = plan.slices.items

    def add(self, positions: range, task: int) -> None:
        """Add a claim, except for positions that have a claimant; a task of another round claims nothing here."""
        if task not in self._plan.tasks:
            return
        start, end = positions.start, min(positions.stop, self._plan.slices.items)
        while start < end:
            known = self._known
            i = bisect_right(known, start, key=_FIRST)  # the next part
            if i and start < known[i - 1][1]:
                start = known[i - 1][1]
                continue
            stop = min(end, known[i][0]) if i < len(known) else end
            before = known[i - 1] if i else None
            if before is not None and before[1:] == (start, task):
                self._known = [*known[: i - 1], (before[0], stop, task), *known[i:]]
            else:
                self._known = [*known[:i], (start, stop, task), *known[i:]]
            self._add_to(task, range(start, stop))
            start = stop

    def _add_to(self, task: int, part: range) -> None:
        self.unclaimed -= len(part)
        parts = self._parts_of.setdefault(task, [])  # in the order of their addition: its first items stay the first
        if parts and parts[-1].stop == part.start:
            parts[-1] = range(parts[-1].start, part.stop)
        else:
            parts.append(part)

    def infer(self, items: range, task: int) -> None:
        """Add items that a task recorded: it had claimed them, even if the claim is not listed yet."""
        first, last = (self._plan.position_of(item) for item in (items.start, items.stop - 1))
        self.add(range(first, last + 1), task)

    def claimant_of(self, item: int) -> int | None:
        """Return the task that has claimed an item, or None."""
        position, known = self._plan.position_of(item), self._known
        i = bisect_right(known, position, key=_FIRST) - 1
        return known[i][2] if i >= 0 and position < known[i][1] else None

    def has_any(self, task: int) -> bool:
        """Whether a task has claimed anything."""
        return task in self._parts_of

    def parts_of(self, task: int) -> Iterator[Sequence[int]]:
        """Yield the items of a task, part by part."""
        return map(self._plan.items_at, tuple(self._parts_of.get(task, ())))

    def unclaimed_parts(self) -> Iterator[Sequence[int]]:
        """Yield the unclaimed items, part by part."""
        start = 0
        for first, stop, _ in (*self._known, (self._plan.slices.items, 0, 0)):
            if start < first:
                yield self._plan.items_at(range(start, first))
            start = stop


class Tasks:
    """The rounds and tasks of one view of a run.

    Attributes:
        rounds: its rounds.
        views: the record of each task of which anything is known.
        clusters: the Slurm cluster of jobs whose id names none, if it is not the client's own.
    """

    clusters: str | None = None

    def __init__(self, folder: RunFolder, ledger: Ledger, pending: Container[int]) -> None:
        """Begin without rounds; the folder names logs, and *pending* are the items that wait for a retry."""
        self.rounds: list[RoundView] = []
        self.views: dict[int, TaskView] = {}
        self._folder, self._ledger, self._pending = folder, ledger, pending
        self._last_round: array[int] | None = None

    # Rounds and their tasks.

    def add(self, added: RoundView) -> None:
        """Add a round, whose items now belong to its tasks; those that the view has not are passed over."""
        self.rounds.append(added)
        if len(self.rounds) > 1:
            last = self._last_round = self._last_round or array("H")
            last.extend([self.rounds[0].number] * (self._ledger.items - len(last)))
            for item in added.plan.items or ():
                if item < len(last):
                    last[item] = added.number

    def view(self, task: int) -> TaskView:
        """Return the record of a task.

        Raises:
            LookupError: no round of the view has that task.
        """
        found = self.views.get(task)
        if found is None:
            for each in self.rounds:
                if task in each.plan.tasks:
                    return self.views.setdefault(task, TaskView(task, each, *each.plan.element_of(task)))
            raise LookupError(task)
        return found

    def all(self) -> Iterator[int]:
        """Yield all tasks, round by round."""
        for each in self.rounds:
            yield from each.plan.tasks

    def __contains__(self, task: int) -> bool:
        """Whether a task belongs to a round of the view."""
        return any(task in each.plan.tasks for each in self.rounds)

    @property
    def job_ids(self) -> tuple[str, ...]:
        """The ids of all jobs, in the order of submission."""
        return tuple(each.jobs[number] for each in self.rounds for number in sorted(each.jobs))

    # Which task has which item.

    def round_of(self, item: int) -> RoundView:
        """Return the last round of an item."""
        return self.rounds[0 if self._last_round is None else self._last_round[item]]

    def claimant_of(self, item: int) -> int | None:
        """Return the last task of an item; None while it is unclaimed, in a dynamic round."""
        return self.round_of(item).claimant_of(item)

    def task_of(self, item: int) -> int:
        """Return the last task of an item; for an unclaimed item the one that would have it in a static round."""
        task = self.claimant_of(item)
        return self.round_of(item).plan.task_of(item) if task is None else task

    def is_started(self, item: int) -> bool:
        """Whether the task that has an item has started."""
        task = self.claimant_of(item)
        return task in self.views and self.views[task].started

    def items_of(self, task: int) -> Sequence[int]:
        """Return the items of a task, without those that a later round has."""
        parts = list(self._parts_of(self.view(task)))
        return parts[0] if len(parts) == 1 else [item for part in parts for item in part]

    def _parts_of(self, view: TaskView) -> Iterator[Sequence[int]]:
        return self.still_in(view.round.number, self._planned_parts(view))

    def _planned_parts(self, view: TaskView) -> Iterable[Sequence[int]]:
        claims = view.round.claims
        return claims.parts_of(view.index) if claims else [view.round.plan.items_of(view.index)]

    def still_in(self, number: int, parts: Iterable[Sequence[int]]) -> Iterator[Sequence[int]]:
        """Yield parts of a round's items, without those that a later round has."""
        last = self._last_round
        for part in parts:
            yield part if last is None else [item for item in part if item < len(last) and last[item] == number]

    def left_by(self, items: Iterable[int], known: Tasks | None = None) -> dict[int, int]:
        """Return the tasks that left these items without outcomes, and how many attempts of each had begun then.

        Args:
            items: the items.
            known: the tasks of an earlier view, for those that have not ended as far as this one knows.
        """
        tasks: set[int] = set()
        unclaimed: set[RoundView] = set()
        for item in items:
            task = self.claimant_of(item)
            unclaimed.add(self.round_of(item)) if task is None else tasks.add(task)
        tasks.update(task for each in unclaimed for task in each.plan.tasks)  # any of them may claim the item
        return {task: self._attempts_at_end(task, known) for task in sorted(tasks)}

    def _attempts_at_end(self, task: int, known: Tasks | None) -> int:
        view = self.view(task)
        earlier = known.views.get(task, view) if known else view
        end = view.end or earlier.end
        return end.attempts if end else view.attempts

    # Open items.

    def open_items(self, task: int) -> list[int]:
        """Return the items of a task that are open and do not wait for a retry."""
        return self._open_in(self._parts_of(self.view(task)))

    def unclaimed_items(self, round_: RoundView) -> list[int]:
        """Return the open items of a dynamic round that no task has claimed."""
        return self._open_in(self.still_in(round_.number, self._unclaimed_parts(round_)))

    def unclaimed_in(self, round_: RoundView) -> list[int]:
        """Return the items of a dynamic round that no task has claimed, without those that a later round has."""
        return [item for part in self.still_in(round_.number, self._unclaimed_parts(round_)) for item in part]

    @staticmethod
    def _unclaimed_parts(round_: RoundView) -> Iterable[Sequence[int]]:
        return round_.claims.unclaimed_parts() if round_.claims else ()

    def _open_in(self, parts: Iterable[Sequence[int]]) -> list[int]:
        open_parts = (self._ledger.open_among(part) for part in parts if not self._ledger.all_settled(part))
        return [item for part in open_parts for item in part if item not in self._pending]

    def has_open(self, task: int) -> bool:
        """Whether a task has open items that do not wait for a retry, or may claim more."""
        if not self._ledger.open:
            return False
        view = self.view(task)
        claims = view.round.claims
        if claims and claims.unclaimed and view.stopped is None:
            return True
        start, settled = 0, view.settled_items  # read once: other threads may write it
        for part in self._planned_parts(view):
            stop = start + len(part)
            if settled < stop:
                settled += self._settled_before(part[settled - start :], view.round.number)
                view.settled_items = settled
            if settled < stop:
                return True
            start = stop
        return False

    def _settled_before(self, items: Sequence[int], number: int) -> int:
        """Return how many of the first items have settled, wait for a retry, or belong to a later round."""
        last = self._last_round
        if isinstance(items, range) and last is None and not self._pending:
            return len(items) if self._ledger.all_settled(items) else 0  # one search is cheap enough to repeat
        for position, item in enumerate(items):
            if self._ledger.is_open(item) and item not in self._pending and (last is None or last[item] == number):
                return position
        return len(items)

    def without_work(self, tasks: Iterable[int]) -> list[TaskView]:
        """Return those of the tasks that have no open item and can claim none."""
        settled, views = self._ledger.all_settled, map(self.view, tasks)
        done = {each.number for each in self.rounds if all(map(settled, self._unclaimed_parts(each)))}
        return [view for view in views if view.round.number in done and all(map(settled, self._parts_of(view)))]

    def count_running(self, items: Sequence[int] | None = None) -> int:
        """Return how many open items, of these or of all, are in the hands of processes."""
        running = [item for view in list(self.views.values()) for item in self._in_hand(view)]
        return len(running if items is None else common(running, items))

    def is_running(self, item: int) -> bool:
        """Whether an item is in the hands of a process."""
        task = self.claimant_of(item)
        return task in self.views and item in self._in_hand(self.views[task])

    def _in_hand(self, view: TaskView) -> list[int]:
        """Return the items that a started task has in hand: processes take its items in order."""
        found: list[int] = []
        # The scheduler's last word may be older than the start: a task that is PENDING there may run.
        if view.started and not view.closed and not (view.state and view.state.is_final):
            number = 1 if view.round.plan.ranks else view.round.plan.processes
            for part in self._parts_of(view):
                found += self._ledger.first_open(part, number - len(found))
                if len(found) >= number:
                    break
        return found

    # States, places and checkpoints.

    def state_of(self, task: int) -> TaskState:
        """Return the state of a task without asking the scheduler; its final state once all its items have settled."""
        view = self.view(task)
        if view.state is not None and view.state.is_final:
            return view.state
        parts, claims = list(self._parts_of(view)), view.round.claims
        may_claim = not parts and not view.closed and claims is not None and claims.unclaimed and self._ledger.open
        if may_claim or not all(map(self._ledger.all_settled, parts)):
            return TaskState.RUNNING if view.started else view.state or TaskState.PENDING
        return self._state_of_settled(self.items_of(task))

    def _state_of_settled(self, items: Sequence[int]) -> TaskState:
        if items and self._ledger.count(ItemStatus.CANCELLED, items) == len(items):
            return TaskState.CANCELLED
        failed = any(self._ledger.count(status, items) for status in (ItemStatus.FAILURE, ItemStatus.ENDED))
        return TaskState.FAILED if failed else TaskState.COMPLETED

    def state_of_item(self, item: int) -> TaskState:
        """Return the state of the task of an item; an unclaimed item waits."""
        task = self.claimant_of(item)
        shared = self.round_of(item).claims is not None
        if task is not None and not (shared and self._ledger.status(item) == ItemStatus.CANCELLED):
            return self.state_of(task)  # a task that shares items goes on without a cancelled one
        # It may have an outcome: claims may be listed later than outcomes.
        return TaskState.PENDING if self._ledger.is_open(item) else self._state_of_settled([item])

    def why_item_waits(self, item: int) -> str | None:
        """Return why the task of an item is pending, in words; None if it is not, or nothing is known.

        An item that is cancelled keeps the reason until Slurm reports the end of its task.
        """
        never_ran = self._ledger.status(item) in {ItemStatus.OPEN, ItemStatus.CANCELLED}
        view = self.views.get(self.task_of(item)) if never_ran else None
        return self._in_words(view) if view and not view.started else None

    def why_tasks_wait(self) -> list[str]:
        """Return why tasks of the run are pending, in words, the most frequent reason first."""
        waiting = (self._in_words(view) for view in list(self.views.values()) if not view.closed)
        return [text for text, _ in Counter(filter(None, waiting)).most_common()]

    def _in_words(self, view: TaskView) -> str | None:
        return in_words(view.record, view.job_id, self.clusters) if view.record else None

    def place_of(self, task: int) -> Place:
        """Return where a task ran, as errors say it."""
        view, log = self.view(task), str(self.log(task, "err"))
        container = view.round.plan.options.get("container") or {}
        return Place(task=task, job_id=view.full_id, node=view.node, log=log, image=container.get("image"))

    def log(self, task: int, stream: str) -> Location:
        """Return a task's log; the stream is ``out`` or ``err``."""
        view = self.view(task)
        return self._folder.log(view.round.number, view.array, view.element, stream)

    def last_checkpoints(self, items: Iterable[int]) -> dict[int, Recorded]:
        """Return the last checkpoint of each of the items that has one."""
        last: dict[int, Recorded] = {}
        for _, view in sorted(self.views.items()):
            for _, found in sorted(view.checkpoints.items()):
                last.update(found)
        return {item: last[item] for item in items if item in last} if last else {}
