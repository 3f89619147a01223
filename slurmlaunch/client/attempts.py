"""The story of an item: how each start of the tasks that were given it went.

Two things tell it: what the attempts said of themselves, and how their ends are
marked; both outlive the client. What the scheduler said last is known to a
client that watched, and says best how the last start ended.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.backends.base import TaskState
from slurmlaunch.runfolder.layout import EndMark, Status
from slurmlaunch.runfolder.outcomes import OutcomeFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from slurmlaunch.client.run import Run


class Attempt(NamedTuple):
    """One start of a task.

    Attributes:
        state: how it ended, in Slurm's words: ``REQUEUED`` where another start followed.
        node: the machine.
        exit_code: the exit status of the node, 128 + n for signal n, or Slurm's ``code:signal``.
        peak_memory: the most bytes that the pool processes held together, arrays that
            they share counted once, where the node lived to say so.
        duration: for how many seconds the node ran, where it lived to say so.
        job_id: the Slurm job id of the task, as ``"123_4"``.
    """

    state: TaskState
    node: str | None = None
    exit_code: int | str | None = None
    peak_memory: int | None = None
    duration: float | None = None
    job_id: str | None = None


def attempts_of(run: Run, item: int) -> tuple[Attempt, ...]:
    """Return every start of the tasks that an item was given to, over requeues and rounds."""
    return tuple(attempt for task in _tasks_of(run, item) for attempt in _starts_of(run, task))


def _tasks_of(run: Run, item: int) -> Iterator[int]:
    for each in run.tasks.rounds:
        if each.plan.items is None or item in each.plan.items:
            task = run.tasks.task_in(each, item)
            if task is not None:
                yield task


def _starts_of(run: Run, task: int) -> Iterator[Attempt]:
    marks = {mark.start: mark.status for mark in _marks_of(run, task)}
    notes = _notes_of(run, task)
    told = run.tasks.told.get(task)
    starts = max([*marks, *notes], default=-1) + 1
    if not starts and told is not None and told.node is not None:
        starts = 1  # it was started, and got no further
    for start in range(starts):
        said, last = notes.get(start, {}), start == starts - 1
        started, ended = said.get("started"), said.get("ended")
        yield Attempt(
            state=_end_of(run, task, marks.get(start)) if last else TaskState.REQUEUED,
            node=said.get("node") or (told.node if told and last else None),
            exit_code=_exit_code(marks[start]) if start in marks else told.exit_code if told and last else None,
            peak_memory=said.get("peak"),
            duration=ended - started if started is not None and ended is not None else None,
            job_id=run.tasks.place(task).full_id,
        )


def _exit_code(status: int) -> int:
    """Return the exit status of a node whose end is marked with that."""
    return _SIGNALLED + signal.SIGKILL if status == Status.OUT_OF_MEMORY else status


def _marks_of(run: Run, task: int) -> Iterator[EndMark]:
    for path in run.folder.ended.glob(f"{task}.*"):
        mark = EndMark.parse(path.name)
        if mark is not None:
            yield mark


def _notes_of(run: Run, task: int) -> Mapping[int, Mapping[str, Any]]:
    """Return what each attempt of a task said of itself, read now: its last word comes after its last outcome."""
    notes = {}
    for path in run.folder.outcomes.glob(f"{task}.*"):
        attempt = path.name.partition(".")[2]
        if attempt.isdigit():
            file = OutcomeFile(path, run.folder.salt)
            for _ in file.read():
                pass  # what the items came to is known
            notes[int(attempt)] = {key: value for note in file.notes for key, value in note.items()}
    return notes


def _end_of(run: Run, task: int, status: int | None) -> TaskState:
    """Return how the last start of a task ended, or what it is doing."""
    told = run.tasks.states.get(task)
    if told is not None and told.is_final:
        return told
    waits = told is not None and told.is_queued and bool(run.tasks.open_items(task))
    if status == Status.REQUEUE or (status is not None and waits):
        return TaskState.REQUEUED
    if status is None or status == Status.STOPPED:
        return run.tasks.state_of(task)
    return _STATES.get(status, TaskState.FAILED)


_SIGNALLED = 128
_STATES: dict[int, TaskState] = {Status.VALUES: TaskState.COMPLETED, Status.OUT_OF_MEMORY: TaskState.OUT_OF_MEMORY}
