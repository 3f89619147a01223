"""Outcome files: one attempt of a task appends to them while others read."""

from __future__ import annotations

import math
import os
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurmlaunch.errors import ResultLost, UnsafeRunFolder
from slurmlaunch.outcome import Failure, Value, in_series
from slurmlaunch.runfolder import outcomes, records
from slurmlaunch.runfolder.layout import RunFolder, salt_of
from slurmlaunch.runfolder.outcomes import OutcomeFile, OutcomeWriter, Recorded, earlier_attempts, outcome_entry
from slurmlaunch.runfolder.records import Damage, Kind
from tests.support.files import located


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return a run folder with a folder for outcomes."""
    (tmp_path / "outcomes").mkdir(mode=0o700)
    return RunFolder(tmp_path)


def record_values(writer: OutcomeWriter, first: int, *values: Any) -> None:
    """Record values of consecutive items in one record."""
    pickled = [Value(value).dump() for value in values]
    writer.packed(Kind.VALUES, first, array("I", map(len, pickled)), b"".join(pickled))


def record_series(writer: OutcomeWriter, first: int, *values: Any) -> None:
    """Record values of consecutive items in one record, as a node does: to be read as one."""
    pickled = [in_series(Value(value).dump())[:-1] for value in values]
    writer.packed(Kind.SERIES, first, array("I", map(len, pickled)), b"".join(pickled))


def values_in(file: OutcomeFile, *, final: bool = False) -> dict[int, Any]:
    """Read on in a file without damage; return the values."""
    found = {}
    for recorded in file.read(final=final):
        assert isinstance(recorded, Recorded)
        content = recorded.read()
        for item in range(recorded.header.first, recorded.header.stop):
            found[item] = content.outcome(item).unwrap()
    return found


def shape_of(file: OutcomeFile, *, final: bool = False) -> list[tuple[str, int, int]]:
    """Read on in a file; return the findings, each with the first item and one past the last."""
    return [
        (type(found).__name__, found.header.first if found.header else -1, found.header.stop if found.header else -1)
        for found in file.read(final=final)
    ]


# Writing.


def test_recorded_outcomes_are_read(folder: RunFolder) -> None:
    """Values in one record, values of their own and failures come back as the outcomes of their items."""
    writer = OutcomeWriter(folder, 3)
    record_values(writer, 5, "five", None, [7])
    writer.value(1, Value("one").dump())
    writer.failure(8, Failure(KeyError("k"), "traceback").dump(), count=2)
    writer.close()

    *good, failed = OutcomeFile(folder.outcomes / "3.0").read(final=True)

    found: dict[int, Any] = {}
    for recorded in good:
        assert isinstance(recorded, Recorded)
        items = range(recorded.header.first, recorded.header.stop)
        found |= {item: recorded.read().outcome(item).unwrap() for item in items}
    assert found == {5: "five", 6: None, 7: [7], 1: "one"}
    assert isinstance(failed, Recorded)
    for item in (8, 9):
        outcome = failed.read().outcome(item)
        assert isinstance(outcome, Failure)
        assert (repr(outcome.error), outcome.traceback) == ("KeyError('k')", "traceback")


def test_each_attempt_has_a_file_of_its_own(folder: RunFolder) -> None:
    """An attempt gets the first free number of its task, and its file is private."""
    Path(folder.outcomes / "3.1").touch()

    writers = [OutcomeWriter(folder, task) for task in (3, 3, 4)]

    assert [writer.attempt for writer in writers] == [0, 2, 0]
    assert [writer.path.name for writer in writers] == ["3.0", "3.2", "4.0"]
    assert [Path(writer.path).stat().st_mode & 0o777 for writer in writers] == [0o600] * 3
    for writer in writers:
        writer.close()


def test_failures_are_counted(folder: RunFolder) -> None:
    """A writer counts the items with recorded failures, including those of another process of its attempt."""
    writer = OutcomeWriter(folder, 0)
    writer.failure(0, Failure(ValueError()).dump(), count=3)
    record_values(writer, 3, "value")
    writer.adopt(failed=True)
    writer.adopt(failed=False)

    assert writer.failures == 4
    writer.close()


def test_another_processs_unfinished_record_is_cut_off(folder: RunFolder) -> None:
    """If a process of the attempt dies while it appends, its part is cut off, and recording continues after it."""
    writer = OutcomeWriter(folder, 0)
    record_values(writer, 0, "before")
    with Path(writer.path).open("ab") as other:
        other.write(records.encode(Kind.VALUES, bytes(1000))[:500])

    writer.cut()
    record_values(writer, 1, "behind")
    writer.close()

    assert values_in(OutcomeFile(writer.path), final=True) == {0: "before", 1: "behind"}


def test_another_processs_records_are_kept(folder: RunFolder) -> None:
    """A record that another process of the attempt appended stays where it is, once it is adopted."""
    writer = OutcomeWriter(folder, 0)
    with Path(writer.path).open("ab") as other:
        other.write(records.encode(Kind.VALUES, Value("other").dump(), first=7))

    writer.adopt(failed=False)
    writer.cut()
    writer.close()

    assert values_in(OutcomeFile(writer.path), final=True) == {7: "other"}


# Reading while it grows.


def test_a_reader_continues_where_it_stopped(folder: RunFolder) -> None:
    """Each record is read once, when it is whole; a tail that is still being written is waited for."""
    writer, whole = OutcomeWriter(folder, 0), records.encode(Kind.VALUES, Value("torn").dump(), first=1)
    file = OutcomeFile(writer.path)
    record_values(writer, 0, "first")
    seen = [values_in(file)]
    with Path(writer.path).open("ab", buffering=0) as other:
        for start, stop in ((0, 10), (10, 33), (33, len(whole) - 1), (len(whole) - 1, len(whole))):
            other.write(whole[start:stop])
            seen.append(values_in(file))

    assert seen == [{0: "first"}, {}, {}, {}, {1: "torn"}]
    assert (file.position, values_in(file)) == (Path(writer.path).stat().st_size, {})
    writer.close()


def test_a_tail_that_was_cut_off_is_forgotten(folder: RunFolder) -> None:
    """A reader that saw a torn tail reads the record that replaced it."""
    writer = OutcomeWriter(folder, 0)
    file = OutcomeFile(writer.path)
    with Path(writer.path).open("ab") as other:
        other.write(records.encode(Kind.VALUES, bytes(1000), first=9)[:500])
    assert values_in(file) == {}

    writer.cut()
    record_values(writer, 0, "a", "b")

    assert values_in(file) == {0: "a", 1: "b"}
    writer.close()


def test_notes_are_kept_apart(folder: RunFolder) -> None:
    """An attempt's records about itself are not outcomes."""
    writer = OutcomeWriter(folder, 0)
    writer.note(node="n1")
    record_values(writer, 0, "value")
    writer.note(peak=17)
    writer.close()
    file = OutcomeFile(writer.path)

    assert (values_in(file), file.notes) == ({0: "value"}, [{"node": "n1"}, {"peak": 17}])


