"""The supervisor of a task with ranks: it launches them, and makes outcomes of what they record.

::

    supervisor ──starts──► launcher (srun) ──starts──► ranks, on all nodes of the task
         ▲                                                │
         └── reads ──────────── their files ◄── append ───┘

The ranks go through the items of a launch on their own: MPI keeps them together
where they need it. An item has an outcome once all of them have one. A failure
ends the launch, since the others may wait for the rank that failed for ever; they
have a moment to come to their own end of the item. What is left then, the item
that a rank died of left out, is launched again.

As in a task without ranks, an end from outside is no item's failure: after
SIGTERM only values count, and a death by signal is held for a second.
"""

from __future__ import annotations

import os
import socket
import time
import zlib
from time import monotonic
from typing import TYPE_CHECKING, Any

import cloudpickle

from slurmlaunch.errors import NodeStartError, OutOfMemory, WorkerDied
from slurmlaunch.node import lifeline
from slurmlaunch.node.launching import Launched
from slurmlaunch.node.rank import node
from slurmlaunch.node.tally import Tally
from slurmlaunch.node.timelimit import TimeLimit
from slurmlaunch.node.waiting import Signals, Waiting
from slurmlaunch.outcome import Failure
from slurmlaunch.runfolder.cancellations import CancellationReader
from slurmlaunch.runfolder.layout import Status
from slurmlaunch.runfolder.outcomes import OutcomeFile, OutcomeWriter, earlier_attempts
from slurmlaunch.runfolder.ranks import Launch, make_rank_files

if TYPE_CHECKING:
    from slurmlaunch.errors import ItemError
    from slurmlaunch.runfolder.layout import RunFolder
    from slurmlaunch.runfolder.manifest import Manifest
    from slurmlaunch.runfolder.ranks import RanksPlan
    from slurmlaunch.runfolder.rounds import Round

DOUBT_SECONDS = 1.0
"""How long a death by signal is held before it counts as the item's."""

GRACE_SECONDS = 2.0
"""How long the other ranks may go on after one has failed an item, and all of them after SIGTERM."""

_LAUNCH_TRIES = 2
"""How often ranks are launched of which none starts: Slurm may fail at a step, and make the next one."""

_TICK = 0.25
_LOOKS_PER_SECOND = 200
"""How many of the ranks' files may be looked into each second."""

_PORTS = range(16384, 32768)
"""Below those that Linux gives to clients (``ip_local_port_range``), above what is well known."""


