"""Retries: items that fail late, submissions that the scheduler refuses, and the reads of a manual retry."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import Executor
from slurmlaunch.backends.base import Snapshot, TaskRecord, TaskState
from slurmlaunch.backends.inline import InlineBackend
from slurmlaunch.client import rerun, rounds, submission, waiting_line
from slurmlaunch.client.events import (
    EndMarkSeen,
    JobsSeen,
    OutcomesSeen,
    RoundAdded,
    SchedulerReported,
    Tick,
)
from slurmlaunch.client.futures import Future
from slurmlaunch.client.item_details import attempts_of
from slurmlaunch.client.run import Run
from slurmlaunch.client.watcher import Watch
from slurmlaunch.errors import SubmissionError, WorkerDied
from slurmlaunch.runfolder.files import Location
from slurmlaunch.runfolder.layout import EndMark, Manifest, RunFolder
from slurmlaunch.runfolder.outcomes import Recorded, close_task
from slurmlaunch.runfolder.records import Header, Kind
from slurmlaunch.runfolder.rounds import read_rounds
from tests.support.tasks import OneRun, rows
from tests.support.waiting import PATIENCE, wait_until
from tests.unit.test_collector import poll

if TYPE_CHECKING:
    from slurmlaunch.backends.base import ArrayJob, Limits
    from slurmlaunch.runfolder.rounds import Round

NO_ROOM = SubmissionError("no", stderr="QOSMaxSubmitJobPerUserLimit", no_room=True, limit=8)
AWAY = SubmissionError("no", stderr="Unable to contact slurm controller", transient=True)
NO_ANSWER = SubmissionError("no", stderr="Socket timed out", ambiguous=True)


class Scheduler(InlineBackend):
    """Answers each submission with a prepared answer, when allowed; runs nothing.

    Attributes:
        answers: the errors of the next submissions; later ones get a job id.
        may_answer: whether it answers.
        asked: the names of the submitted arrays.
        looked_for: the names of the jobs that were searched.
        found: the known jobs, by name.
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
    monkeypatch.setattr(waiting_line, "SHORTEST_WAIT", 0.01)


class Retried:
    """A run with retries, of one task without any report, and a clock that the test sets."""

    def __init__(self, path: Path, scheduler: Scheduler, items: int = 4) -> None:
        self.now = 0.0
        folder = OneRun(path, len, rows(range(items)), options={"retries": 1}).folder
        rounds = list(read_rounds(folder))
        self.run = Run(folder, Manifest.read(folder), scheduler, rounds, clock=lambda: self.now)
        self.run.handle(JobsSeen(0, {0: "7"}))
        self.watch = Watch(self.run)

    def die(self, items: range | None = None) -> None:
        """Have a worker die that ran these items, by default all."""
        items = range(self.run.manifest.items) if items is None else items
        header = Header(Kind.FAILURE, len(items), items.start, 0, 0)
        recorded = Recorded(self.run.folder.outcome_file(0, 0), 0, header)
        self.watch.handle(OutcomesSeen(0, recorded, WorkerDied(f"items from {items.start} died")))

    def retry(self) -> None:
        """Tick until all items that wait for a retry were submitted, or have settled."""

        def submitted() -> bool:
            self.watch.handle(Tick())
            return not self.run.state.pending

        wait_until(submitted)

    @property
    def statuses(self) -> list[str]:
        """The statuses of the items."""
        return [self.run.ledger.status(item).name for item in range(self.run.manifest.items)]


def test_items_that_fail_late_are_not_forgotten(tmp_path: Path) -> None:
    """Items that fail while a retry is submitted are retried too, also if that submission is refused."""
    scheduler = Scheduler(SubmissionError("invalid account"))
    retried = Retried(tmp_path / "run", scheduler)
    run = retried.run
    run.cancel(range(2, 4))
    scheduler.may_answer.clear()
    retried.die(range(1))
    retried.now = 3600.0  # it has waited for others for long enough
    retried.watch.handle(Tick())
    wait_until(lambda: scheduler.asked)
    retried.die(range(1, 2))
    scheduler.may_answer.set()
    retried.retry()
    wait_until(lambda: len(run.job_ids) == 2)

    assert ["ENDED", "OPEN", "CANCELLED", "CANCELLED"] == retried.statuses
    error: Any = run.future(0, Future).exception(PATIENCE)
    assert ("items from 0 died", "it could not be run again: invalid account") == (error.what, error.__notes__[0])
    assert [[0], [1]] == [list(each.plan.items or ()) for each in run.rounds[1:]]


