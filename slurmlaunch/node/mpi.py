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
import signal
import socket
import subprocess
import time
import zlib
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING, Any

import cloudpickle

from slurmlaunch.errors import NodeStartError, OutOfMemory, WorkerDied
from slurmlaunch.node import system
from slurmlaunch.node.events import Signals, Waiting
from slurmlaunch.node.rank import RANK, RANKS
from slurmlaunch.node.system import Log
from slurmlaunch.node.task import TimeLimit
from slurmlaunch.outcome import Failure
from slurmlaunch.runfolder.cancellations import CancellationReader
from slurmlaunch.runfolder.layout import Status
from slurmlaunch.runfolder.outcomes import Launch, OutcomeFile, OutcomeWriter, earlier_attempts, make_rank_files
from slurmlaunch.runfolder.records import Damage, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from slurmlaunch.errors import ItemError
    from slurmlaunch.runfolder.journal import Round
    from slurmlaunch.runfolder.layout import Manifest, RunFolder
    from slurmlaunch.runfolder.outcomes import Recorded
    from slurmlaunch.runfolder.plan import RanksPlan

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


class MpiSupervisor:
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
        self._writer.note(started=time.time(), node=system.node_name())
        try:
            self._manifest.check_versions(cloudpickle.__version__)
        except NodeStartError as error:
            self._give_up(error)
        client = system.client_pipe()
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
        results = RankResults(self._files, launch.number)
        words = (str(self._folder.path), str(self._task), str(self._writer.attempt), str(launch.number))
        try:
            launched = Launched(self._ranks, words)
        except OSError as error:
            self._give_up(NodeStartError(f"the ranks cannot be launched: {error}", advice=_LAUNCHER_ADVICE))
            return
        failed_at: float | None = None
        while launched.alive:
            self._waiting.wait(self._tick)
            results.read()
            self._hear()  # after it: what was read may have failed of what ends the task
            self._record(results)
            self._cancel()
            if failed_at is None and any(results.failure(item) for item in self._left):
                failed_at = monotonic()
            if self._is_over(results, failed_at):
                results.ending = True
                launched.end()
        results.read(final=True)
        self._hear()
        self._record(results)
        self._writer.flush()
        self._peak = max(self._peak, results.peak)
        if self._stop_at is None:
            self._conclude(results, launched)

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

    def _is_over(self, results: RankResults, failed_at: float | None) -> bool:
        """Whether the launch is to be ended: what it could still do is not wanted, or not to be waited for."""
        now = monotonic()
        if self._stop_at is not None:
            return now >= self._stop_at
        if self._limit.may_requeue and self._recorded and self._limit.is_here:
            self._requeue = True
            return True
        if failed_at is not None and now >= failed_at + GRACE_SECONDS:
            return True
        return results.death is not None or self._runs_cancelled(results)

    def _record(self, results: RankResults) -> None:
        """Record the items that all ranks have come to the end of."""
        for item in [item for item in self._left if results.is_complete(item)]:
            failure = results.failure(item)
            if failure is not None and self._stop_at is not None:
                continue  # perhaps no more than the end from outside
            self._settle(item)
            self._writer.copy(failure or results.value(item), item)
            self._recorded += 1

    def _settle(self, item: int) -> None:
        self._left.remove(item)

    def _runs_cancelled(self, results: RankResults) -> bool:
        """Whether a rank has come to an item that nobody wants."""
        return any(
            item in self._cancelled and results.is_running(item, self._left[:i]) for i, item in enumerate(self._left)
        )

    def _cancel(self) -> None:
        for _, items in self._cancellations.new():
            self._cancelled.update(item for item in self._left if item in items)

    # The end of a launch.

    def _conclude(self, results: RankResults, launched: Launched) -> None:
        """Find what the end of a launch means for the items that are left."""
        if not self._left:
            return
        before = len(self._left)
        if results.death is not None:  # first of all: what the others raised may have come of it
            self._conclude_death(results.death)
        if self._stop_at is not None:
            return
        for item in self._left.copy():
            failure = results.failure(item)
            if failure is not None:
                self._settle(item)
                self._writer.copy(failure, item)
        self._left = [item for item in self._left if item not in self._cancelled]
        if len(self._left) == before and not self._requeue:
            self._conclude_silence(results, launched)

    def _conclude_death(self, died: dict[str, Any]) -> None:
        if not died["signal"] or self._doubt():
            item = died["item"] if died["item"] in self._left else self._left[0]  # it may have died at its very end
            self._fail(_error_of(died, self._ranks.number), item if died["loaded"] else None)

    def _conclude_silence(self, results: RankResults, launched: Launched) -> None:
        """Find what it means that the ranks are gone without a word; where none had started they get another launch."""
        began = bool(results.began)
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
        located = error.for_item(item).located(task=self._task, node=system.node_name())
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


