"""The items of a run: written once, and read by each task in part."""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurmlaunch.client.pickling import pickle_arguments
from slurmlaunch.errors import NotPicklable, ResultLost, UnsafeRunFolder
from slurmlaunch.runfolder import records
from slurmlaunch.runfolder.items import BLOCK_BYTES, BLOCK_ITEMS, ItemReader, write_items
from slurmlaunch.runfolder.layout import RunFolder
from slurmlaunch.runfolder.plan import Slices
from slurmlaunch.runfolder.records import Kind, Record
from tests.support.tasks import OneRun, rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return an empty run folder."""
    return RunFolder(tmp_path)


def write(folder: RunFolder, items: Iterable[Any]) -> ItemReader:
    """Write items with one argument each; return a reader of them."""
    write_items(folder, ((item,) for item in items), pickle_arguments)
    return ItemReader(folder)


def blocks(folder: RunFolder) -> list[Record]:
    """Return the blocks of a run's items."""
    found = list(records.scan(memoryview(Path(folder.items).read_bytes())))
    return [each for each in found if isinstance(each, Record)]


def kinds(folder: RunFolder) -> set[int]:
    """Return of which kinds the blocks are."""
    return {block.header.kind for block in blocks(folder)}


scalars = st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none() | st.text(max_size=300) | st.binary()
any_arguments = st.tuples() | st.tuples(scalars, scalars) | st.tuples(st.lists(scalars, max_size=3), scalars)
any_rows = st.lists(st.tuples(scalars), max_size=60) | st.lists(any_arguments, max_size=60)


# Order and slices.


def test_number_of_an_item_that_does_not_pickle(folder: RunFolder) -> None:
    """The error names the item, in whichever block it is."""
    unpicklable = ((n if n != 700 else threading.Lock(),) for n in range(1000))
    with pytest.raises(NotPicklable, match=r"^item 700 does not pickle: argument 0 "):
        write_items(folder, unpicklable, pickle_arguments)


@given(any_rows, st.integers(1, 9), st.randoms())
def test_every_item_is_read_wherever_a_slice_begins(
    tmp_path_factory: pytest.TempPathFactory, arguments: list[tuple[Any, ...]], tasks: int, random: Any
) -> None:
    """Each task reads its own items, in any order, and no others, for any arguments."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slurmlaunch.runfolder.items.BLOCK_BYTES", 500)
        patch.setattr("slurmlaunch.runfolder.items.BLOCK_ITEMS", 16)
        count = write_items(folder, iter(arguments), pickle_arguments)
    assert count == len(arguments)

    found: dict[int, Any] = {}
    for task in range(tasks):
        reader = ItemReader(folder)
        items = list(Slices(count, tasks).slice_of(task))
        random.shuffle(items)
        found |= {item: reader[item] for item in items}
        reader.close()

    assert found == dict(enumerate(arguments))


def test_blocks_follow_each_other_without_gaps(folder: RunFolder) -> None:
    """The blocks contain all items in order, and the index gives the start of each block."""
    write(folder, [*range(10_000), [1], *("text" * 100,) * 500, bytes(BLOCK_BYTES * 2), 1, 2]).close()

    index = memoryview(Path(folder.items_index).read_bytes()).cast("Q").tolist()
    found = blocks(folder)
    assert list(zip(index[::2], index[1::2], strict=True)) == [(block.header.first, block.offset) for block in found]
    assert [block.header.stop for block in found] == [*index[2::2], 10_504]


def test_an_empty_run_has_empty_files(folder: RunFolder) -> None:
    """A run without items is written like any other."""
    write(folder, []).close()

    assert (Path(folder.items).stat().st_size, Path(folder.items_index).stat().st_size) == (0, 0)


def test_many_items_take_little_room(folder: RunFolder) -> None:
    """A hundred thousand numbers cost a few bytes each, and each is read back from a block of its neighbours."""
    reader = write(folder, range(100_000))

    assert [reader[i] for i in range(100_000)] == rows(range(100_000))
    assert Path(folder.items).stat().st_size < 10 * 100_000
    assert Path(folder.items_index).stat().st_size < 16 * (100_000 / BLOCK_ITEMS + 20)
    reader.close()


def test_a_slice_reads_little_beside_its_own(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that has ten items of a hundred thousand reads one block of each kind of file, not the whole."""
    write(folder, range(100_000)).close()
    size = Path(folder.items).stat().st_size
    read = 0
    pread = os.pread

    def counting(descriptor: int, length: int, offset: int) -> bytes:
        nonlocal read
        data = pread(descriptor, length, offset)
        read += len(data)
        return data

    monkeypatch.setattr(os, "pread", counting)
    reader = ItemReader(folder)

    assert [reader[i] for i in range(70_000, 70_010)] == rows(range(70_000, 70_010))
    assert read < size / 10
    reader.close()


