"""Pickles the results that refer to classes and functions of ``__main__``, or of modules that travel by value.

These definitions are written once per run (`user_classes`), and results refer to them. `function` imports this when the
first result needs it, since cloudpickle takes long to import.
"""

from __future__ import annotations

import copyreg
import pickle
from typing import TYPE_CHECKING, Any

from slurmlaunch import byvalue, unpickling
from slurmlaunch.outcome import PICKLE_PROTOCOL
from slurmlaunch.runfolder.user_classes import number_of, write_definition

if TYPE_CHECKING:
    from collections.abc import Callable
    from pickle import PickleBuffer

    from slurmlaunch.runfolder.files import Location

_MOST = 256
"""How many definitions a process writes: results that need others hold these themselves, so that there are never
as many files as items."""


class Results:
    """Pickles one result after the other, as `pickle.dumps` does with protocol 5.

    The standard library's pickler does it, with a table of the classes that results have referred to so far: nearly as
    fast as without. The pickles that it fails at, and those that name something of ``__main__``, are made anew
    by `dumps_by_value`.
    """

    def __init__(self, folder: Location, buffer_callback: Callable[[PickleBuffer], Any]) -> None:
        """Begin; *folder* is for definitions, and *buffer_callback* is pickle's, for all results."""
        self._parts: list[bytes] = []
        self._pickler = pickle.Pickler(_Sink(self._parts), PICKLE_PROTOCOL, buffer_callback=buffer_callback)
        self._table: dict[type, Callable[[Any], Any]] = {}
        self._registered = 0
        self._folder, self._buffer_callback = folder, buffer_callback
        self._numbers: dict[Any, int | None] = {}

    def dumps(self, value: object, _protocol: int = PICKLE_PROTOCOL, **_: object) -> bytes:
        """Pickle a result."""
        pickler, parts = self._pickler, self._parts
        if len(copyreg.dispatch_table) != self._registered:
            self._refresh()
        try:
            pickler.dump(value)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            parts.clear()
            pickler.clear_memo()

    def dumps_by_value(self, value: object, _protocol: int = PICKLE_PROTOCOL, **_: object) -> bytes:
        """Pickle a result by value, and remember the classes that it refers to."""
        parts: list[bytes] = []
        _Pickler(_Sink(parts), PICKLE_PROTOCOL, self._buffer_callback, self._number_of).dump(value)
        self._refresh()
        return b"".join(parts)

    def _refresh(self) -> None:
        """Let the pickler know the table, and the reducers that programs have registered for all picklers."""
        self._registered = len(copyreg.dispatch_table)
        self._pickler.dispatch_table = {**copyreg.dispatch_table, **self._table}

    def _number_of(self, definition: Any) -> int | None:
        """Return the number of a definition on disk; None if each result is to hold it."""
        if definition not in self._numbers:
            lasting = unpickling.is_named(definition) or unpickling.has_arrived(definition)
            if not lasting or "<locals>" in definition.__qualname__ or len(self._numbers) >= _MOST:
                return None
            number = self._numbers[definition] = self._write(definition)
            if number is not None and isinstance(definition, type):
                self._table[definition] = _reducer(definition, number)
        return self._numbers[definition]

    def _write(self, definition: Any) -> int | None:
        identity = unpickling.identity(definition)
        try:
            written = write_definition(self._folder, identity, byvalue.dumps(definition))
        except OSError:  # such as a full disk, which the results may still find room on
            return None
        return number_of(identity) if written else None


class _Sink:
    """A file for a pickler: it writes a small pickle in one piece."""

    def __init__(self, parts: list[bytes]) -> None:
        self.write = parts.append


class _Pickler(byvalue.Pickler):
    def __init__(
        self,
        file: Any,
        protocol: int,
        buffer_callback: Callable[[PickleBuffer], Any],
        number_of: Callable[[Any], int | None],
    ) -> None:
        super().__init__(file, protocol, buffer_callback)
        self._number_of = number_of

    def _identified(self, obj: Any, *reduced: Any) -> Any:
        number = self._number_of(obj)
        return super()._identified(obj, *reduced) if number is None else (unpickling.stored, (number,))


def _reducer(cls: type, number: int) -> Callable[[Any], Any]:
    """Return a function that reduces the instances of a class, which refer to it by number."""
    if _is_simple(cls):
        return lambda instance: (unpickling.new, (number,), instance.__dict__ or None)

    def reduce(instance: Any) -> Any:
        reduced = instance.__reduce_ex__(PICKLE_PROTOCOL)
        if isinstance(reduced, tuple) and reduced[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return unpickling.new, (number, *reduced[1][1:]), *reduced[2:]
        if isinstance(reduced, tuple) and reduced[0] is cls:
            reduced = unpickling.call, (number, *reduced[1]), *reduced[2:]
        return byvalue.with_any_state(reduced) if issubclass(cls, BaseException) else reduced

    return reduce


def _is_simple(cls: type) -> bool:
    """Return whether the instances of a class have their state in ``__dict__`` alone, and no say in how they pickle."""
    special = ("__new__", "__reduce__", "__reduce_ex__", "__getstate__")
    own = any(getattr(cls, name, None) is not getattr(object, name, None) for name in special)
    slots = any(vars(each).get("__slots__") for each in cls.__mro__)
    arguments = hasattr(cls, "__getnewargs__") or hasattr(cls, "__getnewargs_ex__")
    return bool(cls.__dictoffset__) and not (own or slots or arguments)
