"""The scheduler of this machine: which task of which array runs when, and with which resources.

One thread starts and reaps all tasks; `submit`, `cancel` and `set_throttle` change the tables from any thread and wake
it. Reaping and signalling happen under the one lock, so that no signal reaches a process that was given a reaped task's
id. The thread sleeps until a task ends, it is woken, or a limit is due; without pidfds (a Python built for an old
kernel may have none) it polls.

An array waits for CPUs in its turn: later ones do not overtake it, or a wide task would never start among narrow ones.
An array that waits for its throttle, or for another job to end, delays no other. The local and the allocation backend
use it; they write the tasks' command lines.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import itertools
import math
import os
import selectors
import signal
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch import caps, context
from slurmlaunch.backends.base import TaskRecord, TaskState, parse_memory, parse_time
from slurmlaunch.backends.local.process import LIFELINE_FD, STATUS_UNKNOWN, Sessions, TaskProcess
from slurmlaunch.errors import SIGNALLED, OptionError, RunFolderError
from slurmlaunch.messages import say
from slurmlaunch.runfolder.clients import ClientId
from slurmlaunch.runfolder.files import create
from slurmlaunch.runfolder.layout import STARTED_VARIABLE, EndMark, Status
from slurmlaunch.runfolder.storage import PATIENCE, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from slurmlaunch.backends.base import ArrayJob
    from slurmlaunch.runfolder.files import Location

KILL_WAIT = 5.0
"""Seconds between SIGTERM and SIGKILL; the name is Slurm's."""

_PENDING = TaskRecord(TaskState.PENDING)
_STORAGE_PAUSE = 0.2
_PROGRAM_OR_LOG = frozenset({None, Status.STORAGE})  # permissions among them, which the program may lack
_CANNOT_START: int = 126  # a shell's status for a program that exists and cannot be run

_MEMORY_INTERVAL = 0.2
_MEMORY_SHARE = 20
"""Memory is measured no sooner than so many times what the last measurement took."""

_SILENT_SECONDS, _SILENT_FOR_ENDING = 1.0, 10.0
"""How long the interpreter waits for tasks at its exit before it says so; the second for tasks that are being ended."""

_DAY = 86400.0
_POLL_PAUSE = 0.01

_JOB_ID_PREFIX = "local"
_numbers = itertools.count(1)


def new_job_id() -> str:
    """Return an id that no other local job has; it names this process as the job's owner."""
    return f"{_JOB_ID_PREFIX}-{ClientId.current()}-{next(_numbers)}"


def owner_of(job_id: str) -> ClientId | None:
    """Return the process that runs a local job, as its id says; None for the id of any other job."""
    prefix, _, rest = job_id.partition("-")
    owner, _, number = rest.rpartition("-")
    return ClientId.parse(owner) if prefix == _JOB_ID_PREFIX and number else None


class TaskResources(NamedTuple):
    """The resources and limits of one task; `math.inf` is no limit."""

    cpus: int
    seconds: float = math.inf  # the time limit
    memory: float = math.inf  # bytes that its processes may hold
    ranks: int = 1  # the processes that share the CPUs evenly, perhaps on several nodes
    reserved: float = 0.0  # bytes that each rank takes of its node, if memory is shared out there

    @classmethod
    def of(cls, job: ArrayJob, machine_cpus: int | None = None) -> TaskResources:
        """Read the options of a job, with no more CPUs than *machine_cpus* if given.

        Raises:
            OptionError: sbatch would refuse the time or the memory.
        """
        cpus = job.cpus_per_task * job.ranks
        return cls(
            cpus=cpus if machine_cpus is None else min(cpus, machine_cpus),
            seconds=_option(job, "time", parse_time),
            memory=min(_option(job, "mem", parse_memory), _option(job, "mem_per_cpu", parse_memory) * cpus),
            ranks=job.ranks,
        )


