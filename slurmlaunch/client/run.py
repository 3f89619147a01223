"""A run as this process sees it: its folder, its rounds, and what its items have come to.

A `Run` is one view of a run folder: the rounds up to one of them. A retry adds a
round and is a new view, so that what was returned before stays what it was. A
`Run` settles items; futures and arrays are how it is seen from outside.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import secrets
import threading
import time
from array import array
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast
from weakref import WeakSet

from slurmlaunch.backends.base import TaskState
from slurmlaunch.client.breaker import Breaker
from slurmlaunch.client.ledger import Fate, Ledger
from slurmlaunch.client.plan import STATIC, plan
from slurmlaunch.client.recovery import Cause
from slurmlaunch.client.retrying import Retrying
from slurmlaunch.client.submission import Submission, make_plan, ranks_plan
from slurmlaunch.client.taken import Taken
from slurmlaunch.client.weakly import Weakly
from slurmlaunch.errors import ItemError, Place, ResultLost, SchedulerError
from slurmlaunch.outcome import Failure, Value
from slurmlaunch.runfolder.cancellations import CancellationReader, CancellationWriter
from slurmlaunch.runfolder.records import Kind
from slurmlaunch.runfolder.rounds import Round

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from slurmlaunch.backends.base import Backend, TaskRecord
    from slurmlaunch.client.options import Options
    from slurmlaunch.outcome import Outcome
    from slurmlaunch.runfolder.layout import EndMark, RunFolder
    from slurmlaunch.runfolder.manifest import Manifest
    from slurmlaunch.runfolder.outcomes import Recorded


_log = logging.getLogger("slurmlaunch")


@functools.cache
def client_token() -> str:
    """Return a name for this process among all clients of a run."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


os.register_at_fork(after_in_child=client_token.cache_clear)


class Told(Protocol):
    """A future, as a run sees it."""

    def done(self) -> bool:
        """Whether it has been told."""

    def set_result(self, result: Any) -> None:
        """Be told the value of its item."""

    def set_exception(self, exception: BaseException | None) -> None:
        """Be told what its item came to instead."""

    def tell_cancelled(self) -> None:
        """Be told that its item is cancelled."""

    def settle(self, value: Any) -> None:
        """Be made with a value that its item has already."""


T = TypeVar("T", bound=Told)


class Keeper(Protocol):
    """Who keeps runs until they are over."""

    def add(self, run: Run) -> None:
        """Keep a run."""


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