_PATIENCE = 10.0
"""Seconds that a launcher has for ending its ranks, more than srun takes, before it is killed itself."""


class Launched:
    """What was started for one launch.

    Attributes:
        ending: whether it has been told to end.
        log: what it says.
    """

    def __init__(self, plan: RanksPlan, words: Sequence[str]) -> None:
        """Start the launcher; without one, start each rank.

        Raises:
            OSError: it cannot be started.
        """
        self.ending = False
        self.log = Log()
        self._kill_at = 0.0
        self._processes: list[subprocess.Popen[bytes]] = []
        for rank in range(1 if plan.launcher else plan.number):
            env = None if plan.launcher else {**os.environ, RANK: str(rank), RANKS: str(plan.number)}
            self._processes.append(subprocess.Popen([*plan.launcher, *plan.command, *words], env=env))

    @property
    def alive(self) -> bool:
        """Whether anything of it runs; where one of several ranks has failed, the others are made to end."""
        codes = [process.poll() for process in self._processes]
        if any(codes) and None in codes:
            self.end()
        return None in codes

    def end(self) -> None:
        """Make it end; to be called again until it has."""
        if not self.ending:
            self.ending = True
            self._kill_at = monotonic() + _PATIENCE
            self._signal(signal.SIGTERM)
        elif monotonic() >= self._kill_at:
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)

    @property
    def status(self) -> int:
        """The exit status once it has ended: that of a process that failed, else 0; negative for a signal."""
        return next((process.returncode for process in self._processes if process.returncode), 0)


class RankResults:
    """What the ranks of one launch have recorded so far.

    Attributes:
        death: what the rank said of itself that died first, or None; the others may have died of that.
        ending: whether the ranks are being ended: then a death is nothing of their own.
    """

    def __init__(self, files: list[OutcomeFile], launch: int) -> None:
        """Begin; the files are read on from where they have been read before."""
        self._files = files
        self._launch = launch
        self.death: dict[str, Any] | None = None
        self.ending = False
        self._outcomes: list[dict[int, Recorded]] = [{} for _ in files]

    def read(self, *, final: bool = False) -> None:
        """Take in what is new; *final* says that nothing comes after it."""
        for file, outcomes in zip(self._files, self._outcomes, strict=True):
            for found in file.read(final=final):
                if not isinstance(found, Damage):
                    outcomes.update(dict.fromkeys(range(found.header.first, found.header.stop), found))
        if self.death is None and not self.ending:
            self.death = self._first_death()

    def _notes(self) -> Iterable[dict[str, Any]]:
        return (note for file in self._files for note in file.notes if note["launch"] == self._launch)

    @property
    def began(self) -> int:
        """How many ranks have got as far as their own files."""
        return sum("started" in note for note in self._notes())

    @property
    def peak(self) -> int:
        """The most memory that the ranks of one node held together, in bytes, as far as they could say."""
        peaks: Counter[str] = Counter()
        for file in self._files:
            notes = [note for note in file.notes if note["launch"] == self._launch]
            where = next((note["node"] for note in notes if "node" in note), "")
            peaks[where] += sum(note.get("peak", 0) for note in notes)
        return max(peaks.values(), default=0)

    def _first_death(self) -> dict[str, Any] | None:
        deaths = [note["died"] for note in self._notes() if "died" in note]
        return min(deaths, key=lambda died: died["time"], default=None)

    def is_complete(self, item: int) -> bool:
        """Whether all ranks have come to the end of an item."""
        return all(item in outcomes for outcomes in self._outcomes)

    def failure(self, item: int) -> Recorded | None:
        """Return what the lowest rank recorded that failed an item."""
        found = (outcomes[item] for outcomes in self._outcomes if item in outcomes)
        return next((each for each in found if each.header.kind == Kind.FAILURE), None)

    def value(self, item: int) -> Recorded:
        """Return what rank 0 recorded of an item."""
        return self._outcomes[0][item]

    def is_running(self, item: int, before: Iterable[int]) -> bool:
        """Whether some rank has begun an item, having come to the end of all *before* it in its launch."""
        before = list(before)
        return any(item not in each and all(other in each for other in before) for each in self._outcomes)
