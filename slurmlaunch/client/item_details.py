"""What is known about one item besides its outcome: when and where it ran, what it wrote, its attempts, its ranks.

Futures and errors ask for it, and it is read from the run folder then: watching a run costs no more for it. This module
changes nothing, and asks no scheduler.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import ChainMap
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.backends.base import TaskState
from slurmlaunch.client import ends
from slurmlaunch.client.ledger import ItemStatus
from slurmlaunch.errors import ResultLost, RunFolderError, UnsafeRunFolder
from slurmlaunch.runfolder.changes import latency_of
from slurmlaunch.runfolder.files import Location
from slurmlaunch.runfolder.layout import EndMark, Status, numbers_in
from slurmlaunch.runfolder.outcomes import OutcomeFile, times_behind
from slurmlaunch.runfolder.output import OutputFile
from slurmlaunch.runfolder.records import Damage, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from slurmlaunch.client.code import Code
    from slurmlaunch.client.ledger import RecordLocation
    from slurmlaunch.client.run import Run
    from slurmlaunch.client.tasks import TaskView
    from slurmlaunch.runfolder.output import Written

__all__ = ["Attempt"]

_TICK = 0.5


def _record_of(run: Run, item: int) -> RecordLocation | None:
    """Return where the outcome of an item is on disk; None if it has none there."""
    with contextlib.suppress(LookupError):
        found = run.ledger.records.find(item)
        if isinstance(found.source, Location):
            return found
    return None


def _attempt_in(record: RecordLocation) -> tuple[int, int]:
    """Return the task that recorded an outcome, and its attempt."""
    task, attempt = numbers_in(record.source.name)
    return task, attempt


def item_times(run: Run, item: int) -> tuple[datetime, float] | None:
    """Return when an item began, and for how many seconds it ran; None if that is not recorded (yet)."""
    record = _record_of(run, item)
    if record is None:
        return None
    try:
        found = times_behind(record.source, record.offset, run.folder.salt)
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
        task, attempt = _attempt_in(record)
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
        places = [_attempt_in(record)]
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


# The attempts of one item.


class Attempt(NamedTuple):
    """One start of a task.

    Attributes:
        state: how it ended, in Slurm's words: ``REQUEUED`` where another start followed; ``COMPLETED`` for an item
            that returned a value although another item of its task failed.
        node: the machine.
        exit_code: the exit status of the node, 128 + n for signal n, or Slurm's ``code:signal``.
        peak_memory: the most bytes that the pool processes held together, shared arrays
            counted once, if the node lived to say so.
        duration: for how many seconds the node ran, if it lived to say so.
        job_id: the Slurm job id of the task, as ``"123_4"``.
        code: the code that it ran; None if it cannot be read.
    """

    state: TaskState
    node: str | None = None
    exit_code: int | str | None = None
    peak_memory: int | None = None
    duration: float | None = None
    job_id: str | None = None
    code: Code | None = None


def attempts_of(run: Run, item: int) -> tuple[Attempt, ...]:
    """Return every start of the tasks that had an item, over requeues and rounds."""
    tasks = run.tasks
    rounds = [each for each in tasks.rounds if each.plan.items is None or item in each.plan.items]
    claimants = [(each.number, task) for each in rounds if (task := each.claimant_of(item)) is not None]
    return tuple(
        attempt._replace(code=_code_of(run, number))
        for number, task in claimants
        for attempt in _starts_of(run, tasks.view(task), item)
    )


def _code_of(run: Run, number: int) -> Code | None:
    with contextlib.suppress(OSError, RunFolderError, UnsafeRunFolder):
        return run.code(number)
    return None


def _starts_of(run: Run, view: TaskView, item: int) -> Iterator[Attempt]:
    marked = map(EndMark.parse, run.folder.ended.names())
    marks = {mark.start: mark.status for mark in marked if mark is not None and mark.task == view.index}
    notes, record = _notes_of(run, view.index), view.record
    starts = max([*marks, *notes], default=-1) + 1
    if not starts and record is not None and record.node is not None:
        starts = 1  # it was started, and got no further
    for start in range(starts):
        own, last = notes.get(start, {}), start == starts - 1
        started, ended = own.get("started"), own.get("ended")
        final = record if last else None
        yield Attempt(
            state=_last_state(run, view, item, marks.get(start)) if last else TaskState.REQUEUED,
            node=own.get("node") or (final.node if final else None),
            exit_code=ends.exit_code_of(marks[start]) if start in marks else final.exit_code if final else None,
            peak_memory=own.get("peak"),
            duration=ended - started if started is not None and ended is not None else None,
            job_id=view.full_id,
        )


def _last_state(run: Run, view: TaskView, item: int, status: int | None) -> TaskState:
    state = view.state
    if state is None or not state.is_final:
        requeued = state is not None and state.is_queued and bool(run.tasks.open_items(view.index))
        state = ends.state_of_status(status, requeued=requeued) or run.tasks.state_of(view.index)
    if state is TaskState.FAILED and status in {None, Status.FAILURES} and _returned_in(run, view.index, item):
        return TaskState.COMPLETED  # only another item of the task failed
    return state


def _returned_in(run: Run, task: int, item: int) -> bool:
    """Whether a task recorded the value of an item; it may have one from a later round."""
    if run.ledger.status(item) != ItemStatus.VALUE:
        return False
    record = _record_of(run, item)
    return record is not None and _attempt_in(record)[0] == task


def _notes_of(run: Run, task: int) -> Mapping[int, Mapping[str, Any]]:
    """Return the notes of each attempt of a task, read now: the last note comes after the last outcome."""
    notes = {}
    for name in run.folder.outcomes.names():
        first, _, attempt = name.partition(".")
        if first == str(task) and attempt.isdigit() and (run.folder.outcomes / name).is_file():
            file = OutcomeFile(run.folder.outcomes / name, run.folder.salt)
            for _ in file.read():
                pass  # the outcomes are known
            notes[int(attempt)] = dict(ChainMap(*reversed(file.notes)))
    return notes


# The values of ranks.


def values_of_further_ranks(run: Run, item: int) -> list[Any]:
    """Return what ranks 1, 2, ... returned for an item that has a value; rank 0 returned the value itself.

    Raises:
        ResultLost: a value cannot be read.
        UnpicklableResult: a value does not unpickle here.
    """
    task, attempt = _attempt_in(run.ledger.records.find(item))
    round_ = run.tasks.view(task).round
    number = round_.plan.ranks.number if round_.plan.ranks else 1
    files = [run.folder.rank_file(round_.number, task, attempt, rank) for rank in range(1, number)]
    # The supervisor has seen them; here a network file system may show them later.
    deadline = time.monotonic() + latency_of(run.folder.path)
    return [_value_of_rank(path, run.folder.salt, item, deadline) for path in files]


def _value_of_rank(path: Location, salt: int, item: int, deadline: float) -> Any:
    while True:
        last = None  # earlier records of the item are of launches that did not finish
        with contextlib.suppress(FileNotFoundError):
            for found in OutcomeFile(path, salt).read(final=True):
                if not isinstance(found, Damage) and found.header.first <= item < found.header.stop:
                    last = found
        if last is not None:
            return last.read().outcome(item).unwrap()
        if time.monotonic() > deadline:
            raise ResultLost("the value of a rank is not on disk", file=str(path)).located(item=item)
        time.sleep(_TICK)
