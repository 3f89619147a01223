"""How many calls of the controller a run costs on a busy cluster: a few each half minute, for any number of items."""

from __future__ import annotations

import pytest

from crowd import measure
from tests.conftest import started_cluster

pytestmark = [pytest.mark.slurm, pytest.mark.long]

ONCE = 6  # for the configuration, the submission and the cancellation of tasks that no item needs
EACH_QUERY = 3


def test_calls() -> None:
    """400 items of which 64 run at a time cost a query every 30 s at most, beside the submission."""
    measured = measure("slurmlaunch", 400, 60.0, started_cluster)  # which compares the values

    assert 0 < measured.calls <= ONCE + EACH_QUERY * (1 + measured.seconds / 30)
