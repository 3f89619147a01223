"""The supervisor of a task with ranks: it launches them, and records outcomes from their files.

::

    supervisor ──starts──► launcher (srun) ──starts──► ranks, on all nodes of the task
         ▲                                                │
         └── reads ──────────── their files ◄── append ───┘

The ranks run the items of a launch on their own, and MPI synchronizes them where
the function needs it. An item has an outcome once all ranks have one. Near the time
limit they get USR1: a function with ``checkpoint()`` then records one on rank 0, with
which the task is requeued, and any other may do as it likes. A failure
ends the launch, since the other ranks may wait forever for the one that failed;
they have a moment to finish the item. The remaining items, without the one that
a rank died of, get another launch.

Used by `__main__`; runs no user code. See `task` for ends from outside.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from collections import Counter
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from slurmlaunch import caps
from slurmlaunch.errors import SIGNALLED, NodeStartError, OutOfMemory, StorageFailure, WorkerDied, signal_name
from slurmlaunch.node import system
from slurmlaunch.node.rank_environment import RANK, RANKS
from slurmlaunch.node.system import kill_descendants, log_size, log_tail
from slurmlaunch.node.task import CONFIRM_SECONDS, TaskSupervisor
from slurmlaunch.runfolder.outcomes import Launch, OutcomeFile, make_rank_files
from slurmlaunch.runfolder.records import Damage, Kind
from slurmlaunch.runfolder.storage import STORAGE, errno_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurmlaunch.errors import ItemError
    from slurmlaunch.runfolder.layout import Manifest, RunFolder
    from slurmlaunch.runfolder.outcomes import Recorded
    from slurmlaunch.runfolder.plan import RanksPlan
    from slurmlaunch.runfolder.rounds import Round

_LAUNCH_TRIES = 2
"""How often ranks are launched if none starts: Slurm may fail at a step, and create the next one."""

_LAUNCHER_PATIENCE = 10.0
"""Seconds for a launcher to end its ranks, more than srun takes, before it is killed itself."""

_TICK = 0.25
_READS_PER_SECOND = 200
"""How many of the ranks' files are read each second at most."""

_PORTS = range(16384, 32768)
"""Above the well-known ports, below those that Linux gives to clients (``ip_local_port_range``)."""

_LAUNCHER_ADVICE = "Name what starts MPI programs here: launcher=['mpiexec'], say; by default it is srun on Slurm."


