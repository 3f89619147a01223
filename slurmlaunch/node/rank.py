"""``python -m slurmlaunch.node.rank RUN_FOLDER TASK ATTEMPT LAUNCH``: be one rank of a task.

Two processes. The one that was launched stays outside the user's code, and tells
how the other died: which signal or exit status, on which node, at which item. Its
forked child has the launcher's descriptors and variables, so that MPI starts up in
it, calls the function for each item of the launch, and ends as any Python does, so
that MPI is taken down too.

A rank that fails an item goes no further: the others may be waiting for it. What
is left the supervisor gives to a further launch.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch import caps, context
from slurmlaunch.errors import MissingPackage, NodeStartError, SlurmlaunchError
from slurmlaunch.node import lifeline, memory
from slurmlaunch.node.waiting import Signals, Waiting
from slurmlaunch.node.worker import flush, go_first, line_buffer, take_signals
from slurmlaunch.node.world import RANK, RANKS, World
from slurmlaunch.outcome import Bundle, Failure, failure_of
from slurmlaunch.runfolder.layout import RunFolder, Status
from slurmlaunch.runfolder.manifest import Manifest
from slurmlaunch.runfolder.outcomes import OutcomeFile
from slurmlaunch.runfolder.ranks import Launch, RankWriter
from slurmlaunch.runfolder.records import Damage, Kind
from slurmlaunch.runfolder.rounds import round_of_task
from slurmlaunch.runfolder.work import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurmlaunch.runfolder.rounds import Round

GRACE_SECONDS = 1.0
"""How long an item may go on after SIGTERM."""

_FLUSH_EVERY = 1.0
_NOTE_PATIENCE, _NOTE_TICK = 70.0, 0.1
"""For how long a network file system may hide what the supervisor wrote before the launch, and how often to look."""

_SIGNALLED = 128
_ARGUMENTS = 5


class _Place(NamedTuple):
    """Where a rank stands: all that it is told at its start."""

    folder: RunFolder
    manifest: Manifest
    round: Round
    task: int
    attempt: int
    launch: Launch
    world: World

    @classmethod
    def of(cls, arguments: list[str]) -> _Place:
        folder = RunFolder(Path(arguments[1]).absolute())
        task, attempt, number = map(int, arguments[2:])
        manifest, its_round = Manifest.read(folder), round_of_task(folder, task)
        world = World.of(os.environ)
        wanted = its_round.plan.ranks.number if its_round.plan.ranks else 1
        if world.ranks != wanted:
            raise NodeStartError(f"the launcher started {world.ranks} ranks, and the task has {wanted}")
        launch = _launch(OutcomeFile(folder.outcome_file(task, attempt), folder.salt), number)
        return cls(folder, manifest, its_round, task, attempt, launch, world)

    @property
    def file(self) -> Path:
        return self.folder.rank_file(self.round.number, self.task, self.attempt, self.world.rank)


def _launch(file: OutcomeFile, number: int) -> Launch:
    deadline = monotonic() + _NOTE_PATIENCE
    while (launch := Launch.read(file, number)) is None:
        if monotonic() > deadline:
            raise NodeStartError(f"launch {number} is not written down in {file.path}")
        time.sleep(_NOTE_TICK)
    return launch


class _Caller:
    """The child: calls the function."""

    def __init__(self, place: _Place, writer: RankWriter) -> None:
        self._place = place
        self._writer = writer
        plan = place.round.plan
        self._task = context.Task(
            place.folder.path, place.task, place.attempt, threads=plan.threads, seed=place.manifest.seed
        )
        self._task.rank, self._task.ranks = place.world.rank, place.world.ranks

    def run(self) -> int:
        """Run the items; return the exit status."""
        items = self._place.launch.items
        self._become_ours()
        try:
            work = Work(self._place.folder, self._place.manifest)
        except NodeStartError as error:
            data = self._located(Failure(error, failure_of(error.__cause__ or error).traceback))
            for item in items:
                self._writer.failure(item, data)
            return 0
        self._writer.note(launch=self._place.launch.number, loaded=True)
        for item in items:
            if not self._run(work, item) and item != items[-1]:
                self._writer.flush()
                while True:
                    signal.pause()  # its end is the supervisor's decision, as the others' is
        self._writer.close()
        return 0

    def _become_ours(self) -> None:
        lifeline.end_with_parent()
        take_signals()
        go_first()
        place, launch = self._place, self._place.launch
        told = place.world.variables(os.environ, launch.host, launch.port)
        users = place.round.plan.options.get("env", {})
        for name in (RANK, RANKS):
            os.environ.pop(name, None)  # not for ranks of tasks that are submitted from here
        caps.apply(place.round.plan.threads)
        caps.set_ours({name: value for name, value in told.items() if name not in users})
        context.swap(self._task)
        line_buffer(whole=True)  # the ranks say it side by side

    def _run(self, work: Work, item: int) -> bool:
        pid, self._task.item = os.getpid(), item
        kind, data = work.run(item)
        succeeded = kind != Kind.FAILURE
        flush()
        if os.getpid() != pid:  # the function forked, and returned in the copy too
            os._exit(not succeeded)
        if succeeded or isinstance(data, Bundle):
            self._writer.value(item, data)
        else:
            self._writer.failure(item, self._located(Failure.load(data)))
        return succeeded

    def _located(self, failure: Failure) -> bytes:
        """Have a failure say whose it is."""
        note = f"on rank {self._place.world.rank} of {self._place.world.ranks}, node {node()}"
        error = failure.error
        notes = error.__dict__.setdefault("__notes__", [])
        notes.append(note)  # what add_note() does, which Python 3.10 does not have
        if isinstance(error, ModuleNotFoundError) and error.name == "mpi4py":  # the user's own import
            notes.append(str(MissingPackage.of("MPI", "mpi4py")))
        return failure.dump()


class _Guard:
    """The parent: waits for the child, and tells how it died."""

    def __init__(self, place: _Place, writer: RankWriter) -> None:
        """Begin before the child does: what is in the file now is of earlier launches."""
        self._place, self._writer = place, writer
        self._waiting = Waiting()
        self._signals = Signals(self._waiting)
        self._signals.listen()
        self._oom_kills = memory.oom_kills()
        self._start = writer.path.stat().st_size

    def run(self, child: int) -> int:
        """Wait for the end of the child; return the exit status of the rank."""
        kill_at: float | None = None
        while True:
            pid, status, usage = os.wait4(child, os.WNOHANG)
            if pid:
                break
            self._waiting.wait(_FLUSH_EVERY if kill_at is None else max(0.0, kill_at - monotonic()))
            self._writer.adopt(failed=False)
            self._writer.flush()
            if self._signals.terminated and kill_at is None:
                kill_at = monotonic() + GRACE_SECONDS
            if kill_at is not None and monotonic() >= kill_at:
                os.kill(child, signal.SIGKILL)
        self._cut_torn()
        self._writer.adopt(failed=False)
        self._writer.note(launch=self._place.launch.number, peak=usage.ru_maxrss * memory.RUSAGE_UNIT)
        if self._signals.terminated:
            return Status.STOPPED
        return self._told(os.waitstatus_to_exitcode(status))

    def _cut_torn(self) -> None:
        """Cut off what the child did not finish: what is appended next would lie inside it, to a reader."""
        file = OutcomeFile(self._writer.path, self._place.folder.salt)
        file.position = self._start
        for _ in file.read():
            pass  # up to where whole records go
        os.truncate(self._writer.path, file.position)

    def _told(self, code: int) -> int:
        """Write down a death, if it was one; return the exit status."""
        file = OutcomeFile(self._writer.path, self._place.folder.salt)
        file.position = self._start
        left = self._left(file)
        if code == 0 and not left:
            return 0
        died: dict[str, Any] = {
            "rank": self._place.world.rank,
            "node": node(),
            "loaded": any("loaded" in note for note in file.notes),
            "item": left[0] if left else None,
            "signal": -code if code < 0 else None,
            "status": code if code >= 0 else None,
            "oom": code == -signal.SIGKILL and memory.oom_kills() > self._oom_kills,
            "time": time.time(),
        }
        self._writer.note(launch=self._place.launch.number, died=died)
        self._writer.close()
        return _SIGNALLED - code if code < 0 else code or 1

    def _left(self, file: OutcomeFile) -> Sequence[int]:
        """Return the items that the child has not come to the end of."""
        done: set[int] = set()
        for found in file.read(final=True):
            if not isinstance(found, Damage):
                done.update(range(found.header.first, found.header.stop))
        return [item for item in self._place.launch.items if item not in done]


def node() -> str:
    """Return the name of this node, Slurm's where it has one."""
    return os.environ.get("SLURMD_NODENAME", os.uname().nodename)


def main(arguments: list[str]) -> int:
    """Be a rank; return the exit status."""
    if len(arguments) != _ARGUMENTS or not all(map(str.isdecimal, arguments[2:])):
        print("usage: python -m slurmlaunch.node.rank RUN_FOLDER TASK ATTEMPT LAUNCH", file=sys.stderr)  # noqa: T201
        return Status.NODE
    try:
        place = _Place.of(arguments)
        writer = RankWriter(place.file, place.attempt, place.folder.salt)
    except (SlurmlaunchError, OSError) as error:
        print(f"slurmlaunch: {error}", file=sys.stderr)  # noqa: T201
        return Status.NODE
    writer.note(launch=place.launch.number, rank=place.world.rank, node=node(), started=time.time())
    guard = _Guard(place, writer)
    child = os.fork()
    if not child:
        Signals.forget()
        return _Caller(place, writer).run()
    return guard.run(child)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
