"""The supervisor: one task, from its slice to its exit status.

It waits for three things: words from its pool, signals, and the clock. What it
decides: who is given items, what a death means, when to stop. An end from
outside is not the item's failure: `scancel`, a requeue and the time limit
signal every process of a task at once, so a death by signal is believed only
when a second has passed without one for the supervisor itself, and from then
on only values are recorded.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import cloudpickle  # loaded before the pool is forked: once, not once per process

from slurmlaunch import caps
from slurmlaunch.context import Task
from slurmlaunch.errors import NodeStartError, OutOfMemory, WorkerDied
from slurmlaunch.node import system
from slurmlaunch.node.events import Signals, Waiting
from slurmlaunch.node.pool import Pool
from slurmlaunch.node.queue import Queue
from slurmlaunch.node.task import TimeLimit
from slurmlaunch.node.worker import Worker
from slurmlaunch.outcome import Failure
from slurmlaunch.runfolder.cancellations import CancellationReader
from slurmlaunch.runfolder.function import check_shared
from slurmlaunch.runfolder.layout import Status
from slurmlaunch.runfolder.outcomes import OutcomeWriter, earlier_attempts

if TYPE_CHECKING:
    from collections.abc import Collection

    from slurmlaunch.errors import ItemError
    from slurmlaunch.node.channel import Channel, Connection
    from slurmlaunch.node.pool import Death
    from slurmlaunch.runfolder.journal import Round
    from slurmlaunch.runfolder.layout import Manifest, RunFolder
    from slurmlaunch.runfolder.plan import RoundPlan

DOUBT_SECONDS = 1.0
"""How long a death by signal is held before it counts as the item's."""

GRACE_SECONDS = 1.0
"""How long items in flight may go on after SIGTERM: well within Slurm's KillWait."""

_TICK = 0.1
_LONG_TICK = 0.5
_LOADING_TRIES = 3
_FLUSHES_PER_SECOND = 200
"""What all running tasks together may ask of the file system."""


class _Doubtful(NamedTuple):
    due: float
    item: int
    error: ItemError


