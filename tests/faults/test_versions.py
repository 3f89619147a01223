"""Nodes that cannot run the client's pickle (another Python, or a missing module): reported once, and soon."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import Executor, NodeStartError
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurmlaunch import FutureArray
    from tests.support.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("_quick_answers")]

ITEMS = 24
LATER_WAIT = ["[ $SLURM_ARRAY_TASK_ID -lt 6 ] || sleep 600"]
"""Set-up lines with which only the first tasks start before the client has seen how they ended, however late."""

REPOSITORY = Path(__file__).parents[2]


def another_python() -> str:
    """Return a Python of another minor version."""
    for path in sorted(Path("~/.pyenv/versions").expanduser().glob("3.1[1-9]*/bin/python")):
        if path.parent.parent.name.rpartition(".")[0] != f"3.{sys.version_info.minor}":
            return str(path)
    pytest.skip("there is no other Python here")


def refused(array: FutureArray[int]) -> list[NodeStartError]:
    """Wait for all items to fail; return their error."""
    found = array.results(timeout=60, return_exceptions=True)
    assert all(isinstance(each, NodeStartError) for each in found), found
    return [each for each in found if isinstance(each, NodeStartError)]


def tasks_started(array: FutureArray[int]) -> int:
    """Return how many tasks have written to their logs."""
    return sum(1 for path in (array.folder / "logs").glob("*.err") if path.stat().st_size)


def few_started(cluster: Cluster, array: FutureArray[int]) -> bool:
    """Return whether the rest of a run was left unstarted after its first tasks died in the same way."""
    wait_until(lambda: not cluster.run("squeue", "--noheader", f"--jobs={array.job_ids[0]}", "--states=PD,R"))
    return tasks_started(array) < len(array)


def test_another_python(cluster: Cluster, tmp_path: Path) -> None:
    """The error names both versions, before anything is unpickled, and the rest of the run is not started."""
    packages = subprocess.run(
        [sys.executable, "-c", "import cloudpickle; print(cloudpickle.__path__[0].rpartition('/')[0])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    executor = Executor(
        tmp_path / "runs",
        cluster="slurm",
        cpus_per_task=4,
        setup=LATER_WAIT,
        python=[another_python()],
        env={"PYTHONPATH": f"{REPOSITORY}:{packages}"},
    )
    array = executor.map_array(abs, range(ITEMS), tasks=ITEMS, throttle=2)
    errors = refused(array)

    here = f"Python 3.{sys.version_info.minor}"
    assert all(here in str(each) and str(each).count("Python 3.1") >= 2 for each in errors), errors[0]
    assert "python=[" in str(errors[0])
    assert few_started(cluster, array)


@pytest.mark.parametrize("missing", ["slurmlaunch", "cloudpickle"])
def test_without(cluster: Cluster, tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python without slurmlaunch or cloudpickle: the error names the package, with the advice to install it."""
    monkeypatch.chdir(tmp_path)  # modules in the working directory are found, too
    if missing == "cloudpickle":
        (tmp_path / "packages").mkdir()
        (tmp_path / "packages" / "slurmlaunch").symlink_to(REPOSITORY / "slurmlaunch")
    bare = subprocess.run(
        [sys.executable, "-c", "import sys; print(sys._base_executable)"], capture_output=True, text=True, check=True
    ).stdout.strip()
    executor = Executor(
        tmp_path / "runs",
        cluster="slurm",
        cpus_per_task=4,
        setup=LATER_WAIT,
        python=[bare, "-S"],
        env={"PYTHONPATH": str(tmp_path / "packages")},
    )
    array = executor.map_array(abs, range(ITEMS), tasks=ITEMS, throttle=2)
    errors = refused(array)

    assert all(missing in str(each) for each in errors), errors[0]
    assert all(f"Install {missing} for the Python that runs on the node" in str(each) for each in errors), errors[0]
    assert few_started(cluster, array)


def test_no_such_python(cluster: Cluster, tmp_path: Path) -> None:
    """The error about a missing Python quotes the log, and no task stays in the queue."""
    executor = Executor(tmp_path / "runs", cluster="slurm", python=["/no/such/python"])
    array = executor.map_array(abs, range(200), throttle=2)
    errors = refused(array)

    assert all("/no/such/python" in str(each) and "No such file" in str(each) for each in errors), errors[0]
    assert sum("not started" in str(each) for each in errors) > 150
    assert few_started(cluster, array)


def test_without_the_users_module(cluster: Cluster, tmp_path: Path, beside: Callable[[str], Any]) -> None:
    """The error names the module, and how to let its code travel; the rest of the run is not started."""
    module = beside("def double(x): return 2 * x")
    executor = Executor(
        tmp_path / "runs", cluster="slurm", cpus_per_task=4, setup=[f"rm -rf {tmp_path}/beside"], code="live"
    )
    array = executor.map_array(module.double, range(ITEMS), tasks=ITEMS, throttle=2)
    errors = refused(array)

    assert all("No module named 'lies_beside'" in str(each) and "by_value=" in str(each) for each in errors), errors[0]
    assert few_started(cluster, array)
    assert [0, 2, 4] == executor.options(by_value=[module]).map_array(module.double, range(3)).results(timeout=60)


def test_set_up_that_fails(cluster: Cluster, tmp_path: Path) -> None:
    """A failure before Python starts is reported with the end of the log."""
    executor = Executor(tmp_path / "runs", cluster="slurm", setup=["echo a quota is exceeded >&2", "false"])
    errors = refused(executor.map_array(abs, range(ITEMS), tasks=ITEMS))

    assert all("a quota is exceeded" in str(each) for each in errors), errors[0]
