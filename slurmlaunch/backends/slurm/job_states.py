"""Sets of array elements, as Slurm writes them: ``0-4,7`` and ``0-98:2%5``.

A set is one integer whose bits are the elements. So a hundred thousand pending
elements, which are one row in Slurm's queue, stay one object here, and union
and difference are single operations.

What is known of one array, and how a new look at the scheduler changes it.

squeue tells what is alive. What it no longer shows has ended, but how is known
late (accounts lag by seconds, or minutes), and of elements that were cancelled
before they started nothing is ever told. So an element is, in this order:

* ended, where squeue or sacct named a final state and squeue does not call it alive;
* alive, by its own row in squeue, else by the row of all that are pending;
* lost, where it is in neither: after two looks that are far enough apart it was cancelled.

Everything here is pure: rows and a time go in, a new value comes out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from slurmlaunch.backends.base import TaskRecord, TaskState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


# Slurm itself allows no larger index, whatever MaxArraySize says.
_LARGEST = 4_000_000
_PIECE = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")


@dataclass(frozen=True)
class Elements:
    """A set of array elements.

    Attributes:
        bits: bit *i* is set where element *i* belongs to the set.
    """

    bits: int = 0

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Elements:
        """Return the set of these numbers."""
        numbers = sorted(set(numbers))
        flags = bytearray((numbers[-1] >> 3) + 1 if numbers else 0)
        for number in numbers:
            flags[number >> 3] |= 1 << (number & 7)
        return cls(int.from_bytes(flags, "little"))

    @classmethod
    def upto(cls, length: int) -> Elements:
        """Return the set of the first *length* elements."""
        return cls((1 << length) - 1)

    @classmethod
    def parse(cls, text: str) -> Elements | None:
        """Read ``1,3-5,0-98:2%4``, the throttle being dropped; None for what is no such text."""
        ranges: list[range] = []
        for piece in text.partition("%")[0].split(","):
            numbers = _range(piece)
            if numbers is None:
                return None
            ranges.append(numbers)
        # Single elements come by the thousand, and each long integer made for one costs its length.
        bits = cls.of(numbers.start for numbers in ranges if len(numbers) == 1).bits
        for numbers in ranges:
            bits |= 0 if len(numbers) == 1 else _bits(numbers)
        return cls(bits)

    def __contains__(self, element: int) -> bool:
        return self.bits >> element & 1 == 1

    def __or__(self, other: Elements) -> Elements:
        return Elements(self.bits | other.bits)

    def __and__(self, other: Elements) -> Elements:
        return Elements(self.bits & other.bits)

    def __sub__(self, other: Elements) -> Elements:
        return Elements(self.bits & ~other.bits)

    def __bool__(self) -> bool:
        return self.bits != 0

    def __len__(self) -> int:
        return self.bits.bit_count()

    def __iter__(self) -> Iterator[int]:
        for first, last in self.spans():
            yield from range(first, last + 1)

    def __str__(self) -> str:
        """Return the set as Slurm reads it, ``0-4,7``; the empty set is the empty text."""
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self.spans())

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield the first and the last element of every unbroken stretch, in order."""
        # Text, because shifting a long integer once per stretch is quadratic.
        for match in re.finditer("1+", bin(self.bits)[:1:-1]):
            yield match.start(), match.end() - 1

    @property
    def largest(self) -> int:
        """The largest element, or -1 of the empty set."""
        return self.bits.bit_length() - 1


def _range(piece: str) -> range | None:
    match = _PIECE.fullmatch(piece)
    if match is None:
        return None
    first, last, step = (int(number) if number else None for number in match.groups())
    if first is None or max(first, last or 0) > _LARGEST or step == 0:
        return None
    return range(first, (first if last is None else last) + 1, step or 1)


def _bits(numbers: range) -> int:
    if not numbers:
        return 0
    bits, count = 1, 1
    while count < len(numbers):
        bits |= bits << count * numbers.step
        count *= 2
    return (bits & (1 << numbers[-1] - numbers.start + 1) - 1) << numbers.start


