"""Large buffers on disk: those of one function for all its processes, and those of one item or value.

The buffers that the function of a run refers to are written once, each on a page
of its own, into the file ``function.buffers``; every process maps that file, so
that one machine holds its bytes once. The table of it stands in a record beside
the function: per buffer its offset and its length, both u64, and the CRC-32 of
its bytes, u32, little-endian.

An item or a value with large buffers is one record of kind BUNDLE. Its payload::

    pickled   u64       bytes of the pickle
    number    u64       of buffers
    lengths   u64 each  bytes of each buffer; the top bit says that it is read-only
    the pickle, and then the buffers

Buffers are in the order in which the pickle asks for them. Who reads a bundle
reads each buffer into the place where it stays, so that nothing is held twice.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.errors import NodeStartError, SlurmlaunchError
from slurmlaunch.outcome import Bundle
from slurmlaunch.runfolder.records import open_owned, read_at, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    Buffer = bytes | bytearray | memoryview

SHARED = 1 << 20
"""From this size on, in bytes, a buffer of the function is shared. Below it a copy in each process costs next to
nothing, and the function may write to it."""

_PAGE = 1 << 12
_PIECE = 1 << 22
"""How much is read at once where only a checksum is wanted."""

_ENTRY = struct.Struct("<QQI")
_NUMBERS = struct.Struct("<QQ")
_LENGTH = struct.Struct("<Q")
_READ_ONLY = 1 << 63


# The buffers of a function.


class Place(NamedTuple):
    """Where a shared buffer lies in its file.

    Attributes:
        offset: where it begins.
        length: how many bytes it has.
        crc: their CRC-32.
    """

    offset: int
    length: int
    crc: int


def write_shared(path: Path, buffers: Sequence[Buffer]) -> bytes:
    """Write the buffers of a function; return their table.

    Raises:
        OSError: they could not be written (disk full, quota, ...); nothing is left behind.
    """
    sizes = [-(-len(buffer) // _PAGE) * _PAGE for buffer in buffers]
    offsets = [0, *accumulate(sizes)]
    write_whole(path, (part for size, buffer in zip(sizes, buffers, strict=True) for part in _filled(buffer, size)))
    return b"".join(
        _ENTRY.pack(offset, len(buffer), zlib.crc32(buffer))
        for offset, buffer in zip(offsets[:-1], buffers, strict=True)
    )


def _filled(buffer: Buffer, size: int) -> tuple[Buffer, Buffer]:
    return buffer, bytes(size - len(buffer))


class SharedBuffers:
    """The buffers of a function, as they lie on disk.

    Attributes:
        path: their file.
        places: where each lies.
    """

    def __init__(self, path: Path, table: bytes | memoryview) -> None:
        """Read their table."""
        self.path = path
        self.places = [Place(*entry) for entry in _ENTRY.iter_unpack(table)]

    def check(self) -> Iterator[None]:
        """Read all, piece by piece, and yield after each; one process of a machine does so for all.

        Raises:
            NodeStartError: a buffer is damaged, or not there, or others may have changed it.
        """
        descriptor = self._open()
        try:
            for place in self.places:
                crc = 0
                for piece in _pieces(descriptor, place.offset, place.length):
                    crc = zlib.crc32(piece, crc)
                    yield
                if crc != place.crc:
                    raise self._damaged(place.offset)
        finally:
            os.close(descriptor)

    def map(self, *, writable: bool = False) -> list[memoryview]:
        """Return the buffers, as memory that all processes of a machine share.

        They count on `check`.

        Args:
            writable: what is written to is a copy that the process has for itself, page by page.

        Raises:
            NodeStartError: the file is shorter than it was, or not there, or others may have changed it.
        """
        descriptor = self._open()
        try:
            memory = _mapped(descriptor, writable=writable)
        finally:
            os.close(descriptor)
        return [memory[place.offset : place.offset + place.length] for place in self.places]

    def _open(self) -> int:
        try:
            descriptor = open_owned(self.path)
        except (OSError, SlurmlaunchError) as error:
            raise NodeStartError(f"the function's arrays cannot be read: {error}") from error
        size = os.fstat(descriptor).st_size
        for place in self.places:
            if place.offset + place.length > size:
                os.close(descriptor)
                raise self._damaged(size)  # mapped, what is missing would be a SIGBUS
        return descriptor

    def _damaged(self, offset: int) -> NodeStartError:
        return NodeStartError(f"the function's arrays on disk are damaged: {self.path}, at byte {offset}")


def _mapped(descriptor: int, *, writable: bool) -> memoryview:
    access = mmap.ACCESS_COPY if writable else mmap.ACCESS_READ
    try:
        return memoryview(mmap.mmap(descriptor, 0, access=access))
    except OSError:  # a file system that cannot: then each process has its own
        memory = memoryview(bytearray(os.fstat(descriptor).st_size))
        _read_into(memory, descriptor, 0)
        return memory if writable else memory.toreadonly()


def _pieces(descriptor: int, offset: int, length: int) -> Iterator[memoryview]:
    """Yield a stretch of a file in pieces, each valid until the next; fewer bytes where the file ends before."""
    buffer = memoryview(bytearray(min(length, _PIECE)))
    stop = offset + length
    while offset < stop:
        count = os.preadv(descriptor, [buffer[: stop - offset]], offset)
        if not count:
            return
        yield buffer[:count]
        offset += count


def checksum(descriptor: int, offset: int, length: int) -> int:
    """Return the CRC-32 of a stretch of a file, of which only a piece is held at a time."""
    crc = 0
    for piece in _pieces(descriptor, offset, length):
        crc = zlib.crc32(piece, crc)
    return crc


# Bundles.


def bundle_parts(bundle: Bundle) -> list[Buffer]:
    """Return the payload of a bundle's record, in parts; nothing of the buffers is copied."""
    lengths = [len(buffer) | (_READ_ONLY if memoryview(buffer).readonly else 0) for buffer in bundle.buffers]
    table = _NUMBERS.pack(len(bundle.pickled), len(lengths)) + b"".join(map(_LENGTH.pack, lengths))
    return [table, bundle.pickled, *bundle.buffers]


