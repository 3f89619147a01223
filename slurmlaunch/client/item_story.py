"""What is known about the running of one item besides its outcome: when, for how long, and where.

Futures ask for it, and it is read from the run folder then: watching a run costs no more for it. This module changes
nothing, and asks no scheduler.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.errors import UnsafeRunFolder
from slurmlaunch.runfolder.files import Location
from slurmlaunch.runfolder.layout import numbers_in
from slurmlaunch.runfolder.outcomes import times_behind

if TYPE_CHECKING:
    from slurmlaunch.client.run import Run


class _Recorded(NamedTuple):
    """Where the outcome of an item that counts is recorded."""

    file: Location
    offset: int

    @property
    def attempt(self) -> tuple[int, int]:
        """The task and its attempt that recorded it."""
        task, attempt = numbers_in(self.file.name)
        return task, attempt


def _record_of(run: Run, item: int) -> _Recorded | None:
    with contextlib.suppress(LookupError):
        found = run.ledger.records.find(item)
        if isinstance(found.source, Location):
            return _Recorded(found.source, found.offset)
    return None


def item_times(run: Run, item: int) -> tuple[datetime, float] | None:
    """Return when an item began, and for how many seconds it ran; None if that is not recorded (yet)."""
    record = _record_of(run, item)
    if record is None:
        return None
    try:
        found = times_behind(record.file, record.offset, run.folder.salt)
    except (OSError, UnsafeRunFolder):
        return None
    if found is None:
        return None
    items, times = found
    position = item - items.start
    own = times.part(position, position + 1)
    return datetime.fromtimestamp(own.start, UTC).astimezone(), own.seconds[0]


def item_node(run: Run, item: int) -> str | None:
    """Return the machine that ran an item, or that its task began on last; None if it has not begun."""
    record = _record_of(run, item)
    if record is not None:
        task, attempt = record.attempt
        notes = run.tasks.view(task).notes.get(attempt, {})
        node: str | None = notes.get("node")
        return node
    claimant = run.tasks.claimant_of(item)
    return None if claimant is None else run.tasks.view(claimant).node
