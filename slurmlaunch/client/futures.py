"""Futures, and arrays of them: the public view of a run.

The executor and `attach` return them; the run notifies them of outcomes. A `Future` is the
standard library's. It is never in the standard library's state ``RUNNING``, in which it
could not be cancelled: `Future.running` asks the run instead. Nothing here polls or submits.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import time
from array import array
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from slurmlaunch.client import html
from slurmlaunch.client.attach import find_run, inspect, locate, search_as_submitted
from slurmlaunch.client.cleaning import Cleaned, remove
from slurmlaunch.client.completed import Completed, Wait
from slurmlaunch.client.debug import debug
from slurmlaunch.client.failures import FailedItem, Failures
from slurmlaunch.client.item_details import (
    Attempt,
    attempts_of,
    item_node,
    item_output,
    item_times,
    task_log,
    values_of_further_ranks,
)
from slurmlaunch.client.ledger import ItemStatus, consecutive
from slurmlaunch.client.progress import Progress
from slurmlaunch.client.rerun import CURRENT, Retry, retry
from slurmlaunch.client.runs import RunSummary
from slurmlaunch.client.status import Status, counts_of, status_of
from slurmlaunch.client.submission import Submission, advice_on_interrupt
from slurmlaunch.client.tailing import STREAMS, heading, name_of, tail_item, tail_run
from slurmlaunch.errors import SchedulerError
from slurmlaunch.messages import say
from slurmlaunch.outcome import BARE, BARE_IF_OURS, Failure, Value

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Generator, Iterable, Iterator
    from datetime import datetime

    from slurmlaunch.backends.base import TaskState
    from slurmlaunch.client.code import Code
    from slurmlaunch.client.run import Run
    from slurmlaunch.outcome import Outcome

__all__ = ["Future", "FutureArray", "attach"]

T = TypeVar("T")


class Future(concurrent.futures.Future[T]):
    """The outcome of one item, as a `concurrent.futures.Future`.

    It pickles, and finds its run again when it is unpickled. The lock, the condition and the
    lists of the base class are made on first use: of a million futures that are done when
    they are made, few need them.
    """

    def __init__(self, run: Run, index: int) -> None:
        self._run = run
        self._index = index

    def __getattr__(self, name: str) -> Any:
        if name not in _OF_THE_BASE:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        for attribute, value in vars(concurrent.futures.Future()).items():
            self.__dict__.setdefault(attribute, value)  # if two threads do this at once, both use the first one's
        return self.__dict__[name]

    def settle(self, value: T) -> None:
        """Become done with a value, before anybody else has the future."""
        self._result, self._state = value, _FINISHED

    @property
    def index(self) -> int:
        """The index of the item in its run."""
        return self._index

    @property
    def run(self) -> FutureArray[T]:
        """The run that the item belongs to; for `Executor.submit` one of length 1."""
        return FutureArray(self._run)

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments of the item, read from the run folder.

        For `Executor.submit` those of the call. What a `functools.partial` of yours holds is not among them.

        Raises:
            RunFolderError: they cannot be loaded in this process; the message says what does not load.
        """
        return self._run.explanations.arguments.of(self._index).args

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments of the item, read from the run folder: those of the call, or ``kwargs=`` of a map.

        Raises:
            RunFolderError: they cannot be loaded in this process; the message says what does not load.
        """
        return self._run.explanations.arguments.of(self._index).kwargs

    @property
    def job_id(self) -> str | None:
        """The Slurm job id of the task, as ``"123_4"``; None before it is submitted.

        Where tasks share the items, None before one has taken this item: read it after the result.
        """
        task = self._run.tasks.claimant_of(self._index)
        return None if task is None else self._run.tasks.view(task).full_id

    @property
    def state(self) -> TaskState:
        """The state of the task in Slurm's words, without asking the scheduler again."""
        return self._run.tasks.state_of_item(self._index)

    @property
    def reason(self) -> str | None:
        """Why its task is pending, in words; None if it is not, or the scheduler has not said."""
        return self._run.tasks.why_item_waits(self._index)

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every start of its task, over requeues and retries, the earliest first."""
        return attempts_of(self._run, self._index)

    @property
    def started(self) -> datetime | None:
        """When its process began it, with the local time zone; None until it has ended, and if that was not recorded.

        For an item in a block of short ones, of about a millisecond or less, when the block began.
        """
        times = item_times(self._run, self._index)
        return times and times[0]

    @property
    def duration(self) -> float | None:
        """For how many seconds the function ran on this item, or until its process died; None as for `started`.

        For an item in a block of short ones it is its share of the block.
        """
        times = item_times(self._run, self._index)
        return times and times[1]

    @property
    def node(self) -> str | None:
        """The machine that ran it; before it has an outcome that of its task's last start; None if it has not begun."""
        return item_node(self._run, self._index)

    def stdout(self, rank: int | None = None) -> str:
        """Return what the item has written to its standard output so far: all of it once the item has ended.

        A line says so where it is the output of several items, of a block of short ones. Another line says so where
        some of it was cut (``max_log=``). What processes write that outlive the item is in the log of the task,
        `FutureArray.logs`. With ``cluster="inline"`` nothing is kept.

        Args:
            rank: which of several ranks (``ntasks=``); None: what rank 0 wrote, and then the others in order, each
                after a line such as ``[slurmlaunch: rank 3]``.
        """
        return item_output(self._run, self._index, "out", rank)

    def stderr(self, rank: int | None = None) -> str:
        """Return what the item has written to its standard error so far, as `stdout` does."""
        return item_output(self._run, self._index, "err", rank)

    def tail(self, *, follow: bool = False) -> None:
        """Print the last lines of the item's output; with *follow*, also what comes until the item has ended."""
        tail_item(self._run, self._index, self.done, partial(concurrent.futures.wait, [self]) if follow else None)

    def log(self, stream: str) -> Path:
        """Return the path of the task's log, *stream* being ``out`` or ``err``; the file exists once it has started."""
        return Path(self._run.tasks.log(self._run.tasks.task_of(self._index), stream))

    def requeue(self) -> None:
        """Have the scheduler end its task and start it again, as at a preemption.

        Finished items stay finished; a function with a checkpoint resumes from it.

        Raises:
            SchedulerError: the scheduler did not do it, or cannot.
        """
        view = self._run.tasks.view(self._run.tasks.task_of(self._index))
        if view.job_id is None:
            raise SchedulerError("the task is not submitted yet")
        self._run.backend.requeue(view.job_id, view.element)

    def debug(self, *, code: str = CURRENT) -> T:
        """Run the item in this process, with its arguments, and open a debugger in the frame that raises, if one does.

        The debugger is pdb, or the one of ``PYTHONBREAKPOINT``; in a notebook ``%debug`` opens it afterwards. In the
        call `slurmlaunch.current_task` is the item's task, with its random numbers. Nothing is recorded in the run.

        Args:
            code: ``"current"``: your modules as this process imports them; a line names those that differ from the
                submission's. ``"submitted"``: raise if any does.

        Returns:
            The value, if nothing was raised; a line says so.

        Raises:
            BaseException: what the function raised, after the debugger.
            RunFolderError: *code* is ``"submitted"``, and this process has imported other modules.
            NodeStartError: the function cannot be loaded here.
        """
        value: T = debug(self._run, self._index, code)
        return value

    def cancel(self) -> bool:
        """Cancel the item; False if its outcome was known first.

        Unlike the standard library's, this also ends an item that is running.

        Raises:
            SchedulerError: the scheduler could not be told; the item is cancelled all the same.
        """
        return bool(self._run.cancel([self._index])) or self.cancelled()

    def running(self) -> bool:
        """Return whether a process runs it, as far as is known."""
        return not self.done() and self._run.tasks.is_running(self._index)

    def result(self, timeout: float | None = None) -> T:
        """Return the value that the function returned.

        Args:
            timeout: seconds to wait; None waits without limit.

        Raises:
            concurrent.futures.TimeoutError: the time is up.
            concurrent.futures.CancelledError: it was cancelled with `cancel`.
            slurmlaunch.errors.ItemError: the item ended without a value or an exception of its own.
            BaseException: the exception that the function raised.
        """
        known = self.__dict__
        if "_condition" not in known and "_result" in known:
            return cast("T", self._result)  # it was made with its value
        with BARE_IF_OURS:
            self._wait(timeout)
        with BARE:
            return super().result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception that `result` would raise, or None; *timeout* is in seconds.

        Raises:
            concurrent.futures.TimeoutError: the time is up.
            concurrent.futures.CancelledError: it was cancelled with `cancel`.
        """
        self._wait(timeout)
        self._run.check_owned(self._index)
        return super().exception()

    def done(self) -> bool:
        """Return whether its outcome is known, or it was cancelled."""
        return self.__dict__.get("_state") == _FINISHED or super().done()

    def ranks(self, timeout: float | None = None) -> list[T]:
        """Return the values that the function returned on the ranks, in order; one value if a call has one process.

        Args:
            timeout: seconds to wait; None waits without limit.

        Raises:
            As `result` does.
        """
        first = self.result(timeout)
        return [first, *values_of_further_ranks(self._run, self._index)]

    def _wait(self, timeout: float | None) -> None:
        """Wait; raise what the base class raises if there is neither a value nor an error, with a message."""
        if not self.done():
            with advice_on_interrupt(self._run):
                self._run.wait_for_future(self, timeout)
        if self.cancelled():
            raise concurrent.futures.CancelledError(f"{self._name} was cancelled; {self._run.folder.path}")
        if not self.done():
            why = f" ({self.reason})" if self.reason else ""
            text = f"{self._name} was not done within {timeout} s, and is {self._progress()}{why}"
            raise concurrent.futures.TimeoutError(f"{text}; {self._run.folder.path}")

    @property
    def _name(self) -> str:
        return f"item {self._index} of {self._run.manifest.name}"

    def disown(self, error: BaseException) -> None:
        """Become done with an error, in a forked child: only the parent's threads settle the future."""
        for name in _OF_THE_BASE:  # the parent's lock may have been locked at the fork
            self.__dict__.pop(name, None)
        self._exception, self._state = error, _FINISHED

    def add_done_callback(self, fn: Callable[[Future[T]], Any]) -> None:
        """Call a function with the future once its outcome is known.

        Raises:
            SlurmlaunchError: this process was forked from the one that watches the run.
        """
        self._run.check_owned(self._index)
        super().add_done_callback(cast("Any", fn))

    def notify_cancelled(self) -> None:
        """Become cancelled."""
        super().cancel()
        self.set_running_or_notify_cancel()

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for it in a coroutine."""
        import asyncio  # as in `Run.settled`

        return asyncio.wrap_future(self).__await__()

    def __reduce__(self) -> tuple[Any, ...]:
        return _find_future, (str(self._run.folder.path), self._index, len(self._run.rounds))

    def __repr__(self) -> str:
        return f"<Future {self._name} {self.job_id} {self._progress()}>"

    def _repr_html_(self) -> str:
        call = self._run.explanations.arguments.call_of(self._index)
        told = [f"state of its task: {self.state}", f"job: {self.job_id}", f"log: {self.log('err')}"]
        if self.reason:
            told.insert(0, f"pending: {self.reason}")
        if self.done() and not self.cancelled() and self.exception() is not None:
            told.insert(0, str(FailedItem(self._run, self._index).cause))
        rows = [html.row(f"<b>{html.text(self._name)}</b>: {html.text(self._progress())}"), html.small(call)]
        return html.box([*rows, *map(html.small, told)])

    def _progress(self) -> str:
        """Return the progress of the item in the standard library's words."""
        if not self.done():
            return "running" if self.running() else "pending"
        if self.cancelled():
            return "cancelled"
        error = self.exception()
        return f"returned {type(self.result()).__name__}" if error is None else f"raised {type(error).__name__}"


