"""An array and its running elements, as this process remembers them."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from slurmlaunch.backends.base import TaskRecord, TaskState
from slurmlaunch.backends.machine.processes import STATUS_UNKNOWN, Launch
from slurmlaunch.runfolder.layout import EndMark, RunFolder, Status

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from slurmlaunch.backends.base import ArrayJob
    from slurmlaunch.backends.machine.allowance import Allowance
    from slurmlaunch.backends.machine.processes import Sessions, TaskProcess

KILL_WAIT = 5.0
"""Seconds between SIGTERM and SIGKILL; the name is Slurm's."""

_PENDING = TaskRecord(TaskState.PENDING)


class LocalJob:
    """An array in this process: what it needs, and how far it has come.

    Attributes:
        id: the job id.
        name: the job's name.
        submitted: when, in seconds since the epoch.
        throttle: how many of its elements may run at once, or None.
        records: the state of each element.
        running: how many of its elements run.
    """

    def __init__(
        self,
        job_id: str,
        job: ArrayJob,
        *,
        allowance: Allowance,
        command: tuple[str, ...],
        env: Mapping[str, str],
        after: LocalJob | None = None,
    ) -> None:
        self.id = job_id
        self.name = job.name
        self.submitted = time.time()
        self.throttle = job.throttle
        self.after = after
        self.allowance = allowance
        self.records = [_PENDING] * job.length
        self.running = 0
        self.waiting = deque(range(job.length))
        self._folder = RunFolder(job.run_folder)
        self._job = job
        self._command = command
        self._env = env

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs or is yet to run."""
        return not (self.waiting or self.running)

    @property
    def throttled(self) -> bool:
        """Whether as many elements run as may; a throttle of 0 is none, as for Slurm."""
        return bool(self.throttle) and self.running >= self.throttle  # type: ignore[operator]

    def drop(self, elements: Collection[int], record: TaskRecord) -> None:
        """Take elements that have not started out of the queue."""
        for element in elements:
            self.records[element] = record
        self.waiting = deque(element for element in self.waiting if element not in elements)
        self._let_go()

    def abandon(self, record: TaskRecord) -> None:
        """Give up what has not ended."""
        self.records = [known if known.state.is_final else record for known in self.records]
        self.waiting.clear()
        self.running = 0

    def launch(self, element: int, lifeline: int) -> Launch:
        """Return how to start an element."""
        job = self._job
        return Launch(
            command=(*self._command, str(job.first_task + element)),
            env=self._env,
            stdout=self._folder.log(job.round, job.array, element, "out"),
            stderr=self._folder.log(job.round, job.array, element, "err"),
            lifeline=lifeline,
        )

    def settle(self, element: int, record: TaskRecord, status: int) -> None:
        """Note how an element ended, in memory and on disk."""
        self.records[element] = record
        task = self._job.first_task + element
        if self._job.container and status <= Status.FAILURES and not self._folder.outcome_file(task, 0).exists():
            status = Status.NODE  # the container did not come up, or has no slurmlaunch
        mark = EndMark(task, 0, status)
        # A full disk or a removed folder: who waits learns it from the state.
        with contextlib.suppress(OSError):
            path = self._folder.ended / mark.filename
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        self._let_go()

    def _let_go(self) -> None:
        """Once nothing more can start, forget the copy of the environment."""
        if not self.waiting:
            self._env = {}


_SIGNALLED = 128


class LocalTask:
    """A running element.

    Attributes:
        ending: why it is being ended, once it is.
        due: when something must be done about it: the time limit, then SIGKILL.
    """

    def __init__(self, job: LocalJob, element: int, process: TaskProcess) -> None:
        self.job = job
        self.element = element
        self.process = process
        self.due = time.monotonic() + job.allowance.seconds
        self.ending: TaskRecord | None = None
        job.running += 1
        job.records[element] = TaskRecord(TaskState.RUNNING, node=platform.node())

    def end(self, record: TaskRecord, sessions: Sessions, number: int = signal.SIGTERM) -> None:
        """Make it end, and remember why; the first reason stands."""
        if self.ending is None or number == signal.SIGKILL:  # to ask again gains no time
            self.due = time.monotonic() + KILL_WAIT
        self.ending = self.ending or record
        self.process.send(number, sessions)

    def settle(self, code: int) -> None:
        """Note that its process ended so."""
        ended = self.ending or TaskRecord(TaskState.FAILED if code else TaskState.COMPLETED)
        if code == STATUS_UNKNOWN:
            ended = replace(ended, reason=ended.reason or "its exit status is not known")
        exit_code, status = (f"{code}:0", code) if code >= 0 else (f"0:{-code}", 128 - code)
        if self.ending and status > _SIGNALLED:  # the mark may be read before the state, and is to say no less
            status = Status.OUT_OF_MEMORY if self.ending.state is TaskState.OUT_OF_MEMORY else Status.STOPPED
        self.job.running -= 1
        self.job.settle(self.element, replace(ended, exit_code=exit_code, node=platform.node()), status)
