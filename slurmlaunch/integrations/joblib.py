"""joblib's `Parallel` on slurmlaunch, and with it scikit-learn: the backend of the name ``"slurmlaunch"``.

::

    with joblib.parallel_config(backend="slurmlaunch", executor=Executor(partition="small")):
        search.fit(X, y)

joblib hands over one call after the other, and a job for each would be a
thousand submissions. So the calls of a window are collected: it closes when
nothing more has come for a moment, and all of it is one run, one job array.
How calls travel, and what they share, is `slurmlaunch.integrations.parcels`.

    joblib ──submit──▶ queue ──▶ our thread ──map_array──▶ Slurm
    joblib ◀─callback── our thread ◀── queue ◀──done── the watcher

Our thread calls joblib back, not the watcher's: joblib takes new calls from the
user's iterator meanwhile, which may take as long as it likes.
"""

from __future__ import annotations

import copy
import functools
import logging
import queue
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.caps import usable_cpus
from slurmlaunch.client.executor import Executor
from slurmlaunch.client.pickling import name_of
from slurmlaunch.errors import MissingPackage, SchedulerError
from slurmlaunch.integrations.parcels import Deliver, Parcel, shared_by

try:
    from joblib.parallel import FallbackToBackend, ParallelBackendBase
except ImportError as missing:
    raise MissingPackage.of('joblib\'s backend "slurmlaunch"', "joblib>=1.4") from missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from slurmlaunch.client.futures import FutureArray

_AT_ONCE = 100
"""How many tasks are taken to run at once on a cluster where no throttle says so.

A guess that callers cut their work by; how many really do is Slurm's to decide.
"""

_WINDOW = 10_000
"""How many calls one run may have; what joblib keeps ready is as many, for it is all that is at stake."""

_SILENCE = 0.1
"""Seconds without another call after which a window is submitted."""

_LONGEST_OPEN = 30.0
"""Seconds after which a window is submitted though most of the calls before it still run."""

_JOBLIBS = frozenset({"max_nbytes", "temp_folder", "mmap_mode", "prefer", "require", "verbose", "context", "timeout"})
"""What joblib tells any backend."""

_log = logging.getLogger("slurmlaunch")


