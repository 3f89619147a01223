"""`TaskPool`: the process pool that `slurmlaunch.task_pool` returns, in a task or anywhere else.

Created by `context.task_pool` only; knows nothing of tasks.
"""

from __future__ import annotations

import atexit
import gc
import io
import multiprocessing
import os
import pickle
import weakref
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import util
from multiprocessing.connection import wait
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from slurmlaunch import byvalue, caps
from slurmlaunch.outcome import Failure, Value, failure_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

T = TypeVar("T")


class TaskPool(ProcessPoolExecutor):
    """A `ProcessPoolExecutor` with thread caps that accepts all that cloudpickle can pickle."""

    def __init__(self, max_workers: int, threads: int) -> None:
        # Forked, since a spawned process would import __main__, which in a task is not the user's script.
        fork = multiprocessing.get_context("fork")
        super().__init__(max_workers, mp_context=fork, initializer=_start_worker, initargs=(threads,))

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Schedule a call, as `concurrent.futures.Executor.submit` does."""
        byvalue.refuse_coroutines(fn)
        # Pickled here, so that a pickling error reaches the caller: the standard
        # library's feeder thread can hang on it (seen on Python 3.11.2).
        return super().submit(_call, byvalue.dumps((fn, args, kwargs)))


def _start_worker(threads: int) -> None:
    _leave_to_parent()
    util.Finalize(None, _end, exitpriority=_LAST)
    caps.apply(threads)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # The death of the parent gives no end of file: the workers hold each other's pipes.
        Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _leave_to_parent() -> None:
    """Leave the functions of atexit, the temporary folders and the open files of the parent to the parent."""
    atexit._clear()  # noqa: SLF001  (as multiprocessing does in newer versions of Python)
    atexit.register(util._exit_function)  # type: ignore[attr-defined]  # noqa: SLF001  (which these end by)
    finalizers: Any = weakref.finalize
    for each in [*finalizers._registry]:  # noqa: SLF001
        each.detach()
    finalizers._registered_with_atexit = False  # noqa: SLF001
    gc.freeze()


def _end() -> None:
    """End as Python ends: multiprocessing leaves a forked process by `os._exit`."""
    caps.limit_end()
    atexit._run_exitfuncs()  # noqa: SLF001
    for each in gc.get_objects():  # without those of the parent
        if _FILE in type(each).__mro__:
            with suppress(Exception):  # it is closed, or its disk is full
                each.flush()


_FILE = io.IOBase.__base__
_LAST = -100


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _call(pickled: bytes) -> Any:
    try:
        function, args, kwargs = pickle.loads(pickled)
        return _Shipped(Value(function(*args, **kwargs)).dump())
    except BaseException as error:
        raise _Raised(failure_of(error).dump()) from error


class _Shipped:
    """A pickled value; it unpickles as the value itself."""

    def __init__(self, pickled: bytes) -> None:
        self._pickled = pickled

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._pickled,)


class _Raised(Exception):
    """A pickled exception: one that cannot be unpickled would break the whole pool."""

    def __init__(self, pickled: bytes) -> None:
        super().__init__()
        self._pickled = pickled

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_error, (self._pickled,)


def _load_error(pickled: bytes) -> BaseException:
    return Failure.load(pickled).error
