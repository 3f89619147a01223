"""Tasks as steps of an allocation that the client is in: real ones, made by salloc."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from slurmlaunch import Executor, OptionError, attach
from slurmlaunch.backends.allocation import fits
from slurmlaunch.backends.local.scheduler import TaskResources
from tests.contract.test_environment import SUBMITTED
from tests.support import scripts
from tests.support.cluster import ClusterSpec
from tests.support.waiting import is_alive, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.cluster import Cluster

SALLOC = ("salloc", "--quiet", "--nodes=2", "--ntasks=16")

BEGIN = """
import os
import sys
import time
from pathlib import Path

import slurmlaunch
from slurmlaunch import Executor
from tests.support.waiting import Gate, PATIENCE

gate = Gate(Path("gate"))
ex = Executor("runs", cluster="allocation")
"""


@pytest.mark.slurm
@pytest.mark.parametrize("memory", [(), ("--mem=2000",), ("--mem-per-cpu=200",)])
def test_as_many_as_fit(cluster: Cluster, tmp_path: Path, memory: tuple[str, ...]) -> None:
    """As many steps run at once as the nodes have capacity for; no srun has to wait."""
    printed = scripts.run(
        tmp_path,
        BEGIN
        + """
futures = ex.options(cpus_per_task=4).map_array(gate.enter, range(6), chunksize=1)
gate.await_arrival(0, 1, 2, 3)
print([str(future.state) for future in futures])
gate.open()
print(futures.results(PATIENCE), "disabled" in "".join(map(futures.logs, range(6))))
""",
        within=(*SALLOC, *memory),
    )

    assert printed.splitlines() == [
        str(["RUNNING"] * 4 + ["PENDING"] * 2),
        str([str(number) for number in range(6)]) + " False",
    ]


@pytest.mark.slurm
def test_memory_without_a_limit(cluster: Cluster, tmp_path: Path) -> None:
    """If an allocation has no memory limit, the nodes' memory is shared; a task that wants more is refused."""
    printed = scripts.run(
        tmp_path,
        BEGIN
        + """
futures = ex.options(mem="5G").map_array(gate.enter, range(3), chunksize=1)
gate.await_arrival(0, 1)
print([str(future.state) for future in futures])
try:
    ex.options(mem="100G").submit(len, "a").cancel()
except slurmlaunch.SubmissionError as error:
    print(error)
gate.open()
print(futures.results(PATIENCE))
""",
        within=SALLOC,
    )

    states, refusal, results = printed.splitlines()
    assert states == str(["RUNNING"] * 2 + ["PENDING"])
    assert refusal.endswith("no room for a task of 1 CPUs and its memory: its nodes have 8 CPUs, 8 CPUs")
    assert results == str(["0", "1", "2"])


@pytest.mark.slurm
def test_cpus_and_variables_of_a_step(cluster: Cluster, tmp_path: Path) -> None:
    """A step has its requested CPUs and the options' variables, and no variables of salloc's options."""
    printed = scripts.run(
        tmp_path,
        BEGIN
        + """
names = "SLURM_JOB_ID SLURM_STEP_NUM_TASKS SLURM_CPUS_PER_TASK SLURM_NTASKS_PER_NODE COLOUR".split()
def look():
    return [os.environ.get(name) for name in names], slurmlaunch.cpu_count(), os.getcwd()
found = ex.options(cpus_per_task=3, env={"COLOUR": "green"}, setup=["export COLOUR=dark$COLOUR"]).submit(look).result()
print(found == ([os.environ["SLURM_JOB_ID"], "1", "3", None, "darkgreen"], 3, os.getcwd()), found)
""",
        within=("salloc", "--quiet", "--nodes=2", "--ntasks-per-node=8"),
    )

    assert printed.startswith("True "), printed


@pytest.mark.slurm
def test_a_retry_by_another_client(cluster: Cluster, tmp_path: Path) -> None:
    """It runs in the environment of the submission, as a step of the allocation that the other client is in."""
    (tmp_path / "client.py").write_text(SUBMITTED, encoding="utf-8")
    printed = scripts.run(
        tmp_path,
        BEGIN
        + """
import subprocess

words = ["sh", "-c", 'umask 027; ulimit -S -n 300; exec "$@"', "sh", sys.executable, "client.py", "allocation", "gate"]
client = subprocess.Popen(words, env={**os.environ, "VALUE": "first"}, stdout=subprocess.PIPE, text=True)
folder = client.stdout.readline().strip()
gate.await_arrival("first")
client.kill()
client.wait()
os.environ |= {"VALUE": "second", "ABSENT": "here"}
gate.open()
[(variables, umask, soft, _)] = slurmlaunch.attach(folder).results(PATIENCE)
print(variables, umask == 0o027, soft)
""",
        within=SALLOC,
    )

    assert printed == "['first', None, None, None] True 300\n"