# Slurm may start these again by itself, so without squeue's word they are no end.
_MAY_START_AGAIN = frozenset({TaskState.PREEMPTED, TaskState.NODE_FAIL, TaskState.BOOT_FAIL})
# States that say less than a step's OUT_OF_MEMORY does.
_HIDE_A_STEP = frozenset({TaskState.COMPLETED, TaskState.FAILED})
_NOT_SEEN = TaskRecord(TaskState.UNKNOWN)
_CANCELLED = TaskRecord(TaskState.CANCELLED, reason="it left the queue without a trace")
_ENDED_UNSEEN = TaskRecord(TaskState.FAILED, reason="it left the queue, and no account says how")
_NONE = Elements()
# How many times longer to wait for accounts that are known to exist, but do not tell now.
_PATIENCE = 9


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        job: the id of the array's job.
        elements: the elements that it speaks of.
        record: what it says of them.
        shared: whether it is the row of all that are pending, which a row of an element's own outranks.
        elided: whether more elements belong to it than were printed.
        step: the name of the step, or None for the task as a whole.
    """

    job: str
    elements: Elements
    record: TaskRecord
    shared: bool = False
    elided: bool = False
    step: str | None = None


@dataclass(frozen=True)
class Group:
    """Elements of which the same is known.

    Attributes:
        elements: which.
        record: what is known of them.
        since: when they were first missed; 0.0 where they are not.
    """

    elements: Elements
    record: TaskRecord
    since: float = 0.0

    def to_json(self) -> list[Any]:
        """Return the group as it stands in the shared snapshot."""
        record = self.record
        return [str(self.elements), record.state.value, record.exit_code, record.node, record.reason, self.since]

    @classmethod
    def from_json(cls, data: list[Any]) -> Group:
        """Read what `to_json` wrote."""
        elements, state, exit_code, node, reason, since = data
        record = TaskRecord(TaskState.parse(state), exit_code, node, reason)
        return cls(Elements.parse(elements) or _NONE, record, since)


@dataclass(frozen=True)
class JobStates:
    """What is known of one array.

    Attributes:
        alive: what squeue shows as not ended.
        ended: what has a final state.
        lost: what neither shows, with the last that was said of it.
        seen: all elements that were ever shown.
        absent: since when squeue has shown nothing of the job; 0.0 while it does.
        gone: whether the job is over, so that what is not in `ended` never started.
    """

    alive: tuple[Group, ...] = ()
    ended: tuple[Group, ...] = ()
    lost: tuple[Group, ...] = ()
    seen: Elements = _NONE
    absent: float = 0.0
    gone: bool = False

    def get(self, element: int) -> TaskRecord | None:
        """Return what is known of an element; None means not yet."""
        for group in (*self.ended, *self.alive, *self.lost):
            if element in group.elements:
                return group.record
        return _CANCELLED if self.gone else None

    def ended_count(self) -> int:
        """Return how many elements have a final state."""
        return sum(len(group.elements) for group in self.ended)

    def is_forgotten(self) -> bool:
        """Whether squeue no longer shows all of it, so that sacct has to be asked."""
        return bool(self.lost) or (self.absent > 0 and not self.gone)

    def is_over(self) -> bool:
        """Whether all that was ever seen of it has ended."""
        return self.gone or (bool(self.seen) and not self.alive and not self.lost and not self.absent)

    def queued(self, rows: Iterable[Row], now: float) -> JobStates:
        """Return what is known after squeue has answered with these rows of the job."""
        rows = list(rows)
        alive, ended = _sort(rows)
        shown = _all(alive) | _all(ended)
        # Arrays are 0 to k-1 and start in order: what lies below the largest was there.
        seen = Elements.upto((self.seen | shown).largest + 1)
        remembered = _without(self.ended, shown)
        elided = any(row.elided for row in rows)
        missing = _NONE if elided else seen - shown - _all(remembered)
        return replace(
            self,
            alive=alive,
            ended=_join((*ended, *remembered)),
            lost=self._missed(missing, now),
            seen=seen,
            absent=0.0 if rows else self.absent or now,
            gone=self.gone and not rows,
        )

    def accounted(self, rows: Iterable[Row], *, queue_answered: bool) -> JobStates:
        """Return what is known after sacct has answered with these rows of the job."""
        _, ended = _sort(_with_steps(list(rows)))
        if queue_answered:
            ended = _without(ended, _all(self.alive))
        else:
            ended = tuple(group for group in ended if group.record.state not in _MAY_START_AGAIN)
        # What squeue called ended is newer: the accounts may still hold the end of an earlier
        # attempt. But squeue does not look into the steps.
        out_of_memory = tuple(group for group in ended if group.record.state is TaskState.OUT_OF_MEMORY)
        news = (*out_of_memory, *_without(ended, _all(self.ended) | _all(out_of_memory)))
        known = _all(news)
        return replace(
            self,
            alive=_without(self.alive, known),
            ended=_join((*news, *_without(self.ended, known))),
            lost=_without(self.lost, known),
            seen=self.seen | known,
        )

    def given_up(self, now: float, after: float, *, undecided: Elements, accounts_failed: bool) -> JobStates:
        """Return what is known once all that has been missed for so many seconds is called ended.

        *undecided* is what the accounts still call alive: they lag, so it is waited for longer.
        """
        longer = after * _PATIENCE

        def overdue(since: float, elements: Elements) -> Elements:
            if now - since < after:
                return _NONE
            return elements if now - since >= longer else _NONE if accounts_failed else elements - undecided

        over = tuple(replace(group, elements=overdue(group.since, group.elements)) for group in self.lost)
        ended = tuple(replace(group, record=_end_of(group.record)) for group in over)
        patience = longer if accounts_failed or undecided else after
        return replace(
            self,
            ended=_join((*self.ended, *ended)),
            lost=_without(self.lost, _all(over)),
            gone=self.gone or (self.absent > 0 and now - self.absent >= patience),
        )

    def _missed(self, missing: Elements, now: float) -> tuple[Group, ...]:
        before = _only(self.lost, missing)
        fresh = missing - _all(before)
        last = tuple(replace(group, since=now) for group in _only((*self.alive, *self.ended), fresh))
        never = Group(fresh - _all(last), _NOT_SEEN, now)
        return tuple(group for group in (*before, *last, never) if group.elements)

    def to_json(self) -> dict[str, Any]:
        """Return it as it stands in the shared snapshot."""
        groups = {name: [group.to_json() for group in getattr(self, name)] for name in ("alive", "ended", "lost")}
        return {**groups, "seen": str(self.seen), "absent": self.absent, "gone": self.gone}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> JobStates:
        """Read what `to_json` wrote."""
        alive, ended, lost = (tuple(map(Group.from_json, data[name])) for name in ("alive", "ended", "lost"))
        return cls(alive, ended, lost, Elements.parse(data["seen"]) or _NONE, data["absent"], data["gone"])


def undecided(rows: Iterable[Row]) -> Elements:
    """Return the elements that have a row of their own in the accounts, but no final state in it."""
    return _all(Group(row.elements, row.record) for row in rows if not (row.shared or row.step or _is_final(row)))


def _sort(rows: list[Row]) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Return what is alive and what has ended, by the rows that speak of tasks as a whole."""
    whole = [row for row in rows if row.step is None]
    own = [row for row in whole if not row.shared]
    alive = _join(Group(row.elements, row.record) for row in own if not _is_final(row))
    ended = _without(_join(Group(row.elements, row.record) for row in own if _is_final(row)), _all(alive))
    # While an element starts, both rows have it: its own is the newer one.
    known = _all(alive) | _all(ended)
    shared = [row for row in whole if row.shared]
    waiting = (Group(row.elements - known, row.record) for row in shared if not _is_final(row))
    # What it gave as the reason is why they were waiting.
    never = (Group(row.elements - known, replace(row.record, reason=None)) for row in shared if _is_final(row))
    return _join((*alive, *waiting)), _join((*ended, *never))


