"""The main job in numbers: slurmlaunch, submitit and the floor on one Slurm, in one run.

    python benchmarks/main_job.py                  # the short form, under two minutes
    python benchmarks/main_job.py --full           # what the README shows
    python benchmarks/main_job.py --only killed    # one line of the table

It starts a throwaway Slurm of its own, or uses the one that SLURM_CONF names (then
give a ``--folder`` that its nodes see). Seconds are wall time of a client that is
running already: the median over the rounds, with minimum and maximum. How long
something takes never decides the exit status; a wrong result or a lost item does.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import platform
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.contenders import Floor, Slurmlaunch, SlurmlaunchSubmit, Submitit, SubmititByHand
from harness.contest import Contest, Entry, Sample, Series
from harness.site import QUERIES, Site, open_site
from harness.startup import Startup, compare
from harness.table import Row, markdown
from harness.work import Workload, closing_over, killing, no_op, sleeping

if TYPE_CHECKING:
    from collections.abc import Callable

_TASKS = 16
_MANY = 1000
_KILLED = 37
_CLOSURE = 200_000
# The bars.
_SECONDS_FOR_ONE, _SECONDS_FOR_MANY = 0.15, 0.4  # beyond the floor
_SHARE_OF_A_DEATH = 0.1
_FILES, _FILES_PER_TASK = 10, 4
_MEGABYTES = 2
_QUERIES = 3
_IMPORTS = 1.5

_NODE, _CLOUDPICKLE = "import slurmlaunch.node.__main__", "import cloudpickle"


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: how often each contender runs.
        few_rounds: the same, where a round takes half a minute.
        slow_rounds: the same, where it takes minutes.
        one_by_one: how many items each get a task of their own.
        copied: how many items each get a copy of the large closure, with submitit.
        seconds: how long the run is whose calls to the scheduler are counted.
        starts: how often Python is started.
    """

    rounds: int = 3
    few_rounds: int = 1
    slow_rounds: int = 1
    one_by_one: int = 100
    copied: int = 16
    seconds: float = 5.0
    starts: int = 20


SHORT = Size()
FULL = Size(rounds=11, few_rounds=3, one_by_one=_MANY, copied=_MANY, seconds=60.0, starts=100)


class MainJob:
    """The contests behind the table; each is held when a line first asks for it."""

    def __init__(self, site: Site, size: Size) -> None:
        self.size = size
        self._contest = Contest(site)
        self._contest.warm_up(Entry(Slurmlaunch(), Workload(no_op, _TASKS, _TASKS)))

    @property
    def faults(self) -> list[str]:
        """What was not merely slow but wrong."""
        return self._contest.faults

    @functools.cached_property
    def alone(self) -> list[Series]:
        """One item: the floor, slurmlaunch, submitit."""
        work = Workload(no_op, items=1, tasks=1)
        return self._hold(self.size.rounds, *(Entry(each, work) for each in (Floor(), SlurmlaunchSubmit(), Submitit())))

    @functools.cached_property
    def sliced(self) -> list[Series]:
        """1000 items in 16 tasks: the floor, slurmlaunch, submitit by hand, a floor in Python."""
        work = Workload(no_op, items=_MANY, tasks=_TASKS)
        contenders = Floor(), Slurmlaunch(), SubmititByHand(), Floor(_CLOUDPICKLE)
        return self._hold(self.size.rounds, *(Entry(each, work) for each in contenders))

    @functools.cached_property
    def one_by_one(self) -> list[Series]:
        """A task per item: slurmlaunch in 16 tasks, slurmlaunch with chunksize=1, submitit."""
        work = Workload(no_op, items=self.size.one_by_one, tasks=_TASKS)
        ours = Slurmlaunch(), Slurmlaunch(chunksize=1, name="slurmlaunch, chunksize=1")
        return self._hold(self.size.slow_rounds, *(Entry(each, work) for each in (*ours, Submitit())))

    @functools.cached_property
    def killed(self) -> list[Series]:
        """100 items, one of which is killed: slurmlaunch, submitit by hand."""
        work = Workload(killing(_KILLED), items=100, tasks=_TASKS, killed=_KILLED)
        return self._hold(self.size.few_rounds, Entry(Slurmlaunch(), work), Entry(SubmititByHand(), work))

    @functools.cached_property
    def closure(self) -> list[Series]:
        """A function that closes over much: slurmlaunch with 1000 items, submitit with as many as there is time for."""
        function = closing_over(_CLOSURE)
        ours = Entry(Slurmlaunch(), Workload(function, items=_MANY, tasks=_TASKS))
        return self._hold(1, ours, Entry(Submitit(), Workload(function, items=self.size.copied, tasks=_TASKS)))

    @functools.cached_property
    def long(self) -> list[Series]:
        """A run of one array that takes long, from a client of its own: slurmlaunch, submitit by hand."""
        work = Workload(sleeping(self.size.seconds), items=_TASKS, tasks=_TASKS)
        entries = Entry(Slurmlaunch(), work, fresh=True), Entry(SubmititByHand(), work, fresh=True)
        return self._hold(1, *entries)

    @functools.cached_property
    def startups(self) -> list[Startup]:
        """What the node imports before it reads the function, and cloudpickle alone."""
        return compare([_NODE, _CLOUDPICKLE], self.size.starts)

    def _hold(self, rounds: int, *entries: Entry) -> list[Series]:
        return self._contest.hold(entries, rounds)


