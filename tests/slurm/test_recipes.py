"""The recipes of a site's pages, each run as its user would, with the processes' actual resources read back."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import slurmlaunch
from slurmlaunch import Executor, NodeStartError, caps
from tests.conftest import several_cpus
from tests.support.cluster import ClusterSpec
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurmlaunch import FutureArray
    from tests.conftest import ExecutorFactory
    from tests.support.cluster import Cluster
    from tests.support.waiting import Story

EXAMPLES = Path(__file__).parents[2] / "examples"
MACHINE = os.cpu_count() or 1

pytestmark = pytest.mark.slurm


@pytest.fixture
def site(
    start_cluster: Callable[[ClusterSpec], Cluster], monkeypatch: pytest.MonkeyPatch
) -> Callable[[ClusterSpec], Cluster]:
    """Return a function that starts a cluster of the test's own and makes this process its client."""

    def start(spec: ClusterSpec) -> Cluster:
        cluster = start_cluster(spec)
        for name, value in cluster.env.items():
            monkeypatch.setenv(name, value)
        return cluster

    return start


@pytest.fixture(autouse=True)
def of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove caps of the environment, which slurmlaunch would keep, and use Slurm where it is installed."""
    for name in (*caps.VARIABLES, *caps.GPU_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURMLAUNCH_CLUSTER", "slurm")


@pytest.fixture
def on_slurm(tmp_path: Path) -> Iterator[Callable[..., Executor]]:
    """Return a function that makes executors on Slurm; functions of this module travel by value."""
    made = []

    def make(**options: Any) -> Executor:
        made.append(Executor(tmp_path / "runs", by_value=__name__, **options))
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown(cancel_futures=True)


def run_example(folder: Path, name: str, *arguments: str) -> list[str]:
    """Run an example as its user does, in a folder of its own; return the lines of its output."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=folder,
        env={**os.environ, "SLURMLAUNCH_FOLDER": "slurmlaunch-runs"},  # named, as the default one is temporary here
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


# A process pool on one node.


def pool_sizes() -> dict[str, int]:
    """Open every kind of pool without a size; return the sizes."""
    import joblib

    standard, ours = concurrent.futures.ProcessPoolExecutor(), slurmlaunch.task_pool()
    with standard, ours, multiprocessing.Pool() as pool:
        return {
            "ProcessPoolExecutor": standard._max_workers,  # type: ignore[attr-defined]  # noqa: SLF001
            "multiprocessing.Pool": pool._processes,  # type: ignore[attr-defined]  # noqa: SLF001
            "joblib": joblib.effective_n_jobs(-1),
            "task_pool": ours._max_workers,  # type: ignore[attr-defined]  # noqa: SLF001
        }


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("cpus", [1, 3])
def test_pools_are_as_large_as_the_task(on_slurm: Callable[..., Executor], cpus: int) -> None:
    """Pools without a given size have the task's: the standard library's on Python 3.13, joblib's on all.

    Before 3.13 the standard library uses the machine's CPUs, and no setting of Python changes that. joblib
    uses the smallest of its settings and the machine's CPUs.
    """
    sizes = on_slurm(cpus_per_task=cpus).submit(pool_sizes).result()

    standard = cpus if sys.version_info >= (3, 13) else MACHINE
    assert sizes == {
        "ProcessPoolExecutor": standard,
        "multiprocessing.Pool": standard,
        "joblib": min(cpus, standard, len(os.sched_getaffinity(0))),
        "task_pool": cpus,
    }


def squares_of(count: int) -> list[int]:
    """Compute in a joblib pool with as many processes as it sees CPUs."""
    import joblib

    found: list[int] = joblib.Parallel(n_jobs=-1)(joblib.delayed(pow)(i, 2) for i in range(count))
    return found


@pytest.mark.usefixtures("cluster")
def test_joblib_inside_a_task(on_slurm: Callable[..., Executor]) -> None:
    """The processes of joblib run inside a task, and their results come back."""
    assert on_slurm(cpus_per_task=2).submit(squares_of, 10).result() == [i * i for i in range(10)]


# Arrays, pools and caps.


