"""An array and its running elements, as this process remembers them.

The queue of this machine: which task of which array runs when.

::

    submit(), cancel(), set_throttle()       any thread: change the tables, wake the dispatcher
        │
        ▼
    waiting arrays, in order ──► running tasks ──► states, end marks
                        the dispatcher's thread

One thread starts and reaps all tasks. Reaping, as signalling, is done under the
one lock, so that nothing is signalled after its process id may be another's.
The thread sleeps until a task ends, someone wakes it, or a limit is due; where
the system cannot report the end of a process, it looks, at first every
millisecond and then ever more seldom.

An array waits for CPUs in its turn: later ones do not overtake it, or a wide
task would never start among narrow ones. One that waits for its throttle, or for
another job to end, holds nobody up.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import math
import os
import platform
import selectors
import signal
import threading
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from slurmlaunch.backends.base import TaskRecord, TaskState
from slurmlaunch.backends.local.process import LIFELINE_FD, STATUS_UNKNOWN, Launch, Sessions, TaskProcess
from slurmlaunch.backends.local.resources import MACHINE
from slurmlaunch.runfolder.layout import EndMark, RunFolder, Status

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from slurmlaunch.backends.base import ArrayJob
    from slurmlaunch.backends.local.resources import Allowance, Room


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


_MEMORY_INTERVAL = 0.2
_MEMORY_SHARE = 20
"""Memory is looked at no sooner than so many times what the last look took."""

_DAY = 86400.0
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05

_CANNOT_START = 126  # a shell's status for what is there and cannot be run


class _Pipes:
    """The descriptors of a dispatcher: one pipe wakes its thread, one is the lifeline."""

    def __init__(self) -> None:
        self._awake, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        read, self._held = os.pipe()
        # posix_spawn keeps a descriptor open only under another number.
        self.lifeline = fcntl.fcntl(read, fcntl.F_DUPFD_CLOEXEC, LIFELINE_FD + 1)
        os.close(read)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._awake, selectors.EVENT_READ)

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it will wake as it is
            os.write(self._wake, b"\0")

    def sleep(self, pause: float) -> None:
        """Sleep until woken, until a watched descriptor is ready, or for so long."""
        timeout = max(0, min(pause, _DAY))  # epoll counts milliseconds in 32 bits
        for key, _ in self._selector.select(timeout):
            if key.fd == self._awake:
                os.read(self._awake, 4096)

    def watch(self, fd: int) -> None:
        self._selector.register(fd, selectors.EVENT_READ)

    def forget(self, fd: int) -> None:
        self._selector.unregister(fd)

    def close(self) -> None:
        self._selector.close()
        for fd in (self._awake, self._wake, self._held, self.lifeline):
            os.close(fd)


class Dispatcher:
    """All tasks of all backends of this process that share some room."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self._reset()
        os.register_at_fork(after_in_child=self.after_fork)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._jobs: dict[str, LocalJob] = {}
        self._queue: list[LocalJob] = []
        self._running: list[LocalTask] = []
        self._pipes: _Pipes | None = None
        self._poll_pause = _SHORTEST_PAUSE
        self._memory_due = -math.inf

    def after_fork(self) -> None:
        """In a forked child: let go of what is the parent's, above all of its lifeline."""
        for task in self._running:
            task.process.close()
        if self._pipes:
            self._pipes.close()
        self._reset()

    # What any thread may call.

    def submit(self, job: LocalJob) -> None:
        """Put an array at the end of the queue."""
        with self._changed:
            if self._pipes is None:
                self._start_thread()
            self._jobs[job.id] = job
            self._queue.append(job)
        self._wake()

    def _start_thread(self) -> None:
        self._pipes = pipes = _Pipes()
        thread = threading.Thread(target=self._serve, args=(pipes,), name="slurmlaunch-local", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is shutting down
            self._pipes = None
            pipes.close()
            raise
        # The thread is a daemon, since one that is not would be waited for
        # before anybody could tell it that no more work will come.
        atexit.register(self.wait_at_exit)

    def _wake(self) -> None:
        if self._pipes:
            self._pipes.wake()

    def get(self, job_id: str) -> LocalJob | None:
        """Return a job of this process."""
        return self._jobs.get(job_id)

    def records(self, job_id: str) -> list[TaskRecord] | None:
        """Return the states of a job's elements at this moment; None for another process's job."""
        with self._changed:
            job = self._jobs.get(job_id)
            return None if job is None else job.records.copy()

    def find(self, name: str, since: float) -> str | None:
        """Return the id of the newest job of that name, submitted after *since*."""
        with self._changed:
            ids = [job.id for job in self._jobs.values() if job.name == name and job.submitted >= since]
        return ids[-1] if ids else None

    def cancel(self, job: LocalJob, elements: Collection[int] | None = None) -> None:
        """Drop what waits and end what runs."""
        cancelled = TaskRecord(TaskState.CANCELLED)
        with self._changed:
            chosen = set(range(len(job.records)) if elements is None else elements)
            job.drop(chosen.intersection(job.waiting), cancelled)
            tasks = [task for task in self._running if task.job is job and task.element in chosen]
            self._end(tasks, cancelled, signal.SIGTERM)
        self._wake()

    def _end(self, tasks: Collection[LocalTask], record: TaskRecord, number: int) -> None:
        sessions = Sessions.read() if tasks else Sessions({})
        for task in tasks:
            task.end(record, sessions, number)

    def set_throttle(self, job: LocalJob, throttle: int | None) -> None:
        """Change how many elements of a job may run at once."""
        with self._changed:
            job.throttle = throttle
        self._wake()

    def wait(self) -> None:
        """Block until nothing runs or waits."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._queue or self._running))

    def wait_at_exit(self) -> None:
        """Let the queue run empty; an interrupt ends the tasks, a second one at once."""
        try:
            self.wait()
        except BaseException:
            self._end_all(signal.SIGTERM)
            try:
                self.wait()
            except BaseException:
                self._end_all(signal.SIGKILL)
                self.wait()
                raise
            raise

    def _end_all(self, number: int) -> None:
        cancelled = TaskRecord(TaskState.CANCELLED, reason="the client was interrupted")
        with self._changed:
            for job in self._queue:
                job.drop(set(job.waiting), cancelled)
            self._end(self._running, cancelled, number)
        self._wake()

    # What the dispatcher's thread does.

    def _serve(self, pipes: _Pipes) -> None:
        try:
            while True:
                with self._changed:
                    self._reap(pipes)
                    self._enforce()
                    self._start_ready(pipes)
                    pause = self._pause()
                pipes.sleep(pause)
        except BaseException as error:
            self._abandon(error, pipes)
            raise

    def _reap(self, pipes: _Pipes) -> None:
        for task in self._running.copy():
            code = task.process.poll()
            if code is None:
                continue
            self._running.remove(task)
            if task.process.pidfd is not None:
                pipes.forget(task.process.pidfd)
            task.process.close()
            task.settle(code)
            self._poll_pause = _SHORTEST_PAUSE

    def _enforce(self) -> None:
        now = time.monotonic()
        due = [task for task in self._running if task.due <= now]
        late = [task for task in due if task.ending is None]
        self._end(late, TaskRecord(TaskState.TIMEOUT, reason="TimeLimit"), signal.SIGTERM)
        for task in due:
            if task.ending and task not in late:
                task.end(task.ending, Sessions.read(), signal.SIGKILL)
        if self._watches_memory() and self._memory_due <= now:
            self._enforce_memory()
            finished = time.monotonic()
            self._memory_due = finished + max(_MEMORY_INTERVAL, _MEMORY_SHARE * (finished - now))

    def _watches_memory(self) -> bool:
        return any(task.job.allowance.memory < math.inf for task in self._running)

    def _enforce_memory(self) -> None:
        sessions = Sessions.read()
        for task in self._running:
            limit = task.job.allowance.memory
            if sessions.memory(task.process.pid, limit) > limit:
                task.end(TaskRecord(TaskState.OUT_OF_MEMORY), sessions, signal.SIGKILL)

    def _start_ready(self, pipes: _Pipes) -> None:
        for job, element in self._startable():
            self._start(job, element, pipes)
        self._queue = [job for job in self._queue if job.waiting]
        if not (self._queue or self._running):
            self._changed.notify_all()

    def _startable(self) -> Iterator[tuple[LocalJob, int]]:
        """Yield what may start now; what was yielded is expected to run before the next is asked for."""
        for job in self._queue:
            while job.waiting and not job.throttled and (job.after is None or job.after.ended):
                if not self.room.fits(job.allowance, [task.job.allowance for task in self._running]):
                    return
                yield job, job.waiting.popleft()

    def _start(self, job: LocalJob, element: int, pipes: _Pipes) -> None:
        launch = job.launch(element, pipes.lifeline)
        try:
            process = TaskProcess(launch)
        except (OSError, ValueError) as error:
            # The system does not say which of the files it means, and names the shell.
            reason = f"the process or its logs ({launch.stdout} and beside it) could not be made: {error}"
            job.settle(element, TaskRecord(TaskState.FAILED, reason=reason), _CANNOT_START)
            return
        self._running.append(LocalTask(job, element, process))
        self._poll_pause = _SHORTEST_PAUSE
        if process.pidfd is not None:
            pipes.watch(process.pidfd)

    def _pause(self) -> float:
        """Return how long the thread may sleep if nobody wakes it."""
        now = time.monotonic()
        pauses = [task.due - now for task in self._running]
        if self._watches_memory():
            pauses.append(self._memory_due - now)
        if any(task.process.pidfd is None for task in self._running):
            pauses.append(self._poll_pause)
            self._poll_pause = min(2 * self._poll_pause, _LONGEST_PAUSE)
        return min(pauses, default=math.inf)

    def _abandon(self, error: BaseException, pipes: _Pipes) -> None:
        """Leave nobody waiting for a thread that failed."""
        record = TaskRecord(TaskState.NODE_FAIL, reason=f"the local dispatcher failed: {error!r}")
        with self._changed:
            for job in self._jobs.values():
                job.abandon(record)
            self._queue, self._running, self._pipes = [], [], None
            pipes.close()  # its lifeline ends what still runs
            self._changed.notify_all()


DISPATCHER = Dispatcher(MACHINE)
"""The one of this machine in this process; a forked child begins with an empty one."""
