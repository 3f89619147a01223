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
import re
import signal
import socket
import sys
import time
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch import caps, context
from slurmlaunch.errors import MissingPackage, NodeStartError, SlurmlaunchError
from slurmlaunch.node import system
from slurmlaunch.node.events import Signals, Waiting
from slurmlaunch.node.worker import flush, go_first, line_buffer, take_signals
from slurmlaunch.outcome import Bundle, Failure, failure_of
from slurmlaunch.runfolder.function import Work
from slurmlaunch.runfolder.journal import round_of_task
from slurmlaunch.runfolder.layout import Manifest, RunFolder, Status
from slurmlaunch.runfolder.outcomes import AttemptWriter, Launch, OutcomeFile
from slurmlaunch.runfolder.records import Damage, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slurmlaunch.runfolder.journal import Round

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
    world: RankEnvironment

    @classmethod
    def of(cls, arguments: list[str]) -> _Place:
        folder = RunFolder(Path(arguments[1]).absolute())
        task, attempt, number = map(int, arguments[2:])
        manifest, its_round = Manifest.read(folder), round_of_task(folder, task)
        world = RankEnvironment.of(os.environ)
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

    def __init__(self, place: _Place, writer: AttemptWriter) -> None:
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
        system.end_with_parent()
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
        note = f"on rank {self._place.world.rank} of {self._place.world.ranks}, node {system.node_name()}"
        error = failure.error
        notes = error.__dict__.setdefault("__notes__", [])
        notes.append(note)  # what add_note() does, which Python 3.10 does not have
        if isinstance(error, ModuleNotFoundError) and error.name == "mpi4py":  # the user's own import
            notes.append(str(MissingPackage.of("MPI", "mpi4py")))
        return failure.dump()


class _Guard:
    """The parent: waits for the child, and tells how it died."""

    def __init__(self, place: _Place, writer: AttemptWriter) -> None:
        """Begin before the child does: what is in the file now is of earlier launches."""
        self._place, self._writer = place, writer
        self._waiting = Waiting()
        self._signals = Signals(self._waiting)
        self._signals.listen()
        self._oom_kills = system.oom_kills()
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
        self._writer.note(launch=self._place.launch.number, peak=usage.ru_maxrss * system.RUSAGE_UNIT)
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
            "node": system.node_name(),
            "loaded": any("loaded" in note for note in file.notes),
            "item": left[0] if left else None,
            "signal": -code if code < 0 else None,
            "status": code if code >= 0 else None,
            "oom": code == -signal.SIGKILL and system.oom_kills() > self._oom_kills,
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


def main(arguments: list[str]) -> int:
    """Be a rank; return the exit status."""
    if len(arguments) != _ARGUMENTS or not all(map(str.isdecimal, arguments[2:])):
        print("usage: python -m slurmlaunch.node.rank RUN_FOLDER TASK ATTEMPT LAUNCH", file=sys.stderr)  # noqa: T201
        return Status.NODE
    try:
        place = _Place.of(arguments)
        writer = AttemptWriter(place.file, place.attempt, place.folder.salt)
    except (SlurmlaunchError, OSError) as error:
        print(f"slurmlaunch: {error}", file=sys.stderr)  # noqa: T201
        return Status.NODE
    writer.note(launch=place.launch.number, rank=place.world.rank, node=system.node_name(), started=time.time())
    guard = _Guard(place, writer)
    child = os.fork()
    if not child:
        Signals.forget()
        return _Caller(place, writer).run()
    return guard.run(child)


RANK, RANKS = "SLURMLAUNCH_RANK", "SLURMLAUNCH_RANKS"
"""Of a rank that the supervisor started itself, without a launcher."""

# Each launcher's own, the inner one first: within a job of Slurm's an mpirun starts its own daemons
# by srun, so that what Slurm says there is said of those.
_OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
_HYDRA = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID")

_LOOPBACK = "127.0.0.1"


class RankEnvironment(NamedTuple):
    """Which of the ranks a process is.

    Attributes:
        rank: its number among all.
        ranks: how many there are.
        local_rank: its number among those of its node.
        local_ranks: how many these are.
        node_rank: the number of its node among those of the ranks.
    """

    rank: int
    ranks: int
    local_rank: int
    local_ranks: int
    node_rank: int

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> RankEnvironment:
        """Read what the launcher says.

        Raises:
            NodeStartError: it says nothing that is known.
        """
        if RANK in environ:
            rank, ranks = int(environ[RANK]), int(environ[RANKS])
            return cls(rank, ranks, rank, ranks, 0)
        for names in (_OPEN_MPI, _HYDRA):
            if all(name in environ for name in names):
                rank, ranks, local_rank, local_ranks = (int(environ[name]) for name in names)
                return cls(rank, ranks, local_rank, local_ranks, rank // local_ranks)
        if all(name in environ for name in _SRUN):
            rank, ranks, local_rank, node = (int(environ[name]) for name in _SRUN)
            return cls(rank, ranks, local_rank, _tasks_per_node(environ)[node], node)
        raise NodeStartError(
            "the launcher does not tell the ranks which they are",
            advice="srun, Open MPI's mpirun and MPICH's or Intel's mpiexec do: name one of them, launcher=[...].",
        )

    def variables(self, environ: Mapping[str, str], host: str, port: int) -> dict[str, str]:
        """Return the variables by which PyTorch and others find themselves and each other.

        Args:
            environ: the launcher's variables.
            host: the supervisor's machine, where rank 0 is if the launcher says nothing else.
            port: where the ranks may meet on the machine of rank 0.
        """
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.ranks),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_ranks),
            "NODE_RANK": str(self.node_rank),
            "MASTER_ADDR": self._master(environ, host),
            "MASTER_PORT": str(port),
        }

    def _master(self, environ: Mapping[str, str], host: str) -> str:
        """Return the address of rank 0's machine, which each rank finds out without the others."""
        if self.ranks == self.local_ranks:
            return _LOOPBACK
        nodes = environ.get("SLURM_STEP_NODELIST")
        if nodes is None or environ.get("SLURM_PROCID") != str(self.rank):
            return host
        first = first_host(nodes)
        # Slurm may call a node by a name that nobody else knows. Then the batch script's
        # machine, which srun was called on, is the first of the job's.
        return first if _is_known(first) else environ.get("SLURM_LAUNCH_NODE_IPADDR", host)


def first_host(nodes: str) -> str:
    """Return the first name in a list as Slurm writes it: ``n07`` of ``n[07-09,11],m1``."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes, maxsplit=1)[0])


def _tasks_per_node(environ: Mapping[str, str]) -> list[int]:
    """Read ``2(x3),1``: two tasks on each of three nodes, one on the fourth."""
    numbers: list[int] = []
    for part in environ["SLURM_STEP_TASKS_PER_NODE"].split(","):
        tasks, _, times = part.rstrip(")").partition("(x")
        numbers += [int(tasks)] * int(times or 1)
    return numbers


def _is_known(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv))
