"""The common part of both supervisors: start, stop, cancellations, giving up and the exit status.

`supervisor.Supervisor` runs items in a pool of workers, `mpi.MpiSupervisor` in
launches of ranks; both extend `TaskSupervisor`, which knows neither.

An end from outside is not the item's failure. `scancel`, a requeue and the time
limit signal all processes of a task at once: after SIGTERM only values are
recorded, and a death by signal fails its item only if no SIGTERM follows within
`CONFIRM_SECONDS`.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from slurmlaunch.errors import NodeStartError, TimeLimitExceeded
from slurmlaunch.node import system
from slurmlaunch.node.events import Events, Signals
from slurmlaunch.node.queue import Queue, SharedQueue
from slurmlaunch.outcome import Failure
from slurmlaunch.runfolder.layout import STARTED_VARIABLE, Status
from slurmlaunch.runfolder.outcomes import OutcomeWriter, earlier_attempts, ranges_of
from slurmlaunch.runfolder.plan import Blocks, Measured
from slurmlaunch.runfolder.rounds import CancellationReader, items_of_later_rounds
from slurmlaunch.runfolder.storage import Patience

if TYPE_CHECKING:
    from slurmlaunch.errors import ItemError
    from slurmlaunch.runfolder.layout import Manifest, RunFolder
    from slurmlaunch.runfolder.plan import RoundPlan
    from slurmlaunch.runfolder.rounds import Round

CONFIRM_SECONDS = 1.0
"""How long a SIGTERM may follow a death by signal for both to be one end from outside."""

_LONGEST_MARGIN = 5.0

_CAUTION = 1.5
"""A further item is begun if it may take so many times as long as the longest one before it."""

_MOMENT, _HARDLY = 0.5, 0.02
"""An item that begins so many seconds after the first one, or this part of the limit, has the limit for itself."""


class TaskSupervisor:
    """Runs one task; a subclass runs its items in `_run_items`."""

    _grace_seconds = 1.0
    """How long running items may continue after SIGTERM: well within Slurm's KillWait."""

    _peak = 0
    """The most memory, in bytes, that the processes of the task used together."""

    _progress = 0
    """How many outcomes and checkpoints this attempt has recorded, once it is over."""

    def __init__(self, folder: RunFolder, manifest: Manifest, round_: Round, task: int) -> None:
        self._cloudpickle = cloudpickle_version()  # first: without cloudpickle there is no attempt
        self._folder, self._manifest, self._plan, self._task = folder, manifest, round_.plan, task
        self._patience = Patience()
        self._writer = OutcomeWriter(folder, task, self._patience, start=system.earlier_starts())
        self._earlier = earlier_attempts(folder, task, self._writer.attempt)
        self._earlier.done.update(items_of_later_rounds(folder, round_.number))  # they may be running there
        self._writer.failures = self._earlier.failures
        self._round = round_.number
        self._limit = TimeLimit(self._plan, self._writer.attempt)
        self._queue = self._make_queue(round_)
        self._events = Events()
        self._signals = Signals(self._events, self._record_only_values)
        self._cancellations = CancellationReader(folder, [round_.number])
        self._stop_at: float | None = None
        self._parent = os.getppid()

    def _make_queue(self, round_: Round) -> Queue:
        attempt, done = self._writer.attempt, self._earlier.done
        blocks = self._plan.blocks
        if blocks is None:
            return Queue(self._plan.items_of(self._task), done)
        from slurmlaunch.runfolder.claims import Claimer  # late, since most tasks claim nothing

        folder, table = self._folder.claims(round_.number), blocks if isinstance(blocks, Blocks) else None
        claimer = Claimer(folder, self._task, attempt, blocks.items, self._patience, blocks=table)
        return SharedQueue(self._plan, blocks, claimer, done, resumes=attempt > 0)

    def run(self) -> int:
        """Run the task to its end; return its exit status."""
        self._writer.note(started=time.time(), node=system.node_name())
        try:
            self._manifest.check_versions(self._cloudpickle)
        except NodeStartError as error:
            self._give_up(self._dump(error))
        self._cancel()
        client = system.client_pipe()
        if client is not None:
            self._events.add(client, lambda: self._stop(0.0))
        self._signals.listen()
        system.adopt_orphans()
        self._run_items()
        system.kill_descendants()
        self._signals.ignore()
        self._writer.note(ended=time.time(), peak=self._peak)
        self._writer.close()
        if self._queue.found_none and self._limit.of_each_item and self._manifest.backend == "slurm":
            self._mark_surplus()
        return self._status()

    def _mark_surplus(self) -> None:
        """Have the batch script cancel the tasks that have not begun, since no item is left for them."""
        from slurmlaunch.runfolder.claims import mark_surplus

        number, _ = self._plan.element_of(self._task)
        array = self._plan.arrays[number]
        tasks = range(array.first_task, array.first_task + array.length)
        with suppress(OSError):  # they end at once when they begin
            mark_surplus(self._folder, self._round, number, tasks, self._task)

    def _run_items(self) -> None:
        """Run the items of the queue, and return when the task is over."""
        raise NotImplementedError

    def _status(self) -> Status:
        if self._stop_at is not None or self._writer.withheld:
            return Status.STOPPED
        if self._queue.closed and self._queue.left:
            useless = self._limit.of_each_item and not self._progress  # the next start would get no further
            if useless:
                return Status.NOT_REQUEUED
            return Status.REQUEUE if self._can_be_requeued() else Status.RESUBMIT
        return Status.FAILURES if self._writer.failures else Status.VALUES

    def _can_be_requeued(self) -> bool:
        """Whether the batch script finds scontrol; from inside a container that is not known."""
        import shutil  # here, because a node must start fast

        outside = self._manifest.backend != "slurm" or self._plan.options.get("container") is not None
        return outside or shutil.which("scontrol") is not None

    def _check_end(self) -> None:
        """React to SIGTERM, to the parent's death and to the warning of the time limit."""
        if self._stop_at is None and self._signals.terminated:
            self._stop(self._grace_seconds)
        if self._stop_at is None and os.getppid() != self._parent:
            self._stop(0.0)  # the batch script is gone: for the scheduler the task is over, and may run elsewhere
        if self._signals.warned:
            self._signals.warned = False
            self._limit.warn()

    def _stop(self, grace: float) -> None:
        """Start no more items; record only values, for *grace* seconds at most."""
        self._queue.closed = True
        self._record_only_values()
        self._stop_at = min(self._stop_at or float("inf"), monotonic() + grace)

    def _record_only_values(self) -> None:
        """Record no more failures: their cause may be the end of the task."""
        self._writer.only_values = self._patience.hurried = True

    def _cancel(self) -> bool:
        """Read new cancellations; return True if there are any."""
        new = [items for _, items in self._cancellations.new()]
        for items in new:
            self._queue.cancel(items)
        return bool(new)

    def _give_up(self, failure: bytes) -> None:
        """Record one failure for all items that are left."""
        for items in ranges_of(self._queue.take_all()):
            self._writer.failure(items.start, failure, count=len(items))

    def _fail_overdue(self, item: int) -> None:
        """Record that an item had the time limit for itself, and did not end."""
        error = TimeLimitExceeded(state="TIMEOUT").with_limit(self._plan.time_limit)
        self._writer.failure(item, self._dump(error, item))
        self._progress += 1

    def _dump(self, error: ItemError, item: int | None = None) -> bytes:
        """Pickle an error, with its place."""
        return Failure(error.located(item=item, task=self._task, node=system.node_name())).dump()