def _with_steps(rows: list[Row]) -> list[Row]:
    """Return the rows, a task that hides a step's OUT_OF_MEMORY being called that itself."""
    starved = {row.elements for row in rows if row.step and row.record.state is TaskState.OUT_OF_MEMORY}
    return [
        replace(row, record=replace(row.record, state=TaskState.OUT_OF_MEMORY))
        if row.elements in starved and row.record.state in _HIDE_A_STEP
        else row
        for row in rows
    ]


def _is_final(row: Row) -> bool:
    return row.record.state.is_final


def _end_of(last: TaskRecord) -> TaskRecord:
    """Return what is said in the end of an element of which nothing is ever told."""
    started = not last.state.is_queued and last.state is not TaskState.UNKNOWN
    return replace(_ENDED_UNSEEN, node=last.node) if started else _CANCELLED


def _all(groups: Iterable[Group]) -> Elements:
    bits = 0
    for group in groups:
        bits |= group.elements.bits
    return Elements(bits)


def _only(groups: Iterable[Group], elements: Elements) -> tuple[Group, ...]:
    return tuple(replace(group, elements=group.elements & elements) for group in groups if group.elements & elements)


def _without(groups: Iterable[Group], elements: Elements) -> tuple[Group, ...]:
    return tuple(replace(group, elements=group.elements - elements) for group in groups if group.elements - elements)


def _join(groups: Iterable[Group]) -> tuple[Group, ...]:
    """Return the groups, those with the same record made one."""
    joined: defaultdict[TaskRecord, list[Elements]] = defaultdict(list)
    for group in groups:
        if group.elements:
            joined[group.record].append(group.elements)
    return tuple(Group(_union(parts), record) for record, parts in joined.items())


def _union(parts: list[Elements]) -> Elements:
    if len(parts) == 1:
        return parts[0]
    # Rows of single elements come by the thousand: one pass over numbers, not over long integers.
    return Elements.of(element for part in parts for element in part)
