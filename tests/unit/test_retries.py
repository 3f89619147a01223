"""A further round's requests, given the outcomes of its items."""

from __future__ import annotations

from typing import Any

import pytest

from slurmlaunch.client.options import Options
from slurmlaunch.client.retries import Cause, next_options, wants_retry
from slurmlaunch.errors import (
    FunctionExited,
    ItemError,
    NodeFailure,
    NodeStartError,
    OutOfMemory,
    Preempted,
    ResultLost,
    TaskCancelled,
    TimeLimitExceeded,
    WorkerDied,
)

GIGABYTE = float(1 << 30)


def changed_options(
    error: ItemError, *, memory: float | None = None, seconds: float | None = None, **options: Any
) -> object:
    """Return the next round's request to Slurm after that error, on node n1."""
    return next_options(Options().changed(retries=1, **options), [Cause(error, "n1", memory, seconds)]).slurm


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mem": "1G"}, {"mem": "2048M"}),
        ({"mem": "3G"}, {"mem": "6144M"}),
        ({"mem": "3G", "grow": {"mem": 1.5}}, {"mem": "4608M"}),
        ({"mem": "3G", "max_mem": "5G"}, {"mem": "5120M"}),
        ({"mem": "6G", "max_mem": "5G"}, {"mem": "6144M"}),  # as after a retry(mem="6G")
        ({}, {"mem": "2048M"}),
        ({"mem": "0"}, {"mem": "0"}),
        ({"mem_per_cpu": "1G"}, {"mem_per_cpu": "2048M"}),
        ({"mem_per_gpu": "1G"}, {"mem_per_gpu": "2048M"}),
    ],
)
def test_memory(options: dict[str, Any], expected: dict[str, str]) -> None:
    """Memory grows from the request or the usage, the larger of the two, in the same units; "all" stays "all"."""
    assert expected == changed_options(OutOfMemory(), memory=GIGABYTE, **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"time": "01:00:00"}, {"time": "90:00"}),
        ({"time": "01:00:00", "grow": {"time": 2.0}}, {"time": "120:00"}),
        ({"time": "01:00:00", "max_time": "01:10:00"}, {"time": "70:00"}),
        ({"time": "01:20:00", "max_time": "01:10:00"}, {"time": "80:00"}),
        ({}, {"time": "15:00"}),
    ],
)
def test_time(options: dict[str, Any], expected: dict[str, str]) -> None:
    """So does the time."""
    assert expected == changed_options(TimeLimitExceeded(), seconds=600.0, **options)


def test_nodes() -> None:
    """A node that failed is left out, beside those that the user left out; one on which a process died is not."""
    assert {"exclude": "n1"} == changed_options(NodeFailure())
    assert {"exclude": "n7,n1"} == changed_options(NodeFailure(), exclude="n7")
    assert {} == changed_options(WorkerDied())


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (NodeFailure(), True),
        (OutOfMemory(), True),
        (Preempted(), True),
        (ResultLost(), True),
        (TimeLimitExceeded(), True),
        (WorkerDied(), True),
        (TaskCancelled(), False),
        (NodeStartError(), False),
        (ConnectionError(), True),
        (ValueError(), False),
    ],
)
def test_retried_ends(error: BaseException, *, again: bool) -> None:
    """A retry runs items ended from outside (except by a person), and exceptions of the named classes."""
    assert again == wants_retry(Options().changed(retries=1, retry_exceptions=(OSError,)), error)


@pytest.mark.parametrize("named", [SystemExit, FunctionExited])
def test_exits_are_retried_where_they_are_named(named: type[BaseException]) -> None:
    """An item that called sys.exit() is retried if ``retry_exceptions`` names SystemExit or FunctionExited."""
    assert wants_retry(Options().changed(retries=1, retry_exceptions=(named,)), FunctionExited("exit", code=3))
    assert not wants_retry(Options().changed(retries=1), FunctionExited("exit", code=3))
