"""Compares a call that is made again with that of an earlier run: the arguments of its items, and its function.

A resumed run uses it. It reads no file and knows no run: rows of arguments go in and numbers of items come out, two
functions go in and what differs comes out. A function is compared only if it travels by value, with all that it refers
to: `runfolder.modules` compares the modules from which others are imported.
"""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import types
from collections import defaultdict, deque
from itertools import chain
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

from slurmlaunch.client.pickling import names_in
from slurmlaunch.outcome import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Row = tuple[Any, ...]

# The items, by their arguments, not by their positions.

_MOST_COMPARISONS = 1_000_000
"""How many pairs are compared with ``==``: a long list in another order would cost the square of its length."""

_LONG = 64
"""Bytes above which the hash of a pickle stands for it: arrays would be held a second time."""


def match(earlier: Sequence[Row | None], now: Sequence[Row]) -> tuple[list[int | None], int]:
    """Return for each row of now the earlier one that it is, None for a new one; and how many could not be decided.

    Rows are the same if their pickles are, or else if ``==`` says so of all arguments. Of several that are the same,
    the first is the first. An earlier row of None could not be read: each row without a match may be that one.
    """
    places: defaultdict[bytes | str, deque[int]] = defaultdict(deque)
    unknown: list[int] = []  # rows that only == can tell
    for number, row in enumerate(earlier):
        if row is not None:
            key = key_of(row)
            unknown.append(number) if key is None else places[key].append(number)
    found: list[int | None] = [None] * len(now)
    vague = set()
    for position, row in enumerate(now):
        key = key_of(row)
        if key is None:
            vague.add(position)
        elif same := places.get(key):
            found[position] = same.popleft()
    left = deque(sorted(chain(unknown, chain.from_iterable(places.values()))))
    undecided, budget, unread = 0, _MOST_COMPARISONS, None in earlier
    for position, row in enumerate(now):
        if found[position] is None:
            tries = min(len(left), budget)
            budget -= tries
            matched, unclear = _matched(earlier, left, row, tries)
            found[position] = matched
            unclear = unclear or unread or tries < len(left) or bool(left and (unknown or position in vague))
            undecided += matched is None and unclear
    return found, undecided


def _matched(earlier: Sequence[Row | None], left: deque[int], row: Row, tries: int) -> tuple[int | None, bool]:
    """Take the first of the rows that are left that equals a row; return it, and whether ``==`` failed for another."""
    unclear = False
    for _ in range(tries):
        equal = are_equal(earlier[left[0]], row)
        if equal:
            return left.popleft(), unclear
        unclear = unclear or equal is None
        left.rotate(-1)  # the next row most often is the next item
    return None, unclear


def key_of(row: Row) -> bytes | str | None:
    """Return what rows that pickle alike have in common; None for one that holds a function or class without a name.

    Definitions count by their names: those of a script are made anew in each process.
    """
    if PLAIN.issuperset(map(type, row)):
        try:
            return repr(row)
        except ValueError:  # an integer of too many digits
            return pickle.dumps(row)
    for fast in (True, False):  # without a memo first: the same object may come twice here, and two equal ones there
        with io.BytesIO() as file:
            pickler = _ByName(file, pickle.HIGHEST_PROTOCOL)
            pickler.fast = fast
            try:
                pickler.dump(row)
            except _Unnamed:
                return None
            except Exception:  # noqa: BLE001, S112  (a row that refers to itself, or any error of the user's classes)
                continue
            pickled = file.getvalue()
            return pickled if len(pickled) < _LONG else hashlib.sha256(pickled).digest()
    return None


class _Unnamed(Exception):
    """A definition has no name by which it could be found."""


class _ByName(pickle.Pickler):
    """Pickles functions and classes as their names, whether they can be imported or not, and sets without an order."""

    def persistent_id(self, value: object) -> Any:
        if type(value) is set or type(value) is frozenset:
            keys = [key_of((each,)) for each in value]
            if None in keys:
                raise _Unnamed
            return type(value).__name__, sorted(map(repr, keys))
        if not isinstance(value, (type, FunctionType)):
            return None
        if "<" in value.__qualname__:  # a lambda, or inside a function: another may have the same name
            raise _Unnamed
        return value.__module__, value.__qualname__


def are_equal(one: object, other: object) -> bool | None:
    """Return whether two values, or rows of values, are equal; None if ``==`` of one does not say."""
    try:
        if isinstance(one, tuple) and isinstance(other, tuple):
            return len(one) == len(other) and all(bool(a == b) for a, b in zip(one, other, strict=True))
        return bool(one == other)
    except Exception:  # noqa: BLE001  (an array is neither true nor false; other classes raise anything)
        return None


# The function.

_MOST = 10_000
"""How many pairs of objects are compared at most."""

_FEW = 100
"""The length of containers in which functions are looked for, at most."""


def changes_of(earlier: Callable[..., Any], now: Callable[..., Any]) -> list[tuple[str, str]]:
    """Return what has changed from a function to another: names of files or variables, each with its lines."""
    comparison = _Comparison()
    comparison.compare(earlier, now, "")
    files = [(name, _text_of(sorted(lines))) for name, lines in comparison.lines.items()]
    return [*files, *((name, "") for name in comparison.data)]


