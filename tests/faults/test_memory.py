"""Jobs that use more memory than they requested, on a cluster that enforces the limit."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import OutOfMemory, TaskState
from tests.faults.deeds import Hungry, Offers
from tests.faults.test_killed import ONCE, outcomes, squares
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.conftest import Launch
    from tests.support.cluster import Cluster

pytestmark = pytest.mark.slurm


def test_a_process_of_the_pool(strict: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """The item that used too much memory is OutOfMemory with the amount; the other items of its task finish."""
    work = deed(Hungry, 1)
    futures = launch(strict, mem="200M", cpus_per_task=2, processes=2).map_array(work, range(6), tasks=2)
    assert outcomes(futures) == squares(1, kind=OutOfMemory)
    error = futures[1].exception()
    assert "of 200 MiB" in str(error)
    assert "has mem='200M'" in str(error)
    assert re.search(r"\.retry\(mem='4\d\dM'\)$", error.__notes__[-1])  # type: ignore[union-attr]
    assert work.runs == ONCE


def test_the_supervisor(strict: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """A supervisor killed for lack of memory is distinguished from one killed by a person, at once."""
    work = deed(Offers, 1)
    futures = launch(strict, mem="200M").map_array(work, range(6), tasks=2)
    assert outcomes(futures) == squares(1, 2, kind=OutOfMemory)
    assert "supervisor" in str(futures[1].exception())
    (attempt,) = futures[1].attempts
    assert (attempt.state, attempt.exit_code) == (TaskState.OUT_OF_MEMORY, 137)
    assert work.runs == {item: runs for item, runs in ONCE.items() if item != 2}


def test_before_the_node(strict: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """The scheduler reports a task whose batch shell runs out of memory."""
    work = deed(Hungry)
    setup = "x=$(head -c 400M /dev/zero | tr '\\0' a)"
    futures = launch(strict, mem="100M", setup=[setup]).map_array(work, range(2), tasks=1)
    assert outcomes(futures) == squares(0, 1, kind=OutOfMemory, items=2)
    assert work.runs == {}
    (attempt,) = futures[0].attempts
    assert attempt.state is TaskState.OUT_OF_MEMORY


def test_more_the_next_time(strict: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """A retry requests more memory, up to max_mem, and runs only the missing items."""
    work = deed(Hungry, 1)
    executor = launch(strict, mem="150M", retries=3, grow={"mem": 2.0}, max_mem="500M")
    futures = executor.map_array(work, range(6), tasks=2)
    assert outcomes(futures) == squares()
    asked = [strict.run("scontrol", "show", "job", job) for job in futures.job_ids]
    first, second, third = (int(re.search(r"MinMemoryNode=(\d+)M", text)[1]) for text in asked)  # type: ignore[index]
    assert (first, third) == (150, 500)
    assert 300 <= second < 400  # the measured value may be a little above the request
    assert work.runs == {**ONCE, 1: 3}
    assert [attempt.job_id for attempt in futures[1].attempts] == [f"{job}_0" for job in futures.job_ids]
    assert len(futures[5].attempts) == 1
    last = futures[1].attempts[-1]
    assert last.peak_memory is None or last.peak_memory > 300 << 20
    assert futures[1].result(PATIENCE) == 1
