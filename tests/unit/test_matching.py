"""Which items of a run are those of a call that is made again."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from slurmlaunch.client.comparison import match


class Odd:
    """An object that cannot be compared."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        raise TypeError

    __hash__ = None  # type: ignore[assignment]


CASES = [
    ("the same", [1, 2, 3], [1, 2, 3], [0, 1, 2], 0),
    ("another order, and new ones", [1, 2, 3], [3, 9, 1, 2], [2, None, 0, 1], 0),
    ("duplicates", ["a", "b", "a"], ["a", "a", "a", "b"], [0, 2, None, 1], 0),
    ("types", [1, 1.0, True], [True, 1.0, 1], [2, 1, 0], 0),
    ("equal, and pickled differently", [1], [1.0], [0], 0),
    ("not a number", [math.nan, -0.0], [math.nan, 0.0], [0, 1], 0),
    ("sets", [{"x", "y", "z"}, {1}], [{1}, {"z", "y", "x"}], [1, 0], 0),
    ("arrays", [np.arange(3), np.arange(4)], [np.arange(4), np.arange(3)], [1, 0], 0),
    ("arrays that differ", [np.arange(3)], [np.arange(3) + 1], [None], 1),
    ("large arrays", [np.zeros(1 << 17), np.ones(1 << 17)], [np.ones(1 << 17)], [1], 0),
    ("objects that do not compare", [Odd(1), Odd(2)], [Odd(2), Odd(3)], [1, None], 1),
]


@pytest.mark.parametrize(
    ("earlier", "now", "expected", "undecided"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_match(earlier: list[object], now: list[object], expected: list[int | None], undecided: int) -> None:
    """Items are the same if they pickle alike, or are equal; each is matched once, in order."""
    rows = [[(each,) for each in some] for some in (earlier, now)]
    assert (expected, undecided) == match(rows[0], rows[1])


def made_anew(number: int, tags: set[str]) -> object:
    """Return an instance of a class as a script makes it that is started again."""
    kind: Any = dataclasses.make_dataclass("Point", ["number", "tags"])
    kind.__qualname__ = kind.__name__ = "Point"
    return kind(number, tags)


def test_classes_of_a_script() -> None:
    """Objects count by the names of their classes and by what they hold, sets by their members."""
    rows = [(made_anew(number, {"b", "a", str(number)}),) for number in range(3)]
    again = [(made_anew(number, {str(number), "a", "b"}),) for number in (2, 0, 5)]
    assert ([2, 0, None], 0) == match(rows, again)


def test_unnamed() -> None:
    """Functions without a name are new, and so is what an earlier item may be that does not load here."""
    assert ([None, 0], 1) == match([(1,), (abs,), (lambda: 1,)], [(lambda: 1,), (1,)])
    assert ([0, None], 1) == match([(1,), None], [(1,), (2,)])
    assert ([0], 0) == match([(abs,)], [(abs,)])


def test_long() -> None:
    """Long lists of sets cost no square of their length."""
    rows = [({number, -number - 1},) for number in range(20_000)]
    again = [({-number - 1, number},) for number in range(20_000)]
    assert list(range(20_000)) == match(rows, again)[0]
