"""Slices packed by the cost of their items."""

from __future__ import annotations

import json
import math
from array import array
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurmlaunch.client.plan import Costs, pack
from slurmlaunch.errors import OptionError
from slurmlaunch.runfolder.plan import PackedSlices

any_costs = st.lists(st.integers(min_value=0, max_value=50), min_size=1, max_size=60).map(lambda c: array("d", c))


def packed(costs: array[float], tasks: int, *, longest_first: bool = True) -> list[list[int]]:
    """Return the items of each slice."""
    slices, items = pack(costs, tasks, longest_first=longest_first)
    return [list(items[slices.slice_of(task).start : slices.slice_of(task).stop]) for task in range(slices.tasks)]


@given(any_costs, st.integers(min_value=1, max_value=60), st.booleans())
def test_all_are_packed(costs: array[float], tasks: int, longest_first: bool) -> None:  # noqa: FBT001
    """Each item is in one slice, and no slice is empty."""
    tasks = min(tasks, len(costs))
    slices = packed(costs, tasks, longest_first=longest_first)

    assert sorted(item for each in slices for item in each) == list(range(len(costs)))
    assert all(slices)
    key = (lambda item: (-costs[item], item)) if longest_first else (lambda item: (0.0, item))
    assert all(each == sorted(each, key=key) for each in slices)


@given(any_costs, st.integers(min_value=1, max_value=60))
def test_longest_first_bound(costs: array[float], tasks: int) -> None:
    """No slice costs more than the mean and the longest item: Graham's bound of 1969."""
    tasks = min(tasks, len(costs))
    most = max(sum(costs[item] for item in each) for each in packed(costs, tasks))

    assert most <= sum(costs) / tasks + max(costs) * (1 - 1 / tasks) + 1e-9


def test_nothing() -> None:
    """No items make no slices."""
    assert packed(array("d"), 0) == []


def test_by_hand() -> None:
    """The textbook's example: longest first into the slice that has least."""
    assert packed(array("d", [1, 2, 3, 4, 5, 6, 7]), 3) == [[6, 1, 0], [5, 2], [4, 3]]


def test_neighbours_stay_together() -> None:
    """Items that cost the same are packed as in slices that are not packed."""
    assert packed(array("d", [1] * 7), 3) == [[0, 1, 2], [3, 4], [5, 6]]
    assert packed(array("d", [0] * 4), 2) == [[0, 1], [2, 3]]


def test_many_items_are_packed_in_pieces() -> None:
    """Many items with different costs are packed into few ranges, recorded together, and slices are even."""
    costs = array("d", [number * 7919 % 101 for number in range(100_000)])
    slices = packed(costs, 16)
    stretches = sum(after != before + 1 for each in slices for before, after in pairwise(sorted(each)))
    loads = [sum(costs[item] for item in each) for each in slices]
    assert stretches < 16 * 100
    assert max(loads) <= 1.05 * sum(costs) / 16


@given(st.lists(st.integers(min_value=0, max_value=5), max_size=20))
def test_positions(lengths: list[int]) -> None:
    """Slices of any lengths contain each position once, and give its slice."""
    slices = PackedSlices(lengths)

    assert [len(slices.slice_of(task)) for task in range(slices.tasks)] == lengths
    assert all(position in slices.slice_of(slices.task_of(position)) for position in range(slices.items))
    assert PackedSlices.from_json(json.loads(json.dumps(slices.to_json()))) == slices


def test_where_an_item_is() -> None:
    """Both the position of an item and the item at a position are found."""
    slices, items = pack(array("d", [3, 1, 4, 1, 5]), 2, longest_first=True)

    assert [items[slices.position_of(item, items)] for item in range(5)] == list(range(5))


@pytest.mark.parametrize("data", [{"lengths": [1, -1]}, {"lengths": [1, 2]}, {"lengths": [3]}])
def test_damaged(data: dict[str, Any]) -> None:
    """Numbers that do not fit together are refused."""
    with pytest.raises(ValueError, match=r"slices"):
        PackedSlices.from_json({"items": 4, "tasks": 2} | data)


@pytest.mark.parametrize("cost", [math.nan, math.inf, -1, "many", None])
def test_no_costs(cost: Any) -> None:
    """A cost that is not finite or below 0 is refused by name, from a list and from a function."""
    with pytest.raises(OptionError, match="cost"):
        Costs([1, cost])
    with pytest.raises(OptionError, match="cost"):
        list(Costs(lambda _: cost).watching([(1,)]))


def test_neither_a_function_nor_numbers() -> None:
    """The error names the permitted forms."""
    with pytest.raises(OptionError, match="a function of an item, or numbers"):
        Costs(3)  # type: ignore[arg-type]


def test_too_few() -> None:
    """As many numbers as items, or it is refused."""
    with pytest.raises(OptionError, match="gives 2 numbers for 3 items"):
        Costs([1, 2]).of(3)
