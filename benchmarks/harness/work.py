"""What is done: functions that a user might have in a notebook, and how often they are called."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cloudpickle

if TYPE_CHECKING:
    from collections.abc import Callable

# The nodes have no such module: the code travels with the function, as it does from a notebook.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class Workload:
    """A function, its items ``0..items-1``, and into how many tasks they go.

    Attributes:
        function: what is called; it returns the item itself, so that a wrong result is seen.
        items: how many items there are.
        tasks: how many slices a contender that slices cuts them into, all of which may run at once.
        killed: the item that takes its process with it, or None.
    """

    function: Callable[[int], int]
    items: int
    tasks: int
    killed: int | None = None

    def lost(self, outcomes: list[int | BaseException]) -> int:
        """Return how many items came to nothing.

        Raises:
            AssertionError: one came to a wrong value, or the outcomes are fewer or more than the items.
        """
        lost = [item for item, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)]
        whole = len(outcomes) == self.items
        if not whole or any(item not in {outcome, *lost} for item, outcome in enumerate(outcomes)):
            wrong = [pair for pair in enumerate(outcomes) if pair[0] not in {pair[1], *lost}]
            raise AssertionError(f"{self.items} items came to {len(outcomes)} outcomes, of which wrong: {wrong[:5]}")
        return len(lost)


def no_op(item: int) -> int:
    """Do nothing."""
    return item


def _sleep(seconds: float, item: int) -> int:
    time.sleep(seconds)
    return item


def sleeping(seconds: float) -> Callable[[int], int]:
    """Return a function that takes so long."""
    return functools.partial(_sleep, seconds)


def _kill_one(killed: int, item: int) -> int:
    if item == killed:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def killing(item: int) -> Callable[[int], int]:
    """Return a function that one item does not survive, as with the OOM killer."""
    return functools.partial(_kill_one, item)


def closing_over(size: int) -> Callable[[int], int]:
    """Return a function that closes over so many bytes, which no two items need apart."""
    blob = os.urandom(size)

    def function(item: int) -> int:
        return item if blob else -1

    return function


def _run_slice(function: Callable[[int], int], items: range) -> list[int]:
    return [function(item) for item in items]


def over_slices(function: Callable[[int], int]) -> Callable[[range], list[int]]:
    """Return a function of several items, for those who slice by hand."""
    return functools.partial(_run_slice, function)