class TimeLimit:
    """When a task stops starting items, and when it must end, so that it can be requeued.

    The warning (SIGUSR1) comes up to a minute early, which for a short limit is
    at the start. So if the limit is known, the warning only starts the clock.

    Attributes:
        of_each_item: the limit is that of each item: a task that shares items begins one only if it is likely to end
            in time, and is requeued as often as that finishes an item.
        may_requeue: whether the task may be requeued for the items that are left.
    """

    def __init__(self, plan: RoundPlan, attempt: int) -> None:
        started = os.environ.get(STARTED_VARIABLE, "")
        spent = max(0.0, time.time() - float(started)) if started.replace(".", "", 1).isdigit() else 0.0
        self.of_each_item = isinstance(plan.blocks, Measured)
        self.may_requeue = bool(plan.requeues) if self.of_each_item else attempt < plan.requeues
        self._warning = float(plan.warning or 0)
        self._margin = min(_LONGEST_MARGIN, self._warning / 3)
        self._end = None if plan.time_limit is None else monotonic() - spent + plan.time_limit
        self._close_at = self._end and self._end - self._warning if self.of_each_item else None
        self._moment = max(_MOMENT, (plan.time_limit or 0.0) * _HARDLY)

    def warn(self) -> None:
        """Note the scheduler's warning."""
        now = monotonic()
        self._close_at = now if self._end is None else max(now, self._end - self._warning)

    @property
    def is_near(self) -> bool:
        """True when no more items should be started."""
        return self._close_at is not None and monotonic() >= self._close_at

    @property
    def is_due(self) -> bool:
        """True when only enough time is left for a clean shutdown."""
        return self.is_near and self.left <= 0

    @property
    def left(self) -> float:
        """The seconds for which items may run; infinite if the limit is not known, or ends the task for good."""
        return self._end - self._margin - monotonic() if self._end and self.may_requeue else math.inf

    def is_too_short(self, longest: float) -> bool:
        """Whether a further item might not end in time, after items of which the longest took so many seconds."""
        return self.of_each_item and self.left < _CAUTION * longest

    def is_whole(self, began: float, first: float) -> bool:
        """Whether an item had the limit for itself: it began when the first one did, or a moment later."""
        return began <= first + self._moment


def cloudpickle_version() -> str:
    """Return the version of cloudpickle, read from its source: importing it takes a third of a task's start.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    spec = find_spec("cloudpickle")
    with suppress(OSError, ValueError):  # in a zip file, or without source
        for line in Path((spec and spec.origin) or "").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "__version__":
                return value.strip().strip("\"'")
    import cloudpickle

    return str(cloudpickle.__version__)
