"""A task's environment on a real Slurm, read back from inside the user's function."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import slurmlaunch
from slurmlaunch import Executor, WorkerDied, caps
from tests.support.cluster import ClusterSpec
from tests.support.printing import check_output, print_in_all_ways
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.cluster import Cluster

pytestmark = pytest.mark.slurm

MACHINE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


@pytest.fixture
def on_slurm(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Executor]]:
    """Return a function that makes executors on the session's cluster; functions of this module travel by value."""
    made = []

    def make(**options: Any) -> Executor:
        made.append(Executor(tmp_path / "runs", cluster="slurm", by_value=__name__, **options))
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown(cancel_futures=True)


def test_output(on_slurm: Callable[..., Executor]) -> None:
    """Items side by side have each its own output, also the one whose process was killed."""

    def print_all(item: int) -> None:
        print_in_all_ways(item, 500, killed=item == 1)

    futures = on_slurm(processes=3, cpus_per_task=3).map_array(print_all, range(3), tasks=1)

    errors = futures.results(60, return_exceptions=True)
    assert [False, True, False] == [isinstance(error, WorkerDied) for error in errors]
    for item, future in enumerate(futures):
        check_output(future.stdout(), item, 500, killed=item == 1)
        assert f"error {item}" == future.stderr()
    assert all(futures.logs(0).count(f"descriptor {item} ") == 500 for item in range(3))


def meet(others: int) -> None:
    """Wait until so many items of the task run side by side."""
    task = slurmlaunch.current_task()
    (task.run_folder / f"here-{task.item}").touch()
    wait_until(lambda: len(list(task.run_folder.glob("here-*"))) == others)


def read_back(others: int) -> dict[str, Any]:
    """Return all that a process can find out about its CPUs."""
    meet(others)
    import numpy as np
    import threadpoolctl

    np.ones((200, 200)) @ np.ones((200, 200))
    return {
        "process": os.getpid(),
        "cpu_count": slurmlaunch.cpu_count(),
        "variables": {name: os.environ.get(name) for name in caps.VARIABLES},
        "pools": [pool["num_threads"] for pool in threadpoolctl.threadpool_info()],
        "mask": os.sched_getaffinity(0),
        "python": os.cpu_count(),
        "granted": os.environ["SLURM_CPUS_PER_TASK"],
    }


# Caps.


@pytest.mark.parametrize(("processes", "threads"), [(2, 4), (8, 1)])
def test_processes_share_the_granted_cpus(on_slurm: Callable[..., Executor], processes: int, threads: int) -> None:
    """In each process of a task of 8 CPUs the variables, NumPy and cpu_count have its share, on any machine."""
    executor = on_slurm(cpus_per_task=8, threads=threads)

    found = executor.map_array(read_back, [processes] * processes).results()

    assert len({each["process"] for each in found}) == processes
    for each in found:
        assert each["granted"] == "8"
        assert each["cpu_count"] == threads
        assert each["variables"] == dict.fromkeys(caps.VARIABLES, str(threads))
        assert each["pools"]
        assert max(each["pools"]) <= threads
        # The node claims 8 CPUs, so the mask is not the task's own: it is left alone.
        assert len(each["mask"]) == MACHINE
        if sys.version_info >= (3, 13):
            assert each["python"] == threads


def test_a_single_call_has_all_of_its_task(on_slurm: Callable[..., Executor]) -> None:
    """A single call may use every CPU of its grant, and a pool in it has a process for each."""

    def count() -> list[Any]:
        with slurmlaunch.task_pool() as pool:
            inner = pool.submit(lambda: (slurmlaunch.cpu_count(), os.environ["OMP_NUM_THREADS"])).result()
            return [slurmlaunch.cpu_count(), os.environ["OMP_NUM_THREADS"], pool._max_workers, inner]  # type: ignore[attr-defined]  # noqa: SLF001

    assert on_slurm(cpus_per_task=4).submit(count).result() == [4, "4", 4, (1, "1")]