class _Comparison:
    """One walk through two functions.

    Attributes:
        lines: the first and last lines, as they are now, of definitions whose code differs, by the name of their file.
        data: the variables and arguments whose values differ.
    """

    def __init__(self) -> None:
        self.lines: defaultdict[str, set[tuple[int, int]]] = defaultdict(set)
        self.data: dict[str, None] = {}
        self._seen: set[tuple[int, int]] = set()

    def compare(self, old: Any, new: Any, name: str) -> None:
        """Compare two objects; *name* is what refers to them, for messages."""
        pair = id(old), id(new)
        if old is new or pair in self._seen or len(self._seen) > _MOST:
            return
        self._seen.add(pair)
        if isinstance(old, types.FunctionType) and isinstance(new, types.FunctionType):
            self._compare_functions(old, new)
        elif isinstance(old, type) and isinstance(new, type):
            self._compare_members(old, new)
        elif type(old) is not type(new) and type(old).__qualname__ != type(new).__qualname__:
            self.data[name or "the function"] = None
        elif isinstance(old, functools.partial):
            self.compare(old.func, new.func, name)
            for part in ("args", "keywords"):
                self.compare(getattr(old, part), getattr(new, part), f"an argument of {name or 'the partial'}")
        else:
            self._compare_values(old, new, name)

    def _compare_values(self, old: Any, new: Any, name: str) -> None:
        inner = [part for part in ("__func__", "__wrapped__", "fget", "func") if hasattr(old, part)]
        for part in inner:
            self.compare(getattr(old, part), getattr(new, part, None), name)
        self.compare(type(old), type(new), name)
        if not inner and _differ(old, new):
            self.data[name or "the function"] = None
        elif type(old) in (list, tuple, dict) and len(old) == len(new) <= _FEW:
            parts = (each.values() if isinstance(each, dict) else each for each in (old, new))
            for one, other in zip(*parts, strict=True):  # which may be functions, and these count by their names
                self.compare(one, other, name)

    def _compare_functions(self, old: types.FunctionType, new: types.FunctionType) -> None:
        if _shape(old.__code__) != _shape(new.__code__):
            file = new.__code__.co_filename
            if file == "<string>":  # the methods of a dataclass
                self.data[new.__qualname__] = None
            else:
                self.lines[Path(file).name].add(_lines_of(new.__code__))
        for part in ("__defaults__", "__kwdefaults__"):
            self.compare(getattr(old, part), getattr(new, part), f"a default of {new.__qualname__}")
        for name, before, now in zip(new.__code__.co_freevars, _cells(old), _cells(new), strict=False):
            self.compare(before, now, name)
        for name in set(names_in(new.__code__)) & old.__globals__.keys() & new.__globals__.keys():
            self.compare(old.__globals__[name], new.__globals__[name], name)

    def _compare_members(self, old: type, new: type) -> None:
        before, now = vars(old), vars(new)
        for name in sorted(before.keys() & now.keys() - _OF_PYTHON):
            self.compare(before[name], now[name], f"{new.__qualname__}.{name}")
        for one, other in zip(old.__bases__, new.__bases__, strict=False):
            self.compare(one, other, new.__qualname__)


_OF_PYTHON = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__annotate__", "__annotate_func__",
    "__annotations_cache__", "__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl", "__hash__",
    "__slots__", "__dataclass_fields__", "__dataclass_params__", "__match_args__", "__type_params__",
}  # fmt: skip
"""Attributes of classes that follow from the others, or say nothing of what they do."""


def _differ(old: object, new: object) -> bool:
    """Return whether two values differ for certain."""
    if isinstance(old, (types.ModuleType, types.MemberDescriptorType, types.GetSetDescriptorType)):
        return False
    before, now = key_of((old,)), key_of((new,))
    return before is not None and now is not None and before != now and are_equal(old, new) is not True


def _cells(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # the variable has no value yet
            yield None


def _shape(code: types.CodeType) -> tuple[Any, ...]:
    """Return what code does, without the place where it is."""
    constants = tuple(map(_constant, code.co_consts))
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    return code.co_name, code.co_code, constants, names, counts, getattr(code, "co_exceptiontable", b"")


def _constant(value: object) -> object:
    if isinstance(value, types.CodeType):
        return _shape(value)
    if isinstance(value, tuple):
        return tuple(map(_constant, value))
    return type(value).__name__, value if isinstance(value, frozenset) else repr(value)  # 1, 1.0 and True are equal


def _lines_of(code: types.CodeType) -> tuple[int, int]:
    lines = [line for _, _, line in code.co_lines() if line]
    inner = [line for each in code.co_consts if isinstance(each, types.CodeType) for line in _lines_of(each)]
    return code.co_firstlineno, max([code.co_firstlineno, *lines, *inner])


def _text_of(lines: list[tuple[int, int]]) -> str:
    text = ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in lines)
    return f"line{'s' * (len(lines) > 1 or lines[0][0] != lines[0][1])} {text}"
