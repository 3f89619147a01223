"""The ledger: every item settles once, in any order of records, ends and cancellations."""

from __future__ import annotations

import pickle
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurmlaunch.client.ledger import ItemStatus, Ledger
from slurmlaunch.client.run import OutcomeReader
from slurmlaunch.errors import ResultLost, UnsafeRunFolder
from slurmlaunch.outcome import Failure, Value
from slurmlaunch.runfolder import records
from slurmlaunch.runfolder.outcomes import Recorded
from slurmlaunch.runfolder.records import Header, Kind
from tests.support.files import located

if TYPE_CHECKING:
    from pathlib import Path

ITEMS = 30

OPEN, VALUE, FAILURE, ENDED, CANCELLED = ItemStatus


def recorded(kind: Kind, first: int, number: int, path: Any = None, offset: int = 0, payload: bytes = b"") -> Recorded:
    """Return a record of outcomes as a reader reports it."""
    return Recorded(path, offset, Header(kind, number, first, len(payload), zlib.crc32(payload)))


def write(path: Path, first: int, values: list[Any]) -> Recorded:
    """Append a record of values to a file; return it as a reader reports it."""
    payload = records.pack([pickle.dumps(value) for value in values])
    path.touch(0o600)
    offset = path.stat().st_size
    with path.open("ab") as file:
        file.write(records.encode(Kind.VALUES, payload, first=first, count=len(values)))
    return recorded(Kind.VALUES, first, len(values), located(path), offset, payload)


ranges = st.tuples(st.integers(0, ITEMS - 1), st.integers(0, ITEMS)).map(lambda t: range(t[0], min(sum(t), ITEMS)))
events = st.tuples(st.sampled_from([VALUE, FAILURE, ENDED, CANCELLED]), ranges)


def settle(ledger: Ledger, status: ItemStatus, items: range) -> list[int]:
    """Settle items; return those that have settled with the call."""
    if status == ENDED:
        settled = ledger.end(items, ValueError)
    elif status == CANCELLED:
        settled = ledger.cancel(items)
    else:
        kind = Kind.VALUES if status == VALUE else Kind.FAILURE
        settled = ledger.record(recorded(kind, items.start, len(items), "0.0"))
    return [item for part in settled for item in part]


@given(st.lists(events))
def test_the_first_status_stays(happened: list[tuple[ItemStatus, range]]) -> None:
    """An item's first status stays; each call, and the index, reports newly settled items once."""
    ledger, expected = Ledger(ITEMS), dict.fromkeys(range(ITEMS), OPEN)

    for status, items in happened:
        new = [item for item in items if expected[item] == OPEN]
        expected |= dict.fromkeys(new, status)
        assert new == settle(ledger, status, items)

    assert expected == {item: ledger.status(item) for item in range(ITEMS)}
    settled = [item for part in ledger.records for item in part]
    assert sorted(settled) == [item for item, status in expected.items() if status]
    assert ledger.open == ITEMS - len(settled)
    counts = {status: list(expected.values()).count(status) for status in ItemStatus}
    assert counts == {status: ledger.count(status) for status in ItemStatus}
    assert counts == {status: ledger.count(status, range(ITEMS)) for status in ItemStatus}


@given(st.lists(events), ranges, ranges, st.booleans(), st.lists(events))
def test_reserved(
    before: list[tuple[ItemStatus, range]],
    reserved: range,
    asked: range,
    written: bool,  # noqa: FBT001
    meanwhile: list[tuple[ItemStatus, range]],
) -> None:
    """While a cancellation is written its items are open, and only a cancellation settles them."""
    ledger = Ledger(ITEMS)
    for status, items in before:
        settle(ledger, status, items)
    open_before = {item for item in reserved if ledger.is_open(item)}
    ledger.reserve(reserved)
    assert [item for item in asked if ledger.is_open(item)] == ledger.open_among(asked)
    assert ledger.all_settled(asked) == (not ledger.open_among(asked))
    assert len(ledger.open_among(asked)) == ledger.count(OPEN, asked)
    for status, items in meanwhile:
        settled = settle(ledger, status, items)
        assert status == CANCELLED or open_before.isdisjoint(settled)
    if written:
        settle(ledger, CANCELLED, reserved)
        assert {CANCELLED} >= {ledger.status(item) for item in open_before}
    else:
        ledger.release(reserved)
        assert {OPEN, CANCELLED} >= {ledger.status(item) for item in open_before}
        still_open = [item for item in reserved if ledger.is_open(item)]
        assert still_open == settle(ledger, VALUE, reserved)
    assert ledger.open == ledger.count(OPEN, range(ITEMS))