def _option(job: ArrayJob, name: str, parse: Callable[[str], float]) -> float:
    value = job.options.get(name)
    if value is None:
        return math.inf
    try:
        return parse(str(value))
    except ValueError as error:
        raise OptionError(f"{name}={value!r} is not a value that sbatch knows", option=name) from error


@functools.cache
def machine_cpus() -> int:
    """Return the CPUs that running tasks may use together; inside a task, the share of that task."""
    return min(context.cpu_count(), caps.usable_cpus())


def fits(wanted: TaskResources, running: Collection[TaskResources]) -> bool:
    """Return True if a task may start on this machine beside the running ones."""
    return wanted.cpus <= machine_cpus() - sum(each.cpus for each in running)


@dataclass(eq=False)
class LocalJob:
    """An array of this process, and the states of its elements."""

    id: str
    array: ArrayJob
    resources: TaskResources  # of each task
    command: tuple[str, ...]  # without the task index at its end
    env: Mapping[str, str]
    after: LocalJob | None = None  # must have ended before this one starts

    def __post_init__(self) -> None:
        self.submitted = time.time()
        self.throttle = self.array.throttle
        self.records = [_PENDING] * self.array.length
        self.pending = deque(range(self.array.length))
        self.running = 0
        self._starts = [0] * self.array.length
        self.start_after = -math.inf  # while the storage refuses the logs
        self._refused_since: float | None = None
        self._folder = self.array.folder

    @property
    def ended(self) -> bool:
        """Whether no element is pending or running."""
        return not (self.pending or self.running)

    @property
    def throttled(self) -> bool:
        """Whether as many elements run as may; a throttle of 0 is none, as in Slurm."""
        return bool(self.throttle) and self.running >= self.throttle  # type: ignore[operator]

    @property
    def may_start(self) -> bool:
        """Whether an element may start now, as far as this job is concerned."""
        after = self.after is None or self.after.ended
        return bool(self.pending) and not self.throttled and after and time.monotonic() >= self.start_after

    def drop(self, elements: Collection[int], record: TaskRecord) -> None:
        """Take pending elements out of the queue."""
        dropped = {*elements}.intersection(self.pending)
        for element in dropped:
            self.records[element] = record
        self.pending = deque(element for element in self.pending if element not in dropped)
        self._free_environment()

    def abandon(self, record: TaskRecord) -> None:
        """End all elements that have not ended."""
        self.records = [known if known.state.is_final else record for known in self.records]
        self.pending.clear()
        self.running = 0

    def put_back(self, element: int, error: Exception) -> bool:
        """Queue an element again whose log the storage refused; False for other errors, and if it lasts too long."""
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        if status_of(error) in _PROGRAM_OR_LOG or now - self._refused_since > PATIENCE:
            return False
        self.pending.appendleft(element)
        self.start_after = now + _STORAGE_PAUSE
        return True

    def log(self, element: int, stream: str) -> Location:
        """Return an element's ``out`` or ``err``."""
        return self._folder.log(self.array.round, self.array.array, element, stream)

    def start(self, element: int, lifeline: int) -> TaskProcess:
        """Start an element; raises as `TaskProcess` does."""
        command = (*self.command, str(self.array.first_task + element))
        env = {**self.env, STARTED_VARIABLE: f"{time.time():.3f}"}
        with _opened(self.log(element, "out")) as stdout, _opened(self.log(element, "err")) as stderr:
            process = TaskProcess(
                command, env, self.array.environment.limits, stdout=stdout, stderr=stderr, lifeline=lifeline
            )
        self._refused_since = None
        return process

    def settle(self, element: int, record: TaskRecord, status: int) -> None:
        """Record how an element ended, on disk and then in memory; queue it again if it asks for that."""
        task = self.array.first_task + element
        # With a full disk or a removed folder, the state alone has to say it.
        with contextlib.suppress(OSError, RunFolderError):
            if self.array.container and status <= Status.FAILURES and not self._folder.outcome_file(task, 0).exists():
                status = Status.NODE  # the container did not start, or has no slurmlaunch
            create(self._folder.ended / EndMark(task, self._starts[element], status).filename, b"")
        self.records[element] = record
        if status == Status.REQUEUE and self.array.may_requeue:
            self.records[element] = _PENDING
            self._starts[element] += 1
            self.pending.append(element)
        self._free_environment()

    def _free_environment(self) -> None:
        if self.ended:
            self.env = {}


