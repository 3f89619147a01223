"""One view of a run: its state machine, its futures, and the outcomes on disk.

A `Run` joins the parts of the client: it passes events to `RunState` under its lock, notifies
the futures of settled items, and reads outcomes on demand. It covers the rounds up to one of
them: a retry is a new view, so that an array that was returned before does not change. A `Run`
submits and polls nothing (`submission`, `watcher`), and knows no process-wide objects.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakSet

from slurmlaunch.client.code import Code
from slurmlaunch.client.environment import Environments
from slurmlaunch.client.events import (
    CancelJobs,
    CancellationsRecorded,
    CancelRequested,
    RecordCancellations,
    RoundAdded,
    Settle,
    ranges_in,
)
from slurmlaunch.client.explanations import Explanations
from slurmlaunch.client.futures_registry import FuturesRegistry, Notifier
from slurmlaunch.client.ledger import ItemStatus
from slurmlaunch.client.state import RunState
from slurmlaunch.errors import (
    ResultLost,
    SchedulerError,
    SlurmlaunchError,
    UnsafeRunFolder,
)
from slurmlaunch.outcome import Failure, Value
from slurmlaunch.runfolder.changes import latency_of
from slurmlaunch.runfolder.clients import writer_name
from slurmlaunch.runfolder.outcomes import read_record
from slurmlaunch.runfolder.rounds import Round, write_cancellations
from slurmlaunch.runfolder.storage import Patience, named

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from slurmlaunch.backends.base import Backend
    from slurmlaunch.client.events import Effect, Event
    from slurmlaunch.client.futures_registry import Batch
    from slurmlaunch.client.ledger import Ledger
    from slurmlaunch.outcome import Outcome
    from slurmlaunch.runfolder.layout import Manifest, RunFolder
    from slurmlaunch.runfolder.outcomes import Content
    from slurmlaunch.runfolder.output import OutputFile

_log = logging.getLogger("slurmlaunch")

_HELP_AGAIN = 0.02
"""Seconds between two looks for futures that settled while a callback waits for a later one of its run."""

_LOOK_AGAIN = 0.5
"""Seconds after which a waiting thread looks again: a callback that hangs keeps its run from waking it."""


F = TypeVar("F")
"""The class of futures. A run has one, which this module does not know: `slurmlaunch.client.futures.Future`."""


class OutcomeReader:
    """Reads outcomes where the ledger says that they are; keeps the last record, whose neighbours are wanted next."""

    def __init__(self, ledger: Ledger, salt: int) -> None:
        self._ledger, self._salt = ledger, salt
        self._last: tuple[range, Content] | None = None
        self._patience = Patience()

    def outcome(self, item: int) -> Outcome[Any]:
        """Return the outcome of an item that has settled and was not cancelled; a `Failure` if it cannot be read."""
        if self._ledger.status(item) == ItemStatus.ENDED:
            return Failure(self._ledger.error_of(item))
        try:
            items, content = self._content(item)
            if len(items) == 1:
                self._last = None
            return content.outcome(item)
        except ResultLost as error:
            return Failure(error.located(item=item))
        except (OSError, UnsafeRunFolder) as error:
            return Failure(named(error))

    def values(self, items: range) -> tuple[int, list[Any]]:
        """Return the values of the first of these settled items, as many as are read at once.

        Returns:
            The item after them, and their values; none if the first has to be read by `outcome`.
        """
        if self._ledger.status(items.start) == ItemStatus.VALUE:
            with contextlib.suppress(ResultLost, OSError, UnsafeRunFolder):
                recorded, content = self._content(items.start)
                some = range(items.start, min(recorded.stop, items.stop))
                values = content.values(some)
                if values is not None:
                    return some.stop, values
                self._last = recorded, content  # `outcome` is next; a large record is not read twice
        return items.start, []

    def _content(self, item: int) -> tuple[range, Content]:
        last = self._last
        if last is not None and item in last[0]:
            return last
        location = self._ledger.records.find(item)
        read = partial(read_record, location.source, location.offset, self._salt)
        found = location.items, self._patience.run(read)
        self._last = found if len(location.items) > 1 else None
        return found


class _Changed(threading.Condition):
    """The lock of a run, and its condition."""

    def __init__(self) -> None:
        super().__init__(threading.RLock())

    @property
    def is_owned(self) -> bool:
        """Whether this thread holds the lock."""
        return bool(self._is_owned())  # type: ignore[attr-defined]


def _in_thread(work: Callable[[], F]) -> Future[F]:
    """Do work in a thread, so that Ctrl-C ends the waiting for it, and not the work half-way."""
    future: Future[F] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  (it is raised where the result is asked for)
            future.set_exception(error)

    try:
        threading.Thread(target=run, name="slurmlaunch-cancel").start()
    except RuntimeError:  # there are too many threads, or the interpreter exits
        run()
    return future


class Run:
    """One view of a run.

    Attributes:
        rounds: its rounds on disk, by number; `tasks.rounds` holds the state of each.
        clock: returns the seconds by which it is watched.
        state: the state machine, with its ledger and tasks; changed under the lock.
        changed: the lock, and a condition that is notified whenever items settle.
        explanations: what completes errors, and reads arguments.
        environments: the environments of its rounds, in which their tasks start.
        on_demand: whether it is watched no longer than somebody holds an array or a future of it.
        keep: has the shutdown of an executor wait for a later view of this run, too; None if the run has no executor.
        failures: what is shown of the first failures, by item.
        submitting: the numbers of the rounds that this view submits.
        outputs: the files of the items' output that were read, by task, attempt and rank.
    """

    def __init__(
        self,
        folder: RunFolder,
        manifest: Manifest,
        backend: Backend,
        rounds: Iterable[Round],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rounds = list(rounds)
        grown = self.rounds[-1].plan.manifest.get("items", manifest.items) if self.rounds else manifest.items
        self.folder, self.manifest, self.backend, self.clock = folder, manifest._replace(items=grown), backend, clock
        self.state = RunState(
            folder,
            self.manifest.items,
            [(each.number, each.plan) for each in self.rounds],
            latency=latency_of(folder.path.parent),  # the folder of runs: looked up once, not for each run
            clock_offset=time.time() - clock(),
        )
        self.ledger, self.tasks = self.state.ledger, self.state.tasks
        self.tasks.clusters = manifest.clusters
        self.changed = _Changed()
        self.environments = Environments(folder)
        self.on_demand = False
        self.keep: Callable[[Run], None] | None = None
        self.submitting: set[int] = set()
        self.failures: dict[int, str] = {}
        self.outputs: dict[tuple[int, int, int | None], OutputFile] = {}
        self._codes: dict[int, Code] = {}
        self.explanations = Explanations(self.state, folder, manifest, self.rounds, self.code)
        self._futures = FuturesRegistry()
        self.reader = OutcomeReader(self.ledger, folder.salt)
        self._coroutines: list[Callable[[], None]] = []
        self._notifier = Notifier(self._notify, self._notified)
        self._holders: WeakSet[object] = WeakSet()
        self._disowned: SlurmlaunchError | None = None
        self._pid = os.getpid()

    @property
    def job_ids(self) -> tuple[str, ...]:
        """The ids of all jobs, in the order of submission."""
        with self.changed:
            return self.tasks.job_ids

    def code(self, number: int) -> Code:
        """Return the code that the tasks of a round run; raises as `Code.read` does."""
        if number not in self._codes:
            self._codes[number] = Code.read(self.folder, self.manifest_of(number))
        return self._codes[number]

    def manifest_of(self, number: int) -> Manifest:
        """Return the manifest as it applies to a round; -1 is the last one."""
        return self.manifest.changed(self.tasks.rounds[number].plan.manifest)

    # Events.

    def handle(self, event: Event) -> list[Effect]:
        """Update the state and notify futures; return the effects that are left for the caller to execute."""
        with self.changed:
            effects = self.state.handle(event, self.clock())
            if isinstance(event, RoundAdded) and event.round == len(self.rounds):
                self.rounds.append(Round(self.folder, event.round, event.plan))  # so that `tasks.rounds` has each
            if self.ledger.items != self.manifest.items:
                self.manifest = self.manifest._replace(items=self.ledger.items)
            settled = [effect.items for effect in effects if isinstance(effect, Settle)]
            futures = self._futures.take(settled)
            if settled:
                self._wake()
        if isinstance(event, CancellationsRecorded):
            self._notify_here(futures)  # whoever cancels a future finds it cancelled
        else:
            self._notifier.add(futures)
        return [effect for effect in effects if not isinstance(effect, Settle)]

    def _notify_here(self, futures: Batch) -> None:
        for item, future in futures:
            self._notify(item, future)
        if futures:
            self._notified(futures)

    def _notify(self, item: int, future: Any) -> None:
        """Give a future its outcome. The one place where callbacks run, so the caller must not hold the lock."""
        try:
            if self.ledger.status(item) == ItemStatus.CANCELLED:
                future.notify_cancelled()
            else:
                self._set_outcome(future, item)
        except BaseException:  # noqa: BLE001  (a callback's sys.exit would end the thread)
            _log.exception("a callback of item %d of %s raised", item, self.folder.path)

    def _notified(self, futures: Batch) -> None:
        with self.changed:
            self._futures.notified(futures)
            self._wake()

    def _wake(self) -> None:
        """Have waiting threads and coroutines look again; the caller holds the lock."""
        self.changed.notify_all()
        for wake in list(self._coroutines):
            wake()

    def _set_outcome(self, future: Any, item: int) -> None:
        try:
            outcome = self.outcome(item)
        except Exception as error:  # noqa: BLE001  (a future that is never notified is an endless wait)
            outcome = Failure(error)
        if isinstance(outcome, Value):
            future.set_result(outcome.value)
        else:
            future.set_exception(outcome.error)

    # Outcomes and futures.

    def outcome(self, item: int) -> Outcome[Any]:
        """Read the outcome of an item that has settled and was not cancelled."""
        outcome = self.reader.outcome(item)
        if not isinstance(outcome, Value):
            self.explanations.complete(item, outcome.error)
        return outcome

    def future(self, item: int, make: Callable[[Run, int], F]) -> F:
        """Return the one future of an item."""
        if not self.ledger.is_open(item) and self._futures.find(item) is None:
            _, values = self.reader.values(range(item, item + 1))
            if values:
                return self.done_futures(item, values, make)[0]
        with self.changed:
            found = self._futures.find(item)
            if found is not None:
                return cast("F", found)
            future: Any = make(self, item)
            settled = not self.ledger.is_open(item)
            self._futures.add(item, future, settled=settled)
        if settled:
            self._notify_here([(item, future)])
        elif self._disowned is not None:
            future.disown(self._disowned)
        return cast("F", future)

    def done_futures(self, first: int, values: Iterable[Any], make: Callable[[Run, int], F]) -> list[F]:
        """Return the futures of consecutive items that have settled with these values."""
        with self.changed:
            return self._futures.add_done(first, values, lambda item: make(self, item))

    def all_notified(self, items: Collection[int] | None = None) -> bool:
        """Whether no future of settled items, of these or of all, has yet to be notified."""
        return self._futures.all_notified(items)

    def all_called_back(self) -> bool:
        """Whether the callbacks of all settled items have returned."""
        return self._futures.all_called_back()

    @property
    def over(self) -> bool:
        """Whether all items have settled and all futures are done."""
        with self.changed:
            return not self.ledger.open and self._futures.all_notified()

    def wait_for(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until a condition on settled items holds, or for so many seconds; return whether it holds.

        Raises:
            SlurmlaunchError: this process was forked from the one that watches the run.
        """
        if self._disowned is not None and not ready():
            raise self._disowned
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            pause = _LOOK_AGAIN
            if self._notifier.is_current:  # a callback waits for futures that only this thread can notify
                pause = _HELP_AGAIN
                while not ready() and self._notifier.notify_next():
                    pass
            with self.changed:
                left = max(0.0, deadline - time.monotonic())
                if self.changed.wait_for(ready, min(pause, left)) or not left:
                    return ready()

    async def settled(self, ready: Callable[[], bool], deadline: float | None) -> bool:
        """Wait in a coroutine as `wait_for` does, until *deadline* (monotonic); return whether the condition holds."""
        import asyncio  # here, since most programs have no coroutines, and its import takes long

        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(event.set)

        self._coroutines.append(wake)
        try:
            while not ready():
                if self._disowned is not None:
                    raise self._disowned
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), left)
                event.clear()
                if left == 0.0:
                    return ready()
            return True
        finally:
            self._coroutines.remove(wake)

    def wait_for_future(self, future: Future[Any], timeout: float | None) -> None:
        """Wait until a future of this run is done, or for so many seconds."""
        if self._notifier.is_current:
            self.wait_for(future.done, timeout)
        else:
            wait([future], timeout)

    def check_owned(self, item: int) -> None:
        """Raise a `SlurmlaunchError` if the item is open and only the parent of this forked process settles it."""
        if self._disowned is not None and self.ledger.is_open(item):
            raise self._disowned

    def keep_for(self, holder: object) -> None:
        """Keep the run watched while the holder exists."""
        with self.changed:
            self._holders.add(holder)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for its items, or may ask for them, or a retry may need them."""
        return not self.on_demand or self.state.pending.enabled or self.is_held

    @property
    def is_held(self) -> bool:
        """Whether somebody holds an array or a future of it."""
        with self.changed:
            return bool(self._holders) or self._futures.in_use

    def disown(self) -> None:
        """Have everything that waits raise an error, in a forked child: the threads that settle items are not there."""
        self.changed = _Changed()  # the parent's may have been locked at the fork
        self._disowned = SlurmlaunchError(
            f"this future belongs to process {self._pid}, which forked this process: a forked child gets no results "
            f"of runs that it inherits. Get the run in this process with slurmlaunch.attach({str(self.folder.path)!r})."
        )
        self._notifier = Notifier(self._notify, self._notified)
        self._futures.disown_all(self._disowned)

    # Cancelling.

    def cancel(self, items: Sequence[int], *, only_queued: bool = False) -> list[int]:
        """Cancel those of the items that are open; return them.

        The cancellation is final once it is on disk. Tasks with nothing left to do are then
        cancelled in the scheduler, in one call per job.

        Raises:
            OSError: some cancellations could not be written; these items stay open.
            SchedulerError: the scheduler could not be told; the items are cancelled all the same.
        """
        cancelling = _in_thread(partial(self._cancel, items, only_queued=only_queued))
        if self.changed.is_owned:  # a signal handler cancels, and has interrupted this very object: it cannot wait
            return self.ledger.open_among(items)
        return cancelling.result()

    def _cancel(self, items: Sequence[int], *, only_queued: bool) -> list[int]:
        cancelled: list[int] = []
        for effect in self.handle(CancelRequested(items, only_queued)):
            if isinstance(effect, RecordCancellations):
                cancelled += self._record_cancellations(effect)
        return cancelled

    def _record_cancellations(self, effect: RecordCancellations) -> list[int]:
        """Write cancellations to disk, and cancel the tasks that have nothing left to do; return the items."""
        written, failed = [], list(effect.ranges)
        try:
            while failed:
                number, ranges = failed[0]
                write_cancellations(self.folder, number, writer_name(), ranges)
                written.append(failed.pop(0))
        finally:
            for each in self.handle(CancellationsRecorded(tuple(written), tuple(failed))):
                if isinstance(each, CancelJobs):
                    self.cancel_jobs(each)
        return [item for each in ranges_in(tuple(written)) for item in each]

    def cancel_jobs(self, effect: CancelJobs) -> None:
        """Cancel jobs in the scheduler: all of them, even if that fails for some.

        Raises:
            SchedulerError: it failed for some of them.
        """
        errors = []
        for job_id, elements in effect.jobs:
            try:
                self.backend.cancel(job_id, elements)
            except SchedulerError as error:
                errors.append(error)
        if errors:
            raise errors[0]
