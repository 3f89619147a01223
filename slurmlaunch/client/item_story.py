"""What is known about the running of one item besides its outcome: when, for how long, where, and what it wrote.

Futures ask for it, and it is read from the run folder then: watching a run costs no more for it. This module changes
nothing, and asks no scheduler.
"""

from __future__ import annotations

import contextlib
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.errors import UnsafeRunFolder
from slurmlaunch.runfolder.files import Location
from slurmlaunch.runfolder.layout import numbers_in
from slurmlaunch.runfolder.outcomes import times_behind
from slurmlaunch.runfolder.output import OutputFile
from slurmlaunch.runfolder.records import Kind

if TYPE_CHECKING:
    from slurmlaunch.client.run import Run
    from slurmlaunch.runfolder.output import Written


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


# Output.

_KINDS = {"out": Kind.STDOUT, "err": Kind.STDERR}
_reading = threading.Lock()


def item_output(run: Run, item: int, stream: str, rank: int | None = None) -> str:
    """Return what an item has written to a stream, ``out`` or ``err``, so far, on one rank or on all of them.

    A line says if it is not the item's alone, and a line stands before what each rank but the first wrote.
    """
    outputs = outputs_by_rank(run, item, stream)
    if rank is not None:
        return outputs.get(rank, "")
    text = outputs.pop(0, "")
    for number, other in outputs.items():
        text += f"{'' if text.endswith(chr(10)) or not text else chr(10)}{rank_line(number)}{other}"
    return text


def rank_line(rank: int) -> str:
    """Return the line before what a rank wrote."""
    return f"[slurmlaunch: rank {rank}]\n"


def outputs_by_rank(run: Run, item: int, stream: str) -> dict[int, str]:
    """Return what each rank of an item has written, in order; without ranks there is only 0."""
    record, claimant = _record_of(run, item), run.tasks.claimant_of(item)
    if record is not None:
        places = [record.attempt]
    elif claimant is not None:
        places = [(claimant, attempt) for attempt in reversed(range(run.tasks.view(claimant).attempts))]
    else:
        return {}
    for task, attempt in places:
        plan = run.tasks.view(task).round.plan.ranks
        outputs = {}
        for rank in [None] if plan is None else range(plan.number):
            with contextlib.suppress(FileNotFoundError):
                written = _read(run, (task, attempt, rank), item, stream)
                if written.data or written.cut:
                    outputs[rank or 0] = _in_words(run, task, stream, written)
        if outputs:
            return outputs
    if not places or run.manifest.protocol > 1:  # 0.1.0 stored nothing by item
        return {}
    text = task_log(run, places[0][0], stream)
    return {0: f"[slurmlaunch: the log of task {places[0][0]}, of all its items]\n{text}"} if text else {}


def _read(run: Run, place: tuple[int, int, int | None], item: int, stream: str) -> Written:
    with _reading:
        file = run.outputs.setdefault(place, OutputFile(run.folder.output_file(*place), run.folder.salt))
        return file.read(_KINDS[stream], item)


def _in_words(run: Run, task: int, stream: str, written: Written) -> str:
    text, block = written.data.decode(errors="replace"), written.block
    if block is not None:
        which = f"items {block.start} to {block.stop - 1}"
        text = f"[slurmlaunch: {which} ran as a block of short items, and some of them wrote this]\n{text}"
    if written.cut:
        log = run.tasks.log(task, stream)
        text += f"\n[slurmlaunch: cut here, because of max_log= or for want of space; the task's log is {log}]\n"
    return text


def task_log(run: Run, task: int, stream: str) -> str:
    """Return the log of a task; nothing before it has started."""
    try:
        content = run.tasks.log(task, stream).read()
    except FileNotFoundError:
        return ""
    return content.decode(errors="replace")