class Run:
    """One view of a run.

    Attributes:
        folder: the run folder.
        manifest: its manifest.
        backend: where its tasks run.
        rounds: the rounds that the view includes.
        jobs: job ids by round and array; an array that is not there is not submitted (yet).
        ledger: what the items have come to.
        changed: is notified whenever items settle; its lock guards everything here.
        started: the tasks that are known to have started.
        states: what the scheduler said last, by task, where it said something.
        told: the same, with all that it said.
        marks: how tasks have ended, where they left a mark.
        notes: what attempts said of themselves, by task and attempt.
        checkpoints: how items are gone on with that attempts began, likewise.
        retrying: the items that are held, to be run again.
        submission: submits its rounds.
        kept_by: the executor's list of runs that a shutdown waits for, or None.
        breaker: ends the run where its first tasks all die in the same way.
        ends: the tasks of dynamic rounds that take nothing more, and why.
        gave_up: why a task of a dynamic round could run nothing of what it took, by round.
        on_demand: whether it is watched no longer than somebody holds an array or a future of it.
    """

    def __init__(self, folder: RunFolder, manifest: Manifest, backend: Backend, rounds: list[Round]) -> None:
        self.folder, self.manifest, self.backend, self.rounds = folder, manifest, backend, rounds
        self.jobs: dict[tuple[int, int], str] = {}
        self.ledger = Ledger(manifest.items, folder.salt)
        self.changed = threading.Condition(threading.RLock())
        self.started: set[int] = set()
        self.states: dict[int, TaskState] = {}
        self.told: dict[int, TaskRecord] = {}
        self.marks: dict[int, EndMark] = {}
        self.notes: dict[tuple[int, int], list[dict[str, Any]]] = {}
        self.checkpoints: dict[tuple[int, int], dict[int, Recorded]] = {}
        self.retrying = Retrying(self)
        self.breaker = Breaker(self)
        self.submission = Submission(self)
        self.kept_by: Keeper | None = None
        self._last_round = _last_rounds(manifest.items, rounds)
        self._open: dict[int, Told] = {}
        self._telling: dict[int, Told] = {}
        self._settled: Weakly[Told] = Weakly()
        self._holders: WeakSet[object] = WeakSet()
        self.on_demand = False
        self._cancellations = CancellationReader(folder, [each.number for each in rounds])
        self.ends: dict[int, BaseException] = {}
        self.gave_up: dict[int, ItemError] = {}
        self._taken: dict[int, Taken] = {}
        self._share(rounds)
        self.learn_job_ids()

    def _share(self, rounds: Iterable[Round]) -> None:
        for each in rounds:
            if each.plan.blocks is not None:
                self._taken[each.number] = Taken(self.folder, each, each.plan.blocks)

    # Where things are.

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
                array, element = each.plan.element_of(task)
                return TaskPlace(each, array, element, self.jobs.get((each.number, array)))
        raise LookupError(task)

    def items_of(self, task: int) -> Sequence[int]:
        """Return the items that a task has, those left out that a later round took over."""
        parts = list(self._parts_of(task))
        return parts[0] if len(parts) == 1 else [item for part in parts for item in part]

    def _parts_of(self, task: int) -> Iterator[Sequence[int]]:
        its_round = self.place(task).round
        taken = self._taken.get(its_round.number)
        return self._still_in(its_round, taken.parts_of(task) if taken else [its_round.plan.items_of(task)])

    def _still_in(self, its_round: Round, parts: Iterable[Sequence[int]]) -> Iterator[Sequence[int]]:
        """Yield the parts, what a later round took over left out."""
        last, number = self._last_round, its_round.number
        for part in parts:
            yield [item for item in part if last[item] == number] if last else part

    def open_items(self, task: int) -> list[int]:
        """Return the items of a task that have not settled, and are not held for another round."""
        return self._open_in(self._parts_of(task))

    def _open_in(self, parts: Iterable[Sequence[int]]) -> list[int]:
        open_ = (item for part in parts if self._is_open(part) for item in self.ledger.open_among(part))
        return [item for item in open_ if not self.retrying.holds(item)]

    def has_open(self, task: int) -> bool:
        """Whether a task has items that have not settled and are not held, or may yet take some."""
        taken = self._taken.get(self.place(task).round.number)
        if taken and taken.free and task not in self.ends:
            return True
        if not self.retrying.holds_any:
            return any(map(self._is_open, self._parts_of(task)))
        return bool(self.open_items(task))

    def has_task(self, task: int) -> bool:
        """Whether a task is of this view."""
        return any(task in each.plan.tasks for each in self.rounds)

    def state_of(self, task: int) -> TaskState:
        """Return what a task is doing, as far as is known without asking again.

        Where all of its items have settled it is the state that it ends in.
        """
        items, told = self.items_of(task), self.states.get(task)
        if told is not None and told.is_final:
            return told
        if self.ledger.open_among(items):
            waiting = TaskState.PENDING if told is None else told
            return TaskState.RUNNING if task in self.started else waiting
        if items and self.ledger.count(Fate.CANCELLED, items) == len(items):
            return TaskState.CANCELLED
        failed = self.ledger.count(Fate.FAILURE, items) or self.ledger.count(Fate.ENDED, items)
        return TaskState.FAILED if failed else TaskState.COMPLETED

    def state_of_item(self, item: int) -> TaskState:
        """Return what the task is doing that has an item; while none has, the item waits."""
        if self.is_given(item):
            return self.state_of(self.task_of(item))
        return _STATES_OF_NOBODYS[self.ledger.fate(item)]

    def node_of(self, task: int) -> str | None:
        """Return the machine that a task ran on last, as far as is known."""
        told = self.told.get(task)
        node: str | None = self._last_notes(task).get("node", told.node if told else None)
        return node

    def _last_notes(self, task: int) -> dict[str, Any]:
        """Return what the last attempt of a task said of itself."""
        attempt = next(attempt for attempt in itertools.count() if (task, attempt) not in self.notes) - 1
        return {key: value for note in self.notes.get((task, attempt), ()) for key, value in note.items()}

    def count_running(self, items: Sequence[int] | None = None) -> int:
        """Return how many open items, of these or of all, are in tasks that have started."""
        if items is not None:
            return sum(self.is_begun(i) for i in self.ledger.open_among(items))
        return sum(self.ledger.count(Fate.OPEN, part) for task in self.started for part in self._parts_of(task))

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
        return self.folder.log(place.round.number, place.array, place.element, stream)

    @property
    def throttle(self) -> int | None:
        """How many tasks of the last round may run at once."""
        return self.rounds[-1].throttle

    @property
    def job_ids(self) -> tuple[str, ...]:
        """The ids of all jobs, in the order of submission."""
        with self.changed:
            return tuple(self.jobs[key] for key in sorted(self.jobs))

    # Settling.

    def recorded(self, recorded: Recorded) -> None:
        """Take in a record of outcomes."""
        if self._taken:
            self._infer_owner(recorded)
        header = recorded.header
        items = range(header.first, header.stop)
        if header.kind != Kind.FAILURE:
            self._settle(recorded, [items])
            return
        parts = self._last_said(items, recorded)
        if not parts:
            return
        if self.retrying.enabled or not self.ledger.count(Fate.VALUE):
            self._recorded_failure(recorded, parts)
        else:
            self._settle(recorded, parts)

    def _infer_owner(self, recorded: Recorded) -> None:
        task, header = _task_of_file(recorded), recorded.header
        taken = self._taken.get(self.place(task).round.number)
        if taken is not None and header.stop <= self.manifest.items:
            with self.changed:
                taken.infer(range(header.first, header.stop), task)

    def _settle(self, recorded: Recorded, parts: Iterable[range]) -> None:
        with self.changed:
            ranges = [each for part in parts for each in self.ledger.record(recorded, part)]
            settled = [item for each in ranges for item in self._asked(each)]
            closed = self._close(settled)
            self.changed.notify_all()
        self._tell(closed)

    def _recorded_failure(self, recorded: Recorded, parts: Sequence[range]) -> None:
        outcome = recorded.read().outcome(recorded.header.first)
        if not isinstance(outcome, Failure):
            return
        if self.retrying.enabled:
            self.ended(itertools.chain.from_iterable(parts), _always(outcome.error))
        else:
            self._settle(recorded, parts)
        task = _task_of_file(recorded)
        number = self.place(task).round.number
        if isinstance(outcome.error, ItemError) and number in self._taken:
            self.gave_up[number] = outcome.error
        self.breaker.note(task, outcome.error)

    def _last_said(self, items: range, recorded: Recorded) -> list[range]:
        """Return those of the items of a failure that no later round runs again."""
        last = self._last_round
        if not last:
            return [items]
        number = self.place(_task_of_file(recorded)).round.number
        return list(_ranges([item for item in items if last[item] == number]))

    def ended(self, items: Iterable[int], error_of: Callable[[int], BaseException], *, final: bool = False) -> None:
        """Settle open items that have come to errors, or hold them for another round, unless this is *final*."""
        with self.changed:
            settled = []
            for item in items:
                error = error_of(item) if self.ledger.is_open(item) else None
                if error is not None and (final or not self.retrying.hold(item, error)):
                    self.ledger.end(item, error)
                    settled.append(item)
            closed = self._close(settled)
            self.changed.notify_all()
        self._tell(closed)

    def _asked(self, items: range) -> Iterable[int]:
        """Return those of the items that someone holds an open future of."""
        if len(self._open) < len(items):
            return [item for item in self._open if item in items]
        return items

    def _close(self, items: Iterable[int]) -> list[tuple[int, Told]]:
        closed = []
        for item in items:
            future = self._open.pop(item, None)
            if future is not None:
                self._settled[item] = self._telling[item] = future
                closed.append((item, future))
        return closed

    def _tell(self, closed: Iterable[tuple[int, Told]]) -> None:
        """Hand their outcomes to futures; callbacks run here, so no lock may be held."""
        for item, future in closed:
            try:
                if self.ledger.fate(item) == Fate.CANCELLED:
                    future.tell_cancelled()
                else:
                    self._hand_over(future, item)
            except BaseException:  # noqa: BLE001  (a callback's sys.exit would end the watcher of all runs)
                _log.exception("a callback of item %d of %s raised", item, self.folder.path)
        with self.changed:
            for item, _ in closed:
                self._telling.pop(item, None)
            self.changed.notify_all()

    def _hand_over(self, future: Told, item: int) -> None:
        try:
            outcome = self.outcome(item)
        except Exception as error:  # noqa: BLE001  (a future that is never told is an endless wait)
            outcome = Failure(error)
        if isinstance(outcome, Value):
            future.set_result(outcome.value)
        else:
            future.set_exception(outcome.error)

    def all_told(self, items: Collection[int]) -> bool:
        """Whether no future of these items has yet to hear what its item has come to."""
        return all(future.done() for item, future in self._telling.items() if item in items)

    @property
    def over(self) -> bool:
        """Whether all items have settled, and all futures know."""
        with self.changed:
            return not self.ledger.open and all(future.done() for future in self._telling.values())

    def outcome(self, item: int) -> Outcome[Any]:
        """Read the outcome of an item that has settled and was not cancelled."""
        outcome = self.ledger.outcome(item)
        if not isinstance(outcome, Value) and isinstance(outcome.error, ItemError):
            where = self.whereabouts(self.task_of(item)) if self.is_given(item) else Place()
            outcome.error.located(**where._replace(item=item)._asdict())
        return outcome

    def wait_for(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until that holds or the time is up; it is tried whenever items settle."""
        with self.changed:
            return self.changed.wait_for(ready, timeout)

    # Futures.

    def future(self, item: int, make: Callable[[Run, int], T]) -> T:
        """Return the one future of an item."""
        if not self.ledger.is_open(item) and self._settled.get(item) is None:
            _, values = self.ledger.values(range(item, item + 1))
            if values:
                return self.done_futures(item, values, make)[0]
        with self.changed:
            future = self._open.get(item) or self._settled.get(item)
            if future is not None:
                return cast("T", future)  # there is one kind of future, and this module need not know it
            future = make(self, item)
            if self.ledger.is_open(item):
                self._open[item] = future
                return future
            self._settled[item] = self._telling[item] = future
        self._tell([(item, future)])
        return future

    def done_futures(self, first: int, values: Iterable[Any], make: Callable[[Run, int], T]) -> list[T]:
        """Return the futures of items in a row that have settled with these values; one that is there stays the one."""
        futures: list[Told] = []
        with self.changed:
            for item, value in enumerate(values, first):
                future = self._settled.get(item)
                if future is None:
                    self._settled[item] = future = make(self, item)
                    future.settle(value)
                futures.append(future)
        return cast("list[T]", futures)

    def held_by(self, holder: object) -> None:
        """Be wanted for as long as that is there."""
        with self.changed:
            self._holders.add(holder)

    @property
    def is_wanted(self) -> bool:
        """Whether what its items come to is still to be told to somebody, or needed for a retry."""
        if not self.on_demand or self.retrying.enabled:
            return True
        with self.changed:
            return bool(self._holders or self._open or self._telling) or self._settled.any_left()

    # Cancelling.

    def cancel(self, items: Collection[int], *, only_queued: bool = False) -> list[int]:
        """Cancel those of the items that are open; return them.

        The word stands once it is on disk. Tasks with nothing left to do are
        then taken from the scheduler, in one call per job.
        """
        with self.changed:
            chosen = [i for i in items if self.ledger.is_open(i)]
            if only_queued:
                chosen = [i for i in chosen if not self.is_begun(i)]
            if not chosen:
                return []
            closed = self._write_cancellations(chosen)
        self._tell(closed)
        self._take_from_scheduler(chosen)
        return chosen

    def _write_cancellations(self, items: Sequence[int]) -> list[tuple[int, Told]]:
        by_round: dict[int, list[int]] = {}
        for item in items:
            by_round.setdefault(self.round_of(item).number, []).append(item)
        closed = []
        for number, some in by_round.items():
            ranges = list(_ranges(some))
            CancellationWriter(self.folder, number, client_token()).add(ranges)
            closed += self._cancelled(ranges)
        self.changed.notify_all()
        return closed

    def _cancelled(self, ranges: Iterable[range]) -> list[tuple[int, Told]]:
        settled = [item for items in ranges for part in self.ledger.cancel(items) for item in self._asked(part)]
        return self._close(settled)

    def look_for_cancellations(self) -> None:
        """Take in what other clients have cancelled."""
        with self.changed:
            closed: list[tuple[int, Told]] = []
            for number, items in self._cancellations.new():
                if self._last_round:
                    mine = [item for item in items if self._last_round[item] == number]
                    closed += self._cancelled(_ranges(mine))
                else:
                    closed += self._cancelled([items])
            self.changed.notify_all()
        self._tell(closed)

    def _take_from_scheduler(self, items: Collection[int]) -> None:
        if not self.ledger.open:
            for job_id in self.job_ids:
                self.backend.cancel(job_id)
            return
        elements: dict[str, list[int]] = {}
        shared = {number for number, taken in self._taken.items() if any(map(self._is_open, taken.free_parts()))}
        for task in sorted({self.task_of(item) for item in items}):
            place = self.place(task)
            if place.job_id and place.round.number not in shared and not any(map(self._is_open, self._parts_of(task))):
                elements.setdefault(place.job_id, []).append(place.element)
        for job_id, some in elements.items():
            whole = len(some) == self._length_of(job_id)
            self.backend.cancel(job_id, None if whole else some)

    def _is_open(self, part: Sequence[int]) -> bool:
        if isinstance(part, range):
            return not self.ledger.all_settled(part)
        return bool(self.ledger.count(Fate.OPEN, part))

    def _length_of(self, job_id: str) -> int:
        number, array = next(key for key, each in self.jobs.items() if each == job_id)
        return next(r for r in self.rounds if r.number == number).plan.arrays[array].length

    # Dynamic rounds.

    def look_for_claims(self) -> int:
        """Take in what tasks have taken; return how many folders were looked at."""
        looked = [taken for taken in self._taken.values() if taken.free]
        with self.changed:
            for taken in looked:
                taken.look()
        return len(looked)

    def forsaken(self) -> Iterator[Round]:
        """Yield the dynamic rounds of which items are left, and all tasks are over."""
        for each in self.rounds:
            taken = self._taken.get(each.number)
            if taken and taken.free and all(task in self.ends for task in each.plan.tasks):
                yield each

    def end_untaken(self, its_round: Round) -> None:
        """Settle what no task has taken, since none will: as what its tasks ended by, as far as that is known."""
        taken = self._taken[its_round.number]
        causes = [self.ends[task] for task in its_round.plan.tasks]
        told = [cause for cause in causes if not isinstance(cause, ResultLost)]
        gave_up = self.gave_up.get(its_round.number)
        cause = told[-1] if told else gave_up or ResultLost("all tasks ended, and none had taken the item")
        if isinstance(cause, ItemError):
            cause = cause.for_item(-1)
            cause.place = Place()
            if told or gave_up:
                cause.what = f"no task was left to take the item: {cause.what}"
        self.ended(self._open_in(self._still_in(its_round, taken.free_parts())), _each(cause))

    def dismiss(self) -> None:
        """Take from the scheduler what has not begun of rounds whose tasks take blocks: nothing is left for it."""
        late: dict[str, list[int]] = {}
        for each in self.rounds:
            for task in each.plan.tasks if each.plan.blocks is not None else ():
                place = self.place(task)
                if place.job_id and task not in self.started:
                    late.setdefault(place.job_id, []).append(place.element)
        if late:
            # From a thread, since the scheduler's commands may hang; no daemon, since a script may end now.
            threading.Thread(target=self._dismiss, args=(late,), name="slurmlaunch-dismiss").start()

    def _dismiss(self, late: dict[str, list[int]]) -> None:
        for job_id, elements in late.items():
            try:
                self.backend.cancel(job_id, elements)
            except SchedulerError as error:
                _log.info("slurmlaunch could not take tasks of %s that have nothing left to do: %s", job_id, error)

    # Further rounds.

    def cause_of(self, item: int, error: BaseException) -> Cause:
        """Return why an item is to be run again, and what is known of its last attempt."""
        if not self.is_given(item):
            return Cause(error)
        task = self.task_of(item)
        notes = self._last_notes(task)
        ended = notes.get("ended", time.time())
        seconds = ended - notes["started"] if "started" in notes else None
        return Cause(error, self.node_of(task), notes.get("peak"), seconds)

    def add_round(self, items: Sequence[int], options: Options, *, automatic: bool = False) -> Round:
        """Make a round for some of the items; *automatic* says that nobody asked for it.

        Raises:
            FileExistsError: another client made one first.
            OptionError: the options do not fit together.
        """
        before = self.rounds[-1]
        limits = self.backend.limits()
        shape = options.shape(single_item=self.manifest.single, available=limits.cpus)
        first_task = before.plan.first_task + before.plan.slices.tasks
        blocks = before.plan.blocks
        # As many tasks as before, so that a choice of tasks= or chunksize= holds on.
        planned = plan(
            len(items),
            limits=limits,
            tasks=before.plan.slices.tasks,
            chunksize=blocks.chunksize if blocks else None,
            first_task=first_task,
            schedule=blocks.schedule if blocks else STATIC,
        )
        number = before.number + 1
        ranks = ranks_plan(options, self.backend, shape)
        made = make_plan(planned, options, self.manifest, number, shape, items=array("Q", items), ranks=ranks)
        return Round.make(self.folder, number, made._replace(automatic=automatic), self._checkpoints_of(items))

    def _checkpoints_of(self, items: Collection[int]) -> dict[int, Recorded]:
        """Return the last checkpoint of each of the items that has one."""
        if not any(self.checkpoints.values()):
            return {}
        last: dict[int, Recorded] = {}
        for _, found in sorted(self.checkpoints.items()):
            last.update(found)
        return {item: last[item] for item in items if item in last}

    def extend(self, added: Round) -> None:
        """Take a further round into this view."""
        with self.changed:
            self._share([added])
            self.rounds.append(added)
            self._last_round = _last_rounds(self.manifest.items, self.rounds)
            self._cancellations = CancellationReader(self.folder, [each.number for each in self.rounds])
        self.learn_job_ids()

    def learn_job_ids(self) -> int:
        """Read which arrays have been submitted, perhaps by another client; return how many file operations it took."""
        operations = 0
        for each in self.rounds:
            if any((each.number, number) not in self.jobs for number in range(len(each.plan.arrays))):
                with self.changed:
                    self.jobs.update({(each.number, number): job_id for number, job_id in each.job_ids().items()})
                operations += _JOURNAL_COST
        return operations

    # Looking back, for a retry.

    def unfinished(self, earlier: Run) -> list[int]:
        """Return the items that have failed, were cancelled, or were never submitted.

        What ended without an outcome is not on disk: of that an earlier view may know.
        """
        with self.changed:
            return [item for item in range(self.manifest.items) if self._is_unfinished(item, earlier)]

    def _is_unfinished(self, item: int, earlier: Run) -> bool:
        fate = self.ledger.fate(item)
        if fate != Fate.OPEN:
            return fate != Fate.VALUE
        place = self.place(self.task_of(item))
        arrays = [place.array] if self.is_given(item) else range(len(place.round.plan.arrays))
        if not any((place.round.number, number) in self.jobs for number in arrays):
            return not any(self.submission.will_come(place.round, number) for number in arrays)
        ended = earlier.ledger.fate(item) == Fate.ENDED
        return ended and earlier.round_of(item).number == self.round_of(item).number


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


def _task_of_file(recorded: Recorded) -> int:
    return int(recorded.file.name.partition(".")[0])


def _each(error: BaseException) -> Callable[[int], BaseException]:
    return error.for_item if isinstance(error, ItemError) else _always(error)


def _always(error: BaseException) -> Callable[[int], BaseException]:
    return lambda _: error


def _last_rounds(items: int, rounds: Sequence[Round]) -> array[int] | None:
    if len(rounds) <= 1:
        return None
    last = array("H", bytes(2 * items))
    for each in rounds[1:]:
        for item in each.plan.items or ():
            last[item] = each.number
    return last


def _ranges(items: Sequence[int]) -> Iterator[range]:
    ordered = sorted(items)
    start = 0
    for i in range(1, len(ordered) + 1):
        if i == len(ordered) or ordered[i] != ordered[i - 1] + 1:
            yield range(ordered[start], ordered[i - 1] + 1)
            start = i
