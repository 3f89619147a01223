"""Records: the framing of every binary file in a run folder."""

from __future__ import annotations

import contextlib
import os
import resource
import struct
import zlib
from array import array
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurmlaunch.runfolder import records
from slurmlaunch.runfolder.records import HEADER_SIZE, MAGIC, Damage, Kind, Record
from tests.support.files import located

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Entry(NamedTuple):
    """The fields of one record."""

    kind: Kind
    payload: bytes
    first: int
    number: int

    @property
    def data(self) -> bytes:
        """The record."""
        return records.encode(self.kind, self.payload, first=self.first, count=self.number)


# Payloads that look like records make it harder to find the next true one.
payloads = st.binary(max_size=60) | st.builds(
    lambda before, after: before + MAGIC + after, st.binary(max_size=40), st.binary(max_size=60)
)
entries = st.builds(
    Entry,
    kind=st.sampled_from(Kind),
    payload=payloads,
    first=st.integers(0, 2**64 - 1),
    number=st.integers(0, 2**32 - 1),
)
files = st.lists(entries, max_size=5)


def found_in(data: bytes) -> tuple[list[Entry], list[Damage]]:
    """Scan the bytes of a file; return its records as they were written, and the damages."""
    whole, damages = [], []
    for found in records.scan(memoryview(data)):
        if isinstance(found, Damage):
            damages.append(found)
        else:
            header = found.header
            whole.append(Entry(Kind(header.kind), bytes(found.payload), header.first, header.number))
    return whole, damages


def contains_in_order(all_of: list[Entry], some: list[Entry]) -> bool:
    """Whether these records are among the others, in the same order."""
    rest = iter(all_of)
    return all(entry in rest for entry in some)


def offsets(written: list[Entry]) -> list[int]:
    """Return where each record begins, and where the last one ends."""
    return [sum(len(entry.data) for entry in written[:i]) for i in range(len(written) + 1)]


def joined(written: list[Entry]) -> bytes:
    """Return the bytes of a file."""
    return b"".join(entry.data for entry in written)


# Reading.


@given(files)
def test_encoded_records_are_read(written: list[Entry]) -> None:
    """Records come back as they were written, in order, each at its offset, and nothing between them is damage."""
    data = joined(written)

    assert (written, []) == found_in(data)
    assert offsets(written)[:-1] == [found.offset for found in records.scan(memoryview(data))]


@given(files, st.integers(0, 2**40))
def test_offsets_are_those_of_the_file(written: list[Entry], base: int) -> None:
    """Where the bytes are a piece of a file, offsets count from the file's beginning."""
    expected = [base + offset for offset in offsets(written)[:-1]]

    assert expected == [found.offset for found in records.scan(memoryview(joined(written)), base)]


@given(files.filter(bool), st.data())
def test_a_torn_tail_costs_the_last_record_alone(written: list[Entry], data: st.DataObject) -> None:
    """Of a file that ends within a record, all before it are read, and the rest is one damage that names its extent."""
    *before, torn = offsets(written)[:-1]
    length = len(written[-1].data)
    kept = data.draw(st.integers(1, length - 1))
    header_whole = kept >= HEADER_SIZE

    whole, damages = found_in(joined(written)[: torn + kept])

    assert written[: len(before)] == whole
    assert [(torn, torn + (length if header_whole else kept), header_whole)] == [
        (damage.offset, damage.stop, damage.header is not None) for damage in damages
    ]


@given(files.filter(bool), st.data())
def test_a_flipped_bit_costs_its_record_alone(written: list[Entry], data: st.DataObject) -> None:
    """Wherever a bit flips, that record is a damage from its beginning to the next record, and all others are read."""
    content = bytearray(joined(written))
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    hit = next(i for i, end in enumerate(offsets(written)[1:]) if bit // 8 < end)
    in_payload = bit // 8 >= offsets(written)[hit] + HEADER_SIZE

    whole, damages = found_in(bytes(content))

    assert [*written[:hit], *written[hit + 1 :]] == whole
    assert [(offsets(written)[hit], offsets(written)[hit + 1], in_payload)] == [
        (damage.offset, damage.stop, damage.header is not None) for damage in damages
    ]


@given(files, st.data())
def test_overwritten_bytes_damage_only_their_records(written: list[Entry], data: st.DataObject) -> None:
    """Wherever bytes are replaced by others or by zeros, every record beside them is read."""
    content = joined(written)
    start = data.draw(st.integers(0, len(content)))
    noise = data.draw(st.binary(max_size=50) | st.just(MAGIC) | st.builds(bytes, st.integers(0, 200)))
    noise = noise[: len(content) - start]
    stop = start + len(noise)

    whole, _ = found_in(content[:start] + noise + content[stop:])

    spans = zip(written, offsets(written), offsets(written)[1:], strict=False)
    untouched = [entry for entry, begin, end in spans if end <= start or begin >= stop]
    assert contains_in_order(whole, untouched)
    assert contains_in_order(written, whole)


@given(files, files, st.data())
def test_no_record_is_invented(written: list[Entry], others: list[Entry], data: st.DataObject) -> None:
    """After any cut or insertion, also of records from other files, only written records are read."""
    content = joined(written)
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, len(content)))
    inserted = data.draw(st.binary(max_size=50) | st.just(joined(others)))

    whole, _ = found_in(content[:start] + inserted + content[stop:])

    before = [entry for entry, end in zip(written, offsets(written)[1:], strict=False) if end <= start]
    assert before == whole[: len(before)]
    assert contains_in_order([*written, *others, *written], whole)


