"""A script on Slurm that goes on with its run: killed at random moments, refused, and beside tasks that run."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest

import slurmlaunch
from slurmlaunch import Executor, SubmissionError, attach
from slurmlaunch.client.attach import inspect
from slurmlaunch.client.ledger import ItemStatus
from slurmlaunch.client.resuming import place_of
from tests.support import scripts, sweeps
from tests.support.waiting import PATIENCE, Gate

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

ITEMS = 60


def done_in(folder: Path) -> set[int]:
    """Return the items whose values are recorded."""
    found = [inspect(run.folder) for run in slurmlaunch.runs(folder / "runs")]
    return {item for run in found for item in range(ITEMS) if run.ledger.status(item) == ItemStatus.VALUE}


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.long)])
def test_killed_at_random_moments(kills: int, tmp_path: Path) -> None:
    """Each start goes on: no item runs after it was recorded, and a last one submits nothing."""
    for number in range(kills):
        done, before = done_in(tmp_path), len(sweeps.begun(tmp_path))
        script = sweeps.start(tmp_path, ITEMS, seconds=0.2, cluster="slurm")
        time.sleep(random.uniform(0.3, 1.5 if number % 2 else 3.0))
        script.kill()
        script.communicate()
        assert done.isdisjoint(sweeps.begun(tmp_path)[before:])

    done, before = done_in(tmp_path), len(sweeps.begun(tmp_path))
    status, out, err = scripts.finish(sweeps.start(tmp_path, ITEMS, cluster="slurm"))
    assert (0, "True") == (status, out.split()[0]), err
    assert done.isdisjoint(sweeps.begun(tmp_path)[before:])
    begun = sweeps.begun(tmp_path)
    status, again, err = scripts.finish(sweeps.start(tmp_path, ITEMS, cluster="slurm"))
    assert (0, out) == (status, again), err
    assert begun == sweeps.begun(tmp_path)
    submitted = [run.folder for run in slurmlaunch.runs(tmp_path / "runs") if run.job_ids]
    assert [place_of("sweep", tmp_path / "runs")] == submitted


def test_while_it_runs(tmp_path: Path) -> None:
    """Items that run are watched, and not submitted again; one whose job was cancelled is."""
    gate = Gate(tmp_path / "gate")
    executor = Executor(tmp_path / "runs", cluster="slurm")
    first = executor.map_array(gate.enter, ["a", "b"], name="waits", chunksize=1, resume=True)
    gate.await_arrival("a", "b")
    first[1].cancel()
    second = executor.map_array(gate.enter, ["c", "b", "a"], name="waits", chunksize=1, resume=True)
    gate.open()

    assert ["c", "b", "a"] == second.results(PATIENCE)
    assert second[2].job_id == first[0].job_id
    assert 2 == len(second.job_ids)


def test_refused(tmp_path: Path) -> None:
    """A run that Slurm refuses leaves nothing behind; a refused round is submitted by the next start."""
    executor = Executor(tmp_path / "runs", cluster="slurm")
    wrong = executor.options(partition="nowhere")
    with pytest.raises(SubmissionError):
        wrong.map_array(abs, [-1], name="sweep", resume=True)
    assert [] == list(executor.folder.iterdir())
    executor.map_array(abs, [-1], name="sweep", resume=True).wait(PATIENCE)
    with pytest.raises(SubmissionError):
        wrong.map_array(abs, [-1, -2], name="sweep", resume=True)

    array = executor.map_array(abs, [-1, -2], name="sweep", resume=True)

    assert [1, 2] == array.results(PATIENCE)
    assert [1, 2] == attach(array.folder).results(PATIENCE)
