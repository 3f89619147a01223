"""The inline backend: runs each item in the calling thread, during the call.

The client creates it. As with the other backends, all arguments and results are pickled, so that an object that cannot
be pickled fails here too. There is no pool, no cap and no process: a debugger works.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from array import array
from typing import TYPE_CHECKING

from slurmlaunch import context
from slurmlaunch.backends.base import ArrayJob, Backend, Limits, Snapshot, TaskRecord, TaskState
from slurmlaunch.errors import NodeStartError
from slurmlaunch.outcome import Bundle, Failure
from slurmlaunch.runfolder.claims import Claimer
from slurmlaunch.runfolder.files import create, undisturbed
from slurmlaunch.runfolder.function import Work
from slurmlaunch.runfolder.layout import EndMark, Manifest, Status
from slurmlaunch.runfolder.outcomes import OutcomeWriter, Times
from slurmlaunch.runfolder.plan import Pace
from slurmlaunch.runfolder.records import Kind
from slurmlaunch.runfolder.rounds import Round

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from types import FrameType

    from slurmlaunch.runfolder.layout import RunFolder

_RECORD_BYTES = 1 << 18


class InlineBackend(Backend):
    """The `slurmlaunch.backends.base.Backend` of the calling thread: runs one task after the other."""

    name = "inline"
    query_every = 60.0
    _ids = itertools.count(1)

    def limits(self) -> Limits:
        """Return no limits; one task runs after the other."""
        return Limits(side_by_side=False)

    def launcher(self, ranks: int, cpus_per_task: int, options: Mapping[str, str | bool]) -> None:
        """Return None: the calling thread is the only rank."""
        del ranks, cpus_per_task, options

    def script(self, job: ArrayJob) -> str:
        """Return a comment: there is no script."""
        return f"# {job.length} tasks, run in the calling thread during the call\n"

    def submit(self, job: ArrayJob) -> str:
        """Run the tasks of the array to their end; return its job id."""
        folder = job.folder
        with undisturbed():
            manifest = Manifest.read(folder)
            round_ = Round.read(folder, job.round)
            manifest = manifest.changed(round_.plan.manifest)
        with _noting_interrupts() as interrupted:
            for task in range(job.first_task, job.first_task + job.length):
                _run_task(folder, manifest, round_, task, interrupted)
        return f"inline-{os.getpid()}-{next(self._ids)}"

    def find(self, name: str, since: float) -> str | None:
        """Return None: no job outlives its submission."""
        del name, since
        return None

    def cancel(self, job_id: str, elements: Collection[int] | None = None) -> None:
        """Do nothing: the tasks have ended."""

    def set_throttle(self, job_id: str, throttle: int | None, *, after: str | None = None) -> None:
        """Do nothing: the tasks have ended."""

    def query(self, job_ids: Collection[str]) -> Snapshot:
        """Return a snapshot in which all tasks have completed, because `submit` ran them to their end."""
        return Snapshot(time.time(), dict.fromkeys(job_ids, lambda _: TaskRecord(TaskState.COMPLETED)))


def _run_task(folder: RunFolder, manifest: Manifest, round_: Round, task: int, interrupted: list[int]) -> None:
    with undisturbed():
        writer = OutcomeWriter(folder, task)
        writer.note(started=time.time(), node=os.uname().nodename)
    threads, seed = round_.plan.threads, manifest.seed
    outer = context.swap(context.Task(folder.path, task, writer.attempt, threads=threads, seed=seed))
    try:
        _run_items(folder, manifest, _items_of(folder, round_, task, writer.attempt), writer, interrupted)
    finally:
        context.swap(outer)
        with undisturbed():
            writer.note(ended=time.time())
            writer.close()
    status = Status.FAILURES if writer.failures else Status.VALUES
    create(folder.ended / EndMark(task, writer.attempt, status).filename, b"")


def _items_of(folder: RunFolder, round_: Round, task: int, attempt: int) -> Iterator[int]:
    """Yield the items of a task; in a dynamic round, claim each block just before its items run."""
    blocks = round_.plan.blocks
    if blocks is None:
        yield from round_.plan.items_of(task)
        return
    claimer = Claimer(folder.claims(round_.number), task, attempt, blocks.items)
    while (positions := claimer.claim(lambda front: blocks.length(front, Pace()))) is not None:
        yield from round_.plan.items_at(positions)


def _run_items(
    folder: RunFolder, manifest: Manifest, items: Iterable[int], writer: OutcomeWriter, interrupted: list[int]
) -> None:
    try:
        work = Work(folder, manifest)
    except NodeStartError as error:
        for item in items:
            writer.failure(item, Failure(error).dump())
        return
    values = _Values(writer)
    with contextlib.closing(work):
        for item in items:
            context.current_task().item = item
            start, began = time.time(), time.monotonic()
            kind, data = work.run(item)
            times = Times(start, array("f", [time.monotonic() - began]))
            if kind != Kind.FAILURE or isinstance(data, Bundle):
                values.add(item, data, times)
            else:
                writer.failure(item, data, times)
            if interrupted:
                break
        values.write()
    if interrupted:
        raise KeyboardInterrupt


class _Values:
    """Values of consecutive items, written as one record: no client reads them before the call returns."""

    def __init__(self, writer: OutcomeWriter) -> None:
        self._writer = writer
        self._first = self._bytes = 0
        self._parts: list[bytes] = []
        self._times = Times(0.0, array("f"))

    def add(self, item: int, data: bytes | Bundle, times: Times) -> None:
        if isinstance(data, Bundle):
            self.write()
            self._writer.value(item, data, times)
            return
        if self._parts and (item != self._first + len(self._parts) or self._bytes > _RECORD_BYTES):
            self.write()
        if not self._parts:
            self._first, self._times = item, Times(times.start, array("f"))
        self._times.seconds.extend(times.seconds)
        self._parts.append(data)
        self._bytes += len(data)

    def write(self) -> None:
        if len(self._parts) == 1:
            self._writer.value(self._first, self._parts[0], self._times)
        elif self._parts:
            lengths = array("I", map(len, self._parts))
            self._writer.packed(Kind.VALUES, self._first, lengths, b"".join(self._parts), self._times)
        self._parts, self._bytes = [], 0


@contextlib.contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """Yield a list that Ctrl-C adds to: it ends the call, unlike a KeyboardInterrupt that the function raises."""
    pressed: list[int] = []  # no Event: if a second Ctrl-C interrupts the handler, its lock would wait for itself
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield pressed
        return

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, handler)