class MpiSupervisor(TaskSupervisor):
    """Runs the items of one task with its ranks."""

    _grace_seconds = 2.0
    """Also how long the other ranks may continue after one has failed an item."""

    def __init__(self, folder: RunFolder, manifest: Manifest, round_: Round, task: int, ranks: RanksPlan) -> None:
        super().__init__(folder, manifest, round_, task)
        attempt = self._writer.attempt
        paths = make_rank_files(folder, round_.number, task, attempt, ranks.number, self._patience)
        self._files = [OutcomeFile(path, folder.salt) for path in paths]
        self._ranks = ranks
        self._left: list[int] = []
        self._recorded = self._unstarted = 0
        self._longest = 0.0  # seconds of a launch
        self._overdue = False
        self._resumable: set[int] = set()
        self._tick = max(_TICK, ranks.number / _READS_PER_SECOND)

    def _run_items(self) -> None:
        number = 0
        while not self._queue.closed and (self._queue or self._queue.refill(1)):
            if self._limit.is_too_short(self._longest):
                self._queue.closed = True
                break
            began = monotonic()
            before = self._queue.left
            self._left = list(self._queue.take(len(self._queue)))
            self._run_launch(Launch(number, tuple(self._left), socket.gethostname(), _free_port()))
            number += 1
            self._longest = max(self._longest, monotonic() - began)
            self._queue.put_back(self._left)
            if self._queue.left == before and not (self._queue.closed or self._unstarted):
                self._give_up(self._dump(NodeStartError("the ranks recorded no outcome at all")))

    def _run_launch(self, launch: Launch) -> None:
        launch.note(self._writer)
        results = RankResults(self._files, launch.number)
        arguments = (str(self._folder.path), str(self._task), str(self._writer.attempt), str(launch.number))
        try:
            processes = RankProcesses(self._ranks, arguments)
        except OSError as error:
            self._fail(NodeStartError(f"the ranks cannot be launched: {error}", advice=_LAUNCHER_ADVICE), None)
            return
        done_at: float | None = None
        while processes.alive:
            self._events.wait(self._tick)
            self._read(results)
            self._cancel()
            if self._limit.is_near and self._limit.may_requeue:
                processes.warn()
            if done_at is None and not self._left:
                done_at = monotonic()
                self._writer.flush()
            if self._decide_end(results, done_at):
                if not (self._left or results.failed_at or self._stop_at or results.ending):
                    system.log(system.describe_end("a rank", -signal.SIGALRM))
                results.ending = True
                processes.end()
        kill_descendants()
        self._read(results, final=True)
        self._writer.flush()
        self._peak = max(self._peak, results.peak)
        if self._stop_at is None:
            self._conclude(results, processes)

    def _read(self, results: RankResults, *, final: bool = False) -> None:
        """Read the ranks' files; record the items that all ranks have finished."""
        self._patience.run(partial(results.read, final=final))
        self._check_end()  # after it: a failure that was read may come from the end of the task
        for item, checkpoint in results.checkpoints.items():
            if item in self._left and item not in self._resumable:
                self._writer.copy(checkpoint, item)
                self._resumable.add(item)
        for item in self._left.copy():
            outcome = results.outcome(item)
            if outcome and (outcome.header.kind != Kind.FAILURE or self._stop_at is None):
                self._copy(outcome, item)
                self._recorded += 1

    def _copy(self, outcome: Recorded, item: int) -> None:
        self._left.remove(item)
        self._writer.copy(outcome, item)

    def _decide_end(self, results: RankResults, done_at: float | None) -> bool:
        """Return whether the launch is to be ended now; if the time limit is why, no further items are begun."""
        now, failed_at = monotonic(), results.failed_at
        if self._stop_at is not None:
            return now >= self._stop_at
        if done_at is not None and failed_at is None:
            return now >= done_at + caps.END_SECONDS
        if self._limit.of_each_item and self._limit.is_due and not self._resumable:
            self._overdue = not self._recorded
            self._queue.closed = True
            return True
        if self._resumable or (self._limit.may_requeue and self._recorded and self._limit.is_due):
            self._queue.closed = True
            return True
        if failed_at is not None and now >= failed_at + self._grace_seconds:
            return True
        return results.death is not None or self._runs_cancelled(results)

    def _runs_cancelled(self, results: RankResults) -> bool:
        cancelled = self._queue.cancelled
        return any(item in cancelled and results.is_running(item, self._left[:i]) for i, item in enumerate(self._left))

    # The end of a launch.

    def _conclude(self, results: RankResults, processes: RankProcesses) -> None:
        """Decide what happened to the items that the launch left."""
        if not self._left:
            return
        before = len(self._left)
        if self._overdue:
            self._fail_overdue(self._left.pop(0))
            return
        if results.death is not None:  # first: what the other ranks raised may be a consequence
            self._conclude_death(results.death)
        if self._stop_at is not None:
            return
        for item in self._left.copy():
            failure = results.failure(item)
            if failure is not None and item not in self._resumable:  # else the end of rank 0 may have caused it
                self._copy(failure, item)
        self._left = [item for item in self._left if item not in self._queue.cancelled]
        if len(self._left) < before or self._queue.closed or results.failed_at:
            return
        # The ranks ended without a report. If none had started, they get another launch.
        began = results.began
        self._unstarted = 0 if began else self._unstarted + 1
        if not 0 < self._unstarted < _LAUNCH_TRIES:
            self._fail(_launcher_error(self._ranks, processes, began=began), self._left[0] if began else None)

    def _conclude_death(self, death: dict[str, Any]) -> None:
        if death["signal"] and not self._is_confirmed():
            return
        item = death["item"] if death["item"] in self._left else self._left[0]  # it may have died at the item's end
        self._fail(_error_of(death, self._ranks.number), item if death["loaded"] else None)

    def _is_confirmed(self) -> bool:
        """Wait for a SIGTERM that would explain a death by signal; return True if none arrives."""
        deadline = monotonic() + CONFIRM_SECONDS
        while self._stop_at is None and (seconds := deadline - monotonic()) > 0:
            self._events.wait(seconds)
            self._check_end()
        return self._stop_at is None

    def _fail(self, error: ItemError, item: int | None) -> None:
        """Record the failure of an item, or of all that are left if the ranks had begun none."""
        if isinstance(error, StorageFailure):
            self._patience.hurried = True  # the ranks have waited
        if item is not None:
            self._left.remove(item)
            self._writer.failure(item, self._dump(error, item))
            return
        self._queue.put_back(self._left)
        self._left = []
        self._give_up(self._dump(error))