# Items that change their arguments.


def test_changes_to_arguments_stay_in_their_item(folder: RunFolder) -> None:
    """If items share an object, each gets its own copy, in one block as in several."""
    shared = {"list": [1]}
    reader = write(folder, [shared] * 5)

    for item in range(5):
        (argument,) = reader[item]
        argument["list"].append(item)

    assert [reader[item] for item in range(5)] == [(shared,)] * 5
    reader.close()


def test_objects_shared_within_an_item_stay_shared(folder: RunFolder) -> None:
    """Two arguments of one item that are one object are one object where it runs."""
    shared = [1]
    write_items(folder, [(shared, {"key": shared})], pickle_arguments)
    reader = ItemReader(folder)

    first, second = reader[0]

    assert first is second["key"]
    reader.close()


class Number(int):
    """Looks like a number, and is mutable."""


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (1, Kind.COLUMN),
        ("text", Kind.COLUMN),
        (None, Kind.COLUMN),
        (1j, Kind.COLUMN),
        ([1], Kind.ITEMS),
        ((1, 2), Kind.ITEMS),
        (Number(1), Kind.ITEMS),
        (bytearray(b"x"), Kind.ITEMS),
    ],
)
def test_only_immutable_arguments_share_a_pickle(folder: RunFolder, item: object, expected: Kind) -> None:
    """Arguments of the immutable types themselves are pickled together, all others item by item."""
    write(folder, [item] * 3).close()

    assert kinds(folder) == {expected}


def test_items_of_any_size_are_read(folder: RunFolder) -> None:
    """Large items between small ones, mutable or not, come back as they were."""
    items = [1, "x" * 3_000_000, 2, bytearray(3_000_000), [b"y" * BLOCK_BYTES], 3]
    reader = write(folder, items)

    assert [reader[i] for i in (5, 4, 3, 2, 1, 0)] == rows(reversed(items))
    reader.close()


def test_long_texts_share_pickles_too(folder: RunFolder) -> None:
    """Texts as long as paths are pickled together as numbers are, in blocks that are not too large."""
    paths = [f"/scratch/project_1234567/user/experiment-42/sample-{i:06}/measured/data.parquet" for i in range(20_000)]
    reader = write(folder, paths)

    assert kinds(folder) == {Kind.COLUMN}
    assert max(block.header.length for block in blocks(folder)) <= BLOCK_BYTES
    assert len(blocks(folder)) < 30
    assert [reader[i] for i in (0, 1, 9999, 19_999)] == rows(paths[i] for i in (0, 1, 9999, 19_999))
    reader.close()


# A generator.


class Big:
    """An item that counts the live instances of its class."""

    alive: ClassVar[weakref.WeakSet[Big]] = weakref.WeakSet()
    most = 0

    def __init__(self) -> None:
        self.data = bytes(100_000)
        self.alive.add(self)
        Big.most = max(Big.most, len(self.alive))


