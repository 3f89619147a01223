"""Outcomes: one file of records per attempt of a task, appended as items finish.

`OutcomeWriter` appends, in a node's supervisor (and in its workers, through the same descriptor). `OutcomeFile` reads
the records that were appended since the last time and steps over damaged ones; clients and later attempts use it. The
ranks of a task write files of the same kind. Nothing here decides about items without an outcome.
"""

from __future__ import annotations

import os
import pickle
from array import array
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch import unpickling
from slurmlaunch.errors import ResultLost, RunFolderError
from slurmlaunch.outcome import SERIES_PROTOCOL, Bundle, Failure, Outcome, Value, is_interrupt
from slurmlaunch.runfolder import forms, records
from slurmlaunch.runfolder.buffers import bundle_parts, checksum, read_bundle
from slurmlaunch.runfolder.files import create, opened, read_at
from slurmlaunch.runfolder.layout import DEFINITIONS
from slurmlaunch.runfolder.records import HEADER_SIZE, Damage, Entry, Kind, RecordWriter
from slurmlaunch.runfolder.storage import Patience
from slurmlaunch.runfolder.user_classes import definitions_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from slurmlaunch.runfolder.files import Location, Part
    from slurmlaunch.runfolder.layout import RunFolder


def outcome_entry(item: int, pickled: bytes | Bundle, *, succeeded: bool) -> Entry:
    """Return the record of one outcome."""
    if isinstance(pickled, Bundle):
        return Entry.of(Kind.BUNDLE, bundle_parts(pickled), first=item, number=1)
    return Entry.of(Kind.VALUES if succeeded else Kind.FAILURE, [pickled], first=item, number=1)


class Times(NamedTuple):
    """When consecutive items ran, one after the other.

    Attributes:
        start: when the first of them began, in seconds since the epoch.
        seconds: how long each took; a single number is the share of each item in a block of short ones.
    """

    start: float
    seconds: array[float]

    def part(self, start: int, stop: int) -> Times:
        """Return the times of some of the items, counted from the first."""
        if len(self.seconds) == 1:
            return self
        return Times(self.start + sum(self.seconds[:start]), self.seconds[start:stop])

    def entry(self, first: int, number: int) -> Entry:
        """Return the record for these items, which follows the record of their outcomes."""
        numbers = records.little_endian(array("d", [self.start])), records.little_endian(self.seconds[:])
        return Entry.of(Kind.TIMES, [each.tobytes() for each in numbers], first=first, number=number)

    @classmethod
    def parse(cls, header: records.Header, payload: bytes) -> Times | None:
        """Read the payload of a record; None if it is not what its header says."""
        count, rest = divmod(len(payload) - _NUMBER, _SECONDS)
        if rest or count not in {1, header.number} or count < 1:
            return None
        start = records.little_endian(array("d", payload[:_NUMBER]))[0]
        seconds = records.little_endian(array("f", payload[_NUMBER:]))
        possible = all(map(forms.seconds, (start, *seconds))) and forms.seconds(start + sum(seconds))
        return cls(start, seconds) if possible else None


def times_behind(file: Location, offset: int, salt: int) -> tuple[range, Times] | None:
    """Return the items of the record of outcomes at an offset, and when they ran; None if that is not recorded.

    Raises:
        OSError: the file cannot be read.
        UnsafeRunFolder: it is not safe to read.
    """
    with opened(file) as (descriptor, _):
        header = records.parse_header(read_at(descriptor, HEADER_SIZE, offset), salt=salt)
        if header is None:
            return None
        offset += HEADER_SIZE + header.length
        behind = records.parse_header(read_at(descriptor, HEADER_SIZE, offset), salt=salt)
        if (
            behind is None
            or behind.kind != Kind.TIMES
            or (behind.first, behind.number) != (header.first, header.number)
        ):
            return None
        payload = records.read_payload(descriptor, behind, offset)
    times = None if payload is None else Times.parse(behind, payload)
    return None if times is None else (range(header.first, header.stop), times)


