"""Values and exceptions that are hard to pickle, unpickle or show. Nodes import this file, so it imports nothing."""

from __future__ import annotations

from typing import Any


class Trap:
    """Pickles, and raises where it is unpickled."""

    def __init__(self, error: type[BaseException] = LookupError) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return spring, (self.error,)


def spring(error: type[BaseException]) -> None:
    """Raise an error of a class."""
    raise error("sprung")


class Unspeakable:
    """Neither pickles nor shows itself."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise RuntimeError("no pickle")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Mute(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Bomb:
    """Ends the process, if it can, where it is pickled."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        raise self.error

    __repr__ = __str__ = __reduce__  # type: ignore[assignment]