def test_items_of_a_generator_are_freed(folder: RunFolder) -> None:
    """Of large items that a generator makes only a few are alive at once, however many there are."""
    write(folder, (Big() for _ in range(300))).close()

    assert Big.most <= 10


def test_a_generator_that_fails_leaves_no_items(folder: RunFolder) -> None:
    """The caller gets the exception of the user's iterable, and no file is left."""

    def generate() -> Iterator[int]:
        yield from range(5000)
        raise LookupError("the end")

    with pytest.raises(LookupError, match="the end"):
        write(folder, generate())

    assert list(folder.path.iterdir()) == []


def test_an_item_that_does_not_pickle_leaves_no_items(folder: RunFolder) -> None:
    """The caller gets the exception of the pickling, and no file is left."""
    with pytest.raises(pickle.PicklingError):
        write(folder, [[1], [2], iter(range(2)), threading.Lock()])

    assert list(folder.path.iterdir()) == []


# Damage.


@given(items=st.sampled_from([list(range(300)), rows(range(300))]), random=st.randoms(), data=st.data())
def test_damaged_arguments_are_never_mistaken_for_others(
    tmp_path_factory: pytest.TempPathFactory, items: list[Any], random: Any, data: st.DataObject
) -> None:
    """For any flipped bit or cut in either file, an item has its own arguments or is lost."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slurmlaunch.runfolder.items.BLOCK_ITEMS", 64)
        write(folder, items).close()
    path = Path(data.draw(st.sampled_from([folder.items, folder.items_index])))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, 8 * len(content) - 1))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content[: place // 8] if data.draw(st.booleans()) else content)
    reader = ItemReader(folder)

    found = {}
    for item in random.sample(range(300), 40):
        with contextlib.suppress(ResultLost):
            found[item] = reader[item]
    reader.close()

    assert found == {item: (items[item],) for item in found}


class Untrue:
    """Pickles, and does not unpickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def test_one_item_that_does_not_unpickle_costs_no_other(folder: RunFolder) -> None:
    """An error while an item is unpickled is raised for that item alone."""
    reader = write(folder, [[0], Untrue(), [2]])

    with pytest.raises(ValueError, match="no number"):
        reader[1]
    assert [reader[0], reader[2]] == [([0],), ([2],)]
    reader.close()


@pytest.mark.parametrize("taken", [False, True], ids=["closed", "taken over"])
def test_a_reader_survives_the_closing_of_its_files(folder: RunFolder, *, taken: bool) -> None:
    """If a function closes the reader's files, or opens others in their place, items can still be read."""
    reader = write(folder, range(20_000))
    assert reader[0] == (0,)
    (folder.path / "other").write_bytes(bytes(10**6))

    with contextlib.ExitStack() as files:
        os.close(reader._items)  # noqa: SLF001 - os.closerange would close ours, too
        if taken:
            other = files.enter_context((folder.path / "other").open("rb"))
            assert reader._items == other.fileno()  # noqa: SLF001 - as above
        assert [reader[item] for item in (15_000, 19_999, 3)] == rows([15_000, 19_999, 3])
    reader.close()


def test_items_that_others_may_write_are_not_read(folder: RunFolder) -> None:
    """Neither file is unpickled where others may write to it."""
    for path in (folder.items, folder.items_index):
        write(folder, [1]).close()
        Path(path).chmod(0o602)
        with pytest.raises(UnsafeRunFolder):
            ItemReader(folder)[0]


def test_the_function_is_on_disk_once(tmp_path: Path) -> None:
    """A run of many items over a large closure stores one closure."""
    table = os.urandom(200_000)

    def look_up(item: int) -> int:
        return table[item]

    run = OneRun(tmp_path / "run", look_up, rows(range(1000)), tasks=10)

    written = sum(path.stat().st_size for path in run.folder.path.rglob("*") if path.is_file())
    assert 200_000 < written < 230_000
