"""The process pool that user code opens inside a task, or anywhere else."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

import cloudpickle

from slurmlaunch import caps

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

T = TypeVar("T")


class TaskPool(ProcessPoolExecutor):
    """A `ProcessPoolExecutor` whose processes are capped, and that takes what cloudpickle takes."""

    def __init__(self, max_workers: int, threads: int) -> None:
        # A fork, since a spawned process would import __main__, and inside a
        # task that is not the user's script.
        fork = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
        super().__init__(
            max_workers,
            mp_context=multiprocessing.get_context(fork),
            initializer=_start_worker,
            initargs=(threads,),
        )

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Schedule a call, as `concurrent.futures.Executor.submit` does."""
        # Pickled here, so that what does not pickle is told to the caller: the
        # standard library's feeder thread can hang on it (seen on Python 3.11.2).
        return super().submit(_call, cloudpickle.dumps((fn, args, kwargs)))


def _start_worker(threads: int) -> None:
    caps.apply(threads)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A killed parent leaves no end of file: the workers hold each other's pipes.
        sentinel = parent.sentinel
        Thread(target=_end_with, args=(sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _call(pickled: bytes) -> Any:
    function, args, kwargs = pickle.loads(pickled)
    return _Shipped(function(*args, **kwargs))


class _Shipped:
    """A value that is pickled by cloudpickle, and is itself where it is unpickled."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (cloudpickle.dumps(self._value),)