# The lines of the table.


def floor(job: MainJob) -> list[Row]:
    """Show what nobody can be faster than."""
    one, (least, _, _, python) = job.alone[0], job.sliced
    work = f"the floor: an array of {_TASKS} tasks that only create a file"
    beyond = f"{python.beyond(least):+.2f} s"
    return [
        Row("floor", "the floor: an array of 1 task that only creates a file", "", one.spread),
        Row("floor", work, "", least.spread),
        Row("floor", f"the same, and each task runs `python -c '{_CLOUDPICKLE}'`", "", python.spread, beyond),
    ]


def round_trip(job: MainJob) -> list[Row]:
    """Compare one item's round trip with the floor and with submitit."""
    least, ours, submitit = job.alone
    work = "one no-op round trip"
    return [_beyond("round-trip", work, ours, least, _SECONDS_FOR_ONE), _faster("round-trip", work, ours, submitit)]


def many(job: MainJob) -> list[Row]:
    """Compare 1000 items with the floor."""
    least, ours, _, _ = job.sliced
    return [_beyond("many", f"{_MANY} no-op items, tasks={_TASKS}", ours, least, _SECONDS_FOR_MANY)]


def one_by_one(job: MainJob) -> list[Row]:
    """Compare with submitit as its manual shows it."""
    sliced, single, submitit = job.one_by_one
    work = f"{job.size.one_by_one} no-op items, {_TASKS} at a time"
    return [_faster("one-by-one", work, each, submitit) for each in (sliced, single)]


def by_hand(job: MainJob) -> list[Row]:
    """Compare with submitit as an expert uses it."""
    _, ours, peer, _ = job.sliced
    return [_faster("by-hand", f"{_MANY} no-op items, tasks={_TASKS}", ours, peer)]


def killed(job: MainJob) -> list[Row]:
    """Compare what one killed item costs."""
    ours, peer = job.killed
    ratio = ours.ratio(peer)
    lost = ours.median(_lost)
    return [
        Row(
            "killed",
            "100 items, one killed by SIGKILL",
            f"{ours.spread}, {lost:.0f} lost",
            f"{peer.entry.name}: {peer.spread}, {peer.median(_lost):.0f} lost",
            f"{ratio:.3f} ×",
            f"at most {_SHARE_OF_A_DEATH} ×, 1 lost",
            ratio <= _SHARE_OF_A_DEATH and lost == 1,
        )
    ]


def files(job: MainJob) -> list[Row]:
    """Count the files that a run leaves."""
    rows = []
    for ours, peer in ((job.alone[1], job.alone[2]), (job.sliced[1], job.one_by_one[2])):
        tasks, bar = ours.entry.work.tasks, _FILES + _FILES_PER_TASK * ours.entry.work.tasks
        count = ours.median(_files)
        rows.append(
            Row(
                "files",
                f"files of a run of {_counted(ours.entry.work.items, 'item')} in {_counted(tasks, 'task')}",
                f"{count:.0f}",
                f"{peer.entry.name}, {_counted(peer.entry.work.items, 'item')}: {peer.median(_files):.0f}",
                "",
                f"at most {_FILES} + {_FILES_PER_TASK} × {tasks} = {bar}",
                count <= bar,
            )
        )
    return rows


def closure(job: MainJob) -> list[Row]:
    """Weigh what a large closure leaves on disk."""
    ours, peer = job.closure
    size = ours.median(_bytes) / 1e6
    copies = peer.entry.work.items
    theirs = peer.median(_bytes) / 1e6 * _MANY / copies
    scaled = "" if copies == _MANY else f" (measured with {copies} items, and scaled)"
    return [
        Row(
            "closure",
            f"{_MANY} items × a closure of 200 kB",
            f"{size:.2f} MB",
            f"{peer.entry.name}: {theirs:.0f} MB{scaled}",
            f"{size / theirs:.4f} ×",
            f"under {_MEGABYTES} MB",
            size < _MEGABYTES,
        )
    ]


