"""Large buffers go to disk outside the pickle and come back uncopied, and damage is always detected."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import pickle
import struct
import weakref
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurmlaunch.client.pickling import pickle_arguments
from slurmlaunch.errors import NodeStartError, ResultLost
from slurmlaunch.outcome import APART, Apart, Bundle, Value
from slurmlaunch.runfolder import outcomes
from slurmlaunch.runfolder.buffers import SharedBuffers, bundle_parts, read_bundle, write_shared
from slurmlaunch.runfolder.items import ItemReader, write_items
from slurmlaunch.runfolder.layout import RunFolder
from slurmlaunch.runfolder.outcomes import OutcomeFile, OutcomeWriter, Recorded
from slurmlaunch.runfolder.records import Damage, Kind
from tests.support.files import located

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGE = APART // 8 + 1
"""Numbers of an array that is large."""

bundles = st.builds(
    Bundle, st.binary(max_size=30), st.lists(st.binary(max_size=30) | st.binary(max_size=30).map(bytearray), max_size=4)
)


def joined(bundle: Bundle) -> bytes:
    """Return the payload of a bundle's record."""
    return b"".join(bundle_parts(bundle))


def read_back(payload: bytes, crc: int, *, length: int | None = None, before: bytes = b"") -> Bundle | None:
    """Read a payload from a file where it follows other bytes."""
    descriptor = os.memfd_create("payload")
    try:
        os.write(descriptor, before + payload)
        return read_bundle(descriptor, len(before), len(payload) if length is None else length, crc)
    finally:
        os.close(descriptor)


# Out of the pickle.


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_a_large_array_is_not_copied(dumps: Any) -> None:
    """A buffer outside the pickle is the array's own memory, and loading gives an array on that memory."""
    array = np.arange(LARGE, dtype="f8")

    bundle = Apart().dumps({"array": array, "small": np.ones(3)}, dumps)

    assert isinstance(bundle, Bundle)
    (buffer,) = bundle.buffers
    assert np.shares_memory(array, np.frombuffer(buffer))
    assert (len(bundle.pickled) < 2000, len(bundle)) == (True, len(bundle.pickled) + array.nbytes)
    loaded = pickle.loads(bundle.pickled, buffers=bundle.buffers)
    assert (loaded["array"].tolist(), loaded["small"].tolist()) == (array.tolist(), [1, 1, 1])