class AttemptWriter(RecordWriter):
    """Appends the outcomes of one attempt, or of one rank of it.

    Attributes:
        attempt: the number of the attempt.
        failures: how many failures were recorded.
        withheld: how many failures were not recorded, because only values were accepted.
        only_values: whether to drop failures, because the task is being ended.
        patience: waits for the storage.
    """

    def __init__(
        self, path: Location, attempt: int, salt: int, flags: int = 0, *, patience: Patience | None = None
    ) -> None:
        super().__init__(path, salt=salt, flags=flags)
        self.attempt = attempt
        self.failures = self.withheld = 0
        self.only_values = False
        self.patience = patience or Patience()

    @property
    def end(self) -> int:
        """The end of the last record that is counted, in bytes."""
        return self._end

    def read(self, offset: int) -> Content:
        """Return the record at an offset; `read_record` says what it raises."""
        return read_record(self.path, offset, self._salt)

    def append(self, *entries: Entry) -> None:
        """Append records; wait while the storage fails."""
        self.patience.run(partial(super().append, *entries))

    def cut(self) -> None:
        """Cut off an unfinished record; wait while the storage fails."""
        self.patience.run(super().cut)

    def flush(self) -> None:
        """Make all records survive a crash of this machine; wait while the storage fails."""
        self.patience.run(super().flush)

    def numbers(self, kind: Kind, first: int, data: bytes, times: Times | None = None) -> None:
        """Record numbers as the values of consecutive items: INTEGERS or FLOATS, as they are in memory."""
        numbers = records.little_endian(array(_CODES[kind], data))
        self._append(kind, first, len(numbers), [numbers.tobytes()], times)

    def packed(
        self, kind: Kind, first: int, lengths: array[int], data: bytes | memoryview, times: Times | None = None
    ) -> None:
        """Record the pickled values of consecutive items, VALUES or SERIES: their lengths, and their bytes joined."""
        table = b"" if len(lengths) == 1 else records.little_endian(lengths).tobytes()
        self._append(kind, first, len(lengths), [table, data], times)

    def value(self, item: int, pickled: bytes | Bundle, times: Times | None = None) -> None:
        """Record one pickled value of any size."""
        self._append_timed(outcome_entry(item, pickled, succeeded=True), times)

    def failure(self, first: int, pickled: bytes | memoryview, times: Times | None = None, *, count: int = 1) -> None:
        """Record one pickled failure for consecutive items, unless only values are accepted."""
        if self.only_values:
            self.withheld += count
            return
        self._append(Kind.FAILURE, first, count, [pickled], times)
        self.failures += count

    def times(self, item: int, times: Times) -> None:
        """Record when an item ran, right after another process has appended its outcome."""
        self.append(times.entry(item, 1))

    def copy(self, recorded: Recorded, item: int) -> None:
        """Record for one item the outcome that another file of the task holds, and when the item ran there.

        Raises:
            ResultLost: that record can no longer be read.
        """
        parts = self.patience.run(recorded.read).parts()
        found = self.patience.run(lambda: times_behind(recorded.file, recorded.offset, self._salt))
        self._append(recorded.header.kind, item, 1, parts, found and found[1])
        self.failures += recorded.header.kind == Kind.FAILURE

    def checkpoint(self, item: int, pickled: bytes) -> None:
        """Record the call that resumes an item; it has no outcome yet."""
        self._append(Kind.CHECKPOINT, item, 1, [pickled])

    def _append(self, kind: int, first: int, number: int, parts: Sequence[Part], times: Times | None = None) -> None:
        self._append_timed(Entry.of(kind, parts, first=first, number=number), times)

    def _append_timed(self, entry: Entry, times: Times | None) -> None:
        header = entry.header
        self.append(entry, *([] if times is None else [times.entry(header.first, header.number)]))

    def adopt(self, *, failed: bool) -> bool:
        """Count the record that another process of this attempt appended; cut a failure off if only values count.

        Return whether it is kept.
        """
        if failed and self.only_values:
            self.withheld += 1
            self.cut()
            return False
        self._end = os.fstat(self.descriptor).st_size
        self.failures += failed
        return True


class TaskClosed(Exception):
    """No further attempt of the task may begin: what it left belongs to a later round."""


