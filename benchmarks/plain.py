"""The plain call in numbers: `map_array(f, items)` beside the call that a person tuned for the same items.

    python benchmarks/plain.py                   # one round, some seven minutes
    python benchmarks/plain.py --rounds 3        # medians
    python benchmarks/plain.py --only quick      # without the rows in which tasks meet their time limit
    python benchmarks/plain.py --only left --full   # one of these rows at full size, ten minutes

It starts a throwaway Slurm of its own, or uses the one that SLURM_CONF names (then give a ``--folder`` that its nodes
see). The calls of a row take turns. Each bar is a ratio within the row, plus what two starts of a client may differ by;
in the last rows it is about the results. How long something takes never decides the exit status; a wrong result does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import slurmlaunch.client.plan
from harness.site import Site, open_site
from slurmlaunch import Executor, FutureArray, TimeLimitExceeded, attach

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SLOTS = 16
_SIXTEEN = {"tasks": _SLOTS}

_LIMIT = 60.0
"""The shortest time limit that Slurm has, in seconds."""

_TOO_OFTEN = 3
"""How often no item may begin: the second time it has the whole limit."""

_WINDOW = 15.0
"""For how many seconds after a submission the items at work are counted: half of them until all slots are free."""


def no_op(item: float) -> float:
    """Do nothing."""
    return item


def nap(seconds: float) -> float:
    """Sleep."""
    time.sleep(seconds)
    return seconds


def told_nap(number: int, seconds: float, story: str) -> float:
    """Sleep, and say before and after it so in a file."""
    for word in ("began", "ended"):
        with open(story, "a", encoding="utf-8") as file:  # noqa: PTH123  (one line, in one step)
            file.write(f"{word} {number}\n")
        time.sleep(seconds if word == "began" else 0)
    return seconds


class Found(NamedTuple):
    """The measurements of one round of a row: the plain call, the call beside it, and the claims of the plain call."""

    plain: float
    other: float
    claims: int


@dataclass
class Row:
    """One kind of work.

    Attributes:
        name: what the table calls it.
        against: what the plain call is compared with.
        measure: makes the calls of a round.
        factor, grace: the bar: so many times the other, and so many seconds more; a factor of 0: the results count.
        unit: the unit of the measurements; of "at work" more is better, so the ratio is inverted.
        group: by which ``--only`` chooses it.
    """

    name: str
    against: str
    measure: Callable[[Site], Found]
    factor: float = 0.0
    grace: float = 0.0
    unit: str = "s"
    group: str = "quick"
    found: list[Found] = field(default_factory=list)

    def run(self, site: Site) -> None:
        """Make each call once."""
        self.found.append(self.measure(site))
        print(self.line(), flush=True)

    def line(self) -> str:
        """Return the row as a line of the table."""
        plain, other = (statistics.median(each[i] for each in self.found) for i in range(2))
        less, more = (other, plain) if self.unit == "s" else (plain, other)
        bar = f"{self.factor:g} ×" + (f" + {self.grace:g} s" if self.grace else "")
        met = "yes" if not self.factor or more <= self.factor * less + self.grace else "**no**"
        return (
            f"| {self.name} | {plain:.2f} {self.unit} | {self.against}: {other:.2f} {self.unit} "
            f"| {more / less:.2f} × | {bar if self.factor else 'all values'} | {met} | {self.found[-1].claims} |"
        )


def _call(site: Site, function: Callable[..., float], items: list[float], how: dict[str, Any]) -> tuple[float, int]:
    """Return what a call took, in seconds, and how many claims it made."""
    site.settle()
    cluster = how.pop("cluster", "slurm")
    with site.fresh_folder() as folder:
        start = time.monotonic()
        array = Executor(folder, cluster=cluster, time="00:05:00").map_array(function, items, **how)
        assert array.results() == items
        return time.monotonic() - start, _claims(array)


def _claims(array: FutureArray[float]) -> int:
    return sum(path.name.isdigit() for path in (array.folder / "rounds" / "0").glob("claims/*"))


def _floor(site: Site) -> float:
    return _call(site, no_op, list(map(float, range(_SLOTS))), {**_SIXTEEN})[0]


def beside_tuned(function: Callable[[float], float], items: list[float], *tuned: dict[str, Any], **how: Any) -> Any:
    """Compare the plain call with the best of some tuned ones."""

    def measure(site: Site) -> Found:
        other = min(_call(site, function, items, {**how, **each})[0] for each in tuned)
        plain, claims = _call(site, function, items, {**how})
        return Found(plain, other, claims)

    return measure


def beside_ideal(items: list[float]) -> Any:
    """Compare the plain call with the least time that the slots need for the items, after a start."""

    def measure(site: Site) -> Found:
        floor = _floor(site)
        plain, claims = _call(site, nap, items, {})
        return Found(plain, max(*items, sum(items) / _SLOTS) + floor, claims)

    return measure


def behind_others(site: Site) -> Found:
    """Compare how many of 1000 items are at work, plainly and as 1000 tasks, while jobs of others leave the slots."""
    (plain, claims), (static, _) = (_at_work(site, how) for how in ({}, {"schedule": "static"}))
    return Found(plain, static, claims)


def _at_work(site: Site, how: dict[str, Any]) -> tuple[float, int]:
    site.settle()
    sleep = 'sleep "$((4 + SLURM_ARRAY_TASK_ID / 2))"'
    words = ("--parsable", f"--array=0-{_SLOTS - 1}", "--output=/dev/null", "--time=5", f"--wrap={sleep}")
    job = subprocess.run(["sbatch", *words], check=True, capture_output=True, text=True).stdout.strip()
    while len(_squeue(site, "--jobs", job, "--states=RUNNING")) < _SLOTS:
        time.sleep(0.1)
    with site.fresh_folder() as folder:
        start = time.time()
        items = [0.1 + 0.9 * (number * 7 % 16) / 15 for number in range(1000)]
        array = Executor(folder, cluster="slurm", time="00:05:00").map_array(nap, items, **how)
        time.sleep(_WINDOW + max(items) + 1.0)  # the last ones have ended, and are known
        at_work = 0.0
        for future in array:
            if future.done() and (began := future.started) is not None:
                since = began.timestamp() - start
                at_work += max(0.0, min(_WINDOW, since + (future.duration or 0.0)) - since)
        array.cancel()
        site.settle()
        return at_work / _WINDOW, _claims(array)


def _squeue(site: Site, *words: str) -> list[str]:
    command = [site.squeue, "--me", "--noheader", "--array", "--format=%i", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def within_limit(seconds: list[float], most: int = 1000, *, left: bool = False) -> Any:
    """Run items with a time limit of a minute; all but those that are longer have values, each once.

    Args:
        seconds: how long each item takes.
        most: the most tasks that the cluster allows in an array.
        left: whether no client lives after the submission, until no job is left.
    """

    def measure(site: Site) -> Found:
        floor = _floor(site)
        site.settle()
        with site.fresh_folder() as folder:
            words = [sys.executable, __file__, "--leave", *map(str, (folder, most, *seconds))]
            run = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
            start = time.time()
            while left and _squeue(site):
                time.sleep(1.0)
            array: FutureArray[float] = attach(run)
            found = array.results(return_exceptions=True)
            for number, (value, expected) in enumerate(zip(found, seconds, strict=True)):
                whole = value == expected if expected < _LIMIT else isinstance(value, TimeLimitExceeded)
                assert whole, f"item {number} of {expected} s: {value!r}"
            lines = Counter((folder / "story").read_text(encoding="utf-8").splitlines())
            ended = {f"ended {number}": 1 for number, each in enumerate(seconds) if each < _LIMIT}
            assert {line: lines[line] for line in lines if line.startswith("ended")} == ended, "each has a value once"
            assert max(lines.values()) < _TOO_OFTEN, f"an item was cut twice: {lines.most_common(1)}"
            last = max(f.started.timestamp() + (f.duration or 0.0) for f in array if f.started is not None)
            return Found(last - start, max(*seconds, sum(seconds) / min(most, _SLOTS)) + floor, _claims(array))

    return measure


def _leave(folder: str, most: str, *seconds: str) -> None:
    """Submit a run, say where it is, and end as if killed."""
    slurmlaunch.client.plan.DEFAULT_TASKS = int(most)  # as with max_array_tasks= of the cluster
    from plain import told_nap  # not as of this __main__

    executor = Executor(folder, cluster="slurm", time="00:01:00")
    items = list(map(float, seconds))
    array = executor.map_array(told_nap, range(len(items)), items, kwargs={"story": f"{folder}/story"})
    print(array.folder, flush=True)
    os._exit(0)


def rows(many: int, *, full: bool = False) -> list[Row]:
    """Return the rows; *many* items are in the longest; *full*: the last one has its full size."""
    uneven = ([0.005] * 10 + [2.0] + [0.005] * 9) * 10
    numbers = list(map(float, range(max(many, 1000))))
    dynamic, local = {**_SIXTEEN, "schedule": "dynamic"}, {"cluster": "local"}
    limited = [*[20.0] * 19, 50.0, *[20.0] * 10, 70.0, *[20.0] * 9]
    fives = [*[5.0] * 20, 45.0, *[5.0] * (379 if full else 39)]
    tuned, ideal = "tuned", "the ideal + floor"
    return [
        Row("1000 no-op items", tuned, beside_tuned(no_op, numbers[:1000], _SIXTEEN, dynamic), 1.5, 0.5),
        Row("1000 items of 10 ms", tuned, beside_tuned(nap, [0.01] * 1000, _SIXTEEN), 1.2, 0.5),
        Row(f"{many} no-op items", tuned, beside_tuned(no_op, numbers[:many], _SIXTEEN), 1.5),
        Row("400 no-op items, local", tuned, beside_tuned(no_op, numbers[:400], {"tasks": 4}, **local), 1.5, 0.3),
        Row("64 items of 1 s", ideal, beside_ideal([1.0] * 64), 1.15),
        Row("200 items, ten of 2 s, the others of 5 ms", ideal, beside_ideal(uneven), 1.15),
        Row("1000 tasks behind jobs of others", "static", behind_others, 1.15, unit="at work"),
        Row(
            "40 items of 20 s, one of 50 s and one of 70 s, `time=` 1 min", ideal, within_limit(limited), group="limit"
        ),
        Row(
            f"{len(fives)} items of 5 s, one of 45 s, 4 tasks, `time=` 1 min, no client", ideal,
            within_limit(fives, 4, left=True), group="left",
        ),
    ]  # fmt: skip


def _main() -> int:
    parser = argparse.ArgumentParser(description="Measure the plain call beside the tuned one.")
    parser.add_argument("--rounds", type=int, default=1, help="how often each call is made")
    parser.add_argument("--many", type=int, default=1_000_000, help="how many items the longest row has")
    parser.add_argument("--only", choices=("quick", "limit", "left"), help="measure some of the rows")
    parser.add_argument("--full", action="store_true", help="400 items in the last row, rather than 60")
    parser.add_argument("--folder", type=Path, help="where runs may write; Slurm's nodes must see it")
    parser.add_argument("--leave", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.leave:
        _leave(*arguments.leave)
    table = [row for row in rows(arguments.many, full=arguments.full) if arguments.only in {None, row.group}]
    with open_site(arguments.folder) as site:
        _floor(site)  # modules are loaded by now
        for _ in range(arguments.rounds):
            for row in table:
                row.run(site)
    print("| work | plain call | against | ratio | bar | met | claims |\n| --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(row.line() for row in table))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
