"""The record index: it has every settled item with a record, and keeps no settled futures."""

from __future__ import annotations

import gc
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurmlaunch.client.futures_registry import FuturesRegistry
from slurmlaunch.client.ledger import ItemStatus, Ledger, RecordIndex, consecutive
from slurmlaunch.runfolder.files import Location
from slurmlaunch.runfolder.outcomes import Recorded
from slurmlaunch.runfolder.records import Header, Kind

if TYPE_CHECKING:
    from random import Random

ITEMS = 20_000
"""More than a few blocks hold."""

cuts = st.lists(st.integers(1, ITEMS - 1), unique=True, max_size=30).map(sorted)


@given(cuts, st.randoms(use_true_random=False), st.data())
def test_find(cut: list[int], random: Random, data: st.DataObject) -> None:
    """Ranges that settle in any order are found by each of their items; items without a record are not."""
    parts = [range(a, b) for a, b in zip([0, *cut], [*cut, ITEMS], strict=True)]
    random.shuffle(parts)
    index = RecordIndex()
    for number, items in enumerate(parts):
        index.add(items, Location(f"{number // 2}.0") if number % 3 else None, 100 * number)

    assert parts == list(index)
    number = data.draw(st.integers(0, len(parts) - 1))
    for item in (parts[number].start, parts[number].stop - 1):
        if number % 3:
            assert (parts[number], Location(f"{number // 2}.0"), 100 * number) == index.find(item)
        else:
            with pytest.raises(LookupError):
                index.find(item)


@given(cuts, st.sets(st.integers(0, ITEMS - 1), max_size=20))
def test_reopened(cut: list[int], reopened: set[int]) -> None:
    """Items that a new round runs are open again and in no range; all others keep their records and errors."""
    ledger = Ledger(ITEMS)
    for number, (a, b) in enumerate(zip([0, *cut], [*cut, ITEMS], strict=True)):
        if number % 2:
            ledger.end(range(a, b), ValueError)
        else:
            ledger.record(Recorded(Location("0.0"), a, Header(Kind.FAILURE, b - a, a, 0, 0)))
    ledger.reopen(reopened)

    assert ledger.open == ledger.count(ItemStatus.OPEN, range(ITEMS)) == len(reopened)
    assert set(range(ITEMS)) - reopened == {item for part in ledger.records for item in part}
    for item in [*cut, ITEMS - 1]:
        if item not in reopened and ledger.status(item) == ItemStatus.ENDED:
            assert (item,) == ledger.error_of(item).args
        elif item not in reopened:
            assert item in ledger.records.find(item).items


def test_settled_futures_are_not_kept() -> None:
    """A registry keeps no future that has settled, and soon no trace of it."""

    class Done:
        def settle(self, value: object) -> None:
            """Do nothing."""

    registry = FuturesRegistry()
    held: Any = registry.add_done(0, [None], lambda _: Done())[0]
    for item in range(1, 10_000):
        registry.add_done(item, [None], lambda _: Done())
    gc.collect()

    assert (held, None, None) == (registry.find(0), registry.find(9_999), registry.find(10_000))
    assert len(registry._settled) < 5_000  # noqa: SLF001


@given(st.sets(st.integers(0, 40)).map(sorted))
def test_consecutive(items: list[int]) -> None:
    """Items are cut into the fewest ranges that contain them and no others."""
    ranges = list(consecutive(items))

    assert items == [item for part in ranges for item in part]
    assert all(before.stop < after.start for before, after in pairwise(ranges))