class RanksSupervisor:
    """Runs the slice of one task with its ranks."""

    def __init__(self, folder: RunFolder, manifest: Manifest, round_: Round, task: int, ranks: RanksPlan) -> None:
        plan = round_.plan
        self._folder, self._manifest, self._task, self._ranks = folder, manifest, task, ranks
        self._writer = OutcomeWriter(folder, task)
        attempt = self._writer.attempt
        self._files = [
            OutcomeFile(path, folder.salt)
            for path in make_rank_files(folder, round_.number, task, attempt, ranks.number)
        ]
        earlier = earlier_attempts(folder, task, attempt)
        self._writer.failures = earlier.failures
        self._left = [item for item in plan.items_of(task) if item not in earlier.done]
        self._limit = TimeLimit(plan, attempt)
        self._waiting = Waiting()
        self._signals = Signals(self._waiting)
        self._cancellations = CancellationReader(folder, [round_.number])
        self._cancelled: set[int] = set()
        self._recorded = self._peak = self._unstarted = 0
        self._stop_at: float | None = None
        self._requeue = False
        self._parent = os.getppid()
        self._tick = max(_TICK, ranks.number / _LOOKS_PER_SECOND)

    def run(self) -> int:
        """Run to the end of the task; return its exit status."""
        self._writer.note(started=time.time(), node=node())
        try:
            self._manifest.check_versions(cloudpickle.__version__)
        except NodeStartError as error:
            self._give_up(error)
        client = lifeline.from_environment()
        if client is not None:
            self._waiting.add(client, lambda: self._stop(0.0))
        self._signals.listen()
        self._run_launches()
        self._signals.forget()
        self._writer.note(ended=time.time(), peak=self._peak)
        self._writer.close()
        return self._status()

    def _status(self) -> Status:
        if self._stop_at is not None:
            return Status.STOPPED
        if self._requeue and self._left:
            return Status.REQUEUE
        return Status.FAILURES if self._writer.failures else Status.VALUES

    def _run_launches(self) -> None:
        number = 0
        self._cancel()
        self._left = [item for item in self._left if item not in self._cancelled]
        while self._left and self._stop_at is None and not self._requeue:
            before = len(self._left)
            self._run_launch(Launch(number, tuple(self._left), socket.gethostname(), self._free_port(number)))
            number += 1
            if len(self._left) == before and not (self._stop_at or self._requeue or self._unstarted):
                self._give_up(NodeStartError("the ranks came to no outcome at all"))

    def _free_port(self, launch: int) -> int:
        """Return a port of this machine, another for each task and launch, and free at this moment."""
        name = f"{self._folder.path} {self._task} {self._writer.attempt} {launch}"
        first = zlib.crc32(name.encode())
        for i in range(len(_PORTS)):
            port = _PORTS[(first + i) % len(_PORTS)]
            with socket.socket() as probe:
                try:
                    probe.bind(("", port))
                except OSError:
                    continue
            return port
        return _PORTS[first % len(_PORTS)]

    # One launch.

    def _run_launch(self, launch: Launch) -> None:
        launch.note(self._writer)
        tally = Tally(self._files, launch.number)
        words = (str(self._folder.path), str(self._task), str(self._writer.attempt), str(launch.number))
        try:
            launched = Launched(self._ranks, words)
        except OSError as error:
            self._give_up(NodeStartError(f"the ranks cannot be launched: {error}", advice=_LAUNCHER_ADVICE))
            return
        failed_at: float | None = None
        while launched.alive:
            self._waiting.wait(self._tick)
            tally.read()
            self._hear()  # after it: what was read may have failed of what ends the task
            self._record(tally)
            self._cancel()
            if failed_at is None and any(tally.failure(item) for item in self._left):
                failed_at = monotonic()
            if self._is_over(tally, failed_at):
                tally.ending = True
                launched.end()
        tally.read(final=True)
        self._hear()
        self._record(tally)
        self._writer.flush()
        self._peak = max(self._peak, tally.peak)
        if self._stop_at is None:
            self._conclude(tally, launched)

    def _hear(self) -> None:
        """Take in signals, and the end of who started us."""
        if self._signals.terminated and self._stop_at is None:
            self._stop(GRACE_SECONDS)
        if self._stop_at is None and os.getppid() != self._parent:
            self._stop(0.0)
        if self._signals.warned:
            self._signals.warned = False
            self._limit.warn()

    def _stop(self, grace: float) -> None:
        self._stop_at = min(self._stop_at or float("inf"), monotonic() + grace)

    def _is_over(self, tally: Tally, failed_at: float | None) -> bool:
        """Whether the launch is to be ended: what it could still do is not wanted, or not to be waited for."""
        now = monotonic()
        if self._stop_at is not None:
            return now >= self._stop_at
        if self._limit.may_requeue and self._recorded and self._limit.is_here:
            self._requeue = True
            return True
        if failed_at is not None and now >= failed_at + GRACE_SECONDS:
            return True
        return tally.death is not None or self._runs_cancelled(tally)

    def _record(self, tally: Tally) -> None:
        """Record the items that all ranks have come to the end of."""
        for item in [item for item in self._left if tally.is_complete(item)]:
            failure = tally.failure(item)
            if failure is not None and self._stop_at is not None:
                continue  # perhaps no more than the end from outside
            self._settle(item)
            self._writer.copy(failure or tally.value(item), item)
            self._recorded += 1

    def _settle(self, item: int) -> None:
        self._left.remove(item)

    def _runs_cancelled(self, tally: Tally) -> bool:
        """Whether a rank has come to an item that nobody wants."""
        return any(
            item in self._cancelled and tally.is_running(item, self._left[:i]) for i, item in enumerate(self._left)
        )

    def _cancel(self) -> None:
        for _, items in self._cancellations.new():
            self._cancelled.update(item for item in self._left if item in items)

    # The end of a launch.

    def _conclude(self, tally: Tally, launched: Launched) -> None:
        """Find what the end of a launch means for the items that are left."""
        if not self._left:
            return
        before = len(self._left)
        if tally.death is not None:  # first of all: what the others raised may have come of it
            self._conclude_death(tally.death)
        if self._stop_at is not None:
            return
        for item in self._left.copy():
            failure = tally.failure(item)
            if failure is not None:
                self._settle(item)
                self._writer.copy(failure, item)
        self._left = [item for item in self._left if item not in self._cancelled]
        if len(self._left) == before and not self._requeue:
            self._conclude_silence(tally, launched)

    def _conclude_death(self, died: dict[str, Any]) -> None:
        if not died["signal"] or self._doubt():
            item = died["item"] if died["item"] in self._left else self._left[0]  # it may have died at its very end
            self._fail(_error_of(died, self._ranks.number), item if died["loaded"] else None)

    def _conclude_silence(self, tally: Tally, launched: Launched) -> None:
        """Find what it means that the ranks are gone without a word; where none had started they get another launch."""
        began = bool(tally.began)
        self._unstarted = 0 if began else self._unstarted + 1
        if not 0 < self._unstarted < _LAUNCH_TRIES:
            self._fail(_launcher_error(self._ranks, launched, began=began), self._left[0] if began else None)

    def _doubt(self) -> bool:
        """Wait for a signal that would say that the whole task is ended; return whether none came."""
        deadline = monotonic() + DOUBT_SECONDS
        while self._stop_at is None and (left := deadline - monotonic()) > 0:
            self._waiting.wait(left)
            self._hear()
        return self._stop_at is None

    def _fail(self, error: ItemError, item: int | None) -> None:
        """Record the failure of an item; of all that are left where the ranks had come to none."""
        if item is None:
            self._give_up(error)
            return
        self._settle(item)
        self._record_error(item, error)

    def _record_error(self, item: int, error: ItemError) -> None:
        located = error.for_item(item).located(task=self._task, node=node())
        self._writer.failure(item, Failure(located).dump())

    def _give_up(self, error: ItemError) -> None:
        """Record one failure for everything that is left."""
        for item in self._left:
            self._record_error(item, error)
        self._left = []


_LAUNCHER_ADVICE = "Name what starts MPI programs here: launcher=['mpiexec'], say; by default it is srun on Slurm."


def _error_of(died: dict[str, Any], ranks: int) -> ItemError:
    """Return the error for the death of a rank, as its own node told it."""
    who = f"rank {died['rank']} of {ranks}"
    if died["oom"]:
        return OutOfMemory(f"{who} hit the memory limit", rank=died["rank"]).located(node=died["node"])
    return WorkerDied.of(died["signal"], died["status"], who, rank=died["rank"]).located(node=died["node"])


def _launcher_error(ranks: RanksPlan, launched: Launched, *, began: bool) -> ItemError:
    """Return the error for ranks that are gone without a word of their own."""
    launcher, status = ranks.launcher[0] if ranks.launcher else "they", launched.status
    ended = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
    tail = launched.log.tail()
    said = f"; the end of the log:\n{tail}\n" if tail else ""
    if not began:
        what = f"the ranks did not start: {launcher} {ended}{said}"
        return NodeStartError(what, advice=_LAUNCHER_ADVICE, exit_code=status)
    return WorkerDied(f"the ranks ended too early: {launcher} {ended}{said}", exit_code=status)
