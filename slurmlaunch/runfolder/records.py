"""Records: the framing of every binary file in a run folder.

A record is a header of 33 bytes and a payload::

    magic         4 bytes   0x93 "SLR"
    kind          u8        see `Kind`
    number        u32       how many items it speaks of
    first         u64       the index of the first of them; the others follow it
    length        u64       bytes of the payload
    payload_crc   u32       CRC-32 of the payload
    header_crc    u32       CRC-32 of the salt and the 29 bytes before it

All numbers are little-endian. The salt is the run's token (`Manifest.run`, UTF-8)
in ``items`` and the outcome files, and nothing elsewhere. A payload of several parts (`pack`) is their
lengths, as ``number`` times u32, and then the parts; a payload of one part is
that part. The header has a checksum of its own so that a reader can trust
``length`` to step over a damaged payload, and can tell a header from noise
when it looks for the next one. It is salted where records hold bytes of the
user's, so that none of these are taken for a record: a value may well be the
content of another run's files.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from array import array
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MAGIC = b"\x93SLR"
_FIELDS = struct.Struct("<4sBIQQI")
_CRC = struct.Struct("<I")
HEADER_SIZE = _FIELDS.size + _CRC.size


class Kind(IntEnum):
    """What the payload of a record is."""

    FUNCTION = 1
    """The pickled function."""
    ITEMS = 2
    """Pickled argument tuples, each on its own, packed."""
    COLUMN = 3
    """One pickle: the list of the argument tuples."""
    VALUES = 4
    """Pickled values, packed."""
    FAILURE = 5
    """One pickled failure, which is that of each of the ``number`` items."""
    NOTE = 6
    """JSON, UTF-8."""
    LIST = 7
    """Item indices, each u64."""
    CANCELLED = 8
    """Nothing: the items of the header are cancelled."""
    CHECKPOINT = 9
    """One pickled (function, args, kwargs): how the item is gone on with."""
    SERIES = 10
    """Pickled values, packed, each of protocol 3 and without its last byte, the STOP: so they can be read as one."""
    BUNDLE = 11
    """One pickled argument tuple, or one pickled value, with its large buffers (see `buffers`)."""
    SHARED = 12
    """The table of the buffers that the function refers to (see `buffers`)."""
    INTEGERS = 13
    """Values that are integers, each i64."""
    FLOATS = 14
    """Values that are floats, each f64 (IEEE 754)."""


class Header(NamedTuple):
    """A header, without its magic and its own checksum."""

    kind: int
    number: int
    first: int
    length: int
    payload_crc: int

    @property
    def stop(self) -> int:
        """One past the last item that the record speaks of."""
        return self.first + self.number

    def encode(self, salt: int = 0) -> bytes:
        """Return the bytes of the header; the salt is the CRC-32 of what its checksum begins with."""
        fields = _FIELDS.pack(MAGIC, *self)
        return fields + _CRC.pack(zlib.crc32(fields, salt))


class Record(NamedTuple):
    """A whole record that was read.

    Attributes:
        offset: where its header begins in the file.
        header: the header.
        payload: the payload, its checksum verified.
    """

    offset: int
    header: Header
    payload: memoryview


class Damage(NamedTuple):
    """A place in a file where no whole record is.

    Attributes:
        offset: where it begins.
        header: the header, where that at least is whole: its items are lost.
        stop: where reading can go on.
    """

    offset: int
    header: Header | None
    stop: int


def encode(kind: int, payload: bytes, *, first: int = 0, count: int = 1, salt: int = 0) -> bytes:
    """Return a whole record."""
    return Header(kind, count, first, len(payload), zlib.crc32(payload)).encode(salt) + payload


def measured(parts: Iterable[bytes | bytearray | memoryview]) -> tuple[int, int]:
    """Return the length and the checksum of a payload that is in parts."""
    length = crc = 0
    for part in parts:
        length += len(part)
        crc = zlib.crc32(part, crc)
    return length, crc


def pack(parts: Sequence[bytes]) -> bytes:
    """Join the parts of a payload, their lengths before them; a single part stands alone."""
    if len(parts) == 1:
        return parts[0]
    return pack_lengths(array("I", map(len, parts))) + b"".join(parts)


def pack_lengths(lengths: array[int]) -> bytes:
    """Return the lengths as they stand before packed parts."""
    if sys.byteorder == "big":
        lengths.byteswap()
    return lengths.tobytes()


def unpack(payload: memoryview, count: int) -> list[memoryview]:
    """Return the parts of a packed payload, without copying them."""
    return [payload[a:b] for a, b in pairwise(boundaries(payload, count))]


def boundaries(payload: memoryview, count: int) -> list[int]:
    """Return where each part of a packed payload begins, and where the last one ends."""
    if count == 1:
        return [0, len(payload)]
    lengths = array("I")
    lengths.frombytes(payload[: count * lengths.itemsize])
    if sys.byteorder == "big":
        lengths.byteswap()
    return list(accumulate(lengths, initial=count * lengths.itemsize))


def numbers(payload: memoryview, code: str) -> list[Any]:
    """Return the numbers of a payload, *code* being their type as `array` names it."""
    found = array(code, bytes(payload))
    if sys.byteorder == "big":
        found.byteswap()
    return found.tolist()


def pack_numbers(data: bytes, code: str) -> bytes:
    """Return a payload of numbers that are in memory as `array` has them."""
    if sys.byteorder == "little":
        return data
    found = array(code, data)
    found.byteswap()
    return found.tobytes()


def parse_header(data: memoryview | bytes, position: int = 0, *, salt: int = 0) -> Header | None:
    """Read the header at a position; None where there is no whole one."""
    if len(data) - position < HEADER_SIZE:
        return None
    magic, *fields = _FIELDS.unpack_from(data, position)
    (crc,) = _CRC.unpack_from(data, position + _FIELDS.size)
    if magic != MAGIC or crc != zlib.crc32(data[position : position + _FIELDS.size], salt):
        return None
    return Header(*fields)


def scan(data: memoryview, base: int = 0, *, salt: int = 0) -> Iterator[Record | Damage]:
    """Read records from bytes that begin at offset *base* of a file.

    Yields each whole record, and a `Damage` for each stretch that holds none.
    A tail that may still be growing is a damage whose ``stop`` lies beyond the
    data, or, where not even its header is whole, one that ends with them.
    """
    position = 0
    while position < len(data):
        header = parse_header(data, position, salt=salt)
        if header is None:
            stop = _next_header(data, position + 1, salt)
            yield Damage(base + position, None, base + stop)
            position = stop
            continue
        start = position + HEADER_SIZE
        stop = start + header.length
        payload = data[start:stop]
        if len(payload) == header.length and zlib.crc32(payload) == header.payload_crc:
            yield Record(base + position, header, payload)
        else:
            yield Damage(base + position, header, base + stop)
        position = stop


def _next_header(data: memoryview, position: int, salt: int) -> int:
    whole = data.obj
    raw = whole if isinstance(whole, bytes) and len(whole) == len(data) else bytes(data)
    while (position := raw.find(MAGIC, position)) != -1:
        if parse_header(data, position, salt=salt) is not None:
            return position
        position += 1
    return len(data)


def append(descriptor: int, parts: Sequence[bytes | bytearray | memoryview], end: int) -> int:
    """Append the bytes of one record to a file that is *end* bytes long; return its new length.

    Raises:
        OSError: they could not be written; what was written of them is cut off again.
    """
    pending = [memoryview(part).cast("B") for part in parts if len(part)]
    stop = end + sum(len(part) for part in pending)
    try:
        while pending:
            written = os.writev(descriptor, pending[:_IOV_MAX])
            while pending and written >= len(pending[0]):
                written -= len(pending.pop(0))
            if pending:
                pending[0] = pending[0][written:]
    except OSError:
        os.ftruncate(descriptor, end)
        raise
    return stop


_IOV_MAX = 64