@given(st.lists(events), st.sets(st.integers(0, ITEMS - 1)), st.lists(events))
def test_reopened(
    before: list[tuple[ItemStatus, range]], again: set[int], after: list[tuple[ItemStatus, range]]
) -> None:
    """The items of a new round are open, and settle again; all others do not change."""
    ledger = Ledger(ITEMS)
    for status, items in before:
        settle(ledger, status, items)
    expected = {item: OPEN if item in again else ledger.status(item) for item in range(ITEMS)}
    ledger.reopen(sorted(again))

    assert expected == {item: ledger.status(item) for item in range(ITEMS)}
    assert ledger.open == list(expected.values()).count(OPEN)
    assert sorted(item for part in ledger.records for item in part) == [i for i, status in expected.items() if status]
    for item, status in expected.items():
        if status == ENDED:
            assert (item,) == ledger.error_of(item).args
        elif status in {VALUE, FAILURE}:
            assert item in ledger.records.find(item).items
    for status, items in after:
        new = [item for item in items if expected[item] == OPEN]
        expected |= dict.fromkeys(new, status)
        assert new == settle(ledger, status, items)


@given(st.lists(ranges), ranges)
def test_queries(cancelled: list[range], asked: range) -> None:
    """Queries about some of the items agree with the status of each item."""
    ledger = Ledger(ITEMS)
    for items in cancelled:
        ledger.cancel(items)
    still_open = [item for item in asked if ledger.is_open(item)]

    assert still_open == ledger.open_among(asked)
    assert (not still_open) == ledger.all_settled(asked)
    assert len(still_open) == ledger.count(ItemStatus.OPEN, asked)


def test_record_beyond_the_end() -> None:
    """A record of items that the run does not have, as damage might make it, settles only those that it has."""
    ledger = Ledger(3)

    assert [range(2, 3)] == ledger.record(recorded(Kind.VALUES, 2, 5))
    assert [] == ledger.record(recorded(Kind.VALUES, 7, 1))


def test_outcomes(tmp_path: Path) -> None:
    """Outcomes are read from their records on request, and the cause of an ended item is kept."""
    ledger, error = Ledger(6), ValueError("ended")
    for first, values in ((0, ["a", "b"]), (3, [None])):
        ledger.record(write(tmp_path / "0.0", first, values))
    ledger.record(write(tmp_path / "1.0", 2, ["c", "not mine", "d"]))
    ledger.end(range(5, 6), lambda _: error)

    for order in (range(6), range(5, -1, -1)):
        outcomes = {item: OutcomeReader(ledger, 0).outcome(item) for item in order}
        found = {i: each.value if isinstance(each, Value) else each.error for i, each in outcomes.items()}
        assert {0: "a", 1: "b", 2: "c", 3: None, 4: "d", 5: error} == found


@given(st.lists(st.tuples(ranges, st.integers())))
def test_errors_are_made_on_demand(ends: list[tuple[range, int]]) -> None:
    """Errors are made on request: many items may share one cause, each gets its own error, and none is stored."""
    ledger, expected = Ledger(ITEMS), dict[int, int]()
    for items, cause in ends:
        ledger.end(items, lambda item, cause=cause: ValueError(item, cause))  # type: ignore[misc]
        expected = dict.fromkeys(items, cause) | expected

    found = {item: OutcomeReader(ledger, 0).outcome(item) for item in expected}
    assert {item: (item, cause) for item, cause in expected.items()} == {
        item: outcome.error.args for item, outcome in found.items() if isinstance(outcome, Failure)
    }


def test_outcomes_are_read_anew(tmp_path: Path) -> None:
    """Each reading gives a new value, so that no caller changes another's."""
    ledger = Ledger(2)
    ledger.record(write(tmp_path / "0.0", 0, [[], []]))

    first, second = OutcomeReader(ledger, 0).outcome(0).unwrap(), OutcomeReader(ledger, 0).outcome(0).unwrap()
    first.append(1)

    assert [] == second == OutcomeReader(ledger, 0).outcome(0).unwrap()


def test_lost(tmp_path: Path) -> None:
    """A record that is damaged, missing or unsafe when it is read is a failure that names its place."""
    ledger = Ledger(3)
    before = write(tmp_path / "damaged", 9, ["before"])
    for item, name in enumerate(["damaged", "gone", "unsafe"]):
        ledger.record(write(tmp_path / name, item, ["x"]))
    content = (tmp_path / "damaged").read_bytes()
    (tmp_path / "damaged").write_bytes(content[:-1] + b"?")
    (tmp_path / "gone").unlink()
    (tmp_path / "unsafe").chmod(0o622)

    errors: list[Any] = []
    for item in range(3):
        with pytest.raises((ResultLost, UnsafeRunFolder)) as caught:
            OutcomeReader(ledger, 0).outcome(item).unwrap()
        errors.append(caught.value)

    assert [ResultLost, ResultLost, UnsafeRunFolder] == [type(error) for error in errors]
    offset = records.HEADER_SIZE + before.header.length
    expected = [(0, str(tmp_path / "damaged"), offset), (1, str(tmp_path / "gone"), 0)]
    assert expected == [(error.item, error.file, error.offset) for error in errors[:2]]
