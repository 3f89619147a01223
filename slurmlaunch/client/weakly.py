"""Remembering objects by number for as long as somebody else holds them."""

from __future__ import annotations

from typing import Generic, TypeVar
from weakref import ref

T = TypeVar("T")

_FEWEST = 1024


class Weakly(Generic[T]):
    """Objects by number, none of them kept alive.

    A `weakref.WeakValueDictionary` calls back for each object that goes, and
    costs several times as much; here the traces of those that are gone are
    swept out when they may be the half of all.
    """

    def __init__(self) -> None:
        self._refs: dict[int, ref[T]] = {}
        self._sweep_at = _FEWEST

    def __setitem__(self, number: int, value: T) -> None:
        self._refs[number] = ref(value)
        if len(self._refs) > self._sweep_at:
            self._refs = {number: each for number, each in self._refs.items() if each() is not None}
            self._sweep_at = max(_FEWEST, 2 * len(self._refs))

    def __len__(self) -> int:
        """Return of how many objects a trace is left."""
        return len(self._refs)

    def any_left(self) -> bool:
        """Return whether any of the objects is still there."""
        return any(each() is not None for each in self._refs.values())

    def get(self, number: int) -> T | None:
        """Return the object of a number, or None where there is none any more."""
        found = self._refs.get(number)
        return None if found is None else found()
