"""joblib's backend ``"slurmlaunch"``, with which `joblib.Parallel` and scikit-learn run on job arrays.

joblib hands over one call at a time. The calls of a window become one run; a window closes when no call has come
for a moment and as many calls wait as still run, or after half a minute. joblib is called back by our thread
rather than by the watcher's, because it then takes new calls from the user's iterator, however long that takes.

Values that several calls of a window refer to are stored once per run; a call refers to them by number, and
unpickles a copy of its own. A node imports this file for that, so imports of the client stand in functions.
"""

from __future__ import annotations

import copy
import functools
import io
import logging
import pickle
import queue
import threading
import time
from concurrent.futures import Future
from types import FunctionType, MappingProxyType
from typing import TYPE_CHECKING, Any, Never

from slurmlaunch import byvalue
from slurmlaunch.errors import MissingPackage, SchedulerError
from slurmlaunch.outcome import PICKLE_PROTOCOL

try:
    from joblib.parallel import FallbackToBackend, ParallelBackendBase, register_parallel_backend
except ImportError as missing:
    raise MissingPackage.of('joblib\'s backend "slurmlaunch"', "joblib>=1.4") from missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from slurmlaunch.client.executor import Executor
    from slurmlaunch.client.futures import FutureArray

    _Callback = Callable[[Any], Any]

__all__ = ["SlurmlaunchBackend", "register_parallel_backend"]

# The most calls of one run, and how many joblib dispatches ahead.
_WINDOW = 10_000
# Seconds without another call after which a window may close.
_SILENCE = 0.1
# Seconds after which a window closes even if most of the earlier calls still run.
_LONGEST_WINDOW = 30.0

# Keywords that joblib passes to every backend.
_JOBLIB_KEYWORDS = {"max_nbytes", "temp_folder", "mmap_mode", "prefer", "require", "verbose", "context", "timeout"}
# Values of these types, and texts of at most so many characters, are stored with each call.
_ATOMS = (type(None), bool, int, float, complex)
_SHORT = 1000

_log = logging.getLogger("slurmlaunch")


