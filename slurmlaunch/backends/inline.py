"""The inline backend: each item is run in the calling thread, during the call.

What is pickled elsewhere is pickled here, so that what would not arrive there
does not arrive here. There is no pool, no cap and no process: a debugger works.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import signal
import threading
import time
from array import array
from typing import TYPE_CHECKING

from slurmlaunch import context
from slurmlaunch.backends.base import ArrayJob, Backend, Limits, TaskRecord, TaskState
from slurmlaunch.errors import NodeStartError
from slurmlaunch.outcome import Bundle, Failure
from slurmlaunch.runfolder.claims import Claimer
from slurmlaunch.runfolder.function import Work
from slurmlaunch.runfolder.journal import Round
from slurmlaunch.runfolder.layout import EndMark, Manifest, RunFolder, Status
from slurmlaunch.runfolder.outcomes import OutcomeWriter
from slurmlaunch.runfolder.records import Kind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from types import FrameType
    from typing import Self


_RECORD_BYTES = 1 << 18


class _AllEnded:
    """What there is to say of tasks that were over before anyone could ask."""

    def __init__(self) -> None:
        self.taken = time.time()

    def get(self, job_id: str, element: int) -> TaskRecord | None:
        """Return that the element is over."""
        del job_id, element
        return TaskRecord(TaskState.COMPLETED)


class InlineBackend(Backend):
    """Runs the tasks of an array at once, one after the other."""

    name = "inline"
    query_every = 60.0
    _ids = itertools.count(1)

    def limits(self) -> Limits:
        """Return no limits."""
        return Limits()

    def launcher(self, ranks: int, cpus_per_task: int, options: Mapping[str, str | bool]) -> None:
        """Return None: the calling thread is the only rank."""
        del ranks, cpus_per_task, options

    def script(self, job: ArrayJob) -> str:
        """Return a comment: there is no script."""
        return f"# {job.length} tasks, run in the calling thread during the call\n"

    def submit(self, job: ArrayJob) -> str:
        """Run the tasks of the array; return its id when they are over."""
        folder = RunFolder(job.run_folder)
        manifest = Manifest.read(folder)
        its_round = Round.read(folder, job.round)
        with _Interrupted() as interrupted:
            for task in range(job.first_task, job.first_task + job.length):
                _run_task(folder, manifest, its_round, task, interrupted)
        return f"inline-{os.getpid()}-{next(self._ids)}"

    def find(self, name: str, since: float) -> str | None:
        """Return None: a job that is over cannot be found."""
        del name, since
        return None

    def cancel(self, job_id: str, elements: Collection[int] | None = None) -> None:
        """Do nothing: the tasks are over."""

    def set_throttle(self, job_id: str, throttle: int | None, *, after: str | None = None) -> None:
        """Do nothing: the tasks are over."""

    def query(self, job_ids: Collection[str]) -> _AllEnded:
        """Return that all tasks are over."""
        del job_ids
        return _AllEnded()


def _run_task(folder: RunFolder, manifest: Manifest, its_round: Round, task: int, interrupted: _Interrupted) -> None:
    writer = OutcomeWriter(folder, task)
    writer.note(started=time.time(), node=platform.node())
    threads, seed = its_round.plan.threads, manifest.seed
    outer = context.swap(context.Task(folder.path, task, writer.attempt, threads=threads, seed=seed))
    try:
        _run_items(folder, manifest, _items_of(folder, its_round, task, writer.attempt), writer, interrupted)
    finally:
        context.swap(outer)
        writer.note(ended=time.time())
        writer.close()
    status = Status.FAILURES if writer.failures else Status.VALUES
    (folder.ended / EndMark(task, writer.attempt, status).filename).touch(0o600)


def _items_of(folder: RunFolder, its_round: Round, task: int, attempt: int) -> Iterator[int]:
    """Yield the items of a task; of a dynamic round, what is still to be taken, and taken when it is come to."""
    blocks = its_round.plan.blocks
    if blocks is None:
        yield from its_round.plan.items_of(task)
        return
    claimer = Claimer(folder.claims(its_round.number), task, attempt, blocks.number)
    while (block := claimer.claim()) is not None:
        yield from its_round.plan.items_at(blocks.positions_of(block))


def _run_items(
    folder: RunFolder,
    manifest: Manifest,
    items: Iterable[int],
    writer: OutcomeWriter,
    interrupted: _Interrupted,
) -> None:
    try:
        work = Work(folder, manifest)
    except NodeStartError as error:
        for item in items:
            writer.failure(item, Failure(error).dump())
        return
    with contextlib.closing(work):
        _run_each(work, items, writer, interrupted)


def _run_each(work: Work, items: Iterable[int], writer: OutcomeWriter, interrupted: _Interrupted) -> None:
    values = _Values(writer)
    for item in items:
        context.current_task().item = item
        kind, data = work.run(item)
        if kind != Kind.FAILURE or isinstance(data, Bundle):
            values.add(item, data)
        else:
            writer.failure(item, data)
        if interrupted.pressed:
            break
    values.write()
    if interrupted.pressed:
        raise KeyboardInterrupt


class _Values:
    """Values of consecutive items, recorded together: nobody sees them before the call is over."""

    def __init__(self, writer: OutcomeWriter) -> None:
        self._writer = writer
        self._first = self._bytes = 0
        self._parts: list[bytes] = []

    def add(self, item: int, data: bytes | Bundle) -> None:
        """Take in a value."""
        if isinstance(data, Bundle):
            self.write()
            self._writer.value(item, data)
            return
        if self._parts and (item != self._first + len(self._parts) or self._bytes > _RECORD_BYTES):
            self.write()
        if not self._parts:
            self._first = item
        self._parts.append(data)
        self._bytes += len(data)

    def write(self) -> None:
        """Record what was taken in."""
        if len(self._parts) == 1:
            self._writer.value(self._first, self._parts[0])
        elif self._parts:
            self._writer.values(self._first, array("I", map(len, self._parts)), b"".join(self._parts))
        self._parts, self._bytes = [], 0


class _Interrupted:
    """Tells Ctrl-C, which ends the call, from a KeyboardInterrupt that the function raises.

    Attributes:
        pressed: whether it was Ctrl-C.
    """

    def __init__(self) -> None:
        self.pressed = False
        self._in_main_thread = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._in_main_thread:
            self._handler = signal.getsignal(signal.SIGINT)
            if callable(self._handler):
                signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.pressed = True
        if callable(self._handler):
            self._handler(number, frame)

    def __exit__(self, *_: object) -> None:
        if self._in_main_thread and callable(self._handler):
            signal.signal(signal.SIGINT, self._handler)