def close_task(folder: RunFolder, task: int, attempts: int) -> bool:
    """Have no attempt of a task begin after so many; False if another one has.

    A folder takes the place of the next attempt's file. Only one of them can be made, on
    every file system, so that an item runs in a later round or in the attempt, never in both.
    """
    path = folder.outcome_file(task, attempts)
    try:
        path.mkdir()
    except FileExistsError:
        return path.is_dir()
    return True


class OutcomeWriter(AttemptWriter):
    """Begins the next attempt of a task: the first one whose file it can create."""

    def __init__(self, folder: RunFolder, task: int, patience: Patience | None = None, *, start: int = 0) -> None:
        """Begin; before it there are *start* other starts, and those that got no further get empty files.

        Raises:
            TaskClosed: the task is closed.
        """
        patience = patience or Patience()
        for attempt in count():
            path, flags = folder.outcome_file(task, attempt), os.O_CREAT | os.O_EXCL
            try:
                if attempt >= start:
                    patience.run(partial(super().__init__, path, attempt, folder.salt, flags, patience=patience))
                    return
                patience.run(partial(create, path, b""))
            except FileExistsError:
                if patience.run(path.is_dir):
                    raise TaskClosed from None


class Content:
    """The payload of a record that was read: the outcomes of its items, not yet unpickled.

    Attributes:
        items: the items that it covers.
    """

    def __init__(self, header: records.Header, payload: bytes | Bundle, file: Location, offset: int) -> None:
        """Begin with a record of an outcome file.

        Raises:
            ResultLost: its payload is not what its kind and its number of items say.
        """
        self._definitions = definitions_in(file.root / DEFINITIONS)
        self.items = range(header.first, header.stop)
        self._kind = header.kind
        self._buffers = payload.buffers if isinstance(payload, Bundle) else ()
        self._payload = memoryview(payload.pickled if isinstance(payload, Bundle) else payload)
        self._bounds: list[int] = []
        self._one_by_one = False
        try:
            if header.kind in _PACKED:
                self._bounds = records.boundaries(self._payload, header.number)
            self._failure = Failure.parts(self._payload) if header.kind == Kind.FAILURE else None
        except ValueError as error:
            raise _damaged(file, offset) from error
        if not _is_possible(header):
            raise _damaged(file, offset)

    def parts(self) -> Sequence[Part]:
        """Return the payload as it is on disk, in parts."""
        bundled = self._kind == Kind.BUNDLE
        return bundle_parts(Bundle(bytes(self._payload), self._buffers)) if bundled else [self._payload]

    @property
    def raised(self) -> str:
        """The name of the class of a failure, as ``"builtins.ValueError"``, without unpickling the exception."""
        return self._failure.type_name if self._failure else ""

    def _boundary(self, item: int) -> int:
        """Return the position of an item's outcome in the payload, which is also the end of the one before."""
        return self._bounds[item - self.items.start]

    def outcome(self, item: int) -> Outcome[Any]:
        """Unpickle the outcome of one of its items; large arrays share the memory that was read."""
        if self._failure is not None:
            return Failure.load(self._failure)
        if self._kind in _CODES:
            return Value(self._numbers(range(item, item + 1))[0])
        packed = self._kind in _PACKED
        part = self._payload[self._boundary(item) : self._boundary(item + 1)] if packed else self._payload
        with self._reading():
            return Value.load(bytes(part) + pickle.STOP if self._kind == Kind.SERIES else part, self._buffers)

    def values(self, items: range) -> list[Any] | None:
        """Return the values of some of its items, unpickled together; None if they have to be unpickled one by one."""
        if self._kind in _CODES:
            return self._numbers(items)
        if self._kind != Kind.SERIES or self._one_by_one:
            return None
        start, stop = self._boundary(items.start), self._boundary(items.stop)
        try:
            with self._reading():
                values: Any = pickle.loads(b"".join((_LIST, self._payload[start:stop], _END_OF_LIST)))
            if type(values) is list and len(values) == len(items):
                return values
        except BaseException as error:
            if is_interrupt(error):
                raise
        self._one_by_one = True  # one of them does not unpickle here: unpickling each finds out which, and why
        return None

    @contextmanager
    def _reading(self) -> Iterator[None]:
        before = unpickling.reading(self._definitions)
        try:
            yield
        finally:
            unpickling.reading(before)

    def _numbers(self, items: range) -> list[Any]:
        code = _CODES[self._kind]
        size = array(code).itemsize
        start, stop = items.start - self.items.start, items.stop - self.items.start
        return records.little_endian(array(code, bytes(self._payload[size * start : size * stop]))).tolist()


