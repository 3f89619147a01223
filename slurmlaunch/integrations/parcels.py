"""Calls that travel as bytes: what several of them share is stored once per run.

A neighbour hands over calls that are complete in themselves, so the data that a
thousand calls work on would be stored a thousand times. Here it lies in the
run's function, pickled by itself, and a call names it by its number. Each call
unpickles a copy of its own, as if nothing were shared.

A node imports this file, so it imports next to nothing.
"""

from __future__ import annotations

import io
import pickle
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from slurmlaunch import byvalue
from slurmlaunch.outcome import PICKLE_PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_ATOMS = (type(None), bool, int, float, complex)
_SHORT = 1000
"""A text with more characters is worth sharing."""


def shared_by(calls: Iterable[Iterable[Any]]) -> list[Any]:
    """Return the values that occur more than once, by identity; small ones are left out.

    Args:
        calls: the values of each call.
    """
    found: dict[int, Any] = {}
    again: dict[int, Any] = {}
    for value in (value for values in calls for value in values):
        if not isinstance(value, _ATOMS) and not (isinstance(value, (str, bytes)) and len(value) <= _SHORT):
            (again if id(value) in found else found)[id(value)] = value
    return list(again.values())


class Parcel:
    """A value that arrives as bytes, in which shared values are named by their numbers.

    It is pickled as late as the run is, so that ``by_value=`` holds for it.

    Args:
        value: what travels.
        numbers: the number of each shared value, by its identity.
    """

    def __init__(self, value: Any, numbers: Mapping[int, int] = MappingProxyType({})) -> None:
        self._value, self._numbers = value, numbers

    def __reduce__(self) -> tuple[Any, ...]:
        file = io.BytesIO()
        _Pickler(file, self._numbers).dump(self._value)
        return bytes, (file.getvalue(),)


class Deliver:
    """The function of a run: it unpacks a parcel and calls what was in it.

    Args:
        shared: parcels of the shared values, in the order of their numbers.
        name: what the run is called.
    """

    def __init__(self, shared: Sequence[Any], name: str) -> None:
        self._shared = shared
        self.__qualname__ = name

    def __call__(self, parcel: bytes) -> Any:
        """Call what is in the parcel."""
        return _Unpickler(io.BytesIO(parcel), self._shared).load()()


class _Pickler(byvalue.Pickler):
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