@contextlib.contextmanager
def _opened(log: Location) -> Iterator[int]:
    descriptor = log.open(os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        if descriptor < _STANDARD:  # this process has closed its own, and the task would get one in place of the other
            above = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _STANDARD)
            os.close(descriptor)
            descriptor = above
        yield descriptor
    finally:
        os.close(descriptor)


_STANDARD = 3


class LocalTask:
    """A running element."""

    def __init__(self, job: LocalJob, element: int, process: TaskProcess) -> None:
        self.job = job
        self.element = element
        self.process = process
        self.due = time.monotonic() + job.resources.seconds  # then the time limit ends it, or SIGKILL
        self.ending: TaskRecord | None = None  # the record of its end, once it is being ended from outside
        job.running += 1
        job.records[element] = TaskRecord(TaskState.RUNNING, node=os.uname().nodename)

    def end(self, record: TaskRecord, sessions: Sessions, number: int = signal.SIGTERM) -> None:
        """Signal it, and remember why; the first reason counts."""
        if self.ending is None or number == signal.SIGKILL:  # a second SIGTERM gains no time
            self.due = time.monotonic() + KILL_WAIT
        self.ending = self.ending or record
        self.process.send(number, sessions)

    def settle(self, code: int) -> None:
        """Record that its process ended with this status."""
        ended = self.ending or TaskRecord(TaskState.FAILED if code else TaskState.COMPLETED)
        if code == STATUS_UNKNOWN:
            ended = replace(ended, reason=ended.reason or "its exit status is not known")
        exit_code, status = (f"{code}:0", code) if code >= 0 else (f"0:{-code}", SIGNALLED - code)
        if self.ending and status > SIGNALLED:  # clients may read the mark before the state: it must not say less
            status = Status.OUT_OF_MEMORY if self.ending.state is TaskState.OUT_OF_MEMORY else Status.STOPPED
        self.job.running -= 1
        self.job.settle(self.element, replace(ended, exit_code=exit_code, node=os.uname().nodename), status)


class _Pipes:
    """The descriptors of a scheduler: an event wakes its thread, a pipe is the lifeline of its tasks."""

    def __init__(self) -> None:
        self._woken = os.eventfd(0)
        read, self._write_end = os.pipe()
        # posix_spawn keeps a descriptor open only under another number.
        self.lifeline = fcntl.fcntl(read, fcntl.F_DUPFD_CLOEXEC, LIFELINE_FD + 1)
        os.close(read)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self._woken, selectors.EVENT_READ)

    def wake(self) -> None:
        os.eventfd_write(self._woken, 1)

    def sleep(self, pause: float) -> None:
        """Sleep until woken, until a registered descriptor is readable, or for *pause* seconds."""
        timeout = max(0, min(pause, _DAY))  # epoll counts milliseconds in 32 bits
        for key, _ in self.selector.select(timeout):
            if key.fd == self._woken:
                os.eventfd_read(self._woken)

    def close(self) -> None:
        self.selector.close()
        for fd in (self._woken, self._write_end, self.lifeline):
            os.close(fd)


