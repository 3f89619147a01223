"""``python -P -m slurmlaunch.node.rank RUN_FOLDER TASK ATTEMPT LAUNCH``: one rank of a task.

The launcher (srun, mpiexec) or `mpi` starts this command; run folders of 0.1.0 name it.

It is two processes. The launched one runs no user code, and reports how the
other died: by which signal or exit status, on which node, at which item; and it
copies what the other writes into the log, and stores it by item. Its
forked child inherits the launcher's descriptors and variables, so that MPI
starts up in it; it calls the function for each item of the launch, and ends as
any Python does, so that MPI is finalized too.

The messages of the child, of one byte, say that an item is over: ``N`` if it goes
on to the next one of the launch, ``E`` if it does not; the reply ``G`` says that all
it wrote is stored. ``N`` also comes before the first item. ``O`` offers new pipes: see
`output.Streams`.

A rank that fails an item stops there, since the other ranks may be waiting for
it; the supervisor gives the remaining items to another launch.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from array import array
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from slurmlaunch import caps, context
from slurmlaunch.errors import SIGNALLED, MissingPackage, NodeStartError, SlurmlaunchError, StorageFailure
from slurmlaunch.node import finder, main_module, system
from slurmlaunch.node.channel import Connection
from slurmlaunch.node.events import Events, Signals
from slurmlaunch.node.output import Output, Streams, renew_streams
from slurmlaunch.node.rank_environment import RANK, RANKS, RankEnvironment
from slurmlaunch.node.report import FailureLog, Reporter
from slurmlaunch.outcome import Bundle, Failure, add_note, failure_of
from slurmlaunch.runfolder.changes import NETWORK_LATENCY
from slurmlaunch.runfolder.function import Work
from slurmlaunch.runfolder.interpreter import Interpreter
from slurmlaunch.runfolder.layout import RunFolder, Status
from slurmlaunch.runfolder.outcomes import AttemptWriter, Launch, OutcomeFile, Times
from slurmlaunch.runfolder.output import MAX_LOG, OutputWriter
from slurmlaunch.runfolder.records import Damage, Kind
from slurmlaunch.runfolder.rounds import read_task
from slurmlaunch.runfolder.storage import STORAGE, Patience, status_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurmlaunch.runfolder.outcomes import Recorded

_GRACE_SECONDS = 1.0
"""How long an item may continue after SIGTERM."""

_FLUSH_EVERY = 1.0
_NOTE_TICK = 0.1
"""How often to look for the supervisor's note on the launch, which a network file system may hide."""

_ARGUMENTS = 5


class _Rank:
    """One rank of one launch, and its run; made from the arguments of the command."""

    def __init__(self, path: str, task: int, attempt: int, launch: int) -> None:
        self.folder, self.task = RunFolder(Path(path).absolute()), task
        patience = Patience()
        self.manifest, self.round = read_task(self.folder, task, patience)
        self.environment = RankEnvironment.of(os.environ)
        number, ranks = self.environment.rank, self.environment.ranks
        wanted = self.round.plan.ranks.number if self.round.plan.ranks else 1
        if ranks != wanted:
            raise NodeStartError(f"the launcher started {ranks} ranks, and the task has {wanted}")
        notes = OutcomeFile(self.folder.outcome_file(task, attempt), self.folder.salt)
        self.launch = _read_launch(notes, launch, self.manifest.items)
        file = self.folder.rank_file(self.round.number, task, attempt, number)
        self.writer = patience.run(lambda: AttemptWriter(file, attempt, self.folder.salt))

    def output_writer(self) -> OutputWriter:
        """Return the writer of the file of output, which all launches of the attempt share."""
        file = self.folder.output_file(self.task, self.writer.attempt, self.environment.rank)
        limit, before = self.round.plan.options.get("max_log", MAX_LOG), 0
        if self.launch.number:
            with suppress(OSError):  # there is none
                before = file.status().st_size
        return OutputWriter(file, self.folder.salt, max(0, limit - before))


