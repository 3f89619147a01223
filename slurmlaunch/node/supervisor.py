"""The supervisor of a task whose items run in a pool of workers.

It waits for messages from the workers, for signals and for the clock, and
decides on assignments, on the failures after a worker's death and on the end of
the task. The pool does the rest. It runs no user code.
"""

from __future__ import annotations

import gc
import os
import signal
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch import caps
from slurmlaunch.context import Task
from slurmlaunch.errors import NodeStartError, OutOfMemory, StorageFailure, WorkerDied
from slurmlaunch.node import finder, main_module, system
from slurmlaunch.node.events import Signals
from slurmlaunch.node.output import Output
from slurmlaunch.node.pool import Pool, Sinks
from slurmlaunch.node.report import FailureLog
from slurmlaunch.node.task import CONFIRM_SECONDS, TaskSupervisor
from slurmlaunch.node.worker import Worker
from slurmlaunch.runfolder.function import Work, read_function
from slurmlaunch.runfolder.interpreter import Interpreter
from slurmlaunch.runfolder.output import MAX_LOG, OutputWriter
from slurmlaunch.runfolder.plan import Pace

if TYPE_CHECKING:
    from collections.abc import Collection

    from slurmlaunch.errors import ItemError
    from slurmlaunch.node.channel import Channel, Connection
    from slurmlaunch.node.pool import Death
    from slurmlaunch.runfolder.layout import Manifest, RunFolder
    from slurmlaunch.runfolder.outcomes import Times
    from slurmlaunch.runfolder.rounds import Round

_TICK, _LONG_TICK = 0.1, 0.5
_LOADING_TRIES = 3
_SOON, _SOON_KILLED, _LATE_KILLED = 0.2, 2.0, caps.END_SECONDS + 1.0
"""Seconds for workers to end: before what is recorded is flushed; before they are killed if the task is being ended,
and if it is not (`caps.limit_end` comes first)."""

_FLUSHES_PER_SECOND = 200
"""The load that all running tasks together may put on the file system."""


class _Unconfirmed(NamedTuple):
    """A death that fails its item when it is due, unless a SIGTERM arrives before."""

    due: float
    item: int
    error: ItemError
    times: Times | None