@pytest.mark.slurm
def test_ends(cluster: Cluster, tmp_path: Path) -> None:
    """A failure, a death, a time limit and a cancellation have the same outcomes as elsewhere."""
    printed = scripts.run(
        tmp_path,
        BEGIN
        + """
def end(how):
    if how == "raise":
        raise ValueError(how)
    if how == "die":
        os.kill(os.getpid(), 9)
    if how == "sleep":
        gate.enter(how)
    return how
futures = ex.map_array(end, ["fine", "raise", "die"], tasks=1)
print([repr(each)[:10] for each in futures.results(PATIENCE, return_exceptions=True)])
print(type(ex.options(time="0:01").submit(time.sleep, 100).exception(PATIENCE)).__name__)
running = ex.submit(end, "sleep")
gate.await_arrival("sleep")
print(running.cancel(), running.cancelled())
try:
    ex.options(cpus_per_task=9).submit(end, "fine")
except slurmlaunch.SubmissionError as error:
    print(error)
""",
        within=SALLOC,
    )

    assert printed.splitlines() == [
        str(["'fine'", "ValueError", "WorkerDied"]),
        "TimeLimitExceeded",
        "True True",
        "the allocation has no room for a task of 9 CPUs and its memory: its nodes have 8 CPUs, 8 CPUs",
    ]
    wait_until(lambda: not is_alive(arrived(tmp_path)["sleep"]))


def arrived(folder: Path) -> dict[str, int]:
    """Return the items at the gate of a script, and their processes."""
    return {path.stem: int(path.read_text(encoding="utf-8")) for path in (folder / "gate").glob("*.here")}


@pytest.mark.slurm
def test_ranks(cluster: Cluster, tmp_path: Path) -> None:
    """A task with ranks is one step over the nodes, beside others; its results are there for others, outside."""
    printed = scripts.run(
        tmp_path,
        BEGIN
        + """
from tests.support import together
futures = ex.options(ntasks=4, nodes=2).map_array(together.sum_by_sockets, [0, 10], chunksize=1)
nodes = ex.options(ntasks_per_node=1, nodes=2).submit(together.node)
print(futures[0].ranks(PATIENCE), futures[1].ranks(PATIENCE), nodes.ranks(PATIENCE))
print(futures.folder)
""",
        within=SALLOC,
    ).splitlines()

    assert printed[0] == f"{[6] * 4} {[46] * 4} {['n1', 'n2']}"
    assert [future.ranks() for future in attach(printed[1])] == [[6] * 4, [46] * 4]


@pytest.mark.slurm
def test_the_client_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    """Steps end with their client, though the allocation continues."""
    shell = (*SALLOC, "sh", "-c", '"$@"; read _ < wait', "sh")
    os.mkfifo(tmp_path / "wait")
    script = scripts.start(
        tmp_path,
        BEGIN
        + """
future = ex.submit(gate.enter, "one")
gate.await_arrival("one")
os.kill(os.getpid(), 9)
""",
        within=shell,
    )
    wait_until(lambda: "one" in arrived(tmp_path))

    step = arrived(tmp_path)["one"]
    wait_until(lambda: not is_alive(step))
    (tmp_path / "wait").write_text("on\n", encoding="utf-8")
    scripts.finish(script)


@pytest.mark.slurm
def test_gpus(start_cluster: Callable[[ClusterSpec], Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step has its requested GPUs, and steps without GPUs delay nobody."""
    cluster = start_cluster(ClusterSpec(nodes=1, gpus=2, accounting=False))
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)

    printed = scripts.run(
        tmp_path,
        BEGIN
        + """
def look(name):
    gate.enter(name)
    return os.environ.get("CUDA_VISIBLE_DEVICES")
futures = [ex.submit(look, "none"), *ex.options(gres="gpu:1").map_array(look, ["one", "other"], chunksize=1)]
gate.await_arrival("none", "one", "other")
gate.open()
seen = [future.result(PATIENCE) for future in futures]
print(seen[0], sorted(seen[1:]))
""",
        within=("salloc", "--quiet", "--ntasks=8", "--gres=gpu:2"),
    )

    assert printed in {"None ['0', '1']\n", "NoDevFiles ['0', '1']\n"}


def test_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside an allocation the error explains how to get one."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    with pytest.raises(OptionError, match="salloc --nodes"):
        Executor(tmp_path, cluster="allocation")


@pytest.mark.parametrize(
    ("cpus", "memory", "wanted", "at_once"),
    [
        ("8(x2)", None, TaskResources(4), 4),
        ("8(x2)", None, TaskResources(5), 2),
        ("8(x2),4", None, TaskResources(3), 5),
        ("8(x2)", None, TaskResources(12, ranks=6), 1),
        ("8(x2)", None, TaskResources(9), 0),
        ("8(x2)", "100", TaskResources(1, reserved=40 << 20), 4),
        ("", None, TaskResources(1), 0),
    ],
)
def test_capacity(
    cpus: str, memory: str | None, wanted: TaskResources, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No task is spread over nodes, but the ranks of one may be."""
    monkeypatch.setenv("SLURM_JOB_CPUS_PER_NODE", cpus)
    monkeypatch.delenv("SLURM_MEM_PER_CPU", raising=False)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", memory or "0")

    running: list[TaskResources] = []
    while fits(wanted, running):
        running.append(wanted)

    assert len(running) == at_once
