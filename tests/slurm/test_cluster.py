"""The throwaway Slurm itself: jobs really run on it, and nothing of it stays."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.cluster import Cluster, ClusterError, ClusterSpec, ProgramsMissing, clean_environment

if TYPE_CHECKING:
    from collections.abc import Callable

    StartCluster = Callable[[ClusterSpec], Cluster]

ROOT = Path(__file__).parents[2]


def wait_until(happened: Callable[[], bool], patience: float = 30) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + patience
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def states(cluster: Cluster, job: str) -> list[str]:
    """Return sacct's states of all elements of a job."""
    return cluster.run("sacct", "-X", "--noheader", "--format=State", "--jobs", job).split()


def submit(cluster: Cluster, folder: Path, *options: str) -> str:
    """Submit a job whose log goes to a folder, and return its id."""
    return cluster.run("sbatch", "--parsable", f"--chdir={folder}", *options).strip()


def run_command(*arguments: str) -> list[str]:
    """Build the command line of the developer's command."""
    return [sys.executable, "-m", "tests.support.cluster", *arguments]


@pytest.mark.slurm
def test_an_array_runs_and_is_accounted_for(cluster: Cluster, tmp_path: Path) -> None:
    """Every element of an array leaves its file, and sacct eventually reports it as COMPLETED."""
    job = submit(cluster, tmp_path, "--array=0-3", "--account=test", "--wrap", "touch ran.$SLURM_ARRAY_TASK_ID")

    wait_until(lambda: states(cluster, job) == ["COMPLETED"] * 4)

    assert {f"ran.{element}" for element in range(4)} == {path.name for path in tmp_path.glob("ran.*")}


@pytest.mark.slurm
def test_the_session_is_a_client(cluster: Cluster) -> None:
    """The fixture sets everything that a plain scontrol needs."""
    shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=True).stdout

    assert f"= {cluster.name}\n" in shown


@pytest.mark.slurm
def test_stop_leaves_nothing(start_cluster: StartCluster, tmp_path: Path) -> None:
    """After stop, all daemons, job steps and their children are gone, even if they ignore SIGTERM; so is the folder."""
    cluster = start_cluster(ClusterSpec())
    script = "trap '' TERM; sleep 600 & echo $! $$ $PPID > started.new; mv started.new started; wait"
    submit(cluster, tmp_path, "--wrap", script)
    wait_until((tmp_path / "started").exists)
    processes = [int(process) for process in (tmp_path / "started").read_text(encoding="utf-8").split()]
    processes += [cluster.pid(name) for name in cluster.daemons]
    folder = cluster.folder
    assert all(is_alive(process) for process in processes)

    cluster.stop()

    assert not [process for process in processes if is_alive(process)]
    assert not folder.exists()


@pytest.mark.slurm
def test_a_killed_session_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """A cluster ends with the process that started it, even if that is killed."""
    report = f"echo $SLURM_CONF > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/started; exec cat"
    command = run_command("--no-accounting", "--", "sh", "-c", report)
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE) as session:
        wait_until((tmp_path / "started").exists)
        folder = Path((tmp_path / "started").read_text(encoding="utf-8").strip()).parent
        assert folder.exists()

        session.kill()

    wait_until(lambda: not folder.exists())


@pytest.mark.slurm
def test_the_command_has_the_status_of_its_program(cluster: Cluster) -> None:
    """The developer's command ends with the status of the command that it was given."""
    command = run_command("--no-accounting", "--nodes=1", "--", "sh", "-c", "exit 7")

    done = subprocess.run(command, cwd=ROOT, check=False)

    assert done.returncode == 7


@pytest.mark.slurm
def test_daemons_restart(start_cluster: StartCluster, tmp_path: Path) -> None:
    """Each daemon can be killed and started again, and Slurm then works as before."""
    cluster = start_cluster(ClusterSpec(nodes=1))
    cluster.stop_daemon("slurmdbd")
    with pytest.raises(ClusterError, match="Connection refused"):
        cluster.run("sacct")
    for name in cluster.daemons:
        cluster.stop_daemon(name)

    for name in cluster.daemons:
        cluster.start_daemon(name)
    job = submit(cluster, tmp_path, "--wrap", "true")
    wait_until(lambda: states(cluster, job) == ["COMPLETED"])


@pytest.mark.slurm
def test_jobs_see_the_gpus_they_asked_for(start_cluster: StartCluster, tmp_path: Path) -> None:
    """Slurm hands out GPUs that the machine need not have."""
    cluster = start_cluster(ClusterSpec(gpus=2, accounting=False))

    submit(cluster, tmp_path, "--wait", "--gpus=2", "--output=log", "--wrap", "echo $CUDA_VISIBLE_DEVICES")

    assert (tmp_path / "log").read_text(encoding="utf-8") == "0,1\n"


@pytest.mark.slurm
@pytest.mark.skipif(not os.access("/sys/fs/cgroup", os.W_OK), reason="may not make control groups")
@pytest.mark.parametrize("version", [1, 2])
def test_memory_limits_hold(start_cluster: StartCluster, tmp_path: Path, version: int) -> None:
    """With control groups, a job that uses more than its --mem is killed."""
    mounted = 2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1
    if version != mounted:
        pytest.skip(f"this machine has mounted control groups of version {mounted}")
    cluster = start_cluster(ClusterSpec(cgroup=True))
    greedy = "exec " + shlex.join([sys.executable, "-c", "bytearray(300 << 20)"])

    job = submit(cluster, tmp_path, "--mem=100M", "--wrap", greedy)

    wait_until(lambda: states(cluster, job) == ["OUT_OF_ME+"])


@pytest.mark.slurm
def test_lines_replace_ours(start_cluster: StartCluster) -> None:
    """A setting or a partition among the spec's lines replaces ours, and is in the file once."""
    partitions = ("PartitionName=debug Nodes=n1 Default=YES", "PartitionName=low Nodes=ALL PriorityTier=0")
    cluster = start_cluster(ClusterSpec(accounting=False, lines=("MaxArraySize=11", *partitions)))

    assert "MaxArraySize            = 11\n" in cluster.run("scontrol", "show", "config")
    assert cluster.run("sinfo", "--noheader", "--format=%P %N") == "debug* n1\nlow n[1-2]\n"
    assert cluster.run("sh", "-c", "sinfo 2>&1 >/dev/null") == ""


@pytest.mark.slurm
def test_a_failed_start_gives_the_reason(cluster: Cluster) -> None:
    """A daemon that ends at once is no time-out: the error has its message, and nothing of the cluster stays."""
    broken = Cluster(ClusterSpec(accounting=False, lines=("SelectType=select/none_such",)))

    with pytest.raises(ClusterError, match="none_such"):
        broken.start()

    with pytest.raises(ClusterError, match="not running"):
        _ = broken.folder


def test_missing_programs_name_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Slurm is not installed, the error names the packages to install."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)

    with pytest.raises(ProgramsMissing, match="apt-get install mariadb-server munge slurm-client slurmctld slurmd"):
        Cluster().start()


def test_an_outer_jobs_variables_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the Slurm job in which the tests may run are kept from the cluster, ours are not."""
    for name in ("SLURM_CONF", "SLURM_JOB_ID", "SBATCH_ACCOUNT", "SQUEUE_FORMAT", "SLURMLAUNCH_FOLDER"):
        monkeypatch.setenv(name, "outer")

    outer = {name for name, value in clean_environment().items() if value == "outer"}

    assert outer == {"SLURMLAUNCH_FOLDER"}