def test_a_task_that_has_begun_again_is_not_retried(tmp_path: Path) -> None:
    """What a task left is retried only if the task cannot start any more, and so never runs twice at once."""
    scheduler = Scheduler()
    retried = Retried(tmp_path / "run", scheduler)
    run, watch, folder = retried.run, retried.watch, retried.run.folder
    failed = Snapshot(time.time() - 1.0, {"7": lambda _: TaskRecord(TaskState.FAILED)})
    first, second = Path(folder.outcome_file(0, 0)), Path(folder.outcome_file(0, 1))
    first.touch(0o600)
    poll(watch)
    second.touch(0o600)  # the scheduler has started it again, which this client has not seen
    watch.handle(EndMarkSeen(EndMark(0, 0, 137)))
    retried.retry()
    wait_until(lambda: run.tasks.view(0).attempts == 2)
    watch.handle(SchedulerReported(failed))  # asked before
    retried.now = 3600.0
    poll(watch)
    assert ([], 1, {}) == (scheduler.asked, len(run.rounds), run.state.pending)

    watch.handle(EndMarkSeen(EndMark(0, 1, 137)))
    retried.retry()
    wait_until(lambda: len(run.job_ids) == 2)
    assert [0, 1, 2, 3] == list(run.rounds[1].plan.items or ())
    assert folder.outcome_file(0, 2).is_dir()


def test_a_client_that_closed_a_task_and_made_no_round(tmp_path: Path) -> None:
    """Another client retries what the task left: that it was closed is no attempt of it."""
    retried = Retried(tmp_path / "run", Scheduler())
    folder = retried.run.folder
    Path(folder.outcome_file(0, 0)).touch(0o600)
    Path(folder.ended / "0.0.137").touch(0o600)
    assert close_task(folder, 0, 1)
    poll(retried.watch)
    retried.retry()
    wait_until(lambda: len(retried.run.job_ids) == 2)

    assert [0, 1, 2, 3] == list(retried.run.rounds[1].plan.items or ())
    assert [137] == [each.exit_code for each in attempts_of(retried.run, 0)]
    assert 1 == retried.run.tasks.view(0).attempts


def kill_the_supervisor(path: Path) -> None:
    """End the task, unless this was done before."""
    if not path.exists():
        path.touch()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(PATIENCE)


@pytest.mark.parametrize("restarted", [True, False])
def test_a_manual_retry_leaves_a_task_that_has_begun_again_alone(tmp_path: Path, *, restarted: bool) -> None:
    """A retry by a person takes over what a task left, or the task's next attempt runs it: never both."""
    array = Executor(tmp_path / "runs", cluster="local").map_array(kill_the_supervisor, [tmp_path / "done"])
    assert isinstance(array[0].exception(PATIENCE), WorkerDied)
    folder = RunFolder(array.folder)
    if restarted:
        Path(folder.outcome_file(0, 1)).touch(0o600)
    again = array.retry()

    assert [0] if restarted else [0, 1] == [each.number for each in read_rounds(folder)]
    if restarted:
        assert not again[0].done()
        again.cancel()
    else:
        assert [None] == again.results(PATIENCE)
        assert folder.outcome_file(0, 1).is_dir()


def test_a_removed_folder(tmp_path: Path) -> None:
    """If no retry can be made, no item waits for it."""
    retried = Retried(tmp_path / "run", Scheduler())
    shutil.rmtree(retried.run.folder.path)
    for _ in range(2):
        retried.watch.report_trouble(FileNotFoundError())
        retried.now += 3600.0

    assert ["ENDED"] * 4 == retried.statuses


@pytest.mark.parametrize("answer", [NO_ROOM, AWAY])
def test_a_retry_waits(tmp_path: Path, answer: SubmissionError) -> None:
    """While the queue is full or the scheduler is away, a retry waits, like later arrays."""
    scheduler = Scheduler(answer, answer)
    retried = Retried(tmp_path / "run", scheduler)
    retried.die()
    retried.retry()
    wait_until(lambda: len(retried.run.job_ids) == 2)

    assert ["OPEN"] * 4 == retried.statuses
    assert 3 == len(scheduler.asked)
    assert 1 == len({*scheduler.asked})


class Full(Scheduler):
    """Has no room until there is; answers the thread of a waiting line when allowed, and others at once."""

    room = False

    def limits(self) -> Limits:
        """Return a limit on what is in the queue."""
        return replace(super().limits(), max_submitted=NO_ROOM.limit)

    def submit(self, job: ArrayJob) -> str:
        """Answer."""
        self.asked.append(job.run_folder.name)
        if threading.current_thread() is not threading.main_thread():
            assert self.may_answer.wait(PATIENCE)
        if not self.room:
            raise NO_ROOM
        return str(100 + len(self.asked))


