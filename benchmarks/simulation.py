"""The cost of a run for its client, at a size that no test machine has: ``python benchmarks/simulation.py --full``.

The code is the real one: a run is planned, its rounds are journaled, its arrays go
through the backend to commands, and it is watched until its last item has settled.
Simulated are the clock, Slurm's commands (`Cluster`) and the nodes, which write what
real ones write, but for the values themselves: outcome files whose records are
empty, and end marks. So hours pass in seconds, and all counts are those of the real client:

- its calls of the scheduler's commands,
- its file operations, on average and in the busiest minute,
- its memory, and the time that it computes.

The items are not written: the cost per item does not depend on their number.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import heapq
import itertools
import json
import os
import re
import resource
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cloudpickle

from slurmlaunch.backends.slurm import SlurmBackend
from slurmlaunch.backends.slurm.commands import Finished
from slurmlaunch.backends.slurm.job_states import Elements
from slurmlaunch.backends.slurm.shared_states import Intervals
from slurmlaunch.client.environment import record
from slurmlaunch.client.events import SchedulerReported
from slurmlaunch.client.options import Options
from slurmlaunch.client.plan import plan
from slurmlaunch.client.rounds import make_plan
from slurmlaunch.client.run import Run
from slurmlaunch.client.submission import Submission
from slurmlaunch.client.watcher import RateLimit, Watch
from slurmlaunch.runfolder import records
from slurmlaunch.runfolder.files import create
from slurmlaunch.runfolder.layout import FOLDERS, EndMark, Manifest, RunFolder, Status, python_version, salt_of
from slurmlaunch.runfolder.records import Kind
from slurmlaunch.runfolder.rounds import Round

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from slurmlaunch.backends.slurm.commands import Command

_RUN = "51041a7e"
_MINUTE = 60.0
_RECORDS_PER_TASK = 3

_OPERATIONS = 4
"""File operations of a visit."""


class Clock:
    """Simulated time.

    Attributes:
        now: seconds since the epoch.
    """

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@dataclass(frozen=True)
class Size:
    """The size of a simulated run.

    Attributes:
        items: the number of items.
        tasks: the number of tasks.
        array: the longest array allowed (``MaxArraySize``).
        slots: the number of tasks that run at once.
        seconds: the duration of a task.
    """

    items: int = 10**7
    tasks: int = 10**4
    array: int = 1000
    slots: int = 5000
    seconds: float = 900.0


FULL = Size(items=10**8, tasks=10**5)


class Node:
    """One running task: it writes a node's files at its start, during its run and at its end."""

    def __init__(self, folder: RunFolder, task: int, items: range) -> None:
        self._folder, self._task = folder, task
        cuts = [items.start + len(items) * i // _RECORDS_PER_TASK for i in range(_RECORDS_PER_TASK + 1)]
        self._parts = [range(a, b) for a, b in itertools.pairwise(cuts) if b > a]
        self._path = folder.outcome_file(task, 0)

    def begin(self, now: float) -> None:
        """Open the file of outcomes."""
        self._append(self._note(started=now, node="n1"))

    def go_on(self) -> None:
        """Record some items."""
        if len(self._parts) > 1:
            self._append(self._record(self._parts.pop(0)))

    def end(self, now: float) -> None:
        """Record the remaining items, and leave the end mark."""
        self._append(b"".join(map(self._record, self._parts)) + self._note(ended=now, peak=10**8))
        create(self._folder.ended / EndMark(self._task, 0, Status.VALUES).filename, b"")

    def _record(self, items: range) -> bytes:
        return records.encode(Kind.SERIES, b"", first=items.start, count=len(items), salt=self._folder.salt)

    def _note(self, **content: float | str) -> bytes:
        return records.encode(Kind.NOTE, json.dumps(content).encode(), count=0, salt=self._folder.salt)

    def _append(self, data: bytes) -> None:
        descriptor = self._path.open(os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, data)
        os.close(descriptor)


@dataclass
class _Array:
    first_task: int
    length: int
    started: int = 0
    running: set[int] = field(default_factory=set)


class Cluster:
    """A Slurm that answers the commands of the client, and runs the tasks, first come, first served.

    Attributes:
        calls: the number of calls of each command.
    """

    def __init__(self, size: Size, clock: Clock, folder: RunFolder) -> None:
        self.calls: Counter[str] = collections.Counter()
        self._size, self._clock, self._folder = size, clock, folder
        self._arrays: dict[str, _Array] = {}
        self._events: list[tuple[float, int, int, str]] = []
        self._nodes: dict[int, Node] = {}
        self.plan: Round | None = None

    def __call__(self, command: Command, /) -> Finished:
        """Answer a command as Slurm does."""
        program, *words = command.words
        self.calls[program] += 1
        jobs = next((word.partition("=")[2].split(",") for word in words if word.startswith("--jobs=")), [])
        if program == "sbatch":
            return Finished(0, self._submit(command.stdin))
        if program == "squeue":
            return Finished(0, "".join(line for job in jobs for line in self._queue(job)))
        if program == "sacct":
            return Finished(0, "".join(line for job in jobs for line in self._accounts(job)))
        return Finished(0, f"MaxArraySize            = {self._size.array}\n")

    def _submit(self, script: str) -> str:
        found = re.search(r"^#SBATCH --array=0-(\d+)", script, re.MULTILINE)
        assert found, "an array has elements from 0 on"
        job = str(len(self._arrays) + 1)
        first = sum(each.length for each in self._arrays.values())
        self._arrays[job] = _Array(first, int(found[1]) + 1)
        return f"{job}\n"

    def _queue(self, job: str) -> Iterator[str]:
        array = self._arrays[job]
        if array.started < array.length:
            yield f"{job}_[{array.started}-{array.length - 1}]|PENDING|n/a|N/A|Resources\n"
        for element in sorted(array.running):
            yield f"{job}_{element}|RUNNING|n1|N/A|None\n"

    def _accounts(self, job: str) -> Iterator[str]:
        array = self._arrays[job]
        for element in Elements.of(e for e in range(array.started) if e not in array.running):
            yield f"{job}_{element}|COMPLETED|0:0|n1\n"

    # The tasks.

    @property
    def next_event(self) -> float:
        """The time of the next event."""
        self._fill()
        return self._events[0][0] if self._events else float("inf")

    def _fill(self) -> None:
        for job, array in self._arrays.items():
            while array.started < array.length and len(self._nodes) < self._size.slots:
                self._start(job, array)

    def _start(self, job: str, array: _Array) -> None:
        assert self.plan is not None
        element, now = array.started, self._clock()
        task = array.first_task + element
        array.started += 1
        array.running.add(element)
        node = self._nodes[task] = Node(self._folder, task, self.plan.plan.slices.slice_of(task))
        node.begin(now)
        # Tasks of equal length would all end in the same moment.
        seconds = self._size.seconds * (0.5 + (task * 0.618034) % 1)
        for part in range(1, _RECORDS_PER_TASK + 1):
            heapq.heappush(self._events, (now + seconds * part / _RECORDS_PER_TASK, part, task, job))

    def advance(self) -> None:
        """Run the events that are due."""
        while self._events and self._events[0][0] <= self._clock():
            _, part, task, job = heapq.heappop(self._events)
            if part < _RECORDS_PER_TASK:
                self._nodes[task].go_on()
            else:
                self._nodes.pop(task).end(self._clock())
                array = self._arrays[job]
                array.running.discard(task - array.first_task)


@dataclass
class Figures:
    """The measurements of a simulation.

    Attributes:
        arrays: the number of arrays submitted.
        simulated: seconds from the submission to the last outcome.
        late: seconds from the last end of a task to the last outcome.
        computed: the client's CPU time in seconds, without the simulated nodes.
        polls: the number of polls.
        visits: folders polled and files read, by kind; each is about four file operations.
        busiest: file operations a second, in the busiest minute.
        calls: the number of calls of each command of the scheduler.
        memory: the growth of the process, in bytes.
    """

    arrays: int = 0
    simulated: float = 0.0
    late: float = 0.0
    computed: float = 0.0
    polls: int = 0
    visits: Counter[str] = field(default_factory=collections.Counter)
    busiest: float = 0.0
    calls: dict[str, int] = field(default_factory=dict)
    memory: int = 0

    @property
    def operations(self) -> float:
        """File operations a second, on average."""
        return _OPERATIONS * sum(self.visits.values()) / self.simulated

    def lines(self, size: Size) -> Iterator[str]:
        """Yield the figures as lines of text."""
        yield f"{size.items:.0e} items, {size.tasks} tasks in {self.arrays} arrays, {size.slots} at once"
        yield f"simulated time        {self.simulated / 3600:.1f} h; the last outcome {self.late:.1f} s after its end"
        yield f"computing time        {self.computed:.1f} s: {1e6 * self.computed / size.tasks:.0f} µs per task"
        yield f"memory                {self.memory / 1e6:.0f} MB: {self.memory / size.items:.1f} bytes per item"
        yield f"file operations       {self.operations:.1f} a second, in the busiest minute {self.busiest:.1f}"
        parts = ", ".join(f"{number} {kind}" for kind, number in sorted(self.visits.items()))
        yield f"                      visits: {parts}, in {self.polls} polls"
        yield f"scheduler calls       {', '.join(f'{count} {name}' for name, count in sorted(self.calls.items()))}"


class Simulation:
    """One run, from its plan to its last outcome.

    Attributes:
        figures: its measurements so far.
        run: the run.
    """

    def __init__(self, size: Size, path: Path) -> None:
        """Plan the run, and submit it.

        Args:
            size: the size of the run.
            path: the run folder, which is created.
        """
        self.size, self.figures, self.clock = size, Figures(), Clock()
        self._memory, self._since = _resident(), self.clock()
        self._minutes: Counter[int] = collections.Counter()
        self.folder = _make_folder(path)
        self.cluster = Cluster(size, self.clock, self.folder)
        self._backend = SlurmBackend("simulated", run=self.cluster, intervals=Intervals(), clock=self.clock)
        with self._computing():
            self.run = self._submit()
        self._inquire_at = self.clock() + self._backend.query_every
        self._taken = 0.0

    def _submit(self) -> Run:
        size, options = self.size, Options(sbatch=("--clusters=simulated",))
        manifest = _manifest(size, self.clock())
        shape = options.shape(single_item=False, available=None)
        planned = plan(size.items, limits=self._backend.limits(), tasks=size.tasks)
        made = make_plan(planned, options, record(options), manifest, 0, shape, self._backend)
        first = Round.make(self.folder, 0, made)
        manifest.write(self.folder)
        self.cluster.plan = first
        run = Run(self.folder, manifest, self._backend, [first], clock=self.clock)
        Submission(run).submit(run.rounds[-1])
        self.figures.arrays = len(first.plan.arrays)
        while len(run.job_ids) < self.figures.arrays:  # a thread submits the later ones
            time.sleep(0.01)
        return run

    def watch(self) -> Figures:
        """Watch the run until all items have settled; return the measurements."""
        figures, run = self.figures, self.run
        limit, watch = RateLimit(self.clock), Watch(run, network=True)
        last_end = self.clock()
        while run.ledger.open:
            event = self.cluster.next_event
            self.clock.now = max(self.clock.now, min(event, watch.due, self._inquire_at))
            if event <= self.clock.now:
                last_end = self.clock.now
            self.cluster.advance()
            with self._computing():
                if self._inquire_at <= self.clock.now:
                    self._inquire(watch)
                if watch.due <= self.clock.now:
                    watch.poll(limit)
                    self._count(watch)
        figures.simulated, figures.late = self.clock() - self._since, self.clock() - last_end
        figures.calls = dict(self.cluster.calls)
        figures.busiest = max(self._minutes.values()) / _MINUTE
        figures.memory = _resident() - self._memory
        return figures

    def _inquire(self, watch: Watch) -> None:
        """Query as the watcher does."""
        self._inquire_at = self.clock() + self._backend.query_every
        snapshot = self._backend.query(dict.fromkeys(self.run.job_ids, self._since))
        if snapshot is not None and snapshot.taken != self._taken:
            self._taken = snapshot.taken
            watch.handle(SchedulerReported(snapshot))
            watch.due = 0.0

    def _count(self, watch: Watch) -> None:
        made = collections.Counter(watch.collector.visits) - self.figures.visits
        self.figures.polls += 1
        self.figures.visits += made
        self._minutes[int((self.clock() - self._since) / _MINUTE)] += _OPERATIONS * sum(made.values())

    @contextmanager
    def _computing(self) -> Iterator[None]:
        begin = time.process_time()
        try:
            yield
        finally:
            self.figures.computed += time.process_time() - begin


def _make_folder(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.salt = salt_of(_RUN)
    for each in (path, *(path / name for name in FOLDERS)):
        each.mkdir(mode=0o700)
    return folder


def _manifest(size: Size, now: float) -> Manifest:
    return Manifest(
        run=_RUN,
        name="simulated",
        function="simulated",
        items=size.items,
        backend="slurm",
        cwd=str(Path.cwd()),
        python=python_version(),
        cloudpickle=cloudpickle.__version__,
        client="",
        created=now,
    )


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def main(arguments: list[str]) -> None:
    """Run the simulations named on the command line, and print their measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="10^8 items in 10^5 tasks and 100 arrays: minutes")
    for each in dataclasses.fields(Size):
        parser.add_argument(f"--{each.name}", type=float)
    given = vars(parser.parse_args(arguments))
    usual = FULL if given.pop("full") else Size()
    changes = {name: type(getattr(usual, name))(value) for name, value in given.items() if value is not None}
    size = dataclasses.replace(usual, **changes)
    with tempfile.TemporaryDirectory(prefix="simulation-") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder  # real answers of Slurm are shared there, and simulated ones must not be
        simulation = Simulation(size, Path(folder) / "run")
        print("\n".join(simulation.watch().lines(size)))


if __name__ == "__main__":
    main(sys.argv[1:])