def test_the_items_of_a_lost_payload_are_named() -> None:
    """If only the payload is damaged, the header gives the lost items."""
    data = bytearray(records.encode(Kind.VALUES, b"payload", first=10, count=3))
    data[-1] ^= 1

    (damage,) = records.scan(memoryview(data))

    assert isinstance(damage, Damage)
    assert damage.header is not None
    assert (damage.header.first, damage.header.stop) == (10, 13)


def test_a_file_of_zeros_is_one_damage() -> None:
    """Zeros from blocks that were never written hold no record, and the reader skips them at once."""
    data = bytes(100_000) + records.encode(Kind.NOTE, b"{}")

    damage, record = records.scan(memoryview(data))

    assert (damage.offset, damage.stop if isinstance(damage, Damage) else None) == (0, 100_000)
    assert isinstance(record, Record)


# Packing.


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=20))
def test_packed_parts_are_unpacked(parts: list[bytes]) -> None:
    """The parts of a payload come back as they were packed; a single one is the payload."""
    payload = records.pack(parts)

    assert parts == [bytes(part) for part in records.unpack(memoryview(payload), len(parts))]
    if len(parts) == 1:
        assert parts[0] == payload


def test_lengths_are_little_endian() -> None:
    """Lengths before packed parts are u32, little-endian, on every machine."""
    assert records.little_endian(array("I", [1, 256])).tobytes() == b"\x01\x00\x00\x00\x00\x01\x00\x00"


def test_a_header_is_as_it_is_specified() -> None:
    """A header is magic, kind, number, first, length and two checksums, little-endian, in 33 bytes."""
    payload = b"payload"
    fields = struct.pack("<4sBIQQI", b"\x93SLR", 4, 3, 10, len(payload), zlib.crc32(payload))

    expected = fields + struct.pack("<I", zlib.crc32(fields))

    assert (33, expected) == (HEADER_SIZE, records.encode(Kind.VALUES, payload, first=10, count=3)[:HEADER_SIZE])


# Appending.


@pytest.fixture
def log(tmp_path: Path) -> Iterator[records.RecordWriter]:
    """Return a writer of an empty file."""
    with records.RecordWriter(located(tmp_path / "log")) as writer:
        yield writer


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Have the kernel refuse to let any file grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def entry(*parts: bytes | memoryview) -> records.Entry:
    """Return a record of that payload."""
    return records.Entry.of(Kind.VALUES, parts, number=1)


def payloads_of(log: records.RecordWriter) -> list[bytes]:
    """Return the payloads in a file, and the empty one for each damage."""
    found = records.read_records(log.path)
    return [bytes(each.payload) if isinstance(each, Record) else b"" for each in found]


def test_appended_parts_lie_one_after_the_other(log: records.RecordWriter) -> None:
    """All parts of a record are appended, in order and without gaps, however many there are."""
    parts = [bytes([i % 256]) * (i % 5) for i in range(3000)]
    log.append(entry(*parts), entry(memoryview(b"one"), b"", b"x"))
    log.append(entry(b"last"))

    assert [b"".join(parts), b"onex", b"last"] == payloads_of(log)


@pytest.mark.parametrize("parts", [[bytes(600)], [bytes(100)] * 6, [b"header", bytes(594)]])
def test_a_record_that_does_not_fit_is_cut_off(log: records.RecordWriter, parts: list[bytes]) -> None:
    """If the file system takes only part of some records, none of it stays, and the error gives reason and place."""
    log.append(entry(b"whole" * 100))

    with files_end_at(1000), pytest.raises(OSError, match="File too large") as raised:
        log.append(entry(b"first"), entry(*parts))

    assert (raised.value.filename, payloads_of(log)) == (str(log.path), [b"whole" * 100])
    log.append(entry(*parts))
    assert payloads_of(log) == [b"whole" * 100, b"".join(parts)]


def test_a_file_is_continued(log: records.RecordWriter) -> None:
    """An existing file is appended to; flags determine whether it must exist, or must not."""
    log.note(number=1)
    with records.RecordWriter(log.path) as other:
        other.note(number=2)

    assert [b'{"number": 1}', b'{"number": 2}'] == payloads_of(log)
    with pytest.raises(FileExistsError):
        records.RecordWriter(log.path, flags=os.O_CREAT | os.O_EXCL)
    with pytest.raises(FileNotFoundError):
        records.RecordWriter(log.path.beside("other"), flags=0)
