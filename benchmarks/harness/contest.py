"""A contest: several systems in turns, several times, so that a slow minute affects all alike.

Slurm starts nothing at once: it checks its queue about once a second, and a job
waits for the next check. That wait is Slurm's own, the same for all, and larger than
the differences here. So it is measured (from sbatch's answer to the birth of the
first task's log) and left out where a system is compared with the floor; the
start of each run is random, so that no system gets into step with it.
"""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.client import Answer, Request
from harness.series import Sample, Series
from systems.base import missing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.series import Entry
    from harness.site import Site

_SLURMS_LOOK = 1.0
"""Seconds between two looks of Slurm at its queue."""


@dataclass
class Contest:
    """Runs entries, in turns.

    Attributes:
        faults: errors of slurmlaunch or of a floor: wrong results, and items lost without reason.
    """

    site: Site
    faults: list[str] = field(default_factory=list)

    def hold(self, entries: Sequence[Entry], rounds: int) -> list[Series]:
        """Run each entry once a round, in an order that changes each round; a failed entry is not run again."""
        series = [Series(entry, failure=missing(entry.system)) for entry in entries]
        for number in range(rounds):
            turn = number % len(series)
            for each in series[turn:] + series[:turn]:
                if not each.failure and (each.entry.most is None or number < each.entry.most):
                    self._run(each)
                    work = f"{each.entry.work.items} × {each.entry.work.name}"
                    came = each.failure or f"{each.samples[-1].seconds:.2f} s"
                    _say(f"round {number + 1}, {work}, {each.entry.name}: {came}")
        return series

    def _run(self, series: Series) -> None:
        entry = series.entry
        with self.site.fresh_folder() as folder:
            for name in ("talk", "run"):
                (folder / name).mkdir()
            self.site.settle()
            time.sleep(random.uniform(0, _SLURMS_LOOK))
            answer = self._ask(entry, folder)
            self.site.settle()  # its tasks may still be writing, and calling Slurm
            failure = answer.wrong or _lost_all(answer, entry)
            if failure:
                series.failure = failure
            else:
                series.samples.append(self._sample(entry, answer, folder))
            self._judge(entry, answer, failure)

    def _ask(self, entry: Entry, folder: Path) -> Answer:
        talk, calls = folder / "talk", folder / "calls"
        calls.touch()
        request = Request(entry.system, entry.work, folder / "run", calls, entry.warm)
        (talk / "request").write_bytes(pickle.dumps(request))
        command = [*entry.system.launcher, sys.executable, "-m", "harness", str(talk)]
        with self.site.counted_calls(calls) as environment:
            said = self.site.bounded(command, folder / "run", environment, entry.timeout)
        if (talk / "answer").exists():
            answer: Answer = pickle.loads((talk / "answer").read_bytes())
            if answer.wrong:
                _say(said)
            return answer
        _say(said)
        return Answer(wrong=said.splitlines()[-1] if said else "ended without an answer")

    @staticmethod
    def _sample(entry: Entry, answer: Answer, folder: Path) -> Sample:
        found = [path.stat() for path in (folder / "run").rglob("*") if path.is_file() and not path.is_symlink()]
        calls = (folder / "calls").read_bytes()[answer.calls_before :].decode().split()
        return Sample(
            seconds=answer.seconds,
            waited=_waited(answer, folder / "run", entry.system.logs),
            submitting=answer.submitting,
            cpu=answer.cpu,
            lost=answer.lost,
            files=len(found),
            bytes=sum(each.st_size for each in found),
            memory=answer.memory,
            calls={name: calls.count(name) for name in sorted(set(calls))},
            measures=answer.measures,
        )

    def _judge(self, entry: Entry, answer: Answer, failure: str) -> None:
        if entry.system.requires:
            return  # a peer's loss is its own, and is in the table
        if failure:
            self.faults.append(f"{entry.name}: {failure}")
        elif answer.lost > (entry.work.killed is not None):
            self.faults.append(f"{entry.name} lost {answer.lost} of {entry.work.items} items: {answer.error}")


def _lost_all(answer: Answer, entry: Entry) -> str:
    """Describe the loss of all items, which makes the system's time meaningless."""
    if answer.lost and entry.work.killed is None:
        return f"lost {answer.lost} of {entry.work.items} items: {answer.error}"
    return ""


def _waited(answer: Answer, folder: Path, logs: str) -> float | None:
    if not logs or answer.accepted is None:
        return None
    births = [birth for path in folder.glob(logs) if (birth := _birth(path)) is not None]
    return max(0.0, min(births) - answer.accepted) if births else None


def _birth(path: Path) -> float | None:
    # os.stat has no time of birth, and not every file system has one.
    done = subprocess.run(["stat", "--format=%.9W", str(path)], check=False, capture_output=True, text=True)
    try:
        return float(done.stdout) or None
    except ValueError:
        return None


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
