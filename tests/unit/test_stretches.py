"""Stretches: every item of a record is found in it, whatever else settled, and whoever is gone is forgotten."""

from __future__ import annotations

import gc
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurmlaunch.client.stretches import Stretches, consecutive
from slurmlaunch.client.weakly import Weakly
from slurmlaunch.runfolder.outcomes import Recorded
from slurmlaunch.runfolder.records import Header, Kind

if TYPE_CHECKING:
    from random import Random

ITEMS = 20_000
"""More than a few blocks hold."""

cuts = st.lists(st.integers(1, ITEMS - 1), unique=True, max_size=30).map(sorted)


@given(cuts, st.randoms(use_true_random=False), st.data())
def test_find(cut: list[int], random: Random, data: st.DataObject) -> None:
    """Stretches that settle in any order are found by each of their items; those without a record are not."""
    parts = [range(a, b) for a, b in zip([0, *cut], [*cut, ITEMS], strict=True)]
    random.shuffle(parts)
    stretches = Stretches()
    for number, items in enumerate(parts):
        recorded = Recorded(Path(f"{number // 2}.0"), 100 * number, Header(Kind.VALUES, len(items), items.start, 0, 0))
        stretches.add(items, recorded if number % 3 else None)

    assert parts == list(stretches)
    number = data.draw(st.integers(0, len(parts) - 1))
    for item in (parts[number].start, parts[number].stop - 1):
        if number % 3:
            assert (number, parts[number], Path(f"{number // 2}.0"), 100 * number) == stretches.find(item)
        else:
            with pytest.raises(LookupError):
                stretches.find(item)


def test_weakly() -> None:
    """What nobody holds is gone, and no trace of it is kept for long."""

    class Thing:
        pass

    held, known = Thing(), Weakly[Thing]()
    known[0] = held
    for number in range(1, 10_000):
        known[number] = Thing()
    gc.collect()

    assert (held, None, None) == (known.get(0), known.get(9_999), known.get(10_000))
    assert len(known) < 5_000


@given(st.sets(st.integers(0, 40)).map(sorted))
def test_consecutive(items: list[int]) -> None:
    """Items are cut into the fewest ranges that hold them and no others."""
    ranges = list(consecutive(items))

    assert items == [item for part in ranges for item in part]
    assert all(before.stop < after.start for before, after in pairwise(ranges))