class Supervisor(TaskSupervisor):
    """Runs the items of one task in a pool."""

    def __init__(self, folder: RunFolder, manifest: Manifest, round_: Round, task: int) -> None:
        super().__init__(folder, manifest, round_, task)
        plan = self._plan
        self._checkpoints = {**round_.checkpoints(), **self._earlier.checkpoints}
        self._log = FailureLog()
        limit = plan.options.get("max_log", MAX_LOG)
        file = folder.output_file(task, self._writer.attempt)
        self._output = Output(self._events, OutputWriter(file, folder.salt, limit))
        sinks = Sinks(self._writer, self._output, self._log)
        self._pool = Pool(self._events, sinks, self._queue, self._run_worker, shares=bool(manifest.shared))
        self._slots: Collection[int] = range(max(1, min(plan.processes, self._queue.left)))
        alone = plan.processes == 1
        self._masks = None if alone else caps.masks(os.sched_getaffinity(0), plan.cpus_per_task, plan.processes)
        self._unconfirmed: list[_Unconfirmed] = []
        self._failed_starts = 0
        self._near = False
        self._overdue: set[int] = set()
        self._oom_kills = system.oom_kills()
        self._upkeep_every = max(1.0, min(plan.throttle or len(plan.tasks), len(plan.tasks)) / _FLUSHES_PER_SECOND)
        self._upkeep_at = monotonic() + self._upkeep_every

    def _run_items(self) -> None:
        if self._queue.left or self._queue.refill(1):  # some of its own may have been hidden until now
            self._prepare_fork()
        self._loop()
        if self._pool.busy:
            self._pool.kill()
        self._queue.put_back([each.item for each in self._unconfirmed])
        self._close_pool()
        system.kill_descendants()
        self._output.close()
        self._peak = self._pool.peak
        self._progress += self._pool.progress

    def _close_pool(self) -> None:
        """Let the workers end as Python ends, and wait for them."""
        self._pool.close()
        closed_at = monotonic()
        while self._pool.workers:
            self._events.wait(_TICK)
            for death in self._pool.reap():
                if death.item in self._overdue:
                    self._fail_overdue(death.item)
                elif death.item is not None:
                    self._queue.put_back([death.item])  # the supervisor ended it
                elif death.code and not self._signals.terminated:
                    system.log(system.describe_end(f"process {death.worker.slot} of the task", death.code))
            seconds = monotonic() - closed_at
            if seconds > _SOON:
                self._writer.flush()
            if seconds > (_SOON_KILLED if self._signals.terminated or self._queue.closed else _LATE_KILLED):
                self._pool.kill()

    def _prepare_fork(self) -> None:
        """Read, check, import and freeze once, rather than in each worker."""
        try:
            self._function = read_function(self._manifest.function_in(self._folder), self._manifest.function_sha256)
            for _ in self._function.check():
                if self._signals.terminated:
                    return
            self._modules = finder.modules_of(self._folder, self._manifest)
        except (NodeStartError, StorageFailure) as error:
            self._give_up(self._dump(error))
            return
        if self._function.needs_cloudpickle:
            import cloudpickle  # noqa: F401
        gc.freeze()  # else each worker's first collection visits, and so copies, every page of what is imported

    def _loop(self) -> None:
        while self._find_work():
            self._pool.fill(self._slots)
            self._pool.feed()
            self._events.wait(self._timeout())
            self._check_end()
            for death in self._pool.reap():
                self._handle_death(death)
            self._keep_up()
            if self._stop_at is not None and (monotonic() > self._stop_at or not self._pool.busy):
                return
            if self._limit.may_requeue and self._apply_time_limit():
                return

    def _find_work(self) -> bool:
        """Claim more items if processes are idle; return whether there is anything left to do."""
        pace = Pace(processes=len(self._slots), seconds=self._pool.durations.seconds_per_item, left=self._limit.left)
        if self._queue.refill(len(self._slots) - self._pool.busy, pace):
            self._cancel()  # items that were cancelled before any task claimed them are not started
        return bool(self._queue or self._pool.busy or self._unconfirmed)

    def _timeout(self) -> float:
        several = any(len(worker.assignment.items) > 1 for worker in self._pool.workers.values())
        tick = _TICK if several or self._stop_at else _LONG_TICK
        if self._pool.appending:
            return tick  # deaths that are due cannot be recorded yet: do not spin for them
        return min([tick, *(max(0.0, each.due - monotonic()) for each in self._unconfirmed)])

    def _apply_time_limit(self) -> bool:
        """Start no more items that may not end in time; return True when no time is left for the running ones."""
        limit, pool, durations = self._limit, self._pool, self._pool.durations
        near = limit.is_near and (pool.can_checkpoint or not limit.of_each_item)
        if not self._queue.closed and (near or limit.is_too_short(durations.longest)):
            self._queue.closed = True
            pool.take_back()
            system.log("slurmlaunch: the time limit is near, no further items are begun")
        if near and not self._near:
            self._near = True
            pool.request_checkpoints()
        if not limit.is_due:
            return False
        if limit.of_each_item:
            self._overdue = pool.running_items(
                lambda began: not pool.progress or limit.is_whole(began, durations.began)
            )
            return True
        # Without an outcome or a checkpoint of this attempt, the next one would get no further:
        # then the item exceeds the time limit, and the scheduler will say so.
        return bool(pool.progress)

    def _keep_up(self) -> None:
        now = monotonic()
        self._pool.poll()
        self._record_deaths(now)
        if now >= self._upkeep_at:
            self._upkeep_at = now + self._upkeep_every
            self._output.sync()
            self._writer.flush()
            self._pool.measure_shared()
            self._cancel()

    def _cancel(self) -> bool:
        new = super()._cancel()
        if new:
            self._pool.kill(self._queue.cancelled)
        return new

    def _stop(self, grace: float) -> None:
        super()._stop(grace)
        self._pool.request_checkpoints()
        self._unconfirmed.clear()

    # Workers.

    def _run_worker(self, slot: int, connection: Connection, channel: Channel) -> None:
        plan = self._plan
        task = Task(self._folder.path, self._task, self._writer.attempt, threads=plan.threads, seed=self._manifest.seed)
        task.process, task.processes = slot, plan.processes
        Signals.ignore()
        mask = self._masks[slot] if self._masks else None
        main_module.install(self._manifest.function_in(self._folder))
        finder.install(self._modules, self._manifest.created)
        load = partial(Work, self._folder, self._manifest, self._checkpoints, function=self._function)
        interpreter = Interpreter.from_json(self._manifest.interpreter)
        Worker(connection, channel, self._writer, task, interpreter).main(mask, load)

    def _handle_death(self, death: Death) -> None:
        """Fail the item of a dead worker, or return it to the queue; `Pool.fill` replaces the worker if needed."""
        if self._stop_at is not None:
            return
        if death.worker.failure is not None:
            self._log.show("the function", death.worker.failure)
            self._give_up(death.worker.failure)
            return
        self._failed_starts = 0 if death.worker.ready else self._failed_starts + 1
        error = self._error_of(death)
        if self._failed_starts >= _LOADING_TRIES:
            self._continue_with_fewer(error)
        elif death.item is None or death.item in self._queue.cancelled:
            return
        elif death.worker.killed:
            self._queue.put_back([death.item])  # it had just begun when a cancelled item was to be killed
            self._slots = self._slots or [death.worker.slot]  # a worker could load the function here: another can
        else:
            due = monotonic() + (CONFIRM_SECONDS if death.code < 0 else 0.0)
            self._unconfirmed.append(_Unconfirmed(due, death.item, error, death.times))

    def _continue_with_fewer(self, error: ItemError) -> None:
        """Start no more workers if new ones cannot load the function: memory may be short."""
        self._slots = [worker.slot for worker in self._pool.workers.values()]
        self._failed_starts = 0
        if not self._slots:
            error.what += ", each time before it had loaded the function"
            self._give_up(self._dump(error))

    def _error_of(self, death: Death) -> ItemError:
        if death.code == -signal.SIGKILL and system.oom_kills() > self._oom_kills:
            self._oom_kills += 1
            return OutOfMemory(f"the process that ran the item hit the memory limit{system.memory_limit_text()}")
        return WorkerDied.of(-death.code, None) if death.code < 0 else WorkerDied.of(None, death.code)

    def _record_deaths(self, now: float) -> None:
        if self._pool.appending:
            return
        for each in [each for each in self._unconfirmed if each.due <= now]:
            self._unconfirmed.remove(each)
            self._writer.failure(each.item, self._dump(each.error, each.item), each.times)