@pytest.mark.parametrize(
    "value",
    [
        np.ones(APART // 8 - 1),
        np.ones((LARGE, 2))[:, 0],
        np.array([None] * LARGE),
        np.ones(LARGE).view(np.recarray),
        np.zeros(LARGE, "M8[s]"),
        [np.ones(100)] * 10,
        "text" * LARGE,
        None,
    ],
    ids=["small", "not contiguous", "objects", "subclass", "times", "list", "text", "None"],
)
def test_small_and_other_buffers_stay_in_the_pickle(value: Any) -> None:
    """Small or non-contiguous arrays, odd memory and objects without buffers are pickled as usual."""
    pickled = Apart().dumps(value)

    assert isinstance(pickled, bytes)
    assert repr(value) == repr(pickle.loads(pickled))


@pytest.mark.parametrize("order", ["C", "F"])
def test_both_orders_of_an_array(order: Any) -> None:
    """An array in Fortran order is still in Fortran order when it is read back."""
    array = np.asarray(np.arange(2.0 * LARGE).reshape(2, -1), order=order)

    bundle = Apart().dumps(array)

    assert isinstance(bundle, Bundle)
    loaded = pickle.loads(bundle.pickled, buffers=bundle.buffers)
    assert (loaded.flags[f"{order}_CONTIGUOUS"], np.array_equal(array, loaded)) == (True, True)


def test_a_buffer_with_gaps_is_refused_as_pickle_refuses_it() -> None:
    """A buffer with gaps raises the same error as in pickle itself."""
    gaps = pickle.PickleBuffer(memoryview(bytes(2 * APART))[::2])

    with pytest.raises(pickle.PicklingError, match="contiguous"):
        Apart().dumps(gaps)


@pytest.mark.parametrize(
    "value",
    [bytes(APART), bytearray(APART), pickle.PickleBuffer(bytes(APART)), pickle.PickleBuffer(bytearray(APART))],
    ids=["bytes", "bytearray", "buffer of bytes", "buffer of bytearray"],
)
def test_bytes_are_bytes_again(value: Any) -> None:
    """Large bytes are not copied into the pickle either, and come back with the type that pickle gives them."""
    pickled = Value(value).dump_apart()

    assert isinstance(pickled, Bundle)
    assert len(pickled.pickled) < 100
    read = read_back(joined(pickled), zlib.crc32(joined(pickled)))
    assert read is not None
    outcome = Value.load(read.pickled, read.buffers)
    plain = pickle.loads(pickle.dumps(value, 5))
    assert (type(plain), plain) == (type(outcome.unwrap()), outcome.unwrap())


def test_a_failed_pickle_leaves_no_buffers_behind() -> None:
    """If pickle fails after an array and cloudpickle then succeeds, the array is stored once."""
    array = np.ones(LARGE)

    pickled = Value([array, lambda: None]).dump_apart()

    assert isinstance(pickled, Bundle)
    assert len(pickled.buffers) == 1


# Bundles on disk.


@given(bundles, st.binary(max_size=20))
def test_a_bundle_is_read_as_it_was_written(bundle: Bundle, before: bytes) -> None:
    """Pickle and buffers come back, each buffer as writable as it was."""
    payload = joined(bundle)

    read = read_back(payload, zlib.crc32(payload), before=before)

    assert read is not None
    assert (bundle.pickled, list(bundle.buffers)) == (read.pickled, list(read.buffers))
    assert list(map(type, bundle.buffers)) == list(map(type, read.buffers))


@given(bundles, st.data())
def test_a_damaged_bundle_is_never_read(bundle: Bundle, data: st.DataObject) -> None:
    """A flipped bit or a cut anywhere makes the bundle unreadable, never wrong."""
    payload = joined(bundle)
    crc = zlib.crc32(payload)
    bit = data.draw(st.integers(0, 8 * len(payload) - 1))
    flipped = bytearray(payload)
    flipped[bit // 8] ^= 1 << bit % 8

    assert read_back(bytes(flipped), crc) is None
    assert read_back(payload[: bit // 8], crc, length=len(payload)) is None
    assert read_back(payload[: bit // 8], crc) is None


@pytest.mark.parametrize("table", [(0, 2**61), (2**63, 0), (5, 1, 2**62), (5, 1, 2**64 - 1), (0, 1), (0, 0)])
def test_impossible_lengths(table: tuple[int, ...]) -> None:
    """Lengths that do not add up to the payload's are found before memory is allocated."""
    payload = struct.pack(f"<{len(table)}Q", *table) + b"pickl"

    assert read_back(payload, zlib.crc32(payload)) is None


def test_an_empty_payload_is_no_bundle() -> None:
    """An empty payload is refused as a bundle."""
    assert read_back(b"", 0) is None


# The buffers of a function.


def shared_in(folder: Path, *buffers: bytes) -> SharedBuffers:
    """Write the buffers of a function."""
    path = folder / "function.buffers"
    return SharedBuffers(located(path), write_shared(located(path), buffers))


def check(shared: SharedBuffers) -> None:
    """Run the checks until all are done."""
    for _ in shared.check():
        pass


@pytest.mark.parametrize("writable", [False, True])
def test_shared_buffers_are_mapped(tmp_path: Path, *, writable: bool) -> None:
    """Each buffer starts on a page of its own, and is read-only or private to this process."""
    written = [b"a" * 10, b"", bytes(range(256)) * 64, b"z"]

    shared = shared_in(tmp_path, *written)
    check(shared)
    mapped = shared.map(writable=writable)

    assert written == [bytes(each) for each in mapped]
    assert all(extent.offset % 4096 == 0 for extent in shared.extents)
    assert [writable] * 4 == [not each.readonly for each in mapped]
    if writable:
        mapped[0][0] = 1
        assert bytes(shared.map()[0]) == written[0]
    assert shared.path.status().st_mode & 0o777 == 0o600


def test_a_mapping_outlives_its_file(tmp_path: Path) -> None:
    """A mapped buffer stays readable after its file is removed."""
    shared = shared_in(tmp_path, b"kept" * 10_000)
    (mapped,) = shared.map()

    shared.path.unlink()

    assert bytes(mapped[-4:]) == b"kept"


@given(bit=st.integers(0, 8 * 9000 - 1))
def test_a_flipped_bit_of_a_shared_buffer(tmp_path_factory: pytest.TempPathFactory, bit: int) -> None:
    """A flipped bit in a shared buffer is detected, and the error names the file and the buffer."""
    shared = shared_in(tmp_path_factory.mktemp("shared"), bytes(5000), bytes(4000))
    at = bit // 8 if bit // 8 < 5000 else bit // 8 - 5000 + 8192
    content = bytearray(shared.path.read())
    content[at] ^= 1 << bit % 8
    Path(shared.path).write_bytes(content)

    with pytest.raises(NodeStartError, match="damaged") as caught:
        check(shared)
    assert f"{shared.path}, at byte {0 if at < 5000 else 8192}" in str(caught.value)


@pytest.mark.parametrize("act", [check, SharedBuffers.map])
@pytest.mark.parametrize("spoil", ["cut", "remove", "writable", "link"])
def test_shared_buffers_that_are_not_to_be_mapped(tmp_path: Path, act: Any, spoil: str) -> None:
    """A shared file that is too short, missing, or perhaps another's is refused by name before its bytes are read."""
    shared = shared_in(tmp_path, bytes(5000))
    if spoil == "cut":
        os.truncate(shared.path, 4999)
    elif spoil == "remove":
        shared.path.unlink()
    elif spoil == "writable":
        Path(shared.path).chmod(0o620)
    else:
        shared.path.rename(shared.path.beside("elsewhere"))
        Path(shared.path).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(NodeStartError) as caught:
        act(shared)
    assert str(shared.path) in str(caught.value)


@pytest.mark.parametrize("writable", [False, True])
def test_a_file_system_that_cannot_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, writable: bool) -> None:
    """On a file system without mmap each process reads the buffers into its own memory, with the same results."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENODEV, "No such device")

    shared = shared_in(tmp_path, b"x" * 10_000)
    monkeypatch.setattr(mmap, "mmap", refuse)

    (memory,) = shared.map(writable=writable)

    assert (b"x" * 10_000, not writable) == (bytes(memory), memory.readonly)


# Items.


def test_large_items_among_small_ones(tmp_path: Path) -> None:
    """Each item comes back at its position, however large its neighbours are."""
    folder = RunFolder(tmp_path)
    sizes = [3, LARGE, 5, 7, LARGE, LARGE, 11, 0]
    rows = [(i, np.full(size, i, "f8")) for i, size in enumerate(sizes)]

    assert write_items(folder, iter(rows), pickle_arguments) == len(rows)

    reader = ItemReader(folder)
    for i in itertools.chain(range(8), reversed(range(8))):
        number, array = reader[i]
        assert (i, sizes[i], True) == (number, len(array), bool((array == i).all()))
    reader.close()


def test_changes_to_arguments_stay_in_the_item(tmp_path: Path) -> None:
    """An item may write to its large array without changing the array that a second reading gives."""
    folder = RunFolder(tmp_path)
    write_items(folder, [(np.zeros(LARGE),)], pickle_arguments)
    reader = ItemReader(folder)

    (first,) = reader[0]
    first += 1
    (second,) = reader[0]

    assert (1.0, 0.0) == (first[-1], second[-1])
    reader.close()


def test_a_damaged_item_says_where(tmp_path: Path) -> None:
    """Arguments with a flipped bit are reported as lost, never returned wrong."""
    folder = RunFolder(tmp_path)
    write_items(folder, [(np.zeros(LARGE),)], pickle_arguments)
    content = bytearray(Path(folder.items).read_bytes())
    content[-1] ^= 1
    Path(folder.items).write_bytes(content)

    reader = ItemReader(folder)
    with pytest.raises(ResultLost) as lost:
        reader[0]

    assert (str(folder.items), 0) == (lost.value.file, lost.value.offset)
    reader.close()


def test_a_large_array_is_not_copied_into_the_items(tmp_path: Path) -> None:
    """While the arrays of a generator are written, only one of them is in memory."""
    made: list[weakref.ref[Any]] = []

    def arrays() -> Iterator[tuple[Any]]:
        for _ in range(6):
            array = np.zeros(LARGE)
            made.append(weakref.ref(array))
            assert sum(each() is not None for each in made) == 1
            yield (array,)

    assert write_items(RunFolder(tmp_path), arrays(), pickle_arguments) == 6


# Outcomes.


@pytest.fixture
def writer(tmp_path: Path) -> OutcomeWriter:
    """Return a writer of outcomes."""
    (tmp_path / "outcomes").mkdir(mode=0o700)
    return OutcomeWriter(RunFolder(tmp_path), 0)


@pytest.mark.parametrize("piece", [1000, 1 << 22])
def test_large_values_are_read_where_they_stay(
    writer: OutcomeWriter, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """Each reading of a value gives writable memory of its own, also if its record is read in pieces."""
    monkeypatch.setattr(outcomes, "_PIECE", piece)
    writer.value(0, Value("before").dump_apart())
    writer.value(1, Value([np.full(LARGE, 1.0), np.full(LARGE, 2.0)]).dump_apart())
    writer.value(2, Value("behind").dump_apart())
    writer.close()

    found = list(OutcomeFile(writer.path).read())

    assert all(isinstance(each, Recorded) for each in found)
    assert [Kind.VALUES, Kind.BUNDLE, Kind.VALUES] == [each.header.kind for each in found if each.header]
    first, again = (found[1].read().outcome(1).unwrap() for _ in range(2))  # type: ignore[union-attr]
    first[0][0] = 7
    assert (1.0, 2.0) == (again[0][0], again[1][-1])


def test_a_large_value_is_damaged_or_being_written(writer: OutcomeWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader waits for a long record while it grows, and reports damage where it ends or was changed."""
    monkeypatch.setattr(outcomes, "_PIECE", 1000)
    for item in range(2):
        writer.value(item, Value(np.zeros(LARGE)).dump_apart())
    writer.close()
    content = bytearray(Path(writer.path).read_bytes())
    content[len(content) // 4] ^= 1
    Path(writer.path).write_bytes(content[:-1])
    file = OutcomeFile(writer.path)

    assert list(file.read()) == []
    damages = list(file.read(final=True))

    assert all(isinstance(each, Damage) for each in damages)
    assert [(0, 0), (1, len(content) // 2)] == [(each.header.first, each.offset) for each in damages if each.header]
    assert list(file.read(final=True)) == []


def test_a_large_value_that_was_lost_since(writer: OutcomeWriter) -> None:
    """A value that is damaged after it was indexed is reported as lost; the error names the file and the offset."""
    writer.value(0, Value(np.zeros(LARGE)).dump_apart())
    writer.close()
    (recorded,) = OutcomeFile(writer.path).read()
    content = bytearray(Path(writer.path).read_bytes())
    content[-1] ^= 1
    Path(writer.path).write_bytes(content)

    assert isinstance(recorded, Recorded)
    with pytest.raises(ResultLost) as lost:
        recorded.read()
    assert (str(writer.path), 0) == (lost.value.file, lost.value.offset)
