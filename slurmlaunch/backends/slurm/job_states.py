"""The states of one array's elements, and how an answer of squeue or sacct changes them: pure, without file or clock.

`shared_states` keeps one `JobStates` per job. squeue lists pending, running and recently ended elements. How an element
ended that it no longer lists is known late (sacct lags by seconds or minutes), and of an element that was cancelled
before it started neither keeps a row. So an element is, in this order:

* ended, if squeue or sacct named a final state and squeue does not call it alive;
* alive, by its own row in squeue, else by the row that all pending elements share;
* lost, if it is in neither; seen lost twice, far enough apart, it was cancelled.

To treat a new scheduler state, add it to `slurmlaunch.backends.base.TaskState`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from slurmlaunch.backends.base import TaskRecord, TaskState
from slurmlaunch.runfolder import forms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Slurm itself allows no larger index, whatever MaxArraySize says.
_LARGEST = 4_000_000
_PIECE = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", re.ASCII)

# Slurm may start these again by itself, so without squeue's word they are not final.
_MAY_START_AGAIN = frozenset({TaskState.PREEMPTED, TaskState.NODE_FAIL, TaskState.BOOT_FAIL})
# States that say less than a step's OUT_OF_MEMORY does.
_LESS_THAN_OUT_OF_MEMORY = frozenset({TaskState.COMPLETED, TaskState.FAILED})
# The reasons that describe an end. squeue goes on to show why an element was pending after that was cancelled.
# Source: Slurm's job_state_reason.c (FAIL_... and those after which Slurm itself cancels), and sacct's "by 1000".
_OF_AN_END = re.compile(
    r"NonZeroExitCode|RaisedSignal.*|TimeLimit|OutOfMemory|Dead[Ll]ine|NodeDown|NodeFail\w*|\w*LaunchFailure|\w*Prolog\w*"
    r"|launch failed.*|SystemFailure|BootFail\w*|InactiveLimit|BurstBufferOperation|BadConstraints|InvalidAccount"
    r"|InvalidQOS|DependencyNeverSatisfied|ReservationDeleted|Preempt\w*|[A-Z]+ by .*"
)
_LAUNCH_FAILURE = "JobLaunchFailure"
_NOT_SEEN = TaskRecord(TaskState.UNKNOWN)
_CANCELLED = TaskRecord(
    TaskState.CANCELLED, reason="it left the queue before it started, and Slurm keeps no record of it"
)
_ENDED_UNSEEN = TaskRecord(TaskState.FAILED, reason="it left the queue, and sacct does not say how it ended")
# How many times longer to wait for sacct if it fails now, or still calls the element alive.
_SACCT_PATIENCE = 9


@dataclass(frozen=True)
class Elements:
    """A set of array elements, read and written as Slurm does: ``0-4,7`` or ``0-98:2%5``.

    Bit *i* is set if element *i* belongs to the set, so that a hundred thousand pending elements, one row
    of squeue, stay one object, and union and difference are single operations.
    """

    bits: int = 0  # bit i is set if element i belongs to the set

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
        """Read ``1,3-5,0-98:2%4``, without its throttle; None if the text is no such list."""
        spans = 0
        scattered: list[int] = []
        for piece in text.partition("%")[0].split(","):
            match = _PIECE.fullmatch(piece)
            if match is None:
                return None
            first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
            if max(first, last) > _LARGEST or step == 0:
                return None
            # Single elements come by the thousand, and each long integer made for one costs its length.
            if step > 1 or first >= last:
                scattered += range(first, last + 1, step)
            else:
                spans |= cls.upto(last - first + 1).bits << first
        return cls(spans | cls.of(scattered).bits)

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
        for first, last in self._spans():
            yield from range(first, last + 1)

    def __str__(self) -> str:
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self._spans())

    def _spans(self) -> Iterator[tuple[int, int]]:
        # Text, because shifting a long integer once per span is quadratic.
        for match in re.finditer("1+", bin(self.bits)[:1:-1]):
            yield match.start(), match.end() - 1

    @property
    def largest(self) -> int:
        """The largest element, or -1 if the set is empty."""
        return self.bits.bit_length() - 1


_NONE = Elements()


@dataclass(frozen=True)
class Row:
    """One row of squeue or sacct."""

    job: str  # the number of the array's job
    elements: Elements
    record: TaskRecord
    shared: bool = False  # the row of all pending elements; an element's own row outranks it
    elided: bool = False  # Slurm printed only a part of a long list of elements
    unnumbered: bool = False  # it names the job alone: as that of a single job, whose only element is 0
    step: str | None = None  # the name of the job step, or None for the task as a whole

    @property
    def is_final(self) -> bool:
        """Whether the state is final."""
        return self.record.state.is_final

    def is_unnamed(self) -> bool:
        """Whether it names the job of an array, and nobody knows of which elements."""
        return self.unnumbered and not self.elements


@dataclass(frozen=True)
class Group:
    """Elements with the same record."""

    elements: Elements
    record: TaskRecord
    since: float = 0.0  # when they were first missing, in seconds since the epoch; 0.0 if they are not

    def never_began(self) -> bool:
        """Whether the elements were cancelled while they were pending."""
        return self.record.state is TaskState.CANCELLED and self.record.node is None

    def to_json(self) -> list[Any]:
        """Return the group as stored in the shared file."""
        return [str(self.elements), *vars(self.record).values(), self.since]

    @classmethod
    def from_json(cls, data: list[Any]) -> Group:
        """Read a group from the shared file."""
        elements, state, *details, since = data
        return cls(Elements.parse(elements) or _NONE, TaskRecord(TaskState.parse(state), *details), since)


@dataclass(frozen=True)
class JobStates:
    """The states of one array's elements."""

    alive: tuple[Group, ...] = ()  # squeue lists them without a final state
    ended: tuple[Group, ...] = ()  # with a final state
    lost: tuple[Group, ...] = ()  # neither command lists them; with their last record
    seen: Elements = _NONE  # ever listed
    absent: float = 0.0  # since when squeue has left out elements that nobody has listed; 0.0 while it does not
    gone: bool = False  # no element can start any more: one that nobody has listed was cancelled

    def get(self, element: int) -> TaskRecord | None:
        """Return the record of an element; None if Slurm has not listed it yet."""
        for group in (*self.ended, *self.alive, *self.lost):
            if element in group.elements:
                return group.record
        return _CANCELLED if self.gone else None

    def ended_count(self) -> int:
        """Return the number of elements with a final state."""
        return len(_all(self.ended))

    def needs_sacct(self) -> bool:
        """Whether only sacct can say how some elements ended: squeue no longer lists them, or does not say it."""
        unexplained = any(_is_unexplained(group.record) for group in self.ended)
        return unexplained or bool(self.lost) or (self.absent > 0 and not self.gone)

    def is_over(self) -> bool:
        """Whether all elements seen so far have ended."""
        return not self.alive and (self.gone or (bool(self.seen) and not self.lost and not self.absent))

    def after_squeue(self, rows: Iterable[Row], now: float) -> JobStates:
        """Return the states after squeue answered with these rows of the job."""
        rows = self._numbered(list(rows))
        alive, ended = _split(rows)
        # squeue repeats what sacct has explained since.
        explained = _only(self.ended, _all(group for group in ended if _is_unexplained(group.record)))
        ended = (*_without(ended, _all(explained)), *explained)
        shown = _all(alive) | _all(ended)
        # Arrays are 0 to k-1 and start in order: every index below the largest was there.
        seen = Elements.upto((self.seen | shown).largest + 1)
        remembered = _without(self.ended, shown)
        # A shortened list may name any element that is missing.
        missing = _NONE if any(row.elided for row in rows) else seen - shown - _all(remembered)
        before = _only(self.lost, missing)
        fresh = missing - _all(before)
        just_lost = tuple(replace(group, since=now) for group in _only((*self.alive, *self.ended), fresh))
        # Slurm 26.05 does not name the last pending elements of an array once they are cancelled.
        silent = not rows or (any(map(Row.is_unnamed, rows)) and not any(map(Group.never_began, self.ended)))
        never_seen = Group(fresh - _all(just_lost), _NOT_SEEN, now)
        return JobStates(
            alive=alive,
            ended=_join((*ended, *remembered)),
            lost=tuple(group for group in (*before, *just_lost, never_seen) if group.elements),
            seen=seen,
            absent=self.absent or now if silent else 0.0,
            gone=self.gone and silent,
        )

    def _numbered(self, rows: list[Row]) -> list[Row]:
        """Return the rows, with the elements of what Slurm 26.05 lists when the last pending ones are cancelled.

        It names the job of the array alone then, as it names a single job. The elements are those that were pending.
        """
        if not self.seen - Elements.of([0]) and all(row.unnumbered for row in rows):
            return rows  # a single job, or an array of one element
        pending = _all(group for group in self.alive if group.record.state.is_queued)
        return [replace(row, elements=pending, shared=True) if row.unnumbered else row for row in rows]

    def after_sacct_alone(self, rows: Iterable[Row]) -> JobStates:
        """Return the states after sacct answered and squeue failed."""
        _, ended = _split(_with_steps(list(rows)))
        return self._with_ended(tuple(group for group in ended if group.record.state not in _MAY_START_AGAIN))

    def after_sacct(self, rows: Iterable[Row], now: float, patience: float, *, failed: bool) -> JobStates:
        """Return the states after squeue and sacct were asked; an element lost for *patience* seconds has ended.

        The wait is longer if sacct failed, or still lists the element as alive: it lags.
        """
        rows = list(rows)
        _, ended = _split(_with_steps(rows))
        states = self._with_ended(_without(ended, _all(self.alive)))
        undecided = _all(
            Group(row.elements, row.record) for row in rows if not (row.shared or row.step or row.is_final)
        ) - _all(self.alive)
        longer = patience * _SACCT_PATIENCE

        def overdue(group: Group) -> Elements:
            if now - group.since < patience:
                return _NONE
            return group.elements if now - group.since >= longer else _NONE if failed else group.elements - undecided

        over = tuple(replace(group, elements=overdue(group)) for group in states.lost)
        wait = longer if failed or undecided else patience
        return replace(
            states,
            ended=_join((*states.ended, *(replace(group, record=_presumed_end(group.record)) for group in over))),
            lost=_without(states.lost, _all(over)),
            gone=states.gone or (states.absent > 0 and now - states.absent >= wait),
        )

    def _with_ended(self, ended: tuple[Group, ...]) -> JobStates:
        # A final state from squeue is newer: sacct may still list the end of an earlier
        # attempt. But squeue does not show the steps, where OUT_OF_MEMORY is.
        out_of_memory = tuple(group for group in ended if group.record.state is TaskState.OUT_OF_MEMORY)
        unexplained = _all(group for group in self.ended if _is_unexplained(group.record))
        explained = tuple(
            replace(group, record=replace(group.record, reason=_LAUNCH_FAILURE))
            for group in _without(_only(ended, unexplained), _all(out_of_memory))
            if group.record.state is TaskState.FAILED
        )
        new = (*out_of_memory, *explained, *_without(ended, _all(self.ended) | _all(out_of_memory)))
        known = _all(new)
        return replace(
            self,
            alive=_without(self.alive, known),
            ended=_join((*new, *_without(self.ended, known))),
            lost=_without(self.lost, known),
            seen=self.seen | known,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the states as stored in the shared file."""
        groups = {name: [group.to_json() for group in getattr(self, name)] for name in ("alive", "ended", "lost")}
        return {**groups, "seen": str(self.seen), "absent": self.absent, "gone": self.gone}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> JobStates:
        """Read the states from the shared file."""
        alive, ended, lost = (tuple(map(Group.from_json, data[name])) for name in ("alive", "ended", "lost"))
        return cls(alive, ended, lost, Elements.parse(data["seen"]) or _NONE, data["absent"], data["gone"])


_RECORD = (forms.text, *[forms.null_or(forms.text)] * 3, forms.null_or(forms.seconds))
_GROUPS = forms.listing(forms.row(forms.text, *_RECORD, forms.seconds))

STATES = forms.Keys(
    {
        **dict.fromkeys(("alive", "ended", "lost"), _GROUPS),
        "seen": forms.text,
        "absent": forms.seconds,
        "gone": forms.flag,
    }
)
"""The form of the states in the shared file."""


def _split(rows: list[Row]) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Return the alive and the ended elements, by the rows that describe whole tasks."""
    own = [row for row in rows if row.step is None and not row.shared]
    alive = _join(Group(row.elements, row.record) for row in own if not row.is_final)
    ended = _without(_join(Group(row.elements, _as_end(row.record)) for row in own if row.is_final), _all(alive))
    # While an element starts, both rows list it: its own is the newer one.
    known = _all(alive) | _all(ended)
    shared = [row for row in rows if row.step is None and row.shared]
    pending = (Group(row.elements - known, row.record) for row in shared if not row.is_final)
    never_started = (Group(row.elements - known, _as_end(row.record)) for row in shared if row.is_final)
    return _join((*alive, *pending)), _join((*ended, *never_started))


def _as_end(record: TaskRecord) -> TaskRecord:
    """Return the record of an end, without a reason that says why the element was pending before."""
    return record if record.reason is None or _OF_AN_END.fullmatch(record.reason) else replace(record, reason=None)


def _with_steps(rows: list[Row]) -> list[Row]:
    """Return the rows, with a step's OUT_OF_MEMORY as the state of its task."""
    killed = {row.elements for row in rows if row.step and row.record.state is TaskState.OUT_OF_MEMORY}
    return [
        replace(row, record=replace(row.record, state=TaskState.OUT_OF_MEMORY))
        if row.elements in killed and row.record.state in _LESS_THAN_OUT_OF_MEMORY
        else row
        for row in rows
    ]


def _is_unexplained(record: TaskRecord) -> bool:
    """Whether the batch script of an element was killed, or not launched at all: squeue does not say by what."""
    return record.state is TaskState.FAILED and record.exit_code is None and record.reason == _LAUNCH_FAILURE


def _presumed_end(last: TaskRecord) -> TaskRecord:
    """Return the end of an element that left no record: cancelled if it never started, else failed."""
    return replace(_ENDED_UNSEEN, node=last.node) if last.state.has_begun else _CANCELLED


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
    """Return the groups, with one group per record."""
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
