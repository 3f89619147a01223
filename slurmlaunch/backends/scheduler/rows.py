"""What squeue and sacct print, row by row.

An element that has started, or once had, has a row of its own; all that are
still pending share one, whose id ends with a bracket::

    12_3              element 3
    12_[4-9%2]        elements 4 to 9, at most two at a time
    12_3.batch        a step of element 3 (sacct only)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slurmlaunch.backends.base import TaskRecord, TaskState
from slurmlaunch.backends.scheduler.elements import Elements

if TYPE_CHECKING:
    from collections.abc import Iterator

SQUEUE_FORMAT = "%i|%T|%B|%r"
"""The fields that `squeue_rows` reads, as squeue's ``--format`` has them."""

SACCT_FORMAT = "JobID,State,ExitCode,NodeList"
"""The fields that `sacct_rows` reads, as sacct's ``--format`` has them."""

_ID = re.compile(r"(?P<job>\d+)_(?:(?P<one>\d+)|\[(?P<many>[^\]]*)(?P<closed>\]?))(?:\.(?P<step>\S+))?")
_ELIDED = "..."
_NOTHING = frozenset({"", "None", "n/a", "(null)", "None assigned"})


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


def squeue_rows(text: str) -> Iterator[Row]:
    """Read what squeue printed with `SQUEUE_FORMAT`; what is no row of an array is left out."""
    for line in text.splitlines():
        fields = line.split("|", 3)  # a reason may hold anything
        if len(fields) == SQUEUE_FORMAT.count("|") + 1:
            name, state, node, reason = fields
            record = TaskRecord(TaskState.parse(state), node=_known(node), reason=_known(reason))
            yield from _row(name, record)


def sacct_rows(text: str) -> Iterator[Row]:
    """Read what sacct printed with `SACCT_FORMAT`; what is no row of an array is left out."""
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) == SACCT_FORMAT.count(",") + 1:
            name, state, exit_code, nodes = fields
            reason = state if " by " in state else None  # CANCELLED by 1000
            yield from _row(name, TaskRecord(TaskState.parse(state), _known(exit_code), _known(nodes), reason))


def _row(name: str, record: TaskRecord) -> Iterator[Row]:
    found = _ID.fullmatch(name.strip())
    if found is None:
        return
    text = found["one"] or found["many"].partition("%")[0]
    shared = found["one"] is None
    elided = shared and (not found["closed"] or _ELIDED in text)
    if elided:
        # The last number may be cut in two.
        text = text.partition(_ELIDED)[0].rpartition(",")[0]
    elements = Elements.parse(text) if text else Elements()
    if elements is not None:
        yield Row(found["job"], elements, record, shared, elided, found["step"])


def _known(field: str) -> str | None:
    return None if field.strip() in _NOTHING else field.strip()
