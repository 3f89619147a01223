"""Functions that a user might have in a notebook. Each returns its item, so that a wrong result is seen."""

from __future__ import annotations

import functools
import os
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def no_op(item: int) -> int:
    """Do nothing."""
    return item


def _sleep(seconds: float, item: int) -> int:
    time.sleep(seconds)
    return item


def sleeping(seconds: float) -> Callable[[int], int]:
    """Return a function that sleeps so long."""
    return functools.partial(_sleep, seconds)


def _kill_one(killed: int, item: int) -> int:
    if item == killed:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def killing(item: int) -> Callable[[int], int]:
    """Return a function whose process one item kills, as the OOM killer would."""
    return functools.partial(_kill_one, item)


def _look_at(blob: bytes, item: int) -> int:
    return item if blob else -1


def closing_over(size: int) -> Callable[[int], int]:
    """Return a function with a large closure, the same for all items."""
    return functools.partial(_look_at, os.urandom(size))


# For systems with slices written by hand.


def _run_slice(function: Callable[[int], int], items: Sequence[int]) -> list[int]:
    return [function(item) for item in items]


def over_slices(function: Callable[[int], int]) -> Callable[[Sequence[int]], list[int]]:
    """Return a function of several items, which runs them one after the other."""
    return functools.partial(_run_slice, function)


def _run_slice_in_pool(function: Callable[[int], int], processes: int, items: Sequence[int]) -> list[int]:
    from loky import get_reusable_executor

    with get_reusable_executor(processes) as pool:
        return list(pool.map(function, items))


def over_slices_with_loky(function: Callable[[int], int], processes: int) -> Callable[[Sequence[int]], list[int]]:
    """Return a function of several items, which runs them in parallel in a loky pool."""
    return functools.partial(_run_slice_in_pool, function, processes)


def _write_result(function: Callable[[int], int], folder: str, number: int, item: int) -> None:
    import pickle
    from pathlib import Path

    path = Path(folder, str(number))
    beside = path.with_suffix(".new")
    beside.write_bytes(pickle.dumps(function(item)))
    beside.rename(path)


def writing_results(function: Callable[[int], int], folder: str) -> Callable[[int, int], None]:
    """Return a function of a number and an item that writes its result to a file, for systems without return values."""
    return functools.partial(_write_result, function, folder)
