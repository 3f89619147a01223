"""A run as one process sees it: the items of each task over several rounds, and the records of journals."""

from __future__ import annotations

import os
import subprocess
import threading
from array import array
from typing import TYPE_CHECKING, Any, cast

import pytest

from slurmlaunch.backends.inline import InlineBackend
from slurmlaunch.client import submission
from slurmlaunch.client.events import JobsSeen
from slurmlaunch.client.futures import Future
from slurmlaunch.client.ledger import ItemStatus
from slurmlaunch.client.rerun import unfinished
from slurmlaunch.client.run import Run
from slurmlaunch.client.submission import Submission
from slurmlaunch.client.watcher import Watch
from slurmlaunch.errors import NodeStartError, SchedulerError, SubmissionError
from slurmlaunch.outcome import Failure
from slurmlaunch.runfolder import rounds
from slurmlaunch.runfolder.clients import ClientId
from slurmlaunch.runfolder.files import Location, opened
from slurmlaunch.runfolder.layout import Manifest
from slurmlaunch.runfolder.outcomes import OutcomeWriter
from slurmlaunch.runfolder.plan import ArrayPlan, RoundPlan, Slices
from slurmlaunch.runfolder.rounds import CancellationReader, Round, read_rounds, write_cancellations
from tests.support.tasks import OneRun, rows
from tests.support.waiting import wait_until
from tests.unit.test_collector import poll

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from slurmlaunch.backends.base import ArrayJob
    from slurmlaunch.runfolder.layout import RunFolder


class Backend(InlineBackend):
    """A backend with jobs that no journal records."""

    def __init__(self, jobs: dict[str, str]) -> None:
        self.jobs = jobs
        self.asked: list[str] = []
        self.submitted: list[str] = []
        self.error: BaseException | None = None
        self.cancelled: list[tuple[str, Any]] = []

    def cancel(self, job_id: str, elements: Any = None) -> None:
        """Record the cancellation, and raise the prepared error."""
        self.cancelled.append((job_id, elements))
        if self.error is not None:
            raise self.error

    def submit(self, job: ArrayJob) -> str:
        """Record the job, or raise the prepared error."""
        if self.error is not None:
            raise self.error
        self.submitted.append(job.name)
        return str(20 + len(self.submitted))

    def find(self, name: str, since: float) -> str | None:
        """Return the job of that name, or raise the prepared error."""
        del since
        if self.error is not None:
            raise self.error
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


def status_of(run: Run, item: int) -> ItemStatus:
    """Return an item's status after a poll."""
    poll(Watch(run))
    return run.ledger.status(item)


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        (1, {0: [0, 1], 1: [2, 3], 2: [4, 5], 3: [6, 7]}),
        (2, {0: [0], 1: [2, 3], 2: [], 3: [6], 4: [1, 4], 5: [5, 7]}),
    ],
)
def test_items_of_tasks(folder: RunFolder, rounds: int, expected: dict[int, list[int]]) -> None:
    """An item belongs to its latest task, in each view up to the view's own rounds."""
    run = view(folder, rounds)

    assert expected == {task: list(run.tasks.items_of(task)) for task in expected}
    assert all(task == run.tasks.task_of(item) for task, items in expected.items() for item in items)


def test_places(folder: RunFolder) -> None:
    """A task has its place in an array of its round, and the array's job if it is known."""
    latest = list(read_rounds(folder))[1]
    latest.submitted(1, "9")
    run = view(folder)
    poll(Watch(run))
    places = [run.tasks.view(task) for task in (3, 4, 5)]

    expected = [(0, 0, 3, None), (1, 0, 0, None), (1, 1, 0, "9_0")]
    assert expected == [(place.round.number, place.array, place.element, place.full_id) for place in places]
    with pytest.raises(LookupError):
        view(folder).tasks.view(6)


def test_one_failure_of_several_items(folder: RunFolder) -> None:
    """A failure that several items share, of which some were run again, stays that of the others."""
    writer = OutcomeWriter(folder, 0)
    writer.failure(0, Failure(NodeStartError("no such module")).dump(), count=2)
    writer.close()
    run = view(folder)
    poll(Watch(run))

    assert [ItemStatus.FAILURE, ItemStatus.OPEN] == [run.ledger.status(item) for item in (0, 1)]
    assert "no such module" in str(run.future(0, Future).exception(timeout=0))
    assert [ItemStatus.FAILURE, ItemStatus.FAILURE] == [status_of(view(folder, 1), item) for item in (0, 1)]


def test_lost_job(folder: RunFolder) -> None:
    """A job that its client did not live to write down is found by its name, and written down."""
    latest = list(read_rounds(folder))[1]
    for number in (0, 1):
        latest.intend(number)
    latest.refused(1, "no")
    run = view(folder, jobs={"again-0": "12"})

    Submission(run).take_over()

    assert (("12",), ["again-0"]) == (run.job_ids, run.backend.asked)  # type: ignore[attr-defined]
    later = view(folder)
    poll(Watch(later))
    assert ("12",) == later.job_ids


