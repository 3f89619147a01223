"""The table of sbatch's options against the installed sbatch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from slurmlaunch.client.sbatch_options import NAMES, OURS_TO_SET

if TYPE_CHECKING:
    from pathlib import Path

SBATCH = shutil.which("sbatch")


@pytest.mark.skipif(SBATCH is None, reason="needs sbatch: install slurm-client")
def test_installed_sbatch(tmp_path: Path) -> None:
    """Every option that the installed sbatch lists is in the table, or one that is ours to set."""
    (tmp_path / "slurm.conf").write_text("ClusterName=none\nSlurmctldHost=localhost\n")
    env = {**os.environ, "SLURM_CONF": str(tmp_path / "slurm.conf")}
    listed = subprocess.run(["sbatch", "--help"], env=env, check=True, capture_output=True, text=True).stdout
    names = {n.replace("-", "_") for n in re.findall(r"^ {2,6}(?:-\w,? )? *--([a-z-]+)", listed, re.MULTILINE)}

    assert len(names) > 90
    ours = {"container", "profile"}  # sbatch's own go as sbatch=["--profile=..."]
    assert set() == names - NAMES - OURS_TO_SET.keys() - ours