def _read_launch(file: OutcomeFile, number: int, items: int) -> Launch:
    deadline = monotonic() + NETWORK_LATENCY
    while (launch := Launch.read(file, number, items)) is None:
        if monotonic() > deadline:
            raise NodeStartError(f"launch {number} is not recorded in {file.path}")
        time.sleep(_NOTE_TICK)
    return launch


class _Caller:
    """The child: calls the function."""

    def __init__(self, rank: _Rank, connection: Connection, log: int) -> None:
        """Begin with the connection to the parent, and a descriptor of the log of the task."""
        self._rank, self._writer, self._connection = rank, rank.writer, connection
        self._asked = False  # for a checkpoint
        threads, seed = rank.round.plan.threads, rank.manifest.seed
        self._task = context.Task(rank.folder.path, rank.task, rank.writer.attempt, threads=threads, seed=seed)
        self._task.rank, self._task.ranks = rank.environment.rank, rank.environment.ranks
        self._who = f"rank {self._task.rank} of {self._task.ranks}"
        self._log = FailureLog.of_rank(self._task.ranks, rank.launch.number, log)

    def run(self) -> int:
        """Run the items of the launch; return the exit status."""
        items = self._rank.launch.items
        self._set_up()
        folder, manifest = self._rank.folder, self._rank.manifest
        main_module.install(manifest.function_in(folder))
        try:
            finder.install(finder.modules_of(folder, manifest), manifest.created)
            work = Work(folder, manifest, self._checkpoints())
        except (NodeStartError, StorageFailure) as error:
            system.end_if_interrupted(self._task.item)
            data = self._located(Failure(error, failure_of(error.__cause__ or error).traceback))
            self._log.show(f"the function on {self._who}", data)
            for item in items:
                self._writer.failure(item, data)
            return 0
        main_module.function_is_loaded()
        self._writer.note(launch=self._rank.launch.number, loaded=True)
        if work.can_checkpoint:
            for number in (signal.SIGUSR1, signal.SIGTERM):
                signal.signal(number, lambda *_: self._checkpoint(work))
        reporter = Reporter(work, self._writer.descriptor)
        self._send(b"N")
        for item in items:
            if not self._run(reporter, item) and item != items[-1]:
                self._writer.flush()
                system.wait_for_term()  # the supervisor ends all ranks together
                return 0
        self._writer.close()
        return 0

    def _checkpoints(self) -> dict[int, Recorded]:
        """Return the calls that resume items which an earlier attempt, or round, began."""
        rank, number = self._rank, self._rank.round.number
        found = dict(rank.round.checkpoints())
        for attempt in range(rank.writer.attempt):
            # In the file of rank 0, since the supervisor may have been ended before it read that.
            file = OutcomeFile(rank.folder.rank_file(number, rank.task, attempt, 0), rank.folder.salt)
            with suppress(FileNotFoundError):
                for _ in file.read(final=True):
                    pass  # only the checkpoints matter here
            found |= file.checkpoints
        return found

    def _checkpoint(self, work: Work) -> None:
        """Record the checkpoint of the running item, on rank 0, and run no further: that would only get beyond it."""
        if self._rank.environment.rank or os.getpid() != self._pid or self._asked:
            return
        self._asked = True  # the signal may come from the launcher and from the parent, and SIGTERM follows
        pickled = work.checkpoint()
        self._asked = pickled is not None
        if pickled is not None:
            system.flush_streams()
            self._writer.checkpoint(self._task.item, pickled)
            self._writer.flush()
            while True:
                signal.pause()  # the supervisor ends all ranks together

    def _set_up(self) -> None:
        self._pid = os.getpid()
        system.end_with_parent()
        system.adopt_orphans()
        context.swap(self._task)
        system.leave_signals_to_supervisor()
        system.offer_warning()
        system.prefer_for_oom_kill()
        rank, plan = self._rank, self._rank.round.plan
        variables = rank.environment.variables(os.environ, rank.launch.host, rank.launch.port)
        users = plan.options.get("env", {})
        for name in (RANK, RANKS):
            os.environ.pop(name, None)  # not for ranks of tasks that are submitted from here
        caps.apply(plan.threads)
        caps.set_ours({name: value for name, value in variables.items() if name not in users})
        system.line_buffer()
        Interpreter.from_json(self._rank.manifest.interpreter).take_over()

    def _run(self, reporter: Reporter, item: int) -> bool:
        pid, self._task.item, who = os.getpid(), item, f"item {item} on {self._who}"
        start, began = time.time(), monotonic()
        kind, data = reporter.run(item, lambda: os.getpid() != pid)
        times = Times(start, array("f", [monotonic() - began]))
        succeeded = kind != Kind.FAILURE
        if not succeeded:
            system.end_if_interrupted(item)
        system.flush_all_streams()
        self._send(b"N" if succeeded else b"E")  # before the outcome: with an outcome there is all of the output
        if not succeeded and isinstance(data, bytes):
            self._log.show(who, data)
        if succeeded or isinstance(data, Bundle):
            self._writer.value(item, data, times)
        else:
            self._writer.failure(item, self._located(Failure.load(data)), times)
        return succeeded

    def _send(self, message: bytes) -> None:
        with suppress(ConnectionError):  # the item has closed the descriptors of its process
            self._connection.send(message)
            self._connection.receive(1)
            if message == b"N" and system.has_children():
                renew_streams(self._connection)

    def _located(self, failure: Failure) -> bytes:
        """Add rank and node to a failure, and pickle it."""
        add_note(failure.error, f"on {self._who}, node {system.node_name()}")
        if isinstance(failure.error, ModuleNotFoundError) and failure.error.name == "mpi4py":  # the user's own import
            add_note(failure.error, str(MissingPackage.of("MPI", "mpi4py")))
        return failure.dump()