_OF_THE_BASE = frozenset(vars(concurrent.futures.Future()))
_FINISHED = "FINISHED"


class FutureArray(Sequence[Future[T]]):
    """The futures of a run, or of a part of it, in the order of its items.

    A future is made on first access; `results` and the like need none.
    """

    def __init__(self, run: Run, items: Sequence[int] | None = None) -> None:
        self._run = run
        self._items = range(run.manifest.items) if items is None else items
        run.keep_for(self)

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Future[T]: ...

    @overload
    def __getitem__(self, index: slice) -> FutureArray[T]: ...

    def __getitem__(self, index: int | slice) -> Future[T] | FutureArray[T]:
        if isinstance(index, slice):
            return FutureArray(self._run, self._items[index])
        return self._run.future(self._items[index], Future)

    def __repr__(self) -> str:
        counts = ", ".join(f"{number} {word}" for word, number in self.counts().items() if number)
        return f"<FutureArray {self._run.manifest.name}: {counts or 'empty'}; slurmlaunch.attach({str(self.folder)!r})>"

    def __reduce__(self) -> tuple[Any, ...]:
        items = self._items if isinstance(self._items, range) else array("Q", self._items)
        return _find_array, (str(self._run.folder.path), items, len(self._run.rounds))

    def select(self, items: Iterable[int]) -> FutureArray[T]:
        """Return the futures of these items of the run, by their indices in it (`Future.index`), in their order.

        Raises:
            IndexError: the run has no such item.
        """
        chosen = sorted(set(items))
        if chosen and not 0 <= chosen[0] <= chosen[-1] < self._run.manifest.items:
            raise IndexError(f"the items of {self._run.manifest.name} are 0 to {self._run.manifest.items - 1}")
        return FutureArray(self._run, chosen)

    # Waiting.

    def wait(self, timeout: float | None = None, *, progress: bool | None = None) -> bool:
        """Wait until all have settled, or for so many seconds; return whether all have.

        Args:
            timeout: in seconds; None waits without limit.
            progress: show on stderr how far it is: True, False, or None for where a person looks (a terminal or a
                notebook) and the wait takes longer than three seconds. ``SLURMLAUNCH_PROGRESS=0`` silences it.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with advice_on_interrupt(self._run), Progress(self._run, self._items, wanted=progress) as display:
            return display.wait(self.done, deadline)

    def done(self) -> bool:
        """Return whether all have settled, and all futures are done."""
        with self._run.changed:
            ledger = self._run.ledger
            return (not ledger.open or ledger.all_settled(self._items)) and self._run.all_notified(self._items)

    @overload
    def results(
        self, timeout: float | None = None, *, return_exceptions: Literal[False] = False, progress: bool | None = None
    ) -> list[T]: ...

    @overload
    def results(
        self, timeout: float | None = None, *, return_exceptions: bool, progress: bool | None = None
    ) -> list[T | BaseException]: ...

    def results(
        self, timeout: float | None = None, *, return_exceptions: bool = False, progress: bool | None = None
    ) -> list[T] | list[T | BaseException]:
        """Return all results, in order.

        Args:
            timeout: seconds to wait for all of them; None waits for ever.
            return_exceptions: return failures in their places, rather than raise.
            progress: show on stderr how far it is, as `wait` does.

        Raises:
            concurrent.futures.TimeoutError: the time is up.
            concurrent.futures.CancelledError: the failure is a cancelled item.
            BaseException: the failure of the lowest index, with a note that
                says how many failed.
        """
        # Not by iter_results(): no StopIteration of the function's can leave a generator.
        results: list[Any] = []
        with Progress(self._run, self._items, wanted=progress) as display:
            for item, values, outcome in self._outcomes(timeout, display):
                if outcome is None:
                    results += values
                elif isinstance(outcome, Value):
                    results.append(outcome.value)
                elif return_exceptions:
                    results.append(outcome.error)
                else:
                    with BARE:
                        raise self._noted(outcome.error, item)
        return results

    def iter_results(self, timeout: float | None = None) -> Iterator[T]:
        """Yield the results in order, each as soon as it and those before it are there.

        Args:
            timeout: seconds to wait for all of them; None waits for ever.

        Raises:
            As `results` does.
        """
        for item, values, outcome in self._outcomes(timeout, self._unseen()):
            if outcome is None:
                yield from values
            elif isinstance(outcome, Value):
                yield outcome.value
            else:
                with BARE:
                    raise self._noted(outcome.error, item)

    def _unseen(self) -> Progress:
        """Return a display that shows nothing, for iterators: their caller may show something of its own."""
        return Progress(self._run, self._items, wanted=False)

    def _outcomes(self, timeout: float | None, display: Progress) -> Iterator[tuple[int, list[T], Outcome[T] | None]]:
        """Yield all outcomes, in order, waiting for each: the values of several items at once, or the outcome of one.

        Each comes with its item, or the first of its items.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        ledger = self._run.ledger
        values: list[T]
        for items in consecutive(self._items):
            start = items.start
            while start < items.stop:
                if ledger.is_open(start):
                    self._wait_until(partial(self._is_settled, start), deadline, display)
                stop, values = self._run.reader.values(range(start, items.stop))
                if stop > start:
                    yield start, values, None
                    start = stop
                else:
                    yield start, [], self._outcome(start)
                    start += 1

    def _outcome(self, item: int) -> Outcome[T]:
        if self._run.ledger.status(item) == ItemStatus.CANCELLED:
            return Failure(concurrent.futures.CancelledError(f"item {item} was cancelled"))
        return self._run.outcome(item)

    def _is_settled(self, item: int) -> bool:
        return not self._run.ledger.is_open(item)

    async def _wait_until_async(self, ready: Callable[[], bool], deadline: float | None = None) -> None:
        """Wait in a coroutine for a condition on settled items, until *deadline* (monotonic)."""
        if not await self._run.settled(ready, deadline):
            raise self._late()

    def _wait_until(self, ready: Callable[[], bool], deadline: float | None, display: Progress | None = None) -> None:
        """Wait for a condition on settled items, until *deadline* (monotonic)."""
        display = display or self._unseen()
        with advice_on_interrupt(self._run):
            in_time = display.wait(ready, deadline)
        if not in_time:
            raise self._late()

    def _late(self) -> Exception:
        done = len(self) - self._run.ledger.count(ItemStatus.OPEN, self._part)
        why = "".join(f"; a task is pending: {reason}" for reason in self._run.tasks.why_tasks_wait()[:1])
        return concurrent.futures.TimeoutError(f"{done} of {len(self)} items were done in time{why}; {self.folder}")

    @property
    def _part(self) -> Sequence[int] | None:
        """The items, or None for all of them, which is counted faster."""
        return None if len(self._items) == self._run.manifest.items else self._items

    def _noted(self, error: BaseException, item: int) -> BaseException:
        counts = self.counts()
        failed, cancelled, left = counts["failed"], counts["cancelled"], counts["pending"] + counts["running"]
        numbers = [
            f"{number} of {len(self)} items {word}"
            for number, word in ((failed, "failed"), (cancelled, "cancelled"))
            if number
        ]
        numbers += [f"{left} are not done yet"] if left else []
        numbers = numbers or ["its result is recorded"]
        notes = [f"item {item} of {self._run.manifest.name}; {', '.join(numbers)}"]
        # First, unlike with add_note(): it sums up the run.
        error.__dict__["__notes__"] = notes + [n for n in getattr(error, "__notes__", []) if n not in notes]
        return error

    def __await__(self) -> Generator[Any, None, list[T]]:
        """Wait in a coroutine, and return or raise as `results` does."""
        return self._await_results().__await__()

    async def _await_results(self) -> list[T]:
        for item in self._items:
            if self._run.ledger.is_open(item):
                await self._wait_until_async(partial(self._is_settled, item))
            if self._run.ledger.status(item) != ItemStatus.VALUE:
                break  # its failure is raised
        with BARE:
            return self.results(progress=False)

    def as_completed(self, timeout: float | None = None) -> Completed[Future[T]]:
        """Return an iterator over the futures as they settle, the earliest first; ``async for`` works, too.

        Args:
            timeout: seconds to wait for all of them, from now; None waits for ever.

        Raises:
            concurrent.futures.TimeoutError: the time is up.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        return Completed(self._settling(), deadline, self._wait_until, self._wait_until_async)

    def _settling(self) -> Iterator[Future[T] | Wait]:
        """Yield the futures as they settle, and what to wait for before the next one."""
        log, left = self._run.ledger.records, len(self)
        among = self._items if isinstance(self._items, range) else frozenset(self._items)
        for position in itertools.count():
            if not left:
                return
            if not log.is_longer_than(position):
                yield Wait(partial(log.is_longer_than, position), limited=True)
            for items in consecutive(_those_in(log[position], among)):
                left -= len(items)
                yield from self._settled(items)

    def _settled(self, items: range) -> Iterator[Future[T] | Wait]:
        """Yield the futures of items that have settled: those of a record are made at once."""
        start = items.start
        while start < items.stop:
            stop, values = self._run.reader.values(range(start, items.stop))
            run, future_of = self._run, Future[T]
            for future in run.done_futures(start, values, future_of) if values else [run.future(start, future_of)]:
                if not future.done():  # it has settled, and has not been notified yet
                    yield Wait(future.done, limited=False)
                yield future
            start = max(stop, start + 1)

    def counts(self) -> dict[str, int]:
        """Return how many items are ``pending``, ``running``, ``done``, ``failed``, ``cancelled``."""
        return counts_of(self._run, self._part)

    def status(self) -> Status:
        """Return how many items are where, what the tasks do and why some wait, without asking anybody."""
        return status_of(self._run, self._items)

    def summary(self) -> RunSummary:
        """Return the run as `slurmlaunch.runs` lists it; its state asks the scheduler if items are open."""
        return RunSummary.of(self._run)

    def logs(self, task: int | None = None) -> str:
        """Return the log of a task, of all its items and starts: its standard output, and then its standard error.

        Args:
            task: by default all of the run that wrote something, each below a line that names it.

        Raises:
            LookupError: the run has no such task.
        """
        if task is not None:
            self._run.tasks.view(task)
            return "".join(task_log(self._run, task, stream) for stream in STREAMS)
        found = ((name_of(each, self._run), self.logs(each)) for each in self._run.tasks.all())
        return "".join(heading(name) + text + "\n" * (text[-1] != "\n") for name, text in found if text)

    def tail(self, *, follow: bool = False) -> None:
        """Print the last lines of the logs of all tasks that have started; with *follow*, also what comes.

        A line names the task where the output is another's.
        """
        tail_run(self._run, self.done, partial(self.wait, progress=False) if follow else None)

    def _repr_html_(self) -> str:
        return self.status()._repr_html_()

    def failures(self) -> Failures:
        """Return the items that have failed so far: a list that tells them by cause when it is printed.

        Each has ``index``, ``args``, ``kwargs``, ``error`` and ``log``.
        """
        failed = self._run.ledger.first_failed(self._items)
        return Failures(FailedItem(self._run, item) for item in failed)

    # The run.

    def cancel(self) -> bool:
        """Cancel all items that have not settled; return whether none has settled otherwise.

        Raises:
            SchedulerError: the scheduler could not be told; the items are cancelled all the same.
        """
        self._run.cancel(self._items)
        return self._run.ledger.count(ItemStatus.CANCELLED, self._part) == len(self)

    @property
    def job_ids(self) -> tuple[str, ...]:
        """The ids of the run's jobs, in the order of submission."""
        return self._run.job_ids

    @property
    def folder(self) -> Path:
        """The absolute path of the run folder, for `slurmlaunch.attach`."""
        return self._run.folder.path

    def remove(self) -> Cleaned:
        """Remove the run folder with everything in it; print what was freed, and return it.

        Raises:
            RunFolderError: the scheduler lists a job of the run or does not answer, or another process that lives made,
                retried or attached to it; nothing is removed.
            OSError: something could not be removed; `slurmlaunch.clean` removes the rest.
        """
        return remove(self._run)

    @property
    def code(self) -> Code:
        """The code that the last round runs: the function, the stored modules, git commits, installed distributions.

        Raises:
            RunFolderError, UnsafeRunFolder, OSError: the run folder cannot be read.
        """
        return self._run.code(len(self._run.rounds) - 1)

    @property
    def throttle(self) -> int | None:
        """How many tasks may run at once, or None; may be set while they run."""
        return self._run.rounds[-1].throttle

    @throttle.setter
    def throttle(self, throttle: int | None) -> None:
        Submission(self._run).set_throttle(throttle)

    def retry(self, fn: Callable[..., T] | None = None, /, *, code: str = CURRENT, **changes: Any) -> FutureArray[T]:
        """Retry the items that failed or are missing, perhaps with another function or other options.

        Args:
            fn: a function to run in place of the one that was submitted; it gets the same arguments, and does not
                resume from checkpoints of the other.
            code: ``"current"``: your own modules and the environment as they are now; a line says what has changed.
                ``"submitted"``: function, modules and environment of the submission.
            changes: options as `slurmlaunch.Executor` takes them.

        Returns:
            All items in the same order: finished ones are settled, the others are new futures.
            This array is unchanged.

        Raises:
            TypeError: the function is not callable, or asynchronous.
            NotPicklable: the function does not pickle.
            RunFolderError: it is to get the arguments of a single call, and these cannot be loaded here.
            SubmissionError: the scheduler refused it.
            UnknownOption: a name is no option.
            OptionError: a value is invalid, or cannot change within a run.
        """
        wanted = self._items if isinstance(self._items, range) else frozenset(self._items)
        again = retry(self._run, Retry(wanted, fn, code, changes))
        array: FutureArray[T] = FutureArray(again, self._items)
        again.on_demand = not again.submitting  # not before the array holds it
        return array