class SlurmlaunchBackend(ParallelBackendBase):  # type: ignore[misc]  # joblib ships no types
    """A joblib backend whose workers are the tasks of job arrays.

    ``n_jobs=k`` asks for k processes, in as many tasks as these need. With ``n_jobs=-1``, the default, each
    call is an item of `Executor.map_array` with its default slices. As everywhere in joblib, ``n_jobs=1`` runs
    the calls in this process, one after the other.

    Args:
        executor: runs the calls; by default ``Executor()``.
        tasks, chunksize, schedule: how a run's calls are cut into tasks, as for `Executor.map_array`. Where ``n_jobs``
            gives the number of tasks, they share the calls if the caller takes results as they arrive
            (``"generator_unordered"``), so that no call waits behind a slow one, and have slices otherwise.
        initializer, initargs: a function that each process calls once, before its first call, and its arguments.
        nesting_level: joblib's own.
        misplaced: nothing: options go into the executor.

    Raises:
        TypeError: *executor* is no `Executor`, or *initializer* cannot be called.
        UnknownOption: another keyword was given.
    """

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(
        self,
        executor: Executor | None = None,
        *,
        tasks: int | None = None,
        chunksize: int | None = None,
        schedule: str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        nesting_level: int | None = None,
        **misplaced: Never,
    ) -> None:
        from slurmlaunch.client.executor import Executor
        from slurmlaunch.client.options import misplaced_option

        other: dict[str, object] = dict(misplaced)
        for name, value in other.items():
            raise misplaced_option(name, value, "executor=ex.options({}=...)")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a function, not {initializer!r}")
        if not isinstance(executor, Executor | None):
            raise TypeError(f"executor must be a slurmlaunch.Executor, not {executor!r}")
        super().__init__(nesting_level=nesting_level)
        self._executor = Executor() if executor is None else executor
        self._how: dict[str, Any] = {"tasks": tasks, "chunksize": chunksize, "schedule": schedule}
        self._initializer, self._initargs = initializer, tuple(initargs)
        self._n_jobs = -1
        self.parallel: Any = None
        self._dispatcher: _Dispatcher | None = None

    # Before a call.

    def configure(self, n_jobs: int = 1, parallel: Any = None, **given: Any) -> int:
        """Serve a `Parallel` object; return how many of its calls run at once.

        Raises:
            TypeError: a keyword of ``Parallel(...)`` is neither joblib's nor ours.
        """
        if self.parallel is not parallel:
            # One backend serves all Parallel objects of a parallel_config, also at the same time; joblib
            # takes this copy, which belongs to one of them.
            own = copy.copy(self)
            own.parallel = parallel
            raise FallbackToBackend(own)
        # The keywords of Parallel itself, as in Parallel(backend="slurmlaunch", executor=ex).
        ours = {name: value for name, value in given.items() if name not in _JOBLIB_KEYWORDS}
        before = {"executor": self._executor, "initializer": self._initializer, "initargs": self._initargs}
        made = SlurmlaunchBackend(**{**before, **self._how, **ours})
        self._executor, self._how = made._executor, made._how
        self._initializer, self._initargs = made._initializer, made._initargs
        self._n_jobs = n_jobs
        if str(parallel.pre_dispatch).replace(" ", "") == "2*n_jobs":
            # The default of joblib and scikit-learn keeps memory small when workers are fed one by one;
            # here it would make a job array of every two calls.
            parallel.pre_dispatch = _WINDOW
        return self.effective_n_jobs(n_jobs)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return an estimate of how many calls run at once.

        Raises:
            ValueError: *n_jobs* is 0.
        """
        if n_jobs == 0:
            raise ValueError(
                "n_jobs == 0 in Parallel has no meaning: instead of n_jobs=0 give the number of processes, "
                "or -1 for as many as there are"
            )
        if n_jobs is not None and n_jobs > 0:
            return n_jobs
        # Never 1, for which joblib runs the calls itself.
        at_once = max(2, self._concurrent_calls() + 1 + (-1 if n_jobs is None else n_jobs))
        calls: int | None = getattr(self.parallel, "n_tasks", None)  # known if the calls are a list, in joblib 1.5
        return _AsManyAsCalls(at_once) if calls is None else min(at_once, max(2, calls))

    def _concurrent_calls(self) -> int:
        tasks = self._executor._max_workers  # noqa: SLF001  (the attribute of pools, which others read, too)
        return min(tasks, self._how["tasks"] or tasks) * self._executor.shape().processes

    # During a call.

    def start_call(self) -> None:
        """Start a call of a `Parallel` object."""
        self._dispatcher = _Dispatcher(self._submit)

    def stop_call(self) -> None:
        """End it: its items are done or abandoned."""
        if self._dispatcher is not None:
            self._dispatcher.close()
            self._dispatcher = None

    def submit(self, func: Any, callback: Callable[[Any], Any] | None = None) -> None:
        """Accept a batch of calls and return at once; *callback* gets the future that has their results."""
        if self._dispatcher is not None:
            self._dispatcher.add(func, callback or (lambda _: None))

    apply_async = submit  # its name in joblib 1.4

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return the results of a batch.

        Raises:
            BaseException: the function's exception, or an `ItemError`.
        """
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002
        """Cancel all submitted calls, with one command per job."""
        del ensure_ready  # the next call starts a new dispatcher
        if self._dispatcher is not None:
            self._dispatcher.abort()

    def _submit(self, batches: Sequence[Any]) -> FutureArray[Any]:
        """Submit the batches of a window as one run."""
        from slurmlaunch.client.wording import name_of

        shared = _shared_values(batches)
        numbers = {id(value): number for number, value in enumerate(shared)}
        for called in {id(function): function for batch in batches for function, _, _ in batch.items}.values():
            byvalue.refuse_coroutines(called)
        start = self._initializer and _Pickled(functools.partial(self._initializer, *self._initargs))
        name = name_of(batches[0].items[0][0])
        function = _WithSharedValues([_Pickled(value) for value in shared], name, start)
        return self._executor.map_array(function, [_Pickled(batch, numbers) for batch in batches], **self._cut())

    def _cut(self) -> dict[str, Any]:
        """Return how the calls of a window are cut into tasks."""
        how = {name: value for name, value in self._how.items() if value is not None}
        if not how.keys() & {"tasks", "chunksize"} and self._n_jobs not in (None, -1):
            how["tasks"] = -(-self.effective_n_jobs(self._n_jobs) // self._executor.shape().processes)
        unordered = not getattr(self.parallel, "return_ordered", True)
        if how and "schedule" not in how and unordered:
            how["schedule"] = "dynamic"
        return how


class _AsManyAsCalls(int):
    """The number of calls that run at once, for joblib's message: how many calls there are is not known by then."""

    def __format__(self, spec: str) -> str:
        """Return the words that joblib prints before "concurrent workers"."""
        return format(int(self), spec) if spec else "as many tasks as the calls need, instead of"


# Windows.


class _Dispatcher:
    """Collects the calls of one `Parallel`, submits them a window at a time, and calls back."""

    def __init__(self, submit: Callable[[Sequence[Any]], FutureArray[Any]]) -> None:
        self._submit = submit
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._window: list[tuple[Any, _Callback]] = []
        self._opened = 0.0
        self._arrays: list[FutureArray[Any]] = []
        self._running = 0
        self._is_aborted = False
        self._thread = threading.Thread(target=self._main, name="slurmlaunch-joblib", daemon=True)
        self._thread.start()

    def add(self, batch: Any, callback: _Callback) -> None:
        """Add a batch of calls to the open window."""
        self._events.put(functools.partial(self._collect, batch, callback))

    def close(self) -> None:
        """End the thread."""
        self._events.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def abort(self) -> None:
        """End the thread, and cancel all submitted calls."""
        self._is_aborted = True
        self.close()
        for array in self._arrays:
            try:
                array.cancel()
            except SchedulerError as error:  # joblib raises the error that made it give up
                _log.warning("slurmlaunch could not cancel %s: %s", array.folder, error)

    def _main(self) -> None:
        while not self._is_aborted:
            try:
                event = self._events.get(timeout=_SILENCE if self._window else None)
            except queue.Empty:
                # Every window is a job of its own, and while earlier calls run there is no hurry.
                waited = time.monotonic() - self._opened
                if len(self._window) >= self._running or waited > _LONGEST_WINDOW:
                    self._submit_window()
                continue
            if event is None:
                return
            event()

    def _collect(self, batch: Any, callback: _Callback) -> None:
        if not self._window:
            self._opened = time.monotonic()
        self._window.append((batch, callback))
        if len(self._window) == _WINDOW:
            self._submit_window()

    def _submit_window(self) -> None:
        window, self._window = self._window, []
        try:
            array = self._submit([batch for batch, _ in window])
        except Exception as error:  # noqa: BLE001  (joblib raises it from the results)
            failed: Future[Any] = Future()
            failed.set_exception(error)
            for _, callback in window:
                _notify(callback, failed)
            return
        self._arrays.append(array)
        self._running += len(window)
        for (_, callback), future in zip(window, array, strict=True):
            future.add_done_callback(functools.partial(self._put_done, callback))

    def _put_done(self, callback: _Callback, future: Future[Any]) -> None:
        self._events.put(functools.partial(self._finish, callback, future))

    def _finish(self, callback: _Callback, future: Future[Any]) -> None:
        self._running -= 1
        _notify(callback, future)


def _notify(callback: _Callback, future: Future[Any]) -> None:
    try:
        callback(future)
    except Exception:  # noqa: BLE001  (joblib could not print its progress, say: the other results must still arrive)
        _log.exception("joblib's callback for a result failed")


# Shared values.


def _shared_values(batches: Iterable[Any]) -> list[Any]:
    """Return the functions and arguments that occur in more than one call, by identity; small ones are left out."""
    seen: dict[int, Any] = {}
    again: dict[int, Any] = {}
    for batch in batches:
        for function, args, kwargs in batch.items:
            for value in (function, *args, *kwargs.values()):
                if not isinstance(value, _ATOMS) and not (isinstance(value, (str, bytes)) and len(value) <= _SHORT):
                    (again if id(value) in seen else seen)[id(value)] = value
    return list(again.values())


class _Pickled:
    """A value that unpickles as the bytes of its pickle, in which shared values stand as numbers, by identity.

    The value is pickled when the run is, so that ``by_value=`` applies to it.
    """

    def __init__(self, value: Any, numbers: Mapping[int, int] = MappingProxyType({})) -> None:
        self._value, self._numbers = value, numbers

    def __reduce__(self) -> tuple[Any, ...]:
        file = io.BytesIO()
        pickler = _Pickler(file, self._numbers)
        pickler.dump(self._value)
        if pickler.generators and isinstance(self._value, FunctionType):
            from slurmlaunch.client.pickling import warn_of_generators  # here, because nodes import this module, too

            warn_of_generators(self._value, pickler.generators)
        return bytes, (file.getvalue(),)


class _WithSharedValues:
    """The function of a run, under its name: unpickles a call, with the shared values in it, and runs it.

    *initializer* is a pickled function that each process runs before its first call.
    """

    def __init__(self, shared: Sequence[Any], name: str, initializer: Any = None) -> None:
        self._shared, self._initializer = shared, initializer
        self.__qualname__ = name

    def __call__(self, pickled: bytes) -> Any:
        if self._initializer is not None:
            pickle.loads(self._initializer)()
            self._initializer = None  # in this process, whose copy of the function this is
        return self._batch(pickled)()

    def _batch(self, pickled: bytes) -> Any:
        return _Unpickler(io.BytesIO(pickled), self._shared).load()

    def call_of(self, pickled: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of an item's call; of several calls in a batch the calls, as joblib keeps them."""
        calls = self._batch(pickled).items
        return (tuple(calls[0][1]), dict(calls[0][2])) if len(calls) == 1 else (tuple(calls), {})


class _Pickler(byvalue.NotingPickler):
    def __init__(self, file: io.BytesIO, numbers: Mapping[int, int]) -> None:
        super().__init__(file, PICKLE_PROTOCOL)
        self._numbers = numbers

    def persistent_id(self, value: Any) -> int | None:
        return self._numbers.get(id(value))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, shared: Sequence[bytes]) -> None:
        super().__init__(file)
        self._shared = shared
        self._loaded: dict[int, Any] = {}

    def persistent_load(self, number: int) -> Any:
        """Return this call's own copy of a shared value."""
        if number not in self._loaded:
            self._loaded[number] = pickle.loads(self._shared[number])
        return self._loaded[number]