class _Monitor:
    """The parent: waits for the child, stores what it writes, and reports how it died."""

    def __init__(self, rank: _Rank) -> None:
        """Start before the child does: the records in the file now are those of earlier launches."""
        self._rank, self._writer = rank, rank.writer
        self._events = Events()
        self._signals = Signals(self._events)
        self._signals.listen()
        self._oom_kills = system.oom_kills()
        self._start = self._writer.path.status().st_size
        self._output = Output(self._events, rank.output_writer())
        self._streams = Streams(self._output, self._writers)
        self._connection, self._childs = Connection.pair()
        self._items: Sequence[int] = ()  # the running one, and those that follow
        self._child = 0
        self._upkeep_at = 0.0

    def become_child(self) -> _Caller:
        """Make this forked process the one that calls the function."""
        Signals.ignore()
        log = os.dup(2)
        self._connection.close()
        self._streams.take()
        return _Caller(self._rank, self._childs, log)

    def _writers(self) -> Sequence[range]:
        """Return the item that writes, if one does."""
        return [range(item, item + 1) for item in self._items[:1]]

    def _receive(self) -> None:
        message = self._connection.receive(1)
        if message is None:
            self._events.remove(self._connection.reading)
        elif message == b"O":
            self._streams.renew(self._connection, self._child)
        else:
            self._streams.empty()
            left = self._items[1:] if self._items else self._rank.launch.items
            self._items = left if message == b"N" else ()
            with suppress(BrokenPipeError):  # it has died
                self._connection.send(b"G")

    def run(self, child: int) -> int:
        """Wait for the end of the child, and end what it leaves; return the exit status of the rank."""
        system.adopt_orphans()
        self._child = child
        self._childs.close()
        self._streams.give()
        self._events.add(self._connection.reading, self._receive)
        kill_at: float | None = None
        while True:
            pid, status, usage = os.wait4(child, os.WNOHANG)
            if pid:
                break
            self._events.wait(_FLUSH_EVERY if kill_at is None else max(0.0, kill_at - monotonic()))
            system.reap_orphans({child})
            self._keep_up()
            if self._signals.warned:  # some launchers signal only their own child, this process
                self._signals.warned = False
                os.kill(child, signal.SIGUSR1)
            if self._signals.terminated and kill_at is None:
                os.kill(child, signal.SIGTERM)  # it may wait for that
                kill_at = monotonic() + _GRACE_SECONDS
            if kill_at is not None and monotonic() >= kill_at:
                os.kill(child, signal.SIGKILL)
        self._streams.leave()
        system.kill_descendants()  # some launchers wait for all that writes into the log
        self._output.close()
        code = os.waitstatus_to_exitcode(status)
        self._writer.patience.hurried = code in STORAGE  # the child has waited
        left, loaded = self._read_records()
        self._writer.adopt(failed=False)
        self._writer.note(launch=self._rank.launch.number, peak=usage.ru_maxrss * system.RUSAGE_UNIT)
        if self._signals.terminated:
            return Status.STOPPED
        return self._report(code, left, loaded=loaded)

    def _keep_up(self) -> None:
        """Have other machines see what there is, from time to time."""
        now = monotonic()
        if now >= self._upkeep_at:
            self._upkeep_at = now + _FLUSH_EVERY
            self._output.sync()
            self._writer.adopt(failed=False)
            self._writer.flush()

    def _read_records(self) -> tuple[list[int], bool]:
        """Return the items that the child has not finished, and True if it had loaded the function.

        A record that the child did not finish is cut off, since readers would take
        the next record for a part of it.
        """
        file = OutcomeFile(self._writer.path, self._rank.folder.salt)
        file.position = self._start
        found = self._writer.patience.run(lambda: list(file.read()))
        headers = [each.header for each in found if not isinstance(each, Damage)]
        self._writer.patience.run(lambda: os.ftruncate(self._writer.descriptor, file.position))
        done = {item for header in headers for item in self._rank.folder.covered_by(header)}
        left = [item for item in self._rank.launch.items if item not in done]
        return left, any("loaded" in note for note in file.notes)

    def _report(self, code: int, left: list[int], *, loaded: bool) -> int:
        """Record how the child died, if it did; return the exit status."""
        if not left:
            if code:
                system.log(system.describe_end(f"rank {self._rank.environment.rank}", code))
            return 0
        death: dict[str, Any] = {
            "rank": self._rank.environment.rank,
            "node": system.node_name(),
            "loaded": loaded,
            "item": left[0] if left else None,
            "signal": -code if code < 0 else None,
            "status": code if code >= 0 else None,
            "oom": code == -signal.SIGKILL and system.oom_kills() > self._oom_kills,
            "time": time.time(),
        }
        self._writer.note(launch=self._rank.launch.number, died=death)
        self._writer.close()
        return SIGNALLED - code if code < 0 else code or 1


def main(arguments: list[str]) -> int:
    """Run one rank; return the exit status."""
    if len(arguments) != _ARGUMENTS or not all(map(str.isdecimal, arguments[2:])):
        print("usage: python -m slurmlaunch.node.rank RUN_FOLDER TASK ATTEMPT LAUNCH", file=sys.stderr)  # noqa: T201
        return Status.NODE
    try:
        return _run(_Rank(arguments[1], *map(int, arguments[2:])))
    except (SlurmlaunchError, OSError) as error:
        system.log(f"slurmlaunch: {error}")
        return status_of(error) or Status.NODE


def _run(rank: _Rank) -> int:
    number, node = rank.environment.rank, system.node_name()
    rank.writer.note(launch=rank.launch.number, rank=number, node=node, started=time.time())
    monitor = _Monitor(rank)
    child = os.fork()
    return monitor.run(child) if child else monitor.become_child().run()


if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the working directory: run folders of 0.1.0 start Python without -P
    sys.exit(main(sys.argv))