@pytest.mark.parametrize(
    ("items", "told"),
    [(range(8), [("3", None), ("12", None), ("13", None)]), ((0, 1, 2, 3, 4), [("3", (0, 1)), ("12", None)])],
)
def test_a_cancel_that_fails(folder: RunFolder, items: Sequence[int], told: list[tuple[str, Any]]) -> None:
    """Each job is cancelled even if cancelling an earlier one fails, and the items are cancelled."""
    run = view(folder)
    run.handle(JobsSeen(0, {0: "3"}))
    run.handle(JobsSeen(1, {0: "12", 1: "13"}))
    run.backend.error = SchedulerError("away")  # type: ignore[attr-defined]

    with pytest.raises(SchedulerError, match="away"):
        run.cancel(items)

    assert told == run.backend.cancelled  # type: ignore[attr-defined]
    assert {ItemStatus.CANCELLED} == {run.ledger.status(item) for item in items}


def test_a_file_that_cannot_be_read_now(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poll reports the cancellations that can be read, and reads the others the next time."""
    run = view(folder)
    watch = Watch(run)
    futures: list[Future[Any]] = [run.future(item, Future) for item in (0, 2)]
    for client, item in enumerate((0, 2)):
        write_cancellations(folder, 0, str(client), [range(item, item + 1)])
    tried: list[Location] = []

    def open_one(path: Location) -> Any:
        tried.append(path)
        return opened(path) if len(tried) == 1 else refuse()

    monkeypatch.setattr(rounds, "opened", open_one)
    with pytest.raises(OSError, match="stale"):
        poll(watch)
    assert [False, True] == sorted(future.cancelled() for future in futures)

    monkeypatch.undo()
    watch.collector._slow_at = 0.0  # noqa: SLF001 - or the clock would decide
    poll(watch)
    assert all(future.cancelled() for future in futures)


def test_an_array_that_was_accepted_is_not_refused(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the poll after an accepted submission is no refusal; the next poll reads the rest."""
    latest = list(read_rounds(folder))[1]
    latest.plan = latest.plan._replace(options={"python": ["python"]})
    run = Run(folder, Manifest.read(folder), Backend({}), [*list(read_rounds(folder))[:1], latest])
    monkeypatch.setattr(CancellationReader, "new", refuse)
    Submission(run).submit(run.rounds[-1])
    wait_until(lambda: len(run.job_ids) == 2)

    journal = latest.journal()
    assert ({}, {0: "21", 1: "22"}) == (journal.refusals, journal.job_ids)


def refuse(*_: object) -> int:
    """Do as a network file system does at times."""
    raise OSError("stale")


def test_refused_array(folder: RunFolder) -> None:
    """The items of an array that was refused for good have failed, for every client."""
    list(read_rounds(folder))[1].refused(1, "no such partition")
    run = view(folder)
    Submission(run).read_refusals()

    assert {5, 7} == {item for item in range(8) if run.ledger.status(item) == ItemStatus.ENDED}
    error: Any = run.future(5, Future).exception(timeout=0)
    assert (SubmissionError, "no such partition") == (type(error), str(error))


class TestLeft:
    """Arrays left unsubmitted by clients that ended, seen by a client that attached before."""

    @pytest.fixture(autouse=True)
    def _at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(submission, "_FOLLOW_EVERY", 0.0)
        monkeypatch.setattr(submission, "_SBATCH_OUTLIVES", 0.0)

    @pytest.fixture
    def client(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start a process that poses as the client that makes a round."""
        with subprocess.Popen(["sleep", "600"]) as process:
            yield process
            process.kill()

    def attached(self, folder: RunFolder, client: int, *, automatic: bool = False) -> Run:
        """Return a view with a round of the items 0, 2, 3 and 6, which that client has made and not submitted."""
        arrays = (ArrayPlan("third-0", 6, 1), ArrayPlan("third-1", 7, 1))
        plan = RoundPlan(
            Slices(4, 2), 6, arrays, cpus_per_task=1, processes=1, threads=1, items=array("Q", [0, 2, 3, 6])
        )
        made = plan._replace(client=ClientId.of_process(client), automatic=automatic, options={"python": ["python"]})
        Round.make(folder, 2, made).intend(0)
        return view(folder)

    def ended(self, run: Run) -> set[int]:
        """Return the items that ended with an error."""
        return {item for item in range(8) if run.ledger.status(item) == ItemStatus.ENDED}

    def test_refused(self, folder: RunFolder, client: subprocess.Popen[bytes]) -> None:
        """An array that its client was refused has failed for the others too."""
        run = self.attached(folder, client.pid)
        Round.read(folder, 2).refused(1, "no")
        Submission(run).follow()

        assert ({3, 6}, []) == (self.ended(run), run.backend.asked)  # type: ignore[attr-defined]

    def test_gone(self, folder: RunFolder, client: subprocess.Popen[bytes]) -> None:
        """Others wait while its client lives; after one search for the job, the array counts as never submitted."""
        run = self.attached(folder, client.pid)
        Submission(run).follow()
        assert (set(), []) == (self.ended(run), run.backend.asked)  # type: ignore[attr-defined]

        client.kill()
        client.wait()
        Submission(run).follow()
        Submission(run).follow()

        assert ({0, 2, 3, 6}, ["third-0"]) == (self.ended(run), run.backend.asked)  # type: ignore[attr-defined]
        assert "Call .retry() to submit it" in str(run.future(0, Future).exception(timeout=0))
        assert {0, 2, 3, 6} <= {*unfinished(view(folder), run)}

    def test_found(self, folder: RunFolder, client: subprocess.Popen[bytes]) -> None:
        """A job that it did not live to write down is found."""
        run = self.attached(folder, client.pid)
        run.backend.jobs["third-0"] = "12"  # type: ignore[attr-defined]
        client.kill()
        client.wait()
        Submission(run).follow()

        assert ({3, 6}, ("12",)) == (self.ended(run), run.job_ids)

    def test_a_scheduler_that_is_away(self, folder: RunFolder, client: subprocess.Popen[bytes]) -> None:
        """A search that failed is repeated, also while the client lives that should submit the array."""
        run = self.attached(folder, client.pid)
        following, backend = Submission(run), cast("Backend", run.backend)
        backend.jobs["third-0"], backend.error = "12", SchedulerError("away")
        following.take_over()
        following.follow()
        assert not run.job_ids

        backend.error = None
        following.follow()
        following.follow()

        assert (("12",), ["third-0"]) == (run.job_ids, backend.asked)

    def test_retried_by_itself(self, folder: RunFolder, client: subprocess.Popen[bytes]) -> None:
        """An unsubmitted automatic retry is submitted by one of the other clients."""
        runs = [self.attached(folder, client.pid, automatic=True), view(folder)]
        client.kill()
        client.wait()
        for run in runs:
            Submission(run).follow()
        wait_until(lambda: len(Round.read(folder, 2).journal().job_ids) == 2)
        for run in runs:
            Submission(run).follow()
            poll(Watch(run))

        submitted = [run.backend.submitted for run in runs]  # type: ignore[attr-defined]
        assert [["third-0", "third-1"], []] == sorted(submitted, reverse=True)
        assert runs[0].job_ids == runs[1].job_ids
        assert [set(), set()] == [self.ended(run) for run in runs]

    def test_taken_over(
        self, folder: RunFolder, client: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A client also waits for an array that another client takes over, and reads the journal once an array."""
        run = self.attached(folder, client.pid)
        client.kill()
        client.wait()
        assert {0, 2, 3, 6} <= {*unfinished(run, run)}
        Round.read(folder, 2).waiting(0, ClientId.current())
        read, really = [], Round.journal
        monkeypatch.setattr(Round, "journal", lambda self: read.append(self) or really(self))  # type: ignore[func-returns-value]

        assert not {0, 2, 3, 6} & {*unfinished(run, run)}
        assert len(read) <= 4

    @pytest.mark.parametrize(
        "error", [SubmissionError("no answer", ambiguous=True), KeyboardInterrupt(), OSError("full")]
    )
    def test_abandoned(self, folder: RunFolder, error: BaseException) -> None:
        """Nobody waits for an array that a living client failed to submit and does not submit again."""
        run = self.attached(folder, os.getpid())
        run.backend.error = error  # type: ignore[attr-defined]
        with pytest.raises(type(error)):
            Submission(run).submit(run.rounds[-1])
        other, late = view(folder), view(folder, jobs={"third-0": "12"})
        assert {0, 2, 3, 6} <= {*unfinished(other, other)}
        Submission(other).take_over()
        Submission(late).take_over()

        assert {0, 2, 3, 6} == self.ended(other)
        assert ({3, 6}, ("12",)) == (self.ended(late), late.job_ids)


def test_one_future_for_all_threads(folder: RunFolder) -> None:
    """Any number of threads that request an item at once get one future."""
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


def test_one_successor(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several clients that take a round over at once, one succeeds; one that has ended is replaced."""
    ended: set[int] = set()
    monkeypatch.setattr(ClientId, "has_ended", property(lambda client: client.pid in ended))

    def winners(contestants: range, gone: int) -> list[int]:
        barrier, won = threading.Barrier(len(contestants)), []
        ended.add(gone)

        def take_over(number: int) -> None:
            barrier.wait()
            if Round.read(folder, 1).take_over(ClientId.current()._replace(pid=number)):
                won.append(number)

        threads = [threading.Thread(target=take_over, args=(number,)) for number in contestants]
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