_CODES: dict[int, str] = {Kind.INTEGERS: "q", Kind.FLOATS: "d"}
"""The types of numbers, as `array` names them."""

_PACKED = frozenset({Kind.VALUES, Kind.SERIES})
_SINGLE = frozenset({Kind.BUNDLE, Kind.CHECKPOINT})
"""The kinds of records that hold several items, packed, and those that hold one."""


def _is_possible(header: records.Header) -> bool:
    """Whether a header can be that of a record that slurmlaunch wrote, as far as the number of its items tells."""
    if header.kind in _CODES:
        return header.number > 0 and header.length == header.number * _NUMBER
    if header.kind in _SINGLE:
        return header.number == 1
    return header.number > 0 or header.kind not in OUTCOMES


_NUMBER, _SECONDS = 8, 4
_LIST = pickle.PROTO + bytes([SERIES_PROTOCOL]) + pickle.EMPTY_LIST + pickle.MARK
_END_OF_LIST = pickle.APPENDS + pickle.STOP


def read_record(file: Location, offset: int, salt: int = 0, header: records.Header | None = None) -> Content:
    """Read a record that was found before, its header too unless that is at hand.

    Raises:
        ResultLost: it is gone, or was damaged since.
        UnsafeRunFolder: it is not safe to read.
    """
    payload: bytes | Bundle | None = None
    try:
        with opened(file) as (descriptor, _):
            header = header or records.parse_header(os.pread(descriptor, HEADER_SIZE, offset), salt=salt)
            if header and header.kind == Kind.BUNDLE:
                payload = read_bundle(descriptor, offset + HEADER_SIZE, header.length, header.payload_crc)
            elif header:
                payload = records.read_payload(descriptor, header, offset)
    except OSError as error:
        msg = f"the outcome was recorded, but cannot be read: {error.strerror}"
        raise ResultLost(msg, file=str(file), offset=offset) from error
    if header is None or payload is None:
        raise _damaged(file, offset)
    return Content(header, payload, file, offset)


def _damaged(file: Location, offset: int) -> ResultLost:
    return ResultLost("the outcome was recorded, but its record on disk is damaged", file=str(file), offset=offset)


class Recorded(NamedTuple):
    """A record of outcomes on disk.

    Attributes:
        file: the path of the outcome file.
        offset: the position of its header, in bytes.
        header: its header.
        failure: the payload of a failure that was just read: a client inspects it at once.
    """

    file: Location
    offset: int
    header: records.Header
    failure: bytes | None = None

    def read(self) -> Content:
        """Return the record's content, read again unless it is at hand.

        Raises:
            ResultLost: it is gone, or was damaged since.
            UnsafeRunFolder: it is not safe to read.
        """
        if self.failure is not None:
            return Content(self.header, self.failure, self.file, self.offset)
        return read_record(self.file, self.offset, header=self.header)