def test_arrays_of_pools(site: Callable[[ClusterSpec], Cluster], tmp_path: Path) -> None:
    """The example runs 16 items in 4 tasks, by up to 4 processes each, with 2 threads per process."""
    site(ClusterSpec(nodes=1, cpus_per_node=16, accounting=False, node="CoresPerSocket=8 ThreadsPerCore=2"))

    heading, *rows = run_example(tmp_path, "array_of_pools.py")

    assert heading.split() == ["seed", "distance", "task", "process", "CPUs", "threads"]
    found = [list(map(int, row.split())) for row in rows]
    assert [[seed, task, cpus, threads] for seed, _, task, _, cpus, threads in found] == [
        [seed, seed // 4, 2, 2] for seed in range(16)
    ]
    assert {row[3] for row in found} <= set(range(4))  # a quick process may have taken the item of another


def meet(others: int) -> dict[str, Any]:
    """Wait until so many items of the task run side by side; return this item's resources."""
    task = slurmlaunch.current_task()
    (task.run_folder / f"here-{task.item}").touch()
    wait_until(lambda: len(list(task.run_folder.glob("here-*"))) == others)
    return {
        "process": os.getpid(),
        "cpus": slurmlaunch.cpu_count(),
        "variables": {name: os.environ.get(name) for name in caps.VARIABLES},
        "mask": len(os.sched_getaffinity(0)),
        "granted": os.environ["SLURM_CPUS_PER_TASK"],
        "kept": {name: os.environ.get(name) for name in ("KMP_AFFINITY", "MPICH_GNI_FORK_MODE")},
    }


def test_a_whole_node(site: Callable[[ClusterSpec], Cluster], on_slurm: Callable[..., Executor]) -> None:
    """128 CPUs with 4 threads per item are 32 processes at once, each with all variables set to 4."""
    site(ClusterSpec(nodes=1, cpus_per_node=128, accounting=False))

    found = on_slurm(cpus_per_task=128, threads=4).map_array(meet, [32] * 32).results()

    assert len({each.pop("process") for each in found}) == 32
    assert found == [found[0]] * 32
    assert (found[0]["granted"], found[0]["cpus"]) == ("128", 4)
    assert found[0]["variables"] == dict.fromkeys(caps.VARIABLES, "4")
    # The node claims more CPUs than there are, so the task has no mask of its own to divide.
    assert found[0]["mask"] == len(os.sched_getaffinity(0))


# Hardware threads.


def describe_smt(story: Story) -> dict[str, Any]:
    """Return Slurm's grant on a node with two hardware threads per core, and the CPUs of this machine for it."""
    story.tell("begins")
    wait_until((slurmlaunch.current_task().run_folder / "go").exists)
    story.tell("ends")
    names = ("SLURM_CPUS_PER_TASK", "SLURM_THREADS_PER_CORE", "OMP_NUM_THREADS", "SLURM_HINT")
    return {"cpus": slurmlaunch.cpu_count(), **{name: os.environ.get(name) for name in names}}


def test_hardware_threads(
    site: Callable[[ClusterSpec], Cluster], on_slurm: Callable[..., Executor], story: Story
) -> None:
    """With hint="nomultithread" a CPU is a core, without it a hardware thread; cpu_count() says the same as Slurm."""
    cluster = site(ClusterSpec(nodes=1, accounting=False, node="CoresPerSocket=4 ThreadsPerCore=2"))
    executor = on_slurm(cpus_per_task=4, threads=4)

    def alive(array: FutureArray[Any]) -> int:
        states = cluster.run("squeue", "--noheader", "--array", "--format=%T", f"--jobs={array.job_ids[0]}").split()
        return states.count("RUNNING")

    plain = executor.map_array(describe_smt, [story] * 2, tasks=2)
    wait_until(lambda: story.lines.count("begins") == 2)  # four hardware threads each: both fit on four cores
    assert alive(plain) == 2
    (plain.folder / "go").touch()
    expected = {"cpus": 4, "SLURM_CPUS_PER_TASK": "4", "OMP_NUM_THREADS": "4"}
    assert plain.results() == [{**expected, "SLURM_HINT": None, "SLURM_THREADS_PER_CORE": None}] * 2

    cores = executor.options(hint="nomultithread").map_array(describe_smt, [story] * 2, tasks=2)
    wait_until(lambda: story.lines.count("begins") == 3)
    assert alive(cores) == 1  # it has all four cores
    (cores.folder / "go").touch()
    assert cores.results() == [{**expected, "SLURM_HINT": "nomultithread", "SLURM_THREADS_PER_CORE": "1"}] * 2
    assert story.lines[-4:] == ["begins", "ends", "begins", "ends"]  # one after the other


@pytest.mark.usefixtures("cluster")
def test_variables_of_a_machine(on_slurm: Callable[..., Executor]) -> None:
    """Variables for the runtime of a Cray or of Intel go through env=."""
    env = {"KMP_AFFINITY": "disabled", "MPICH_GNI_FORK_MODE": "FULLCOPY"}

    (found,) = on_slurm(env=env).map_array(meet, [1]).results()

    assert found["kept"] == env


# Throttle.


def pass_through(story: Story) -> None:
    """Log the begin and the end of an item."""
    import time

    story.tell("+1")
    time.sleep(0.2)
    story.tell("-1")


@pytest.mark.usefixtures("cluster")
def test_throttle(on_slurm: Callable[..., Executor], story: Story) -> None:
    """Of ten tasks that would all fit, no more run at once than the throttle allows."""
    array = on_slurm(throttle=3).map_array(pass_through, [story] * 10, tasks=10)
    array.results()

    alive = most = 0
    for line in story.lines:
        alive += int(line)
        most = max(most, alive)
    assert (alive, len(story.lines)) == (0, 20)
    assert most <= 3


# Any flag.


@pytest.mark.slow
def test_every_flag_reaches_slurm(site: Callable[[ClusterSpec], Cluster], tmp_path: Path) -> None:
    """Slurm reports the job's account, partition, QOS, constraint, mail and comment; the mail arrives."""
    mails = tmp_path / "mails"
    mailer = tmp_path / "mailer"
    mailer.write_text(f'#!/bin/sh\necho "$@" >> {mails}\n', encoding="utf-8")
    mailer.chmod(0o755)
    cluster = site(
        ClusterSpec(
            nodes=1, node="Features=fast", lines=(f"MailProg={mailer}", "PartitionName=small Nodes=ALL MaxTime=60")
        )
    )
    cluster.run("sacctmgr", "-i", "add", "qos", "quick")
    cluster.run("sacctmgr", "-i", "modify", "account", "test", "set", "qos+=quick")
    cluster.run("sacctmgr", "-i", "add", "account", "project_42")
    cluster.run("sacctmgr", "-i", "modify", "account", "project_42", "set", "qos+=quick")
    cluster.run("sacctmgr", "-i", "add", "user", user_of(cluster), "account=project_42")

    job, *rows = run_example(
        tmp_path, "site.py",
        "account=project_42", "partition=small", "qos=quick", "constraint=fast", "comment=of mine",
        "mail_type=END,FAIL", "mail_user=me@example.org", "sbatch=--nice=7",
    )  # fmt: skip

    assert [row.split() for row in rows[:3]] == [["account:", "project_42"], ["partition:", "small"], ["qos:", "quick"]]
    number = job.split()[1]
    told = cluster.run("scontrol", "show", "job", number)
    for expected in ("Features=fast", "Comment=of mine", "Nice=7", "Account=project_42", "QOS=quick"):
        assert expected in told
    wait_until(lambda: mails.exists() and mails.stat().st_size)  # the shell makes it before it writes
    assert re.search(r"Slurm .*Ended.*me@example\.org", mails.read_text(encoding="utf-8"))


def user_of(cluster: Cluster) -> str:
    """Return our user name on the cluster."""
    return cluster.run("sacctmgr", "--noheader", "--parsable2", "show", "user", "format=user").split()[0]


SHIM = """#!/bin/sh
echo "{name} $@" >> {log}
exec {program} "$@"
"""


@pytest.mark.slow
def test_another_cluster(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on a named cluster is submitted there, and all later commands go there too."""
    log = tmp_path / "log"
    for name in ("sbatch", "squeue", "sacct", "scancel", "scontrol"):
        shim = tmp_path / name
        shim.write_text(SHIM.format(name=name, log=log, program=shutil.which(name)), encoding="utf-8")
        shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURMLAUNCH_LATENCY", "0")

    with Executor(tmp_path / "runs", clusters=cluster.name, throttle=1) as executor:
        assert f"#SBATCH --clusters={cluster.name}\n" in executor.script(len, ["a"])
        array = executor.map_array(os.kill, [0], [9])  # the supervisor is gone with its group
        executor.map_array(len, ["a", "b"], tasks=2).results()
        running = executor.map_array(__import__("time").sleep, [600, 600], tasks=2)
        running.throttle = 2
        running.cancel()
        array.results(return_exceptions=True)
        again = slurmlaunch.attach(array.folder)
        assert again.job_ids == array.job_ids

    assert not any(";" in job for job in array.job_ids)  # the cluster is the run's own, and need not be in each id
    later = [line for line in log.read_text(encoding="utf-8").splitlines() if not line.startswith("sbatch ")]
    assert {line.split()[0] for line in later} >= {"squeue", "scancel", "scontrol"}
    assert [line for line in later if f"--clusters={cluster.name}" not in line.split()] == []


# Modules and environments.


def make_environment(folder: Path) -> Path:
    """Make a virtual environment with the packages of this one; return its Python's folder."""
    venv.create(folder, with_pip=False, symlinks=True)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    needed = {Path(str(importlib.util.find_spec(name).origin)).parents[1] for name in ("slurmlaunch", "cloudpickle")}  # type: ignore[union-attr]
    (packages / "theirs.pth").write_text("\n".join(map(str, needed)), encoding="utf-8")
    return folder / "bin"


@pytest.mark.usefixtures("cluster")
def test_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`module load` of real Environment Modules provides the task's Python."""
    if not Path("/usr/share/modules/init/bash").exists():
        if os.environ.get("SLURMLAUNCH_REQUIRE_SLURM") == "1":
            pytest.fail("Environment Modules are missing")
        pytest.skip("needs Environment Modules. On Debian: apt-get install environment-modules")
    programs = make_environment(tmp_path / "environment")
    modulefile = tmp_path / "modulefiles/python/of-the-site"
    modulefile.parent.mkdir(parents=True)
    modulefile.write_text(f"#%Module1.0\nprepend-path PATH {programs}\n", encoding="utf-8")
    monkeypatch.setenv("MODULEPATH", str(modulefile.parents[1]))
    monkeypatch.delenv("LOADEDMODULES", raising=False)

    printed = run_example(tmp_path, "site.py", "modules=python/of-the-site", "python=python3")

    assert printed[-2:] == ["modules:   python/of-the-site", f"python:    {programs}/python3"]


@pytest.mark.usefixtures("cluster")
def test_an_environment(tmp_path: Path) -> None:
    """A set-up line activates a virtual environment."""
    programs = make_environment(tmp_path / "environment")

    printed = run_example(tmp_path, "site.py", "setup=source environment/bin/activate", "python=python")

    assert printed[-1] == f"python:    {programs}/python"


@pytest.mark.parametrize("backend", ["slurm"], indirect=True)
def test_a_module_that_is_not_there(make_executor: ExecutorFactory) -> None:
    """A module that does not load ends the task at once, and the error names it."""
    error = make_executor(modules="no-such-module").submit(len, "a").exception(timeout=60)

    assert isinstance(error, NodeStartError)
    assert "module load no-such-module failed" in str(error) or "no module command" in str(error)


# GPUs.


def test_each_process_has_a_gpu(
    site: Callable[[ClusterSpec], Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example computes on four GPUs, one for each process."""
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    site(ClusterSpec(nodes=1, gpus=4, accounting=False))

    printed = run_example(tmp_path, "gpus.py")

    found = [re.fullmatch(r"item (\d): (\d+), by process (\d) on GPU (\d)", line) for line in printed]
    items = [tuple(map(int, each.groups())) for each in found if each]
    assert [(item, total) for item, total, _, _ in items] == [(item, 64 * item) for item in range(8)]
    assert all(process == gpu for _, _, process, gpu in items)


def meet_with_gpus(others: int) -> dict[str, str | None]:
    """Wait until so many items run side by side, and return the GPUs that this one sees."""
    meet(others)
    return {name: os.environ.get(name) for name in caps.GPU_VARIABLES}


@pytest.mark.parametrize("option", ["gpus_per_task", "gpus", "gres"])
def test_gpus_by_any_option(
    site: Callable[[ClusterSpec], Cluster], on_slurm: Callable[..., Executor], option: str
) -> None:
    """With any option for GPUs, and any vendor, each of four processes sees one of four GPUs."""
    site(ClusterSpec(nodes=1, gpus=4, accounting=False))
    number = "gpu:4" if option == "gres" else 4

    found = on_slurm(processes=4, **{option: number}).map_array(meet_with_gpus, [4] * 4).results()

    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"):
        assert sorted(each[name] or "" for each in found) == ["0", "1", "2", "3"]


DRIVER = """
import ctypes

driver, number = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
print(-1 if driver.cuInit(0) else driver.cuDeviceGetCount(ctypes.byref(number)) or number.value)
"""


def count_gpus(_: int) -> tuple[int, int]:
    """Return how many GPUs the variables show this process, and how many the driver shows it."""
    found = subprocess.run([sys.executable, "-c", DRIVER], capture_output=True, text=True, check=False).stdout
    return len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")), int(found or 0)


@several_cpus
def test_a_real_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver of a real NVIDIA GPU shows a process its own GPUs and no others."""
    devices = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if not devices:
        pytest.skip("needs a GPU of NVIDIA's")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(devices))))
    with Executor(tmp_path / "runs", cluster="local", processes=2, by_value=__name__) as executor:
        found = executor.map_array(count_gpus, range(4), tasks=1).results()

    assert all(shown == seen >= 1 for shown, seen in found)
    assert max(shown for shown, _ in found) <= -(-devices // 2)