def test_records_of_a_later_version_are_passed_over(folder: RunFolder) -> None:
    """A kind of record that this version does not know is neither an outcome nor damage."""
    writer = OutcomeWriter(folder, 0)
    record_values(writer, 0, "value")
    writer.close()
    with Path(writer.path).open("ab") as other:
        other.write(records.encode(99, b"?") + records.encode(Kind.VALUES, Value("next").dump(), first=1))

    assert values_in(OutcomeFile(writer.path), final=True) == {0: "value", 1: "next"}


# Pieces.


@given(
    sizes=st.lists(st.integers(0, 300), max_size=8),
    piece=st.integers(1, 400),
    hit=st.none() | st.integers(0, 10**6),
)
def test_pieces_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], piece: int, hit: int | None
) -> None:
    """However little is read at once, all records beside a damage are found, and the damage is reported."""
    whole = [records.encode(Kind.VALUES, bytes(size), first=i) for i, size in enumerate(sizes)]
    content = bytearray(b"".join(whole))
    lost = -1
    if content and hit is not None:
        hit %= len(content)
        content[hit] ^= 1
        lost = next(i for i in range(len(whole)) if hit < sum(map(len, whole[: i + 1])))
    path = tmp_path_factory.mktemp("pieces") / "0.0"
    path.write_bytes(content)
    path.chmod(0o600)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcomes, "_PIECE", piece)
        found = list(OutcomeFile(located(path)).read(final=True))

    assert [i for i in range(len(whole)) if i != lost] == [
        each.header.first for each in found if isinstance(each, Recorded)
    ]
    damaged = [(each.offset, each.stop) for each in found if isinstance(each, Damage)]
    assert bool(damaged) == (lost >= 0)
    if damaged:
        assert damaged[0][0] == sum(map(len, whole[:lost]))
        assert damaged[-1][1] == sum(map(len, whole[: lost + 1]))


