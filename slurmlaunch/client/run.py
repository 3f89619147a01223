"""A run as this process sees it: its folder, its tasks, and what its items have come to.

A `Run` is one view of a run folder: the rounds up to one of them. A retry adds a
round and is a new view, so that what was returned before stays what it was. A
`Run` settles items, and tells the futures that wait for them; it submits nothing
and looks at nothing by itself (`submission`, `lookout`).
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast
from weakref import WeakSet

from slurmlaunch.client.audience import Audience, Told
from slurmlaunch.client.held import Held
from slurmlaunch.client.ledger import Fate, Ledger
from slurmlaunch.client.recovery import Cause
from slurmlaunch.client.stretches import consecutive
from slurmlaunch.client.tasks import Tasks
from slurmlaunch.errors import ItemError, Place, ResultLost, SchedulerError
from slurmlaunch.outcome import Failure, Value
from slurmlaunch.runfolder.cancellations import CancellationReader, CancellationWriter
from slurmlaunch.runfolder.clients import writer_name
from slurmlaunch.runfolder.records import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from slurmlaunch.backends.base import Backend
    from slurmlaunch.outcome import Outcome
    from slurmlaunch.runfolder.journal import Round
    from slurmlaunch.runfolder.layout import Manifest, RunFolder
    from slurmlaunch.runfolder.outcomes import Recorded

T = TypeVar("T", bound=Told)

_log = logging.getLogger("slurmlaunch")


class Keeper(Protocol):
    """Who keeps runs until they are over."""

    def add(self, run: Run) -> None:
        """Keep a run."""


class Run:
    """One view of a run.

    Attributes:
        folder: the run folder.
        manifest: its manifest.
        backend: where its tasks run.
        tasks: who has which item, and how each is doing.
        ledger: what the items have come to.
        held: the items that are to be run again.
        changed: is notified whenever items settle; its lock guards everything here.
        on_demand: whether it is watched no longer than somebody holds an array or a future of it.
        was_called: whether the function is known to have raised: later failures are not looked into without need.
        kept_by: the executor's list of runs that a shutdown waits for, or None.
    """

    def __init__(self, folder: RunFolder, manifest: Manifest, backend: Backend, rounds: list[Round]) -> None:
        self.folder, self.manifest, self.backend = folder, manifest, backend
        self.ledger = Ledger(manifest.items, folder.salt)
        self.held = Held(rounds)
        self.tasks = Tasks(folder, rounds, self.ledger, self.held)
        self.changed = threading.Condition(threading.RLock())
        self.kept_by: Keeper | None = None
        self._audience = Audience()
        self._holders: WeakSet[object] = WeakSet()
        self.on_demand = False
        self._cancellations = CancellationReader(folder, [each.number for each in rounds])
        self._gave_up: dict[int, ItemError] = {}
        self.was_called = False
        self.learn_job_ids()

    @property
    def throttle(self) -> int | None:
        """How many tasks of the last round may run at once."""
        return self.tasks.rounds[-1].throttle

    @property
    def job_ids(self) -> tuple[str, ...]:
        """The ids of all jobs, in the order of submission."""
        with self.changed:
            return tuple(self.tasks.jobs[key] for key in sorted(self.tasks.jobs))

    def learn_job_ids(self) -> int:
        """Read which arrays have been submitted, perhaps by another client; return how many file operations it took."""
        with self.changed:
            return self.tasks.learn_job_ids()

    def extend(self, added: Round) -> None:
        """Take a further round into this view; what it runs is held no longer."""
        with self.changed:
            self.tasks.add(added)
            self.held.count(added)
            self._cancellations = CancellationReader(self.folder, [each.number for each in self.tasks.rounds])
        self.learn_job_ids()

    # Settling.

    def recorded(self, recorded: Recorded) -> BaseException | None:
        """Take in a record of outcomes; return the failure that it holds, where it was read."""
        task, header = _task_of_file(recorded), recorded.header
        items = range(header.first, header.stop)
        with self.changed:
            self.tasks.infer_owner(task, items)
        if header.kind != Kind.FAILURE:
            self._settle(recorded, [items])
            return None
        # What a later round runs again: of that it is not the last word.
        number = self.tasks.place(task).round.number
        parts = [each for part in self.tasks.still_in(number, [items]) for each in consecutive(part)]
        if parts and (self.held.enabled or not (self.was_called or self.ledger.count(Fate.VALUE))):
            return self._recorded_failure(task, parts, recorded)
        self._settle(recorded, parts)
        return None

    def _settle(self, recorded: Recorded, parts: Sequence[range]) -> None:
        with self.changed:
            ranges = [each for part in parts for each in self.ledger.record(recorded, part)]
            called = self._audience.call(item for each in ranges for item in self._audience.asked(each))
            self.changed.notify_all()
        self._tell(called)

    def _recorded_failure(self, task: int, parts: Sequence[range], recorded: Recorded) -> BaseException | None:
        outcome = recorded.read().outcome(recorded.header.first)
        if not isinstance(outcome, Failure):
            return None
        error_of = error_for_each(outcome.error)
        items = parts[0] if len(parts) == 1 else [item for part in parts for item in part]
        with self.changed:
            left = self._without_held(items, error_of)
        if len(left) == len(items):
            self._settle(recorded, parts)
        else:
            self.ended(left, error_of, final=True)
        if not isinstance(outcome.error, ItemError):
            self.was_called = True
        elif self.tasks.is_dynamic(task):
            self._gave_up[self.tasks.place(task).round.number] = outcome.error
        return outcome.error

    def ended(self, items: Sequence[int], error_of: Callable[[int], BaseException], *, final: bool = False) -> None:
        """Settle open items that have come to errors, or hold them for another round, unless this is *final*."""
        with self.changed:
            left = items if final else self._without_held(items, error_of)
            settled = [part for each in consecutive(left) for part in self.ledger.end(each, error_of)]
            called = self._audience.call(item for part in settled for item in self._audience.asked(part))
            self.changed.notify_all()
        self._tell(called)

    def _without_held(self, items: Sequence[int], error_of: Callable[[int], BaseException]) -> Sequence[int]:
        """Hold those of the items that are worth another attempt; return the others."""
        if not (self.held.enabled and items):
            return items
        error = error_of(items[0])  # one for all that it ended, and so is what is known of each task
        causes: dict[int | None, Cause] = {}
        return [item for item in items if not (self.ledger.is_open(item) and self._is_held(item, error, causes))]

    def _is_held(self, item: int, error: BaseException, causes: dict[int | None, Cause]) -> bool:
        """Hold an open item, if what it has come to is worth another attempt; say whether it is held."""
        if item not in self.held and self.held.wants(item, error):
            task = self.tasks.task_of(item) if self.tasks.is_given(item) else None
            if task not in causes:
                causes[task] = self._cause_of(task, error)
            self.held.add(item, causes[task])
        return item in self.held

    def _cause_of(self, task: int | None, error: BaseException) -> Cause:
        """Return why items of a task, or of none, are to be run again, and what is known of its last attempt."""
        if task is None:
            return Cause(error)
        notes = self.tasks.last_notes(task)
        ended = notes.get("ended", time.time())
        seconds = ended - notes["started"] if "started" in notes else None
        return Cause(error, self.tasks.node_of(task), notes.get("peak"), seconds)

    def end_untaken(self, its_round: Round) -> None:
        """Settle what no task has taken, since none will: as what its tasks ended by, as far as that is known."""
        causes = [self.tasks.ends[task] for task in its_round.plan.tasks]
        told = [cause for cause in causes if not isinstance(cause, ResultLost)]
        gave_up = self._gave_up.get(its_round.number)
        cause = told[-1] if told else gave_up or ResultLost("all tasks ended, and none had taken the item")
        if isinstance(cause, ItemError):
            cause = cause.for_item(-1)
            cause.place = Place()
            if told or gave_up:
                cause.what = f"no task was left to take the item: {cause.what}"
        self.ended(self.tasks.untaken(its_round), error_for_each(cause))

    # Telling.

    def _tell(self, called: Iterable[tuple[int, Told]]) -> None:
        """Hand their outcomes to futures; callbacks run here, so no lock may be held."""
        for item, future in called:
            try:
                if self.ledger.fate(item) == Fate.CANCELLED:
                    future.tell_cancelled()
                else:
                    self._hand_over(future, item)
            except BaseException:  # noqa: BLE001  (a callback's sys.exit would end the watcher of all runs)
                _log.exception("a callback of item %d of %s raised", item, self.folder.path)
        with self.changed:
            self._audience.dismiss(called)
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
        return self._audience.all_told(items)

    @property
    def over(self) -> bool:
        """Whether all items have settled, and all futures know."""
        with self.changed:
            return not self.ledger.open and self._audience.all_told()

    def outcome(self, item: int) -> Outcome[Any]:
        """Read the outcome of an item that has settled and was not cancelled."""
        outcome = self.ledger.outcome(item)
        if not isinstance(outcome, Value) and isinstance(outcome.error, ItemError):
            tasks = self.tasks
            where = tasks.whereabouts(tasks.task_of(item)) if tasks.is_given(item) else Place()
            outcome.error.located(**where._replace(item=item)._asdict())
        return outcome

    def wait_for(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until that holds or the time is up; it is tried whenever items settle."""
        with self.changed:
            return self.changed.wait_for(ready, timeout)

    def future(self, item: int, make: Callable[[Run, int], T]) -> T:
        """Return the one future of an item."""
        if not self.ledger.is_open(item) and self._audience.find(item) is None:
            _, values = self.ledger.values(range(item, item + 1))
            if values:
                return self.done_futures(item, values, make)[0]
        with self.changed:
            found = self._audience.find(item)
            if found is not None:
                return cast("T", found)  # there is one kind of future, and this module need not know it
            future = make(self, item)
            settled = not self.ledger.is_open(item)
            self._audience.admit(item, future, settled=settled)
        if settled:
            self._tell([(item, future)])
        return future

    def done_futures(self, first: int, values: Iterable[Any], make: Callable[[Run, int], T]) -> list[T]:
        """Return the futures of items in a row that have settled with these values; one that is there stays the one."""
        with self.changed:
            return self._audience.admit_done(first, values, functools.partial(make, self))

    def held_by(self, holder: object) -> None:
        """Be wanted for as long as that is there."""
        with self.changed:
            self._holders.add(holder)

    @property
    def is_wanted(self) -> bool:
        """Whether what its items come to is still to be told to somebody, or needed for a retry."""
        if not self.on_demand or self.held.enabled:
            return True
        with self.changed:
            return bool(self._holders) or self._audience.is_there

    # Cancelling.

    def cancel(self, items: Collection[int], *, only_queued: bool = False) -> list[int]:
        """Cancel those of the items that are open; return them.

        The word stands once it is on disk. Tasks with nothing left to do are
        then taken from the scheduler, in one call per job.
        """
        called: list[tuple[int, Told]] = []
        try:
            with self.changed:
                chosen = [i for i in items if self.ledger.is_open(i)]
                if only_queued:
                    chosen = [i for i in chosen if not self.tasks.is_begun(i)]
                self._write_cancellations(chosen, called)
        finally:  # also where not all could be written down
            self._tell(called)
        if chosen:
            self._take_from_scheduler(chosen)
        return chosen

    def _write_cancellations(self, items: Sequence[int], called: list[tuple[int, Told]]) -> None:
        by_round: dict[int, list[int]] = {}
        for item in items:
            by_round.setdefault(self.tasks.round_of(item).number, []).append(item)
        for number, some in by_round.items():
            ranges = list(consecutive(sorted(some)))
            CancellationWriter(self.folder, number, writer_name()).add(ranges)
            called += self._cancelled(ranges)
        self.changed.notify_all()

    def _cancelled(self, ranges: Iterable[range]) -> list[tuple[int, Told]]:
        settled = [
            item for items in ranges for part in self.ledger.cancel(items) for item in self._audience.asked(part)
        ]
        return self._audience.call(settled)

    def look_for_cancellations(self) -> int:
        """Take in what other clients have cancelled; return how many file operations it took."""
        called: list[tuple[int, Told]] = []
        before = self._cancellations.operations
        try:
            with self.changed:
                for number, items in self._cancellations.new():
                    for part in self.tasks.still_in(number, [items]):
                        called += self._cancelled([part] if isinstance(part, range) else consecutive(part))
                self.changed.notify_all()
        finally:  # also where one of the files cannot be read now
            self._tell(called)
        return self._cancellations.operations - before

    def _take_from_scheduler(self, items: Collection[int]) -> None:
        """Take tasks with nothing left to do from the scheduler: from all jobs, whichever of them that fails for."""
        errors = []
        for job_id, elements in self._without_work(items).items():
            try:
                self.backend.cancel(job_id, elements)
            except SchedulerError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _without_work(self, items: Collection[int]) -> dict[str, list[int] | None]:
        """Return which elements of jobs a cancel of these items leaves with nothing to do; None is all of them."""
        if not self.ledger.open:
            return dict.fromkeys(self.job_ids)
        elements: dict[str, list[int]] = {}
        for task in self.tasks.without_work(sorted({self.tasks.task_of(item) for item in items})):
            place = self.tasks.place(task)
            if place.job_id:
                elements.setdefault(place.job_id, []).append(place.element)
        whole = {job_id for job_id, some in elements.items() if len(some) == self.tasks.length_of(job_id)}
        return {job_id: None if job_id in whole else some for job_id, some in elements.items()}

    def dismiss(self) -> None:
        """Take from the scheduler what has not begun of rounds whose tasks take blocks: nothing is left for it."""
        late: dict[str, list[int]] = {}
        for each in self.tasks.rounds:
            for task in each.plan.tasks if each.plan.blocks is not None else ():
                place = self.tasks.place(task)
                if place.job_id and task not in self.tasks.started:
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


def error_for_each(error: BaseException) -> Callable[[int], BaseException]:
    """Return what gives each item its own error of this kind, where the error is one that names an item."""
    return error.for_item if isinstance(error, ItemError) else _always(error)


def _always(error: BaseException) -> Callable[[int], BaseException]:
    return lambda _: error


def _task_of_file(recorded: Recorded) -> int:
    return int(recorded.file.name.partition(".")[0])
