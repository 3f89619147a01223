"""Records: the framing of every binary file in a run folder.

A record is a header of 33 bytes and a payload::

    magic         4 bytes   0x93 "SLR"
    kind          u8        see `Kind`
    number        u32       how many items the record covers
    first         u64       the index of the first of them; the others follow it
    length        u64       bytes of the payload
    payload_crc   u32       CRC-32 of the payload
    header_crc    u32       CRC-32 of the salt and the 29 bytes before it

All numbers are little-endian. The salt is the run's token (`Manifest.run`, UTF-8) in ``items`` and the outcome files,
and empty elsewhere. A payload of several parts (`pack`) is their lengths, as ``number`` times u32, and then the parts;
a payload of one part is that part. The header has its own checksum so that a reader can trust ``length`` to step over
a damaged payload, and can tell a header from noise when it searches for the next one. It is salted in files that hold
the user's bytes, so that none of these are taken for a record: a value may be the content of another run's files.

Client and node use this module for everything that they read or write in a run folder. A file either appears whole
(`files.write_whole`) or one writer appends records to it (`RecordWriter`). What the records mean is not known here.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import sys
import zlib
from array import array
from contextlib import suppress
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.runfolder.files import Opened, naming, read_at, read_owned

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from slurmlaunch.runfolder.files import Location, Part

MAGIC = b"\x93SLR"
_FIELDS = struct.Struct("<4sBIQQI")
_CRC = struct.Struct("<I")
HEADER_SIZE = _FIELDS.size + _CRC.size


class Kind(IntEnum):
    """The content of a record's payload."""

    FUNCTION = 1
    """The pickled function."""
    ITEMS = 2
    """Pickled argument tuples, each on its own, packed."""
    COLUMN = 3
    """One pickle: the list of the argument tuples."""
    VALUES = 4
    """Pickled values, packed."""
    FAILURE = 5
    """One pickled failure, the outcome of each of the ``number`` items."""
    NOTE = 6
    """JSON, UTF-8."""
    LIST = 7
    """Item indices, each u64."""
    CANCELLED = 8
    """Nothing: the items of the header are cancelled."""
    CHECKPOINT = 9
    """One pickled (function, args, kwargs): the call that resumes the item."""
    SERIES = 10
    """Pickled values, packed, each of protocol 3 and without the STOP at its end, so that one pickle can hold all."""
    BUNDLE = 11
    """One pickled argument tuple, or one pickled value, with its large buffers (see `buffers`)."""
    SHARED = 12
    """The table of the buffers that the function refers to (see `buffers`)."""
    INTEGERS = 13
    """Values that are integers, each i64."""
    FLOATS = 14
    """Values that are floats, each f64 (IEEE 754)."""
    DEFINITION = 15
    """One definition that results refer to (see `user_classes`)."""
    MODULE = 16
    """The source of a module, or the content of its .pyc file (see `modules`)."""
    TIMES = 17
    """When the items of the record before it ran: f64 and f32 (see `outcomes.Times`)."""
    STDOUT = 18
    """What the items of the header wrote to standard output (see `output`)."""
    STDERR = 19
    """The same, to standard error."""


class Header(NamedTuple):
    """A header, without its magic and its own checksum."""

    kind: int
    number: int
    first: int
    length: int
    payload_crc: int

    @property
    def stop(self) -> int:
        """One past the last item that the record covers."""
        return self.first + self.number

    def encode(self, salt: int = 0) -> bytes:
        """Return the bytes of the header; *salt* is the CRC-32 of the run's token, or 0."""
        fields = _FIELDS.pack(MAGIC, *self)
        return fields + _CRC.pack(zlib.crc32(fields, salt))


class Record(NamedTuple):
    """A whole record that was read: the position of its header in the file, in bytes, and the verified payload."""

    offset: int
    header: Header
    payload: memoryview


class Damage(NamedTuple):
    """A part of a file that is no whole record.

    Attributes:
        offset: its first byte.
        header: the header, if at least that is whole: its items are lost.
        stop: the position at which reading can continue.
    """

    offset: int
    header: Header | None
    stop: int


def encode(kind: int, payload: bytes, *, first: int = 0, count: int = 1, salt: int = 0) -> bytes:
    """Return a whole record."""
    return Header(kind, count, first, len(payload), zlib.crc32(payload)).encode(salt) + payload


def pack(parts: Sequence[bytes]) -> bytes:
    """Join the parts of a payload behind their lengths; a single part stays as it is."""
    if len(parts) == 1:
        return parts[0]
    return little_endian(array("I", map(len, parts))).tobytes() + b"".join(parts)


def unpack(payload: memoryview, count: int) -> list[memoryview]:
    """Return the parts of a packed payload, without copying them."""
    return [payload[a:b] for a, b in pairwise(boundaries(payload, count))]


def boundaries(payload: memoryview, count: int) -> list[int]:
    """Return the position of each part of a packed payload, and the end of the last one.

    Raises:
        ValueError: it is not packed from so many parts.
    """
    if count == 1:
        return [0, len(payload)]
    lengths = array("I")
    table = count * lengths.itemsize
    if table <= len(payload):
        lengths.frombytes(payload[:table])
        found = list(accumulate(little_endian(lengths), initial=table))
        if found[-1] == len(payload):
            return found
    raise ValueError(f"{len(payload)} bytes do not hold {count} parts")


