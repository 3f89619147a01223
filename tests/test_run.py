"""A run as one process sees it: which task has which item, over several rounds, and what journals tell."""

from __future__ import annotations

import threading
from array import array
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch.backends.inline import InlineBackend
from slurmlaunch.client.futures import Future
from slurmlaunch.client.ledger import Fate
from slurmlaunch.client.run import Run
from slurmlaunch.client.submission import Submission
from slurmlaunch.errors import SubmissionError
from slurmlaunch.runfolder.manifest import Manifest
from slurmlaunch.runfolder.rounds import ArrayPlan, Round, RoundPlan, read_rounds
from slurmlaunch.runfolder.slices import Slices
from tests.tasks import OneRun, rows

if TYPE_CHECKING:
    from pathlib import Path

    from slurmlaunch.runfolder.layout import RunFolder


class Backend(InlineBackend):
    """Knows of jobs that nobody wrote down."""

    def __init__(self, jobs: dict[str, str]) -> None:
        self.jobs = jobs
        self.asked: list[str] = []

    def find(self, name: str, since: float) -> str | None:
        """Return the job of that name."""
        del since
        self.asked.append(name)
        return self.jobs.get(name)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return the folder of a run of eight items in four tasks, of which 1, 4, 5 and 7 were run again in two more."""
    folder = OneRun(tmp_path / "run", len, rows(range(8)), tasks=4).folder
    arrays = (ArrayPlan("again-0", 4, 1), ArrayPlan("again-1", 5, 1))
    plan = RoundPlan(Slices(4, 2), 4, arrays, cpus_per_task=1, processes=1, threads=1, items=array("Q", [1, 4, 5, 7]))
    Round.make(folder, 1, plan)
    return folder


def view(folder: RunFolder, rounds: int | None = None, jobs: dict[str, str] | None = None) -> Run:
    """Return a view of so many rounds of a run."""
    return Run(folder, Manifest.read(folder), Backend(jobs or {}), list(read_rounds(folder))[:rounds])


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        (1, {0: [0, 1], 1: [2, 3], 2: [4, 5], 3: [6, 7]}),
        (2, {0: [0], 1: [2, 3], 2: [], 3: [6], 4: [1, 4], 5: [5, 7]}),
    ],
)
def test_items_of_tasks(folder: RunFolder, rounds: int, expected: dict[int, list[int]]) -> None:
    """An item belongs to the last task that it was given to, in each view up to its own rounds."""
    run = view(folder, rounds)

    assert expected == {task: list(run.tasks.items_of(task)) for task in expected}
    assert all(task == run.tasks.task_of(item) for task, items in expected.items() for item in items)


def test_places(folder: RunFolder) -> None:
    """A task has its place in an array of its round, and the array's job where that is known."""
    latest = list(read_rounds(folder))[1]
    latest.submitted(1, "9")
    places = [view(folder).tasks.place(task) for task in (3, 4, 5)]

    expected = [(0, 0, 3, None), (1, 0, 0, None), (1, 1, 0, "9_0")]
    assert expected == [(place.round.number, place.array, place.element, place.full_id) for place in places]
    with pytest.raises(LookupError):
        view(folder).tasks.place(6)


def test_lost_job(folder: RunFolder) -> None:
    """A job that its client did not live to write down is found by its name, and written down."""
    latest = list(read_rounds(folder))[1]
    for number in (0, 1):
        latest.intend(number)
    latest.refused(1, "no")
    run = view(folder, jobs={"again-0": "12"})

    Submission(run).take_up()

    assert ({(1, 0): "12"}, ["again-0"]) == (run.tasks.jobs, run.backend.asked)  # type: ignore[attr-defined]
    assert ("12",) == view(folder).job_ids


def test_refused_array(folder: RunFolder) -> None:
    """The items of an array that was refused for good have failed, for whoever looks."""
    list(read_rounds(folder))[1].refused(1, "no such partition")
    run = view(folder)
    Submission(run).take_refusals()

    assert {5, 7} == {item for item in range(8) if run.ledger.fate(item) == Fate.ENDED}
    error: Any = run.future(5, Future).exception(timeout=0)
    assert (SubmissionError, "no such partition") == (type(error), str(error))


def test_one_future_for_all_threads(folder: RunFolder) -> None:
    """However many threads ask for it at once, an item has one future."""
    run = view(folder)
    ready = threading.Barrier(8)
    found: list[list[Future[Any]]] = []

    def ask() -> None:
        ready.wait()
        found.append([run.future(item, Future) for item in range(8)])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 8 == len({id(future) for futures in found for future in futures})


def test_one_successor(folder: RunFolder) -> None:
    """Of those that want to take a round over only one does; who is gone is followed."""

    def winners(contestants: range, gone: int) -> list[int]:
        barrier, won = threading.Barrier(len(contestants)), []

        def succeed(number: int) -> None:
            barrier.wait()
            if Round.read(folder, 1).succeed(("here", number, ""), lambda who: who[1] == gone):
                won.append(number)

        threads = [threading.Thread(target=succeed, args=(number,)) for number in contestants]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return won

    (first,) = winners(range(8), -1)
    assert not winners(range(8), -1)
    (second,) = winners(range(8, 16), first)
    assert second in range(8, 16)
    assert not winners(range(8), first)