def test_a_record_may_be_larger_than_one_read(folder: RunFolder) -> None:
    """A record of many megabytes is read, and so is the next record."""
    large = os.urandom(9 << 20)
    writer = OutcomeWriter(folder, 0)
    record_values(writer, 0, "before")
    writer.value(1, Value(large).dump())
    record_values(writer, 2, "behind")
    writer.close()

    assert values_in(OutcomeFile(writer.path)) == {0: "before", 1: large, 2: "behind"}


# Damage.


def test_only_the_end_tells_damage_from_a_tail(folder: RunFolder) -> None:
    """A partial record may become whole while the attempt runs; after the attempt it is damage, and is reported."""
    writer = OutcomeWriter(folder, 0)
    for i in range(4):
        record_values(writer, i, "value")
    writer.close()
    record = len(records.encode(Kind.VALUES, Value("value").dump()))
    content = bytearray(Path(writer.path).read_bytes())
    content[record + 40] ^= 1
    Path(writer.path).write_bytes(content[:-1])
    file = OutcomeFile(writer.path)

    assert shape_of(file) == [("Recorded", 0, 1)]
    assert shape_of(file, final=True) == [("Damage", 1, 2), ("Recorded", 2, 3), ("Damage", 3, 4)]
    assert shape_of(file, final=True) == []


def test_a_record_inside_a_value_is_none(folder: RunFolder, tmp_path: Path) -> None:
    """A value may hold the files of another run: if its header is damaged, nothing inside is read as an outcome."""
    other = RunFolder(tmp_path / "other")
    for each in (other.root, other.outcomes):
        each.mkdir()
    other.salt, folder.salt = salt_of("other"), salt_of("this")
    nested = OutcomeWriter(other, 0)
    record_values(nested, 0, "wrong")
    nested.close()
    writer = OutcomeWriter(folder, 0)
    record_values(writer, 0, Path(nested.path).read_bytes())
    record_values(writer, 1, "right")
    writer.close()
    assert values_in(OutcomeFile(nested.path, other.salt)) == {0: "wrong"}
    content = bytearray(Path(writer.path).read_bytes())
    content[5] ^= 1
    Path(writer.path).write_bytes(content)

    found = [("Damage", -1, -1), ("Recorded", 1, 2)]
    assert shape_of(OutcomeFile(writer.path, folder.salt), final=True) == found


@pytest.mark.parametrize("spoil", ["flip", "cut", "remove"])
def test_an_outcome_that_was_lost_since_says_where(folder: RunFolder, spoil: str) -> None:
    """An outcome that is damaged or missing when it is read is lost; the error names the place."""
    writer = OutcomeWriter(folder, 0)
    record_values(writer, 0, "first")
    record_values(writer, 1, "second")
    writer.close()
    recorded = list(OutcomeFile(writer.path).read())[1]
    assert isinstance(recorded, Recorded)
    content = Path(writer.path).read_bytes()
    if spoil == "remove":
        Path(writer.path).unlink()
    else:
        Path(writer.path).write_bytes(content[:-1] + (b"?" if spoil == "flip" else b""))

    with pytest.raises(ResultLost) as lost:
        recorded.read()

    assert (lost.value.file, lost.value.offset) == (str(writer.path), recorded.offset)


def test_outcomes_that_others_may_write_are_not_read(folder: RunFolder) -> None:
    """An outcome file that others may write to is refused, also when it was safe before."""
    writer = OutcomeWriter(folder, 0)
    record_values(writer, 0, "value")
    writer.close()
    (recorded,) = OutcomeFile(writer.path).read()
    assert isinstance(recorded, Recorded)
    Path(writer.path).chmod(0o620)

    with pytest.raises(UnsafeRunFolder):
        list(OutcomeFile(writer.path).read())
    with pytest.raises(UnsafeRunFolder):
        recorded.read()