def test_many_runs_wait_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Behind a limit, many runs cost one thread, one try at a time and one warning; they are submitted in order."""
    full = Full()
    full.may_answer.clear()
    runs = []
    for number in range(40):
        folder = OneRun(tmp_path / str(number), len, rows(range(2))).folder
        run = Run(folder, Manifest.read(folder), full, list(read_rounds(folder)))
        runs.append(run)
        submission.Submission(run).submit(run.rounds[0])
    threads = [each for each in threading.enumerate() if each.name == "slurmlaunch-submit"]
    runs[1].cancel(range(2))
    full.may_answer.set()
    wait_until(lambda: "room in the queue" in caplog.text)
    wait_until(lambda: len(full.asked) > 5)
    assert len(threads) == 1
    assert {"0"} == {*full.asked}
    assert all(each.rounds[0].journal().waits for each in runs)

    full.asked.clear()
    full.room = True
    wait_until(lambda: all(each.job_ids for each in (*runs[:1], *runs[2:])))
    threads[0].join(PATIENCE)
    assert [str(number) for number in range(40) if number != 1] == [name for name, _ in groupby(full.asked)]
    assert runs[1].rounds[0].journal().not_needed == {0}
    assert ["to submit 40 runs" in each.message for each in caplog.records if "room" in each.message] == [True]


def test_exit_while_runs_wait(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At the exit, the runs that wait are named, but for one that was cancelled; none is said to have a job."""
    monkeypatch.setattr(waiting_line, "SHORTEST_WAIT", 60.0)
    full, runs = Full(), []
    for number in range(2):
        folder = OneRun(tmp_path / str(number), len, rows(range(2))).folder
        runs.append(Run(folder, Manifest.read(folder), full, list(read_rounds(folder))))
        submission.Submission(runs[-1]).submit(runs[-1].rounds[0])
    submission.say_how_to_come_back(runs[0])
    assert "No job of this run is submitted yet." in capsys.readouterr().err

    runs[1].cancel(range(2))
    (thread,) = [each for each in threading.enumerate() if each.name == "slurmlaunch-submit"]
    monkeypatch.setattr(threading, "main_thread", threading.Thread)
    thread.join(PATIENCE)
    assert [each.message for each in caplog.records if "exits" in each.message] == [
        f"slurmlaunch exits before all arrays are submitted: slurmlaunch.attach({str(tmp_path / '0')!r}) continues"
    ]


@pytest.mark.parametrize("there", [True, False])
def test_without_an_answer(tmp_path: Path, *, there: bool) -> None:
    """A submission that got no answer is searched for by its name before it is repeated."""
    scheduler = Scheduler(NO_ANSWER)
    retried = Retried(tmp_path / "run", scheduler)
    scheduler.may_answer.clear()
    retried.die()
    retried.watch.handle(Tick())
    wait_until(lambda: scheduler.asked)
    if there:
        scheduler.found[scheduler.asked[0]] = "55"
    scheduler.may_answer.set()
    wait_until(lambda: len(retried.run.job_ids) == 2)

    assert ("7", "55" if there else "102") == retried.run.job_ids
    assert (1 if there else 2, 1) == (len(scheduler.asked), len(scheduler.looked_for))
    assert ["OPEN"] * 4 == retried.statuses


def test_polls_while_a_retry_is_made(tmp_path: Path) -> None:
    """However often a run is polled meanwhile, the items that wait are submitted once."""
    number = 100_000
    retried = Retried(tmp_path / "run", Scheduler(), items=number)
    run = retried.run
    retried.die()
    while len(run.job_ids) < 2:
        poll(retried.watch)
    poll(retried.watch)

    assert (2, number) == (len(run.rounds), len(run.rounds[1].plan.items or ()))
    assert not run.state.pending


def test_a_retry_reads_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manual retry makes one view, and opens the outcome file of each task at most once."""

    def work(number: int) -> int:
        if number == 7:
            raise ValueError(number)
        return number

    array = Executor(tmp_path, cluster="inline").map_array(work, range(20), tasks=20)
    opened, views, really = [], [], Location.open
    monkeypatch.setattr(Location, "open", lambda file, flags: opened.append(file) or really(file, flags))  # type: ignore[func-returns-value]
    made = Run.__init__
    monkeypatch.setattr(Run, "__init__", lambda run, *args, **kwargs: views.append(run) or made(run, *args, **kwargs))  # type: ignore[func-returns-value]
    monkeypatch.setattr(InlineBackend, "submit", lambda *_: "1")
    again = array.retry()
    monkeypatch.undo()

    outcome_files = [file.name for file in opened if file.inside.startswith("outcomes/")]
    assert sorted(set(outcome_files)) == sorted(outcome_files)
    assert 1 == len(views)
    assert [[7]] == [list(each.plan.items or ()) for each in views[0].rounds[1:]]
    again.cancel()


def test_a_round_that_the_view_has_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manual retry proceeds if the competing round is an automatic retry of its own view."""
    really = rounds.add_round

    def late(run: Run, *args: Any, **options: Any) -> Round:
        monkeypatch.setattr(rerun, "add_round", really)
        added = really(run, *args, **options)
        run.handle(RoundAdded(added.number, added.plan))
        raise FileExistsError

    array = Executor(tmp_path, cluster="inline").map_array(int, ["1", "x", "y"], tasks=3)
    monkeypatch.setattr(rerun, "add_round", late)
    again = array.retry()

    assert [1, ValueError, ValueError] == [
        each if isinstance(each, int) else type(each) for each in again.results(PATIENCE, return_exceptions=True)
    ]