class OutcomeFile:
    """Reads one outcome file while it grows.

    Attributes:
        path: the file.
        position: the end of the records that were read, in bytes.
        notes: the notes of the attempt about itself.
        checkpoints: the calls that resume items, as far as the attempt recorded any.
    """

    __slots__ = ("_salt", "checkpoints", "notes", "path", "position")

    def __init__(self, path: Location, salt: int = 0) -> None:
        """Begin at the start of a file whose headers have this salt (`RunFolder.salt`)."""
        self.path, self._salt = path, salt
        self.position = 0
        self.notes: list[dict[str, Any]] = []
        self.checkpoints: dict[int, Recorded] = {}

    @property
    def has_grown(self) -> bool:
        """Whether there is more to read; a network file system may not show it before the file is opened.

        Raises:
            OSError: the file does not exist (yet).
        """
        return self.path.status().st_size != self.position

    def read(self, *, final: bool = False) -> Iterator[Recorded | Damage]:
        """Yield the whole records that were appended since the last time.

        Args:
            final: nothing more will be appended, so that anything but a whole record is damage. Otherwise it is taken
                for a tail that is still being written, and reading stops before it.

        Raises:
            OSError: the file does not exist (yet), or cannot be read.
            UnsafeRunFolder: it is not safe to read.
        """
        with opened(self.path) as (descriptor, status):
            size = status.st_size
            if size < self.position:
                self.position = 0  # the last record was cut off; callers skip the items that they know
            while self.position < size:
                before, rest = self.position, size - self.position
                header = self._header(descriptor) if rest > min(_SMALL, _PIECE) else None
                extent = HEADER_SIZE + header.length if header else 0
                if extent > rest and not final:
                    return  # its last record is still being written
                if header is not None and extent > _PIECE and header.kind != Kind.NOTE:
                    found = self._take_large(descriptor, header, final=final, size=size)
                else:
                    data = memoryview(read_at(descriptor, min(rest, max(extent, _PIECE)), before))
                    found = self._take(data, final=final, size=size)
                yield from found
                if self.position == before:
                    return

    def _header(self, descriptor: int) -> records.Header | None:
        """Return the header of the next record; None if no whole one follows."""
        data = os.pread(descriptor, HEADER_SIZE, self.position)
        return records.parse_header(data, salt=self._salt)

    def _take_large(
        self, descriptor: int, header: records.Header, *, final: bool, size: int
    ) -> Iterator[Recorded | Damage]:
        """Verify a record that is larger than one piece, without keeping its payload."""
        offset = self.position
        if checksum(descriptor, offset + HEADER_SIZE, header.length) == header.payload_crc:
            self.position = offset + HEADER_SIZE + header.length
            yield from self._recorded(Recorded(self.path, offset, header), self.position)
        elif final:
            self.position = min(offset + HEADER_SIZE + header.length, size)
            yield Damage(offset, header, self.position)

    def _take(self, data: memoryview, *, final: bool, size: int) -> Iterator[Recorded | Damage]:
        start, end = self.position, self.position + len(data)
        for found in records.scan(data, start, salt=self._salt):
            if isinstance(found, Damage):
                cut_off = found.stop >= end and found.offset > start
                if cut_off or not final:
                    return  # at the end of this piece, or perhaps still being written
                self.position = min(found.stop, end)
                if found.header is None and end == self.position < size:
                    # The next header may lie across the end of this piece.
                    self.position = max(found.offset + 1, end - HEADER_SIZE + 1)
                yield found._replace(stop=self.position)
                continue
            self.position = found.offset + HEADER_SIZE + found.header.length
            if found.header.kind == Kind.NOTE:
                try:
                    self.notes.append(forms.parse(found.payload, _NOTE, self.path, found.offset))
                except RunFolderError:  # no outcome depends on it
                    yield Damage(found.offset, found.header, self.position)
                continue
            failure = bytes(found.payload) if found.header.kind == Kind.FAILURE else None
            yield from self._recorded(Recorded(self.path, found.offset, found.header, failure), self.position)

    def _recorded(self, recorded: Recorded, stop: int) -> Iterator[Recorded | Damage]:
        if not _is_possible(recorded.header):
            yield Damage(recorded.offset, recorded.header, stop)
        elif recorded.header.kind == Kind.CHECKPOINT:
            self.checkpoints[recorded.header.first] = recorded
        elif recorded.header.kind in OUTCOMES:
            yield recorded


OUTCOMES = frozenset({Kind.VALUES, Kind.SERIES, Kind.INTEGERS, Kind.FLOATS, Kind.BUNDLE, Kind.FAILURE})
"""The kinds of records that hold outcomes."""