class Supervisor:
    """Runs the slice of one task."""

    def __init__(self, folder: RunFolder, manifest: Manifest, round_: Round, task: int) -> None:
        plan = round_.plan
        self._folder, self._manifest, self._plan, self._task = folder, manifest, plan, task
        self._writer = OutcomeWriter(folder, task)
        earlier = earlier_attempts(folder, task, self._writer.attempt)
        self._writer.failures = earlier.failures
        self._checkpoints = {**round_.checkpoints(), **earlier.checkpoints}
        self._limit = TimeLimit(plan, self._writer.attempt)
        self._queue = self._queue_of(round_, earlier.done)
        self._waiting = Waiting()
        self._pool = Pool(self._waiting, self._writer, self._queue, self._child, shares=bool(manifest.shared))
        self._places: Collection[int] = range(max(1, min(plan.processes, self._queue.left)))
        self._masks = _masks(plan)
        self._cancellations = CancellationReader(folder, [round_.number])
        self._doubtful: list[_Doubtful] = []
        self._unready_deaths = 0
        self._oom_kills = system.oom_kills()
        self._stop_at: float | None = None
        self._parent = os.getppid()
        self._upkeep_every = max(1.0, min(plan.throttle or len(plan.tasks), len(plan.tasks)) / _FLUSHES_PER_SECOND)
        self._upkeep_at = monotonic() + self._upkeep_every

    def _queue_of(self, its_round: Round, done: set[int]) -> Queue:
        plan, attempt = self._plan, self._writer.attempt
        if plan.blocks is not None:
            from slurmlaunch.node.queue import SharedQueue  # here, since most tasks have none
            from slurmlaunch.runfolder.claims import Claimer

            claimer = Claimer(self._folder.claims(its_round.number), self._task, attempt, plan.blocks.number)
            return SharedQueue(plan, plan.blocks, claimer, done if attempt else None)
        items = plan.items_of(self._task)
        return Queue([item for item in items if item not in done] if done else items)

    def run(self) -> int:
        """Run to the end of the task; return its exit status."""
        self._writer.note(started=time.time(), node=system.node_name())
        try:
            self._manifest.check_versions(cloudpickle.__version__)
        except NodeStartError as error:
            self._give_up(Failure(error).dump())
        self._cancel()
        signals = Signals(self._waiting, self._terminated, self._record_values_only)  # first, so that it is heard first
        client = system.client_pipe()
        if client is not None:
            self._waiting.add(client, self._client_gone)
        signals.listen()
        if self._manifest.shared and self._queue.left:  # a shared stock holds nothing before it is filled up
            self._check_shared(signals)
        self._loop(signals)
        self._end_pool()
        signals.forget()
        self._writer.note(ended=time.time(), peak=self._pool.peak)
        self._writer.close()
        return self._status()

    def _check_shared(self, signals: Signals) -> None:
        """Have what the function refers to checked once, not by each process; a signal is heard meanwhile."""
        try:
            for _ in check_shared(self._folder):
                if signals.terminated:
                    return
        except NodeStartError as error:
            self._give_up(Failure(error).dump())

    def _status(self) -> Status:
        if self._stop_at is not None or self._writer.withheld:
            return Status.STOPPED
        if self._queue.closed and self._queue.left:
            return Status.REQUEUE
        return Status.FAILURES if self._writer.failures else Status.VALUES

    def _loop(self, signals: Signals) -> None:
        while self._has_work():
            self._pool.fill(self._places)
            self._pool.feed()
            self._waiting.wait(self._timeout())
            self._end_with_parent()
            if signals.warned:
                signals.warned = False
                self._limit.warn()
            for death in self._pool.reap():
                self._judge(death)
            self._keep_up()
            if self._stop_at is not None and (monotonic() > self._stop_at or not self._pool.busy):
                return
            if self._limit.is_near and self._limit.may_requeue and self._is_out_of_time():
                return

    def _has_work(self) -> bool:
        if self._queue.refill(len(self._places) - self._pool.number_busy):
            self._cancel()  # what was cancelled while nobody had it is not even begun
        return bool(self._queue or self._pool.busy or self._doubtful)

    def _timeout(self) -> float:
        several = any(len(process.items) > 1 for process in self._pool.processes.values())
        tick = _TICK if several or self._stop_at else _LONG_TICK
        if self._pool.appending:
            return tick  # what is due cannot be recorded before, and need not be waited for by spinning
        return min([tick, *(max(0.0, doubtful.due - monotonic()) for doubtful in self._doubtful)])

    def _is_out_of_time(self) -> bool:
        """Hand out nothing more; say whether there is no time left for what is in flight."""
        if not self._queue.closed:
            self._queue.close()
            self._pool.take_back()
            self._pool.ask_for_checkpoints()
            with suppress(OSError):  # where the log cannot be written the outcomes still may
                print("slurmlaunch: the time limit is near, no further items are begun", file=sys.stderr)  # noqa: T201
        # Without an outcome or a checkpoint of its own, another start would come no further
        # than this one: then the time limit is the item's, and the scheduler will say so.
        progress = self._pool.recorded + self._pool.checkpoints
        return bool(progress) and self._limit.is_here

    # Processes.

    def _child(self, number: int, connection: Connection, channel: Channel) -> NoReturn:
        plan = self._plan
        task = Task(
            run_folder=self._folder.path,
            index=self._task,
            attempt=self._writer.attempt,
            process=number,
            processes=plan.processes,
            threads=plan.threads,
            seed=self._manifest.seed,
        )
        Signals.forget()
        mask = self._masks[number] if self._masks else None
        Worker(connection, channel, self._writer, task).main(self._folder, self._manifest, mask, self._checkpoints)

    def _judge(self, death: Death) -> None:
        """Decide what a death means; another process takes the place of the dead if it is needed."""
        if self._stop_at is not None:
            return
        if death.failure is not None:
            self._give_up(death.failure)
            return
        self._unready_deaths = 0 if death.ready else self._unready_deaths + 1
        error = self._error_of(death)
        if self._unready_deaths >= _LOADING_TRIES:
            self._do_with_fewer(error)
            return
        if death.item is None or death.item in self._queue.cancelled:
            return
        if death.ours:
            self._queue.put_back([death.item])  # it had just begun, as the one before it was to be ended
            self._places = self._places or [death.number]  # where it could load the function, another can
        else:
            due = monotonic() + (DOUBT_SECONDS if death.signal else 0.0)
            self._doubtful.append(_Doubtful(due, death.item, error))

    def _do_with_fewer(self, error: ItemError) -> None:
        """Go on with the processes that live, where others cannot load the function: memory may be short."""
        self._places = [process.number for process in self._pool.processes.values()]
        self._unready_deaths = 0
        if not self._places:
            error.what += ", each time before it had loaded the function"
            self._give_up(Failure(error).dump())

    def _error_of(self, death: Death) -> ItemError:
        kills = system.oom_kills()
        if death.signal == signal.SIGKILL and kills > self._oom_kills:
            self._oom_kills += 1
            return OutOfMemory(f"the process that ran the item hit the memory limit{system.limit_text()}")
        return WorkerDied.of(death.signal, death.status)

    def _give_up(self, failure: bytes) -> None:
        """Record one failure for everything that is left: no process could run it."""
        left = self._queue.take_all()
        start = 0
        for i in range(1, len(left) + 1):
            if i == len(left) or left[i] != left[i - 1] + 1:
                self._writer.failure(left[start], failure, count=i - start)
                start = i

    # The clock.

    def _keep_up(self) -> None:
        now = monotonic()
        self._pool.look()
        self._record_deaths(now)
        if now >= self._upkeep_at:
            self._upkeep_at = now + self._upkeep_every
            self._writer.flush()
            self._pool.weigh()
            self._cancel()

    def _record_deaths(self, now: float) -> None:
        if self._pool.appending:
            return
        for doubtful in [each for each in self._doubtful if each.due <= now]:
            self._doubtful.remove(doubtful)
            error = doubtful.error.located(item=doubtful.item, task=self._task, node=system.node_name())
            self._writer.failure(doubtful.item, Failure(error).dump())

    def _cancel(self) -> None:
        news = [items for _, items in self._cancellations.new()]
        if not news:
            return
        for items in news:
            self._queue.cancel(items)
        self._pool.kill(self._queue.cancelled)

    # The end.

    def _end_with_parent(self) -> None:
        """Stop where the batch script is gone: to the scheduler the task is over, and may run again elsewhere."""
        if self._stop_at is None and os.getppid() != self._parent:
            self._stop(0.0)

    def _terminated(self) -> None:
        if self._stop_at is None:
            self._stop(GRACE_SECONDS)

    def _record_values_only(self) -> None:
        """Record no failure from now on: what fails may fail of what ends the task."""
        self._writer.only_values = True

    def _client_gone(self) -> None:
        self._stop(0.0)

    def _stop(self, grace: float) -> None:
        """Hand out nothing more; from now on only values are recorded."""
        self._queue.close()
        self._record_values_only()
        self._pool.ask_for_checkpoints()
        self._doubtful.clear()
        self._stop_at = monotonic() + grace

    def _end_pool(self) -> None:
        if self._pool.busy:
            self._pool.kill()
        self._queue.put_back([doubtful.item for doubtful in self._doubtful])
        for death in self._pool.close():
            if death.item is not None:
                self._queue.put_back([death.item])  # it was not its fault


def _masks(plan: RoundPlan) -> list[frozenset[int]] | None:
    if plan.processes == 1 or not hasattr(os, "sched_getaffinity"):
        return None
    return caps.masks(os.sched_getaffinity(0), plan.cpus_per_task, plan.processes)