def _free_port() -> int:
    """Return a random port that is free now on this machine: tasks side by side, and other users, take others."""
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            break
    return port


class RankResults:
    """The outcomes and notes that the ranks of one launch have recorded so far.

    Attributes:
        failed_at: when a rank was first seen to have failed an item, if one has.
        death: the report on the rank that died first, or None; others may have died because of it.
        ending: the supervisor ends the ranks: deaths from now on are its own doing.
    """

    def __init__(self, files: list[OutcomeFile], launch: int) -> None:
        """Read the files from where earlier launches ended."""
        self._files, self._launch = files, launch
        self.failed_at: float | None = None
        self.death: dict[str, Any] | None = None
        self.ending = False
        self._outcomes: list[dict[int, Recorded]] = [{} for _ in files]

    def read(self, *, final: bool = False) -> None:
        """Read new records; *final* means that none follow."""
        for file, outcomes in zip(self._files, self._outcomes, strict=True):
            for found in file.read(final=final):
                if not isinstance(found, Damage):
                    outcomes[found.header.first] = found  # a rank's records have one item each
                    if found.header.kind == Kind.FAILURE and self.failed_at is None:
                        self.failed_at = monotonic()
        if self.death is None and not self.ending:
            deaths = [note["died"] for file in self._files for note in self._notes(file) if "died" in note]
            self.death = min(deaths, key=lambda death: float(death["time"]), default=None)

    def _notes(self, file: OutcomeFile) -> list[dict[str, Any]]:
        return [note for note in file.notes if note.get("launch") == self._launch]

    @property
    def began(self) -> bool:
        """True once a rank has opened its file."""
        return any("started" in note for file in self._files for note in self._notes(file))

    @property
    def peak(self) -> int:
        """The most memory, in bytes, that the ranks of one node used together, as far as they reported it."""
        peaks: Counter[str] = Counter()
        for file in self._files:
            notes = self._notes(file)
            node = next((note["node"] for note in notes if "node" in note), "")
            peaks[node] += sum(note.get("peak", 0) for note in notes)
        return max(peaks.values(), default=0)

    def failure(self, item: int) -> Recorded | None:
        """Return the failure of an item on the lowest rank that failed it, or None."""
        found = (outcomes[item] for outcomes in self._outcomes if item in outcomes)
        return next((each for each in found if each.header.kind == Kind.FAILURE), None)

    def outcome(self, item: int) -> Recorded | None:
        """Return a failure of an item, else its value on rank 0; None before all ranks have finished it."""
        if not all(item in outcomes for outcomes in self._outcomes):
            return None
        return self.failure(item) or self._outcomes[0][item]

    @property
    def checkpoints(self) -> dict[int, Recorded]:
        """The checkpoints that rank 0 has recorded in this attempt, by item."""
        return self._files[0].checkpoints

    def is_running(self, item: int, before: Sequence[int]) -> bool:
        """Return True if a rank runs an item: it has finished all those *before* it."""
        return any(item not in each and each.keys() >= set(before) for each in self._outcomes)