_SAID: set[Path] = set()
"""The run folders of which this process has said what changed."""


def _those_in(items: range, among: Collection[int]) -> Sequence[int]:
    """Return the items that are among some."""
    if isinstance(among, range) and among.step == 1:
        return range(max(items.start, among.start), min(items.stop, among.stop))
    return [item for item in items if item in among]


def _find_array(folder: str, items: Sequence[int], rounds: int) -> FutureArray[Any]:
    return FutureArray(find_run(folder, rounds), items)


def _find_future(folder: str, index: int, rounds: int) -> Future[Any]:
    return _find_array(folder, [index], rounds)[0]


def attach(
    run: str | os.PathLike[str] | None = None, *, folder: str | os.PathLike[str] | None = None
) -> FutureArray[Any]:
    """Return the futures of a run, from any process, at any time; a line says which of its code has changed since.

    Args:
        run: the run folder (`FutureArray.folder`); or, of a run in the default folder of `Executor`, its name (of
            several runs the newest), the name of its folder, the beginning of one of these, or the id of one of its
            jobs. By default the newest run there.
        folder: the folder that holds the run folders, in place of the default one.

    Raises:
        RunFolderError: there is no such run, or it cannot be used; the message lists the nearest.
        UnsafeRunFolder: another user owns it or may write to it.
        UnknownProtocol: a newer slurmlaunch wrote it.
    """
    view = find_run(locate(run, folder))
    if view.folder.path not in _SAID and (changed := view.explanations.changed_code()):
        _SAID.add(view.folder.path)
        say(changed)
    return _held(view)


def open_run(run_folder: str | os.PathLike[str]) -> FutureArray[Any]:
    """Return the futures of a run, as `attach` does, but print nothing."""
    return _held(find_run(run_folder))


def read_run(
    run: str | os.PathLike[str] | None = None, folder: str | os.PathLike[str] | None = None
) -> FutureArray[Any]:
    """Return the futures of a run as its folder and Slurm show it at this moment; nobody watches it.

    Nothing is written or submitted, and open items stay open: do not wait for them. Modules of results and arguments
    are looked for where the submission found them, too. Otherwise as `attach`.
    """
    view = inspect(locate(run, folder), ask=True)
    search_as_submitted(view)
    return FutureArray(view)


def _held(run: Run) -> FutureArray[Any]:
    array: FutureArray[Any] = FutureArray(run)
    run.on_demand = True  # not before the array holds it
    return array
