"""Failures of a user's function, by name: a function for each, to be run elsewhere.

Nodes import this file, so it imports very little.
"""

from __future__ import annotations

import concurrent.futures
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class TwoArgumentsError(Exception):
    """Its pickle does not load, because its class takes other arguments than it passes on."""

    def __init__(self, number: int, *, word: str) -> None:
        super().__init__(f"{number} {word}")
        self.number, self.word = number, word


class Mute:
    """Neither pickles nor prints."""

    def __reduce__(self) -> str:
        raise TypeError("stays here")

    def __repr__(self) -> str:
        raise RuntimeError("no words")


class HoldsLockError(Exception):
    """An exception that does not pickle, because it holds a lock."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock, self.mute, self.kept = threading.Lock(), Mute(), 1


class MuteError(Exception):
    """An exception that cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Unloadable:
    """Pickles, and does not unpickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


class SlowToLoad:
    """Slow to unpickle; accepts any arguments."""

    def __init__(self, *_: object) -> None:
        pass

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("__import__('time').sleep(0.2)",)


def throw(error: BaseException) -> Any:
    """Raise."""
    raise error


def chain() -> None:
    """Raise one exception from another."""
    words: dict[str, str] = {}
    try:
        words["missing"]
    except KeyError as error:
        raise ValueError("from it") from error


def note() -> None:
    """Raise an exception with a note, as add_note() makes it."""
    error = ValueError("noted")
    error.add_note("a note of the user's")
    raise error


def group() -> None:
    """Raise a group of exceptions."""
    raise ExceptionGroup("both", [ValueError(1), TwoArgumentsError(2, word="in it")])


def recurse() -> int:
    """Recur for ever."""
    return recurse() + 1


def made_there() -> object:
    """Return an object whose class exists only in the task."""

    class Local:
        word = "made there"

    return Local()


DEEDS: dict[str, Callable[[], Any]] = {
    "value": lambda: 1,
    "plain": lambda: throw(ValueError("a", 1)),
    "os": lambda: open("/no/such/file"),  # noqa: PTH123, SIM115 - raises
    "unicode": b"\xff".decode,
    "two arguments": lambda: throw(TwoArgumentsError(1, word="two")),
    "lock": lambda: throw(HoldsLockError("locked")),
    "mute": lambda: throw(MuteError()),
    "chain": chain,
    "note": note,
    "group": group,
    "exit 3": lambda: sys.exit(3),
    "exit with words": lambda: sys.exit("words"),
    "interrupt": lambda: throw(KeyboardInterrupt()),
    "stop": lambda: throw(StopIteration(1)),
    "generator exit": lambda: throw(GeneratorExit()),
    "cancelled": lambda: throw(concurrent.futures.CancelledError()),
    "timeout": lambda: throw(concurrent.futures.TimeoutError()),
    "recursion": recurse,
    "huge exception": lambda: throw(ValueError("x" * 5_000_000)),
    "unpicklable result": lambda: [threading.Lock()],
    "generator": lambda: (i for i in range(3)),
    "unloadable result": Unloadable,
    "huge result": lambda: b"x" * 50_000_000,
    "class of there": made_there,
    "last value": lambda: 2,
}