# Earlier attempts.


def test_earlier_attempts_are_read(folder: RunFolder) -> None:
    """Whole records of earlier attempts count, damaged ones and those of later attempts do not."""
    for attempt in range(4):
        writer = OutcomeWriter(folder, 5)
        record_values(writer, 10 * attempt, "a", "b")
        record_values(writer, 10 * attempt + 5, "c")
        writer.close()
    Path(folder.outcomes / "5.1").unlink()
    with Path(folder.outcomes / "5.2").open("r+b") as file:
        file.seek(40)
        file.write(b"??")

    assert earlier_attempts(folder, 5, 3).done == {0, 1, 5, 25}


def test_a_tail_that_is_cut_off_again_hides_nothing(folder: RunFolder) -> None:
    """If a record is read and later cut off, the records in its place are read too."""
    writer = OutcomeWriter(folder, 0)
    record_values(writer, 0, "whole")
    file = OutcomeFile(writer.path)
    large = outcome_entry(1, Failure(ValueError("x" * 1000)).dump(), succeeded=False)
    writer.only_values = True
    with Path(writer.path).open("ab") as other:  # another process of the attempt
        other.write(large.header.encode(folder.salt) + b"".join(large.parts))
    assert [0, 1] == [each.header.first for each in file.read() if isinstance(each, Recorded)]
    writer.adopt(failed=True)
    record_values(writer, 2, "next")

    assert [0, 2] == [each.header.first for each in file.read() if isinstance(each, Recorded)]
    assert (1, 0) == (writer.withheld, writer.failures)


# Values that are read as one.


def test_series(folder: RunFolder) -> None:
    """A series is read whole, in part, or one by one, and each value is a separate object."""
    writer = OutcomeWriter(folder, 0)
    values = [1, "two", [3], None, b"five" * 100, {"six": [6.0]}]
    record_series(writer, 4, *values)
    record_series(writer, 10, "alone")

    first, second = [each.read() for each in OutcomeFile(writer.path).read() if isinstance(each, Recorded)]

    assert values == first.values(range(4, 10)) == [first.outcome(item).unwrap() for item in range(4, 10)]
    assert values[1:3] == first.values(range(5, 7))
    assert ["alone"] == second.values(range(10, 11))
    assert first.outcome(6).unwrap() is not first.outcome(6).unwrap()
    again = first.values(range(4, 10))
    assert again is not None
    again[2].append(1)
    assert values == first.values(range(4, 10))


@pytest.mark.parametrize(
    ("kind", "code", "values"),
    [(Kind.INTEGERS, "q", [0, -1, 2**63 - 1, -(2**63)]), (Kind.FLOATS, "d", [0.5, -math.inf, 5e-324, 1e308])],
)
def test_numbers(folder: RunFolder, kind: Kind, code: str, values: list[float]) -> None:
    """Numbers take eight bytes each, and are read whole, in part, or one by one."""
    writer = OutcomeWriter(folder, 0)
    writer.numbers(kind, 4, array(code, values).tobytes())

    (recorded,) = [each for each in OutcomeFile(writer.path).read() if isinstance(each, Recorded)]
    content = recorded.read()

    assert 8 * len(values) == recorded.header.length
    assert values == content.values(range(4, 8)) == [content.outcome(item).unwrap() for item in range(4, 8)]
    assert values[1:3] == content.values(range(5, 7))
    assert {type(values[0])} == {*map(type, content.values(range(4, 8)) or ())}


class Unloadable:
    """Does not unpickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("x",)


def test_series_with_one_that_does_not_unpickle(folder: RunFolder) -> None:
    """One value that does not unpickle fails by itself: the others have their values, one by one."""
    writer = OutcomeWriter(folder, 0)
    record_series(writer, 0, "a", Unloadable(), "c")

    (content,) = [each.read() for each in OutcomeFile(writer.path).read() if isinstance(each, Recorded)]

    assert content.values(range(3)) is None
    assert content.values(range(1)) is None  # it is not tried again for each of the others
    assert ["a", "c"] == [content.outcome(item).unwrap() for item in (0, 2)]
    assert isinstance(content.outcome(1), Failure)
