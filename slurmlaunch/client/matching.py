"""Which items of a run are those of a call that is made again: the arguments are compared, not their positions.

A resumed run uses it, also for keyword arguments, and so does the comparison of functions (`definitions`). It reads no
file and knows no run: rows of arguments go in, numbers of items come out.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections import defaultdict, deque
from itertools import chain
from types import FunctionType
from typing import TYPE_CHECKING, Any

from slurmlaunch.outcome import PLAIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    Row = tuple[Any, ...]

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