def read_bundle(descriptor: int, offset: int, length: int, crc: int) -> Bundle | None:
    """Read the payload of a bundle's record; None where it is damaged.

    Its buffers are ``bytes`` where they were read-only, and ``bytearray`` elsewhere,
    as what pickle itself makes of a buffer: nobody else refers to their memory.
    """
    table, lengths = _read_table(descriptor, offset, length)
    if not lengths or sum(entry & ~_READ_ONLY for entry in lengths) + len(table) != length:
        return None  # found before so much memory is asked for
    parts: list[bytes | bytearray] = []
    position = offset + len(table)
    for entry in lengths:
        parts.append(_read_part(descriptor, entry & ~_READ_ONLY, position, read_only=bool(entry & _READ_ONLY)))
        position += len(parts[-1])
    found = zlib.crc32(table)
    for part in parts:
        found = zlib.crc32(part, found)
    return Bundle(bytes(parts[0]), parts[1:]) if found == crc else None


def _read_table(descriptor: int, offset: int, length: int) -> tuple[bytes, list[int]]:
    """Read how long the pickle and the buffers are; nothing where that cannot be."""
    table = read_at(descriptor, min(length, _NUMBERS.size), offset)
    if len(table) < _NUMBERS.size:
        return b"", []
    pickled, number = _NUMBERS.unpack(table)
    size = number * _LENGTH.size
    if _NUMBERS.size + size + pickled > length:
        return b"", []
    table += read_at(descriptor, size, offset + _NUMBERS.size)
    whole = len(table) // _LENGTH.size * _LENGTH.size
    return table, [pickled | _READ_ONLY, *(each for (each,) in _LENGTH.iter_unpack(table[_NUMBERS.size : whole]))]


def _read_part(descriptor: int, length: int, offset: int, *, read_only: bool) -> bytes | bytearray:
    if read_only:
        return read_at(descriptor, length, offset)
    part = bytearray(length)
    with memoryview(part) as memory:
        _read_into(memory, descriptor, offset)
    return part


def _read_into(memory: memoryview, descriptor: int, offset: int) -> None:
    """Fill memory from a file; what the file has not is left as it was."""
    done = 0
    while done < len(memory):
        count = os.preadv(descriptor, [memory[done:]], offset + done)
        if not count:
            return
        done += count