class LocalScheduler:
    """Runs the tasks of one backend."""

    def __init__(self, fits: Callable[[TaskResources, Collection[TaskResources]], bool]) -> None:
        """Start empty; *fits* says whether a task may start beside the running ones."""
        self.fits = fits
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._jobs: dict[str, LocalJob] = {}
        self._queue: list[LocalJob] = []
        self._running: list[LocalTask] = []
        self._pipes: _Pipes | None = None
        self._memory_due = -math.inf

    def disown(self) -> None:
        """Close the parent's descriptors in a forked child, above all its lifeline, and start empty."""
        for task in self._running:
            task.process.close()
        if self._pipes:
            self._pipes.close()
        self._reset()

    # Called by any thread.

    def submit(self, job: LocalJob) -> None:
        """Put an array at the end of the queue; RuntimeError if the interpreter is shutting down."""
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
        # The thread is a daemon: the interpreter would wait for any other thread
        # before `wait_at_exit` could say that no more work will come.
        atexit.register(self.wait_at_exit)

    def _wake(self) -> None:
        if self._pipes:
            self._pipes.wake()

    def get(self, job_id: str) -> LocalJob | None:
        """Return a job of this process."""
        return self._jobs.get(job_id)

    def find(self, name: str, since: float) -> str | None:
        """Return the id of the newest job of that name, submitted after *since* (seconds since the epoch)."""
        with self._changed:
            ids = [job.id for job in self._jobs.values() if job.array.name == name and job.submitted >= since]
        return ids[-1] if ids else None

    def cancel(self, job: LocalJob, elements: Collection[int] | None = None) -> None:
        """Drop pending elements and end running ones; None: all of them."""
        cancelled = TaskRecord(TaskState.CANCELLED)
        with self._changed:
            chosen = set(range(len(job.records)) if elements is None else elements)
            job.drop(chosen, cancelled)
            self._end([task for task in self._running if task.job is job and task.element in chosen], cancelled)
        self._wake()

    def _end(self, tasks: Collection[LocalTask], record: TaskRecord, number: int = signal.SIGTERM) -> None:
        sessions = Sessions.read() if tasks else Sessions({})
        for task in tasks:
            task.end(record, sessions, number)

    def set_throttle(self, job: LocalJob, throttle: int | None) -> None:
        """Change how many elements of a job may run at once."""
        with self._changed:
            job.throttle = throttle
        self._wake()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until no task is pending or running, or for so many seconds; return whether none is."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._queue or self._running), timeout)

    def wait_at_exit(self) -> None:
        """Wait until all tasks have ended, and say so; an interrupt ends them, a second one kills them."""
        patience = 0.0 if hasattr(sys, "last_type") else _SILENT_SECONDS  # an exception ended the script
        try:
            if not self.wait(patience) and (self._goes_on() or not self.wait(_SILENT_FOR_ENDING)):
                say(f"{self._tasks_left()}. Python waits for them; Ctrl-C ends them.")
            self.wait()
        except KeyboardInterrupt:
            self._end_or_kill()

    def _goes_on(self) -> bool:
        """Whether there is work, and not only tasks that were cancelled or are at their time limit."""
        with self._changed:
            return any(job.pending for job in self._queue) or any(task.ending is None for task in self._running)

    def _tasks_left(self) -> str:
        with self._changed:
            running, waiting = len(self._running), sum(len(job.pending) for job in self._queue)
            jobs = [*self._queue, *(task.job for task in self._running)]
        folders = sorted({str(job.array.run_folder) for job in jobs})
        more = f" and {len(folders) - 1} other folders" if len(folders) > 1 else ""
        return f"tasks of {''.join(folders[:1])}{more} on this machine: {running} running, {waiting} waiting"

    def _end_or_kill(self) -> None:
        """End all tasks after an interrupt; kill them after another one."""
        number, deed = signal.SIGTERM, "Ending them; Ctrl-C kills them."
        while True:
            try:
                say(f"{self._tasks_left()}. {deed}")
                self._end_all(number)
                self.wait()
            except KeyboardInterrupt:  # a traceback out of atexit would tell nobody anything
                number, deed = signal.SIGKILL, "Killing them."
            else:
                return

    def _end_all(self, number: int) -> None:
        cancelled = TaskRecord(TaskState.CANCELLED, reason="the client was interrupted")
        with self._changed:
            for job in self._queue:
                job.drop(job.pending, cancelled)
            self._end(self._running, cancelled, number)
        self._wake()

    # Called by the scheduler's thread.

    def _serve(self, pipes: _Pipes) -> None:
        try:
            while True:
                with self._changed:
                    self._reap(pipes)
                    self._enforce_limits()
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
                pipes.selector.unregister(task.process.pidfd)
            task.process.close()
            task.settle(code)
            if task.job.pending and task.job not in self._queue:
                self._queue.append(task.job)  # it is requeued

    def _enforce_limits(self) -> None:
        now = time.monotonic()
        due = [task for task in self._running if task.due <= now]
        late = [task for task in due if task.ending is None]
        self._end(late, TaskRecord(TaskState.TIMEOUT, reason="TimeLimit"))
        for task in due:
            if task.ending and task not in late:
                task.end(task.ending, Sessions.read(), signal.SIGKILL)
        if self._measures_memory() and self._memory_due <= now:
            self._enforce_memory()
            finished = time.monotonic()
            self._memory_due = finished + max(_MEMORY_INTERVAL, _MEMORY_SHARE * (finished - now))

    def _measures_memory(self) -> bool:
        return any(task.job.resources.memory < math.inf for task in self._running)

    def _enforce_memory(self) -> None:
        sessions = Sessions.read()
        for task in self._running:
            limit = task.job.resources.memory
            if sessions.memory(task.process.pid, limit) > limit:
                task.end(TaskRecord(TaskState.OUT_OF_MEMORY), sessions, signal.SIGKILL)

    def _start_ready(self, pipes: _Pipes) -> None:
        for job, element in self._startable():
            self._start(job, element, pipes)
        self._queue = [job for job in self._queue if job.pending]
        if not (self._queue or self._running):
            self._changed.notify_all()

    def _startable(self) -> Iterator[tuple[LocalJob, int]]:
        """Yield the elements that may start; each must run before the next is asked for."""
        for job in self._queue:
            while job.may_start:
                if not self.fits(job.resources, [task.job.resources for task in self._running]):
                    return
                yield job, job.pending.popleft()

    def _start(self, job: LocalJob, element: int, pipes: _Pipes) -> None:
        try:
            process = job.start(element, pipes.lifeline)
        except (OSError, ValueError) as error:
            if job.put_back(element, error):
                return
            # The system does not say which of the files it means, and names the shell.
            reason = f"the process or its logs ({job.log(element, 'out')} and beside it) could not be created: {error}"
            status: int | None = status_of(error)
            if status is None or status in _PROGRAM_OR_LOG:
                status = _CANNOT_START
            job.settle(element, TaskRecord(TaskState.FAILED, reason=reason), status)
            return
        self._running.append(LocalTask(job, element, process))
        if process.pidfd is not None:
            pipes.selector.register(process.pidfd, selectors.EVENT_READ)

    def _pause(self) -> float:
        """Return how long the thread may sleep if no other thread wakes it."""
        now = time.monotonic()
        pauses = [task.due - now for task in self._running]
        if self._measures_memory():
            pauses.append(self._memory_due - now)
        pauses += [job.start_after - now for job in self._queue if job.start_after > now]
        if any(task.process.pidfd is None for task in self._running):
            pauses.append(_POLL_PAUSE)
        return min(pauses, default=math.inf)

    def _abandon(self, error: BaseException, pipes: _Pipes) -> None:
        """End all jobs after the thread failed, so that no client waits for it."""
        record = TaskRecord(TaskState.NODE_FAIL, reason=f"the local scheduler failed: {error!r}")
        with self._changed:
            for job in self._jobs.values():
                job.abandon(record)
            self._queue, self._running, self._pipes = [], [], None
            pipes.close()  # its lifeline ends the tasks that still run
            self._changed.notify_all()