def calls(job: MainJob) -> list[Row]:
    """Count the calls to the scheduler."""
    ours, peer = (each.samples[0].calls for each in job.long)
    queries = sum(ours.get(name, 0) for name in QUERIES)
    others = sum(ours.values()) - queries - ours.get("sbatch", 0)
    return [
        Row(
            "calls",
            f"scheduler calls of a run of one array of {job.size.seconds:.0f} s",
            _calls(ours),
            f"{job.long[1].entry.name}: {_calls(peer)}",
            "",
            f"1 sbatch, at most {_QUERIES} queries",
            ours.get("sbatch") == 1 and queries <= _QUERIES and not others,
        )
    ]


def imports(job: MainJob) -> list[Row]:
    """Compare what the node imports with cloudpickle alone."""
    node, cloudpickle = job.startups
    ratio = min(node.seconds) / min(cloudpickle.seconds)
    said = f"{ratio:.2f} × (of the minima; of the medians of CPU time {_cpu(node) / _cpu(cloudpickle):.2f}"
    if node.instructions and cloudpickle.instructions:
        said += f"; of the instructions {node.instructions / cloudpickle.instructions:.2f}"
    theirs = f"`{cloudpickle.code}`: {cloudpickle.spread}"
    work = "what the node imports before it reads the function"
    return [Row("imports", work, node.spread, theirs, f"{said})", f"at most {_IMPORTS} ×", ratio <= _IMPORTS)]


_LINES: dict[str, Callable[[MainJob], list[Row]]] = {
    "floor": floor,
    "round-trip": round_trip,
    "many": many,
    "one-by-one": one_by_one,
    "by-hand": by_hand,
    "killed": killed,
    "files": files,
    "closure": closure,
    "calls": calls,
    "imports": imports,
}


def _beyond(key: str, work: str, ours: Series, least: Series, bar: float) -> Row:
    beyond = ours.beyond(least)
    return Row(key, work, ours.spread, f"floor: {least.spread}", f"{beyond:+.2f} s", f"at most +{bar} s", beyond <= bar)


def _faster(key: str, work: str, ours: Series, peer: Series) -> Row:
    ratio = ours.ratio(peer)
    how = ours.entry.name.partition(", ")[2]
    work = f"{work}, {how}" if how else work
    return Row(key, work, ours.spread, f"{peer.entry.name}: {peer.spread}", f"{ratio:.2f} ×", "faster", ratio < 1)


def _lost(sample: Sample) -> int:
    return sample.lost


def _files(sample: Sample) -> int:
    return sample.files


def _bytes(sample: Sample) -> int:
    return sample.bytes


def _cpu(startup: Startup) -> float:
    return statistics.median(startup.cpu)


def _calls(calls: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in calls.items()) or "none"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


# The command.


def _main() -> int:
    arguments = _parse_arguments()
    size = FULL if arguments.full else SHORT
    if arguments.repeat:
        size = dataclasses.replace(
            size, rounds=arguments.repeat, few_rounds=arguments.repeat, slow_rounds=arguments.repeat
        )
    with open_site(arguments.folder) as site:
        job = MainJob(site, size)
        rows = [row for key in arguments.only or _LINES for row in _LINES[key](job)]
        print(f"{site.slurm}, Python {platform.python_version()}, {_counted(size.rounds, 'round')}\n")
    print(markdown(rows))
    print(_LEGEND)
    if arguments.json:
        arguments.json.write_text(json.dumps(_as_json(job, rows), indent=1), encoding="utf-8")
    for fault in job.faults:
        print(f"WRONG: {fault}", file=sys.stderr)
    return 1 if job.faults else 0


_LEGEND = """
Seconds are medians, with minimum and maximum. Where the floor is taken off, so is the wait between sbatch's answer
and the start of the first task: Slurm looks at its queue about once a second, whoever submitted."""


def _as_json(job: MainJob, rows: list[Row]) -> dict[str, object]:
    held = {name: each for name, each in vars(job).items() if isinstance(each, list)}
    return {
        "size": dataclasses.asdict(job.size),
        "rows": [dataclasses.asdict(row) for row in rows],
        "faults": job.faults,
        "startups": [dataclasses.asdict(each) for each in held.pop("startups", [])],
        "contests": {
            name: [_series_as_json(each) for each in series]
            for name, series in held.items()
            if not name.startswith("_")
        },
    }


def _series_as_json(series: Series) -> dict[str, object]:
    work = series.entry.work
    samples = [dataclasses.asdict(sample) for sample in series.samples]
    return {"contender": series.entry.name, "items": work.items, "tasks": work.tasks, "samples": samples}


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the main job against submitit and the floor.")
    parser.add_argument("--full", action="store_true", help="all items and more rounds: about a quarter of an hour")
    parser.add_argument("--repeat", type=int, help="how many rounds, instead of the form's own number")
    parser.add_argument("--only", action="append", choices=list(_LINES), help="only this line; may be given again")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    parser.add_argument("--folder", type=Path, help="where runs may write; Slurm's nodes must see it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(_main())
