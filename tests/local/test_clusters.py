"""The kinds of cluster that the tests can run on: how one is chosen, and what a session says of one that is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import clusters
from tests.support.clusters.__main__ import main

ROOT = Path(__file__).parents[2]


def test_nox_has_a_session_for_each_kind() -> None:
    """`nox -s cluster-NAME` exists for every kind of cluster, and for no other."""
    text = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("CLUSTERS = "))

    assert re.findall(r'"(\w+)"', line) == list(clusters.KINDS)


def test_an_unknown_kind_is_an_error_that_names_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that no kind has is refused, rather than taken for the default."""
    monkeypatch.setenv("SLURMLAUNCH_TEST_CLUSTER", "moder")

    with pytest.raises(LookupError, match=r"moder is no kind of cluster\. There are default, modern, "):
        clusters.chosen()


def test_a_kind_that_is_missing_is_named_and_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A session says what a kind lacks, fails, and installs nothing unless it is told to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    status = main(["modern"])

    assert status == 1
    assert "| modern | not run: " in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_pytest_on_a_kind_that_is_missing_runs_nothing(tmp_path: Path) -> None:
    """Pytest itself refuses a kind that is not installed, rather than run its tests on the default cluster."""
    variables = {"SLURMLAUNCH_TEST_CLUSTER": "newest", "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/slurm/test_states.py"]

    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False)

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "Debian" in done.stderr
    assert "::" not in done.stdout