class SlurmlaunchBackend(ParallelBackendBase):  # type: ignore[misc]  # joblib ships no types
    """A joblib backend whose workers are the tasks of job arrays.

    ``n_jobs=k`` asks for k processes, in as many tasks as these need. With
    ``n_jobs=-1``, the default, each call is an item of `Executor.map_array`,
    sliced as it slices by default. As everywhere in joblib, ``n_jobs=1`` runs
    the calls here, one after the other.

    Args:
        executor: where the calls run; by default ``Executor()``.
        tasks: how many tasks a run has, as for `Executor.map_array`.
        chunksize: how many calls a task has, as for `Executor.map_array`.
        schedule: as for `Executor.map_array`.
        nesting_level: joblib's.
    """

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(
        self,
        executor: Executor | None = None,
        *,
        tasks: int | None = None,
        chunksize: int | None = None,
        schedule: str = "static",
        nesting_level: int | None = None,
    ) -> None:
        if not isinstance(executor, Executor | None):
            raise TypeError(f"executor must be a slurmlaunch.Executor, not {executor!r}")
        super().__init__(nesting_level=nesting_level)
        self._executor = Executor() if executor is None else executor
        self._tasks, self._chunksize, self._schedule = tasks, chunksize, schedule
        self._n_jobs = -1
        self.parallel: Any = None
        self._dispatcher: _Dispatcher | None = None

    # What joblib asks before a call.

    def configure(self, n_jobs: int = 1, parallel: Any = None, **given: Any) -> int:
        """Be the backend of a `Parallel` object; return how many of its calls run at once.

        Raises:
            TypeError: a keyword of ``Parallel(...)`` is neither joblib's nor ours.
        """
        if self.parallel is not parallel:
            # One object serves all that is done below a parallel_config, some of it side
            # by side; joblib then takes this copy instead, which is for this Parallel alone.
            own = copy.copy(self)
            own.parallel = parallel
            raise FallbackToBackend(own)
        self._take({name: value for name, value in given.items() if name not in _JOBLIBS})
        self._n_jobs = n_jobs
        if str(parallel.pre_dispatch).replace(" ", "") == "2*n_jobs":
            # joblib's default, and scikit-learn's: it keeps memory small where workers are fed
            # one by one, and would make a job array of every second call here.
            parallel.pre_dispatch = _WINDOW
        return self.effective_n_jobs(n_jobs)

    def _take(self, given: dict[str, Any]) -> None:
        """Take what `Parallel` itself was given, as ``Parallel(backend="slurmlaunch", executor=ex)``."""
        if given:
            ours = {"executor": self._executor, "tasks": self._tasks, "chunksize": self._chunksize}
            made = SlurmlaunchBackend(**{**ours, "schedule": self._schedule, **given})
            self._executor, self._schedule = made._executor, made._schedule
            self._tasks, self._chunksize = made._tasks, made._chunksize

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many calls run at once, as far as that is known before.

        Raises:
            ValueError: *n_jobs* is 0.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs=0 has no meaning: give the number of processes, or -1 for as many as there are")
        if n_jobs is not None and n_jobs > 0:
            return n_jobs
        # Never 1, which to joblib means that nothing is to be handed over.
        return max(2, self._at_once() + 1 + (-1 if n_jobs is None else n_jobs))

    def _at_once(self) -> int:
        shape, throttle = self._executor.shape(), self._executor.throttle
        here = max(1, usable_cpus() // shape.cpus_per_task)
        tasks = _AT_ONCE if self._executor.cluster == "slurm" else here
        return min(each for each in (tasks, throttle, self._tasks) if each) * shape.processes

    # A call.

    def start_call(self) -> None:
        """Take the calls of one `Parallel`."""
        self._dispatcher = _Dispatcher(self._submit)

    def stop_call(self) -> None:
        """End: all calls are done, or given up."""
        if self._dispatcher is not None:
            self._dispatcher.close()
            self._dispatcher = None

    def submit(self, func: Any, callback: Callable[[Any], Any] | None = None) -> None:
        """Take a batch of calls, and return at once; *callback* is told the future that has their outcome."""
        if self._dispatcher is not None:
            self._dispatcher.take(_Call(func, callback or (lambda _: None)))

    apply_async = submit  # what joblib 1.4 calls it

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return the results of a batch.

        Raises:
            BaseException: what the function raised, or what ended its task.
        """
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002
        """Cancel what has been submitted, with one call of the scheduler per job."""
        del ensure_ready  # another call starts afresh
        if self._dispatcher is not None:
            self._dispatcher.abort()

    def _submit(self, batches: Sequence[Any]) -> FutureArray[Any]:
        """Submit the batches of a window as one run."""
        shared = shared_by(_values(batch) for batch in batches)
        numbers = {id(value): number for number, value in enumerate(shared)}
        deliver = Deliver([Parcel(value) for value in shared], name_of(batches[0].items[0][0]))
        tasks = self._tasks
        if not (tasks or self._chunksize or self._n_jobs in (None, -1)):
            tasks = -(-self.effective_n_jobs(self._n_jobs) // self._executor.shape().processes)
        return self._executor.map_array(
            deliver,
            [Parcel(batch, numbers) for batch in batches],
            tasks=tasks,
            chunksize=self._chunksize,
            schedule=self._schedule,
        )


# Windows.


class _Call(NamedTuple):
    batch: Any
    callback: Callable[[Any], Any]


class _Done(NamedTuple):
    callback: Callable[[Any], Any]
    future: Future[Any]


class _Dispatcher:
    """Collects the calls of one `Parallel`, submits them a window at a time, and calls back."""

    def __init__(self, submit: Callable[[Sequence[Any]], FutureArray[Any]]) -> None:
        self._submit = submit
        self._news: queue.SimpleQueue[_Call | _Done | None] = queue.SimpleQueue()
        self._window: list[_Call] = []
        self._opened = 0.0
        self._arrays: list[FutureArray[Any]] = []
        self._under_way = 0
        self._is_aborted = False
        self._thread = threading.Thread(target=self._main, name="slurmlaunch-joblib", daemon=True)
        self._thread.start()

    def take(self, call: _Call) -> None:
        """Take a call into the window that is open."""
        self._news.put(call)

    def close(self) -> None:
        """End the thread."""
        self._news.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def abort(self) -> None:
        """End the thread, and cancel what was submitted."""
        self._is_aborted = True
        self.close()
        for array in self._arrays:
            try:
                array.cancel()
            except SchedulerError as error:  # what made joblib give up is the error to raise
                _log.warning("slurmlaunch could not cancel %s: %s", array.folder, error)

    def _main(self) -> None:
        while not self._is_aborted:
            try:
                news = self._news.get(timeout=_SILENCE if self._window else None)
            except queue.Empty:
                # While others run there is no hurry, and every window is a job of its own.
                waited = time.monotonic() - self._opened
                if len(self._window) >= self._under_way or waited > _LONGEST_OPEN:
                    self._launch()
                continue
            if news is None:
                return
            if isinstance(news, _Call):
                self._add(news)
            else:
                self._under_way -= 1
                _tell(news.callback, news.future)

    def _add(self, call: _Call) -> None:
        if not self._window:
            self._opened = time.monotonic()
        self._window.append(call)
        if len(self._window) == _WINDOW:
            self._launch()

    def _launch(self) -> None:
        window, self._window = self._window, []
        try:
            array = self._submit([call.batch for call in window])
        except Exception as error:  # noqa: BLE001  (whatever it is, it is raised where the results are awaited)
            failed: Future[Any] = Future()
            failed.set_exception(error)
            for call in window:
                _tell(call.callback, failed)
            return
        self._arrays.append(array)
        self._under_way += len(window)
        for call, future in zip(window, array, strict=True):
            future.add_done_callback(functools.partial(self._note, call.callback))

    def _note(self, callback: Callable[[Any], Any], future: Future[Any]) -> None:
        self._news.put(_Done(callback, future))


def _tell(callback: Callable[[Any], Any], future: Future[Any]) -> None:
    try:
        callback(future)
    except Exception:  # noqa: BLE001  (its progress could not be printed, say: the others are to arrive all the same)
        _log.exception("joblib could not take in what a call came to")


def _values(batch: Any) -> Iterator[Any]:
    """Yield the functions and the arguments of a batch."""
    for function, args, kwargs in batch.items:
        yield from (function, *args, *kwargs.values())
