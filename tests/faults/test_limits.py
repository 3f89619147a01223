"""The time limit, and submitit's checkpoints, with which long items continue after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import TaskCancelled, TaskState, TimeLimitExceeded, attach
from tests.faults.deeds import Counts, Deed
from tests.faults.test_killed import ONCE, outcomes, squares
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurmlaunch import Future
    from tests.faults.conftest import Launch
    from tests.support.cluster import Cluster

pytestmark = pytest.mark.slurm


def warn(cluster: Cluster, job_id: str | None) -> None:
    """Send the signal that Slurm sends before the time limit."""
    cluster.run("scancel", "--signal=USR1", "--batch", str(job_id))


def await_close(future: Future[Any]) -> None:
    """Wait until the future's task has received the warning and starts no more items."""
    wait_until(lambda: "the time limit is near, no further items are begun" in future.run.logs(0))


def test_between_items(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """After the warning no item starts; running ones may finish, and the task is requeued for the rest."""
    work = deed(Deed, 1)
    futures = launch(faulty).map_array(work, range(6), tasks=2)
    work.gate.await_arrival(1)
    warn(faulty, futures[1].job_id)
    assert futures[5].result(PATIENCE) == 25
    await_close(futures[1])
    work.gate.open()
    assert outcomes(futures) == squares()
    assert work.runs == ONCE
    wait_until(lambda: futures[2].attempts[-1].exit_code == 0)
    assert [attempt.exit_code for attempt in futures[2].attempts] == [75, 0]
    assert [attempt.state for attempt in futures[2].attempts] == [TaskState.REQUEUED, TaskState.COMPLETED]


def test_no_more_starts(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """With requeues=0 a warning changes nothing: only the limit ends the task."""
    work = deed(Deed, 1)
    futures = launch(faulty, requeues=0).map_array(work, range(6), tasks=2)
    work.gate.await_arrival(1)
    warn(faulty, futures[1].job_id)
    assert futures[5].result(PATIENCE) == 25
    work.gate.open()
    assert outcomes(futures) == squares()
    assert [len(each.attempts) for each in futures] == [1] * 6


def test_may_not_start_again(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """If the scheduler does not requeue the task, its remaining items end as TimeLimitExceeded."""
    work = deed(Deed, 1)
    futures = launch(faulty, no_requeue=True).map_array(work, range(6), tasks=2)
    work.gate.await_arrival(1)
    warn(faulty, futures[1].job_id)
    assert futures[5].result(PATIENCE) == 25
    await_close(futures[1])
    work.gate.open()
    assert outcomes(futures) == squares(2, kind=TimeLimitExceeded)
    assert work.runs == {item: 1 for item in range(6) if item != 2}


@pytest.mark.slow
def test_real_limits(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """An item that exceeds the limit is restarted, gets more time by a retry, or fails."""
    work = deed(Deed, 1, 11, 21)
    again = launch(faulty, time="00:01:00").map_array(work, range(3), tasks=1)
    never = launch(faulty, time="00:01:00", requeues=0)
    growth = {"retries": 1, "grow": {"time": 9.0}, "max_time": "00:03:00"}
    longer = never.options(**growth).map_array(work, range(10, 13), tasks=1)
    failed = never.map_array(work, range(20, 23), tasks=1)
    work.gate.await_arrival(1, 11, 21)
    for item in (1, 11):
        work.forget(item)
    assert [each.result(PATIENCE) for each in (again[0], longer[0], failed[0])] == [0, 100, 400]
    wait_until(lambda: {"1", "11"} <= work.gate.arrived, 2 * PATIENCE)
    found = failed.results(2 * PATIENCE, return_exceptions=True)
    assert [type(each) for each in found] == [int, TimeLimitExceeded, TimeLimitExceeded]
    work.gate.open()
    assert again.results(PATIENCE) == [0, 1, 4]
    assert longer.results(PATIENCE) == [100, 121, 144]
    assert work.runs == {0: 1, 1: 2, 2: 1, 10: 1, 11: 2, 12: 1, 20: 1, 21: 1}
    assert again[1].attempts[0].exit_code == 75
    assert [each[1].attempts[0].state for each in (again, longer, failed)] == ["REQUEUED", "TIMEOUT", "TIMEOUT"]
    assert "TimeLimit=00:03:00" in faulty.run("scontrol", "show", "job", longer.job_ids[1])


class TestCheckpoints:
    """A class with submitit's protocol, unchanged."""

    def step(self, work: Counts, number: int) -> None:
        """Allow one step, and wait for the next."""
        (work.gate.folder / f"{number}.open").touch()
        work.gate.await_arrival(number + 1)

    def test_at_the_limit(self, faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
        """At the warning the function returns a checkpoint, and the next attempt resumes from it."""
        work = deed(Counts)
        future = launch(faulty).submit(work, 4)
        work.gate.await_arrival(0)
        self.step(work, 0)
        self.step(work, 1)
        warn(faulty, future.job_id)
        wait_until(lambda: len(work.story.lines) > 1)
        for number in (2, 3):
            (work.gate.folder / f"{number}.open").touch()
        assert future.result(PATIENCE) == 4
        assert work.story.lines == ["from 0", "from 2"]

    def test_at_a_retry(self, faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
        """A further round resumes from the checkpoint of a preempted task, also from another process."""
        work = deed(Counts)
        futures = launch(faulty).map_array(work, [4, 0], chunksize=1)
        work.gate.await_arrival(0)
        self.step(work, 0)
        self.step(work, 1)
        faulty.run("scancel", str(futures[0].job_id))
        assert isinstance(futures[0].exception(PATIENCE), TaskCancelled)
        for number in (2, 3):
            (work.gate.folder / f"{number}.open").touch()
        again = attach(futures.folder)
        assert again.wait(PATIENCE)
        assert again.retry().results(PATIENCE) == [4, 0]
        assert sorted(work.story.lines) == ["from 0", "from 0", "from 2"]

    def test_at_a_requeue(self, faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
        """A requeue, as at a preemption, also leaves time for a checkpoint."""
        work = deed(Counts)
        futures = launch(faulty).map_array(work, [4])
        work.gate.await_arrival(0)
        self.step(work, 0)
        faulty.run("scontrol", "requeue", str(futures[0].job_id))
        wait_until(lambda: len(work.story.lines) > 1)
        for number in (1, 2, 3):
            (work.gate.folder / f"{number}.open").touch()
        assert futures.results(PATIENCE) == [4]
        assert work.story.lines == ["from 0", "from 1"]