def test_the_users_variables_stay(on_slurm: Callable[..., Executor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that come from the user's environment, from env= or from the set-up lines stay; others are capped."""
    for name in caps.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    executor = on_slurm(
        cpus_per_task=8, threads=4, env={"MKL_NUM_THREADS": 5}, setup="export NUMEXPR_NUM_THREADS=6 PYTHON_CPU_COUNT=7"
    )

    (found,) = executor.map_array(read_back, [1]).results()

    theirs = {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "5", "NUMEXPR_NUM_THREADS": "6", "PYTHON_CPU_COUNT": "7"}
    assert found["variables"] == dict.fromkeys(caps.VARIABLES, "4") | theirs
    assert found["cpu_count"] == 4
    if sys.version_info >= (3, 13):
        assert found["python"] == 7


@pytest.mark.skipif(MACHINE < 2, reason="needs two CPUs")
def test_processes_have_cpus_of_their_own(
    start_cluster: Callable[[ClusterSpec], Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the task's mask holds the granted CPUs, the masks of its processes do not overlap, and leave no CPU out."""
    cluster = start_cluster(ClusterSpec(nodes=1, cpus_per_node=MACHINE, accounting=False))
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    processes = min(MACHINE, 8)
    with Executor(
        tmp_path / "runs", cluster="slurm", by_value=__name__, cpus_per_task=MACHINE, processes=processes
    ) as executor:
        found = executor.map_array(read_back, [processes] * processes).results()

    masks = [each["mask"] for each in found]
    assert sorted(cpu for mask in masks for cpu in mask) == sorted(os.sched_getaffinity(0))
    assert all(masks)


# Signals and deaths.


def test_a_death_names_its_place(on_slurm: Callable[..., Executor]) -> None:
    """The error of an item whose process dies names job, node and log; the other items of its task have values."""

    def work(item: int) -> int:
        if item == 2:
            print("the last words", file=sys.stderr)  # noqa: T201
            signal.raise_signal(signal.SIGKILL)
        return item

    array = on_slurm().map_array(work, range(4), tasks=2)

    first, second, error, last = array.results(return_exceptions=True)
    assert [first, second, last] == [0, 1, 3]
    assert isinstance(error, WorkerDied)
    assert (error.item, error.task, error.job_id, error.signal) == (2, 1, f"{array.job_ids[0]}_1", signal.SIGKILL)
    assert error.node in {"n1", "n2"}
    assert Path(error.log or "").read_text() == "the last words\n"


def test_an_items_programs_ignore_no_signals(on_slurm: Callable[..., Executor]) -> None:
    """A program that an item starts has every signal's default, whatever signals the batch script ignores."""

    def ask() -> list[str]:
        status = subprocess.check_output(["cat", "/proc/self/status"], text=True)
        return [line.split()[1] for line in status.splitlines() if line.startswith(("SigBlk", "SigIgn"))]

    assert on_slurm().submit(ask).result() == ["0" * 16] * 2


# Submitting from inside a job.


def describe_job(_: object = None) -> dict[str, str | None]:
    """Return the data that distinguish one job from another, and the variables that the user set."""
    names = ["SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_CPUS_PER_TASK", "SLURM_JOB_ACCOUNT"]
    return {name: os.environ.get(name) for name in [*names, "SBATCH_ACCOUNT", "OMP_NUM_THREADS", "MINE"]}


def describe_both(_: int) -> list[dict[str, str | None]]:
    """Return the same of this job, and of one that is submitted from it."""
    folder = slurmlaunch.current_task().run_folder / f"inner-{os.getpid()}"
    with Executor(folder, cluster="slurm", cpus_per_task=2, threads=1, by_value=__name__) as executor:
        return [describe_job(), *executor.map_array(describe_job, range(4), tasks=2).results()]


def test_a_task_may_submit(on_slurm: Callable[..., Executor], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run submitted from inside a task has its own array, CPUs and caps, and keeps the user's variables."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("SBATCH_ACCOUNT", "test")
    monkeypatch.setenv("MINE", "mine")

    (_, found) = on_slurm(cpus_per_task=3, threads=3).map_array(describe_both, range(2), chunksize=1).results()

    outer, *inner = found
    assert [outer[name] for name in ("SLURM_ARRAY_TASK_ID", "SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS")] == [
        "1",
        "3",
        "3",
    ]
    assert [each["SLURM_ARRAY_TASK_ID"] for each in inner] == ["0", "0", "1", "1"]
    assert len({each["SLURM_ARRAY_JOB_ID"] for each in found}) == 2
    for each in inner:
        assert (each["SLURM_CPUS_PER_TASK"], each["OMP_NUM_THREADS"]) == ("2", "1")
        assert (each["SLURM_JOB_ACCOUNT"], each["SBATCH_ACCOUNT"], each["MINE"]) == ("test", "test", "mine")


def test_an_interactive_allocation_may_submit(cluster: Cluster, tmp_path: Path) -> None:
    """From salloc, with its job's variables set, a run is submitted as from anywhere else."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import os
            from slurmlaunch import Executor, cpu_count

            def describe(item):
                return item, os.environ["SLURM_ARRAY_TASK_ID"], os.environ["SLURM_CPUS_PER_TASK"], cpu_count()

            if __name__ == "__main__":
                assert os.environ["SLURM_JOB_ID"]
                with Executor(cluster="slurm", cpus_per_task=2) as executor:
                    print(executor.map_array(describe, range(3), tasks=3).results())
        """)
    )

    done = subprocess.run(
        ["salloc", "--quiet", "--cpus-per-task=4", "--ntasks=2", sys.executable, script],
        cwd=tmp_path,
        env={
            **os.environ,
            "SLURM_CPU_BIND": "none",
            "OMP_NUM_THREADS": "9",
            "SLURMLAUNCH_FOLDER": str(tmp_path / "runs"),
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[(0, '0', '2', 1), (1, '1', '2', 1), (2, '2', '2', 1)]\n"
