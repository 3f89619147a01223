"""Holding items for a further round: what joins them late, and what the scheduler refuses."""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch.backends.inline import InlineBackend
from slurmlaunch.client import submission
from slurmlaunch.client.futures import Future
from slurmlaunch.client.ledger import Fate
from slurmlaunch.client.retrying import Retrying
from slurmlaunch.client.run import Run
from slurmlaunch.client.watcher import Watch
from slurmlaunch.errors import SubmissionError, WorkerDied
from slurmlaunch.runfolder.journal import read_rounds
from slurmlaunch.runfolder.layout import Manifest
from tests.support.tasks import OneRun, rows
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from slurmlaunch.backends.base import ArrayJob

NO_ROOM = SubmissionError("no", stderr="QOSMaxSubmitJobPerUserLimit", no_room=True)
AWAY = SubmissionError("no", stderr="Unable to contact slurm controller", transient=True)
NO_ANSWER = SubmissionError("no", stderr="Socket timed out", ambiguous=True)


class Scheduler(InlineBackend):
    """Answers each submission as it is told to, once it may; runs nothing.

    Attributes:
        answers: what the next submissions come to: an error, or all others a job id.
        may_answer: whether it may.
        asked: the names of the arrays that were handed in.
        looked_for: the names of the jobs that were looked for.
        found: the jobs that it knows of by name.
    """

    def __init__(self, *answers: Exception) -> None:
        self.answers = list(answers)
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked: list[str] = []
        self.looked_for: list[str] = []
        self.found: dict[str, str] = {}

    def submit(self, job: ArrayJob) -> str:
        """Answer."""
        self.asked.append(job.name)
        assert self.may_answer.wait(PATIENCE)
        if self.answers:
            raise self.answers.pop(0)
        return str(100 + len(self.asked))

    def find(self, name: str, since: float) -> str | None:
        """Return the job of that name."""
        del since
        self.looked_for.append(name)
        return self.found.get(name)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "_SHORTEST_WAIT", 0.01)


def begin(path: Path, scheduler: Scheduler, items: int = 4, **plan: Any) -> Run:
    """Return a run with retries, of one task of which nothing is known."""
    folder = OneRun(path, len, rows(range(items)), options={"retries": 1}, **plan).folder
    run = Run(folder, Manifest.read(folder), scheduler, list(read_rounds(folder)))
    run.tasks.jobs[0, 0] = "7"
    return run


def die(run: Run, *items: int) -> None:
    """Have items die."""
    run.ended(items or range(run.manifest.items), lambda item: WorkerDied(f"item {item} died"))


def go_on(run: Run) -> None:
    """Go on until all that is held has been handed in, or settled."""
    retrying = Retrying(run)

    def went() -> bool:
        retrying.go_on()
        return not run.held

    wait_until(went)


def fates(run: Run) -> list[str]:
    """Return what the items have come to."""
    return [Fate(run.ledger.fate(item)).name for item in range(run.manifest.items)]


def test_who_comes_late_is_not_forgotten(tmp_path: Path) -> None:
    """What dies while a retry is being submitted is run again too, also where that one is refused."""
    scheduler = Scheduler(SubmissionError("invalid account"))
    run = begin(tmp_path / "run", scheduler)
    run.ledger.cancel(range(2, 4))
    scheduler.may_answer.clear()
    die(run, 0)
    run.held.since = float("-inf")  # it has waited for others for long enough
    Retrying(run).go_on()
    wait_until(lambda: scheduler.asked)
    die(run, 1)
    scheduler.may_answer.set()
    go_on(run)
    wait_until(lambda: len(run.job_ids) == 2)

    assert ["ENDED", "OPEN", "CANCELLED", "CANCELLED"] == fates(run)
    error: Any = run.future(0, Future).exception(PATIENCE)
    assert ("item 0 died", ["it could not be run again: invalid account"]) == (error.what, error.__notes__)
    assert [[0], [1]] == [list(each.plan.items or ()) for each in run.tasks.rounds[1:]]


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    """Where nothing can be run again nothing is held for it."""
    run = begin(tmp_path / "run", Scheduler())
    now = [0.0]
    watch = Watch(run, lambda: now[0])
    shutil.rmtree(run.folder.path)
    for _ in range(2):
        watch.stumble(FileNotFoundError())
        now[0] += 3600.0

    assert ["ENDED"] * 4 == fates(run)


@pytest.mark.parametrize("answer", [NO_ROOM, AWAY])
def test_a_retry_waits(tmp_path: Path, answer: SubmissionError) -> None:
    """Where there is no room in the queue for a retry, or no scheduler, it waits as later arrays do."""
    scheduler = Scheduler(answer, answer)
    run = begin(tmp_path / "run", scheduler)
    die(run)
    go_on(run)
    wait_until(lambda: len(run.job_ids) == 2)

    assert ["OPEN"] * 4 == fates(run)
    assert 3 == len(scheduler.asked)
    assert 1 == len({*scheduler.asked})


@pytest.mark.parametrize("there", [True, False])
def test_without_an_answer(tmp_path: Path, *, there: bool) -> None:
    """A submission that got no answer is looked for by its name before it is handed in again."""
    scheduler = Scheduler(NO_ANSWER)
    run = begin(tmp_path / "run", scheduler)
    scheduler.may_answer.clear()
    die(run)
    Retrying(run).go_on()
    wait_until(lambda: scheduler.asked)
    if there:
        scheduler.found[scheduler.asked[0]] = "55"
    scheduler.may_answer.set()
    wait_until(lambda: len(run.job_ids) == 2)

    assert ("7", "55" if there else "102") == run.job_ids
    assert (1 if there else 2, 1) == (len(scheduler.asked), len(scheduler.looked_for))
    assert ["OPEN"] * 4 == fates(run)


def test_a_look_while_a_retry_is_made(tmp_path: Path) -> None:
    """However often a run is looked at meanwhile, what is held is handed in once."""
    number = 100_000
    run = begin(tmp_path / "run", Scheduler(), items=number)
    die(run)
    retrying = Retrying(run)
    while len(run.job_ids) < 2:
        retrying.go_on()
    retrying.go_on()

    assert (2, number) == (len(run.tasks.rounds), len(run.tasks.rounds[1].plan.items or ()))
    assert not run.held
