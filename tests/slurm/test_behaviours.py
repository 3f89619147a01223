"""`slurmlaunch doctor --full` on every kind of cluster: it takes as long as a time limit of a minute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slurmlaunch import doctor
from slurmlaunch.client.doctor.behaviours import BEHAVIOURS
from tests.support.clusters import chosen

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slurm, *([pytest.mark.long] if chosen().name == "default" else [])]


@pytest.mark.usefixtures("cluster")
def test_all_behaviours(tmp_path: Path) -> None:
    """All behaviours are as documented, or the page says why one could not be tried; no folder is left."""
    report = doctor(tmp_path / "runs", full=True)

    tried = {each.name: each for each in report.checks if "promise" in each.data}
    assert tried.keys() == BEHAVIOURS.keys()
    assert report.errors == (), str(report)
    assert {name for name, each in tried.items() if each.level != "ok"} <= {"ranks", "mpi4py"}, str(report)
    assert list((tmp_path / "runs").iterdir()) == []