class RankProcesses:
    """The processes that this node started for one launch: a launcher such as srun, or the ranks."""

    def __init__(self, plan: RanksPlan, arguments: Sequence[str]) -> None:
        """Start the launcher, or each rank if there is no launcher.

        Raises:
            OSError: a program cannot be started.
        """
        self._log_start = log_size()
        self._kill_at: float | None = None
        self._warned = False
        self._processes: list[subprocess.Popen[bytes]] = []
        for rank in range(1 if plan.launcher else plan.number):
            env = None if plan.launcher else {**os.environ, RANK: str(rank), RANKS: str(plan.number)}
            self._processes.append(subprocess.Popen([*plan.launcher, *plan.command, *arguments], env=env))

    @property
    def alive(self) -> bool:
        """True while one of them runs; once one has failed, the others are ended."""
        codes = [process.poll() for process in self._processes]
        if any(codes) and None in codes:
            self.end()
        return None in codes

    def warn(self) -> None:
        """Tell the ranks, once, that the time limit is near: every launcher passes USR1 on."""
        if not self._warned:
            self._warned = True
            self._signal(signal.SIGUSR1)

    def end(self) -> None:
        """End them: to be called again until they have ended."""
        if self._kill_at is None:
            self._kill_at = monotonic() + _LAUNCHER_PATIENCE
            self._signal(signal.SIGTERM)
        elif monotonic() >= self._kill_at:
            self._signal(signal.SIGKILL)

    def log_tail(self) -> str:
        """Return the last lines that they wrote to the task's log."""
        return log_tail(self._log_start)

    def _signal(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)

    @property
    def status(self) -> int:
        """The exit status of one that failed, else 0; negative for a signal."""
        return next((process.returncode for process in self._processes if process.returncode), 0)


def _error_of(death: dict[str, Any], ranks: int) -> ItemError:
    """Return the error for the death of a rank, as reported on its own node."""
    rank = death["rank"]
    who = f"rank {rank} of {ranks}"
    if (failure := _storage_failure(death["status"], who)) is not None:
        return failure.located(node=death["node"])
    if death["oom"]:
        return OutOfMemory(f"{who} hit the memory limit", rank=rank).located(node=death["node"])
    return WorkerDied.of(death["signal"], death["status"], who, rank=rank).located(node=death["node"])


def _storage_failure(status: int | None, who: str) -> StorageFailure | None:
    """Return the error of a rank that ended because of the storage."""
    if status not in STORAGE:
        return None
    return StorageFailure.of(errno_of(status), f"{who} could not write into the run folder, or read from it")


def _launcher_error(ranks: RanksPlan, processes: RankProcesses, *, began: bool) -> ItemError:
    """Return the error for ranks that ended without a report."""
    launcher, status = ranks.launcher[0] if ranks.launcher else "they", processes.status
    number = _signal_in(status)
    ended = f"ended with exit status {status}" if number is None else f"was ended by {signal_name(number)}"
    if (failure := _storage_failure(status, "a rank")) is not None:
        return failure
    tail = processes.log_tail()
    log = f"; the end of the log:\n{tail}\n" if tail else ""
    if not began:
        what = f"the ranks did not start: {launcher} {ended}{log}"
        return NodeStartError(what, advice=_LAUNCHER_ADVICE, exit_code=status)
    code = status if number is None else None
    return WorkerDied(f"the ranks ended too early: {launcher} {ended}{log}", signal=number, exit_code=code)


def _signal_in(status: int) -> int | None:
    """Return the signal that a status stands for: its negative, or as srun and shells write it, 128 more."""
    number = -status if status < 0 else status - SIGNALLED
    return number if number in signal.valid_signals() else None
