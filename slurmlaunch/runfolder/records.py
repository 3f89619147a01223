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
import stat
import struct
import sys
import zlib
from array import array
from contextlib import contextmanager
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.errors import RunFolderError, UnsafeRunFolder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

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


# Files: opened only where they are safe to read, and written so that they appear whole.

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_BESIDE = ".new"


def make_folder(path: Path) -> None:
    """Make a folder that is the user's alone.

    Raises:
        FileExistsError: it is there already (who makes it owns what it stands for).
    """
    path.mkdir(mode=0o700)


def check_folder(path: Path) -> None:
    """Refuse a folder that another user owns or may write to.

    Raises:
        RunFolderError: it is not there, or no folder.
        UnsafeRunFolder: it is not safe to read from.
    """
    try:
        status = path.lstat()
    except OSError as error:
        msg = f"no run folder at {path}: {error.strerror}"
        raise RunFolderError(msg, path=str(path)) from error
    if stat.S_ISLNK(status.st_mode):
        msg = f"{path} is a symbolic link; give the folder that it points to"
        raise UnsafeRunFolder(msg, path=str(path))
    if not stat.S_ISDIR(status.st_mode):
        msg = f"{path} is no folder"
        raise RunFolderError(msg, path=str(path))
    _check(status, path)


def open_owned(path: Path) -> int:
    """Open a file for reading and return its descriptor.

    Raises:
        OSError: it cannot be opened.
        UnsafeRunFolder: another user owns it or may write to it, or it is a link.
    """
    return open_checked(path)[0]


def open_checked(path: Path) -> tuple[int, os.stat_result]:
    """Open a file as `open_owned` does; return what was seen of it, too."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        if path.is_symlink():
            msg = f"{path} is a symbolic link: refused, since it may lead out of the run folder"
            raise UnsafeRunFolder(msg, path=str(path)) from None
        raise
    try:
        status = os.fstat(descriptor)
        _check(status, path)
    except UnsafeRunFolder:
        os.close(descriptor)
        raise
    return descriptor, status


def read_owned(path: Path) -> bytes:
    """Return the content of a file, on the conditions of `open_owned`."""
    with os.fdopen(open_owned(path), "rb") as file:
        return file.read()


def _check(status: os.stat_result, path: Path) -> None:
    if status.st_uid != os.geteuid():
        msg = f"{path} belongs to user {status.st_uid}, not to you: nothing in it is unpickled"
        raise UnsafeRunFolder(msg, path=str(path))
    if status.st_mode & _OTHERS_MAY_WRITE:
        msg = (
            f"{path} may be written by others (mode {stat.S_IMODE(status.st_mode):o}): nothing in "
            f"it is unpickled. If you trust its content: chmod -R go-w"
        )
        raise UnsafeRunFolder(msg, path=str(path))


def read_at(descriptor: int, length: int, offset: int) -> bytes:
    """Return so many bytes of a file, or fewer at its end; one ``pread`` may stop short of 2 GiB."""
    data = os.pread(descriptor, length, offset)
    if len(data) == length:
        return data
    pieces = [data]
    missing = length - len(data)
    while missing and pieces[-1]:
        offset += len(pieces[-1])
        pieces.append(os.pread(descriptor, missing, offset))
        missing -= len(pieces[-1])
    return b"".join(pieces)


def write_whole(path: Path, parts: Iterable[bytes | bytearray | memoryview]) -> None:
    """Write a file beside its place, flush it, and put it there in one step.

    Raises:
        OSError: it could not be written (disk full, quota, ...); nothing is left behind.
    """
    beside = path.with_name(path.name + _BESIDE)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                with naming(path):
                    file.write(part)
                del part  # it may be large, and the next is made only now
            with naming(path):
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_once(path: Path, data: bytes) -> bool:
    """Write a file that only one process can make; False where another was first.

    By a link, which is one step on every file system; ``O_EXCL`` would leave a
    moment in which the file is there, and empty.
    """
    import secrets  # here, as a node is to start soon

    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_BESIDE}")
    write_whole(beside, [data])
    try:
        path.hardlink_to(beside)
    except FileExistsError:
        return False
    finally:
        beside.unlink()
    return True


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have the system's errors say which file it was, as a full disk or a quota does not by itself."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
