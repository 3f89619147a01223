"""Runs that a script left behind on Slurm: found again, kept while their jobs are listed, and removed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

import slurmlaunch
from slurmlaunch import RunFolderError, attach
from tests.support import scripts
from tests.support.waiting import Gate, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from slurmlaunch import FutureArray
    from tests.support.cluster import Cluster

pytestmark = pytest.mark.slurm

LEAVES = """
    import pathlib, sys
    from slurmlaunch import Executor
    from tests.support.waiting import Gate

    gate = Gate.__new__(Gate)
    gate.folder = pathlib.Path(sys.argv[1])
    Executor("runs").map_array(gate.enter, ["a"], name="left")
"""


def is_removed(array: FutureArray[str]) -> bool:
    """Remove a run, unless Slurm lists its job for a moment after the last result; return whether it is gone."""
    with contextlib.suppress(RunFolderError):
        array.remove()
    return not array.folder.exists()


def test_left_behind(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that ends before its job says how to come back; the run is kept until Slurm lists the job no more."""
    del cluster
    gate, folder = Gate(tmp_path / "gate"), tmp_path / "runs"
    status, _, said = scripts.finish(scripts.start(tmp_path, LEAVES, gate.folder))
    assert 0 == status, said
    (run,) = slurmlaunch.runs(folder)

    assert "running" == run.state
    assert f"The jobs {run.job_ids[0]} go on. Come back to them" in said
    assert f"fs = slurmlaunch.attach({str(run.folder)!r})" in said
    cleaned = slurmlaunch.clean(folder, older_than=0, keep_failed=False)
    assert ((), {run.folder: "slurm lists a job of it"}) == (cleaned.removed, cleaned.kept)
    monkeypatch.setenv("SLURMLAUNCH_FOLDER", str(folder))
    array = attach(run.job_ids[0])
    with pytest.raises(RunFolderError, match="slurm lists a job of it"):
        array.remove()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        with pytest.raises(RunFolderError, match="its jobs cannot be asked about"):
            array.remove()

    gate.open()
    assert ["a"] == attach("left").results(timeout=90)
    wait_until(lambda: is_removed(array))
    assert [] == list(folder.iterdir())