def little_endian(numbers: array[Any]) -> array[Any]:
    """Return the array itself, its bytes swapped if the machine's order differs from that of records."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def parse_header(data: memoryview | bytes, position: int = 0, *, salt: int = 0) -> Header | None:
    """Read the header at a position; None if no whole header is there."""
    if len(data) - position < HEADER_SIZE:
        return None
    magic, *fields = _FIELDS.unpack_from(data, position)
    (crc,) = _CRC.unpack_from(data, position + _FIELDS.size)
    if magic != MAGIC or crc != zlib.crc32(data[position : position + _FIELDS.size], salt):
        return None
    return Header(*fields)


def scan(data: memoryview, base: int = 0, *, salt: int = 0) -> Iterator[Record | Damage]:
    """Read records from bytes that begin at offset *base* of a file.

    Yields each whole record, and a `Damage` for each part between them. A tail
    that may still be growing is a damage whose ``stop`` lies beyond the data, or,
    if not even its header is whole, one that ends with the data.
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


class Entry(NamedTuple):
    """A record to be appended, its checksum computed, which for a large one takes as long as writing it."""

    header: Header
    parts: Sequence[Part]

    @classmethod
    def of(cls, kind: int, parts: Sequence[Part], *, first: int = 0, number: int = 0) -> Entry:
        """Compute length and checksum of a payload."""
        crc = 0
        for part in parts:
            crc = zlib.crc32(part, crc)
        return cls(Header(kind, number, first, sum(map(len, parts)), crc), parts)


class RecordWriter:
    """Appends records to a file that nobody else appends to."""

    def __init__(self, path: Location, *, salt: int = 0, flags: int = os.O_CREAT) -> None:
        """Open the file, whose headers have this salt.

        *flags* are ``O_CREAT`` to create the file if it is missing, with ``O_EXCL`` to insist on that; 0 to open one
        that exists.
        """
        self.path, self._salt = path, salt
        self._opened = Opened(self._open(flags))
        self._end = self._flushed = self._opened.status.st_size
        self._torn = False

    def _open(self, flags: int) -> int:
        return self.path.open(os.O_WRONLY | os.O_APPEND | flags)

    @property
    def descriptor(self) -> int:
        """The descriptor of the file, opened again if the user's function closed it: another file may have its number.

        Raises:
            OSError: it cannot be opened, or another file is there.
        """
        if not self._opened.is_there():
            again = Opened(self._open(0))
            if not again.is_same(self._opened):
                again.close()
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self.path))
            self._opened = again
        return self._opened.number

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, *entries: Entry) -> None:
        """Append records.

        Raises:
            OSError: they could not be written; the part that was written is cut off, now or before the next record.
        """
        parts = [part for entry in entries for part in (entry.header.encode(self._salt), *entry.parts)]
        with naming(self.path):
            if self._torn:
                os.ftruncate(self.descriptor, self._end)
            self._torn = True
            self._end = _write_all(self.descriptor, parts, self._end)
            self._torn = False

    def note(self, **content: Any) -> None:
        """Append a record of kind NOTE."""
        self.append(Entry.of(Kind.NOTE, [json.dumps(content).encode()]))

    def cut(self) -> None:
        """Cut off the unfinished record that another process appended through this descriptor."""
        with naming(self.path):
            os.ftruncate(self.descriptor, self._end)

    def flush(self) -> None:
        """Make all records survive a crash of this machine."""
        if self._flushed != self._end:
            with naming(self.path):
                os.fsync(self.descriptor)
            self._flushed = self._end

    def close(self) -> None:
        """Flush and close."""
        try:
            self.flush()
        finally:
            os.close(self.descriptor)


def _write_all(descriptor: int, parts: Sequence[Part], end: int) -> int:
    """Append to a file that is *end* bytes long; return its new length. On an error, cut the written part off."""
    pending = [memoryview(part).cast("B") for part in parts if len(part)]
    stop = end + sum(len(part) for part in pending)
    try:
        done = 0
        while done < len(pending):
            written = os.writev(descriptor, pending[done : done + _IOV_MAX])
            while done < len(pending) and written >= len(pending[done]):
                written -= len(pending[done])
                done += 1
            if done < len(pending):
                pending[done] = pending[done][written:]
    except OSError:
        with suppress(OSError):  # the storage may refuse this, too
            os.ftruncate(descriptor, end)
        raise
    return stop


_IOV_MAX = 64


def read_payload(descriptor: int, header: Header, offset: int) -> bytes | None:
    """Return the payload of the record at an offset; None if it is damaged."""
    payload = read_at(descriptor, header.length, offset + HEADER_SIZE)
    return payload if len(payload) == header.length and zlib.crc32(payload) == header.payload_crc else None


def read_records(location: Location) -> Iterator[Record | Damage]:
    """Read the records of a whole file without salt, on the conditions of `files.open_owned`."""
    return scan(memoryview(read_owned(location)))