_NOTE = forms.Keys(
    optional={
        "node": forms.text,
        **dict.fromkeys(("started", "ended"), forms.seconds),
        **dict.fromkeys(("peak", "launch", "rank", "port"), forms.count),
        "loaded": forms.flag,
        "host": forms.text,
        "items": forms.listing(forms.row(forms.count, forms.count)),
        "died": forms.Keys(
            {
                "rank": forms.count,
                "node": forms.text,
                "loaded": forms.flag,
                "oom": forms.flag,
                "time": forms.seconds,
                **dict.fromkeys(("item", "signal", "status"), forms.null_or(forms.count)),
            }
        ),
    }
)
"""The form of the notes of an attempt, or of a rank, about itself."""

_SMALL = 1 << 16
"""Bytes up to which a tail is read without checking first whether its record is whole."""

_PIECE = 1 << 22
"""Bytes that are read at once, unless a record is larger."""


class Earlier(NamedTuple):
    """The records of a task's earlier attempts."""

    done: set[int]
    """The items that have outcomes."""
    failures: int
    """How many of these are failures."""
    checkpoints: dict[int, Recorded]
    """The calls that resume items without outcomes."""


def earlier_attempts(folder: RunFolder, task: int, attempt: int) -> Earlier:
    """Read the records of the attempts of a task before this one."""
    done: set[int] = set()
    failures = 0
    checkpoints: dict[int, Recorded] = {}
    for earlier in range(attempt):
        file = OutcomeFile(folder.outcome_file(task, earlier), folder.salt)
        with suppress(FileNotFoundError):
            for found in file.read(final=True):
                if not isinstance(found, Damage):
                    done.update(folder.covered_by(found.header))
                    failures += found.header.number if found.header.kind == Kind.FAILURE else 0
        checkpoints.update(file.checkpoints)
    return Earlier(done, failures, checkpoints)


# Ranks: several processes, perhaps on several nodes, that call the function of a task together.
#
# The task's supervisor makes the file of each rank before it launches the ranks, so that no file system caches its
# name as absent. Only the rank appends to it. The supervisor reads all of them, and records an item's outcome once all
# ranks have finished it. After a failure the remaining items get another launch. A launch is a note in the supervisor's
# own outcome file, on disk before the ranks start, so that they agree on its items, whatever is cancelled meanwhile.


class Launch(NamedTuple):
    """One start of all ranks of a task."""

    number: int  # within the attempt, from 0
    items: tuple[int, ...]  # that each rank runs, in this order
    host: str  # the supervisor's machine
    port: int  # a free one there, for the ranks to meet at

    def note(self, writer: RecordWriter) -> None:
        """Record it for the ranks."""
        ranges = [[items.start, items.stop] for items in ranges_of(self.items)]
        writer.note(launch=self.number, items=ranges, host=self.host, port=self.port)
        writer.flush()

    @classmethod
    def read(cls, file: OutcomeFile, number: int, items: int) -> Launch | None:
        """Read a launch of a run with so many items from the supervisor's outcome file; None if it is not there (yet).

        Raises:
            RunFolderError: it is damaged.
        """
        for _ in file.read():
            pass  # only the notes matter here
        for note in file.notes:
            if note.get("launch") == number and note.keys() >= {"items", "host", "port"}:
                if any(stop > items for _, stop in note["items"]):
                    raise forms.damaged(file.path, f"a launch has items that the run, of {items}, has not")
                ranges = chain.from_iterable(range(*each) for each in note["items"])
                return cls(number, tuple(ranges), note["host"], note["port"])
        return None


def ranges_of(items: Iterable[int]) -> Iterator[range]:
    """Yield the items as ranges of consecutive ones, in their order."""
    start = stop = -1
    for item in items:
        if item != stop:
            if stop > start:
                yield range(start, stop)
            start = item
        stop = item + 1
    if stop > start:
        yield range(start, stop)


def make_rank_files(
    folder: RunFolder, number: int, task: int, attempt: int, ranks: int, patience: Patience
) -> list[Location]:
    """Make the files of an attempt's ranks; return their paths, by rank."""
    paths = [folder.rank_file(number, task, attempt, rank) for rank in range(ranks)]
    for path in paths:
        patience.run(partial(create, path, b""))
    return paths
