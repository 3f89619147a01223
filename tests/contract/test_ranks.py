"""Tasks with ranks: several processes, on one node or two, that call the function together."""

from __future__ import annotations

import atexit
import importlib.util
import os
import resource
import shutil
import signal
import subprocess
import sys
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import Executor, FunctionExited, NodeStartError, OptionError, WorkerDied, attach, current_task
from slurmlaunch.backends.base import ArrayJob
from slurmlaunch.backends.slurm.batch_script import sbatch_words
from slurmlaunch.node.mpi import RankProcesses, _free_port, _launcher_error
from slurmlaunch.node.rank_environment import RankEnvironment, first_host
from slurmlaunch.runfolder.claims import ClaimReader
from slurmlaunch.runfolder.layout import RunFolder
from slurmlaunch.runfolder.plan import RanksPlan
from tests.conftest import SLURM
from tests.support import scripts, together
from tests.support.printing import check_output, print_in_all_ways
from tests.support.waiting import PATIENCE, is_alive, wait_until

if TYPE_CHECKING:
    from tests.conftest import ExecutorFactory
    from tests.support.cluster import Cluster
    from tests.support.waiting import Gate, Story

pytestmark = pytest.mark.slow

elsewhere = pytest.mark.parametrize("backend", ["local", SLURM], indirect=True)

ALL = list(range(4))


@pytest.fixture
def mpi() -> None:
    """Skip where MPI is not installed, unless everything is to be tested."""
    missing = [name for name in ("mpi4py", "mpich") if importlib.util.find_spec(name) is None]
    if importlib.util.find_spec("mpi4py") is None and os.environ.get("SLURMLAUNCH_REQUIRE_SLURM") != "1":
        pytest.skip(f"needs {missing}: pip install mpi4py mpich")


@pytest.fixture
def ranked(make_executor: ExecutorFactory) -> Executor:
    """Return an executor whose tasks have four ranks, on two nodes where there are two."""
    return make_executor(ntasks=4, nodes=2, mem_per_cpu="100M")


# One communicator.


@elsewhere
def test_mpi(mpi: None, ranked: Executor, backend: str) -> None:
    """Every rank calls the function in one MPI communicator: the result is rank 0's, and ranks() has all."""
    future = ranked.submit(together.mpi_world, 10)

    assert future.result(PATIENCE)[:3] == (0, 4, 46)
    values = future.ranks()
    assert [value[:3] for value in values] == [(rank, 4, 46) for rank in ALL]
    assert {value[3] for value in values} == ({"n1", "n2"} if backend == "slurm" else {None})
    assert attach(future.run.folder)[0].ranks() == values


@pytest.mark.anywhere
@elsewhere
def test_map(mpi: None, ranked: Executor) -> None:
    """All ranks go through the items of a slice, in order."""
    futures = ranked.map_array(together.mpi_world, [10, 20, 30], tasks=2)

    assert [value[2] for value in futures.results(PATIENCE)] == [46, 86, 126]
    assert [[value[2] for value in future.ranks()] for future in futures] == [[46] * 4, [86] * 4, [126] * 4]


@pytest.mark.parametrize("backend", ["local"], indirect=True)
@pytest.mark.parametrize("how", [{}, {"schedule": "dynamic", "tasks": 2, "chunksize": 2}])
def test_tasks_share_the_items(make_executor: ExecutorFactory, how: dict[str, Any]) -> None:
    """A task claims items, and all of its ranks run them; without numbers it takes one item after the other."""
    executor = make_executor(ntasks=2, throttle=1)
    futures = executor.map_array(together.place, range(3), **how)

    assert [[value[:2] for value in future.ranks(PATIENCE)] for future in futures] == [[(0, 2), (1, 2)]] * 3
    claims = {claim.positions: claim.task for claim in ClaimReader(RunFolder(futures.folder).claims(0)).new()}
    blocks = [range(2), range(2, 3)] if how else [range(1), range(1, 2), range(2, 3)]
    assert claims == dict.fromkeys(blocks, 0)


@pytest.mark.anywhere
@elsewhere
def test_large_arrays(ranked: Executor) -> None:
    """Values stored beside their pickle come back too, from every rank."""

    def fill(size: int) -> Any:
        import numpy as np

        return np.full(size, current_task().rank)

    future = ranked.submit(fill, 1_000_000)

    assert [(len(each), int(each.min()), int(each.max())) for each in future.ranks(PATIENCE)] == [
        (1_000_000, rank, rank) for rank in ALL
    ]


def test_ports_are_random() -> None:
    """The port at which ranks meet follows from nothing that others can see, such as a job id or a process id."""
    assert len({_free_port() for _ in range(20)}) > 10


@elsewhere
def test_places(ranked: Executor, backend: str) -> None:
    """Each rank has its number in its task's context and in the variables that PyTorch reads."""
    values = ranked.submit(together.place).ranks(PATIENCE)

    assert [value[:2] for value in values] == [(rank, 4) for rank in ALL]
    told = [value[2] for value in values]
    assert [each["RANK"] for each in told] == ["0", "1", "2", "3"]
    assert {each["WORLD_SIZE"] for each in told} == {"4"}
    assert len({(each["MASTER_ADDR"], each["MASTER_PORT"]) for each in told}) == 1
    nodes: dict[str | None, list[dict[str, str | None]]] = {}
    for each in told:
        nodes.setdefault(each["NODE_RANK"], []).append(each)
    assert sorted(map(str, nodes)) == (["0", "1"] if backend == "slurm" else ["0"])
    for ranks in nodes.values():
        assert [each["LOCAL_RANK"] for each in ranks] == [str(i) for i in range(len(ranks))]
        assert {each["LOCAL_WORLD_SIZE"] for each in ranks} == {str(len(ranks))}


@elsewhere
def test_rendezvous(ranked: Executor) -> None:
    """Rank 0 can listen at the rendezvous address and the others reach it, twice in one task."""
    futures = ranked.map_array(together.sum_by_sockets, [10, 20], tasks=1)

    assert [future.ranks(PATIENCE) for future in futures] == [[46] * 4, [86] * 4]


@pytest.mark.anywhere
@elsewhere
def test_streams(ranked: Executor) -> None:
    """Each rank draws from its own random stream, which a seed reproduces."""

    def draw() -> int:
        return int(current_task().rng().integers(1 << 62))

    first, second = (ranked.options(seed=1).submit(draw).ranks(PATIENCE) for _ in range(2))
    assert first == second
    assert len({*first}) == 4


@pytest.mark.long
@elsewhere
def test_all_reduce(ranked: Executor) -> None:
    """PyTorch's gloo connects its ranks by these variables alone."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch")

    def all_reduce() -> float:
        import torch

        torch.distributed.init_process_group("gloo")
        tensor = torch.tensor([1.0 + torch.distributed.get_rank()])
        torch.distributed.all_reduce(tensor)
        torch.distributed.destroy_process_group()
        return float(tensor.item())

    assert ranked.submit(all_reduce).ranks(PATIENCE) == [10.0] * 4


def test_without_launcher(tmp_path: Path) -> None:
    """Without a launcher the supervisor starts the ranks itself."""
    with Executor(tmp_path, cluster="local", ntasks=3, launcher=[]) as executor:
        assert [value[:2] for value in executor.submit(together.place).ranks(PATIENCE)] == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.slurm
def test_mpiexec_on_slurm(mpi: None, cluster: Cluster, tmp_path: Path) -> None:
    """A launcher of the site replaces srun."""
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    executor = Executor(
        tmp_path, cluster="slurm", ntasks=4, nodes=2, launcher=[mpiexec, "-n", "4", "-launcher", "fork"]
    )

    assert [value[:3] for value in executor.submit(together.mpi_world, 0).ranks(PATIENCE)] == [
        (rank, 4, 6) for rank in ALL
    ]


def test_one_process(executor: Executor) -> None:
    """For a call with one process, ranks() is a list of its result."""
    assert executor.submit(together.place).ranks(PATIENCE) == [(0, 1, dict.fromkeys(together.TOLD))]


def test_inline_is_one_rank(tmp_path: Path) -> None:
    """Inline the calling thread is the only rank, so that a debugger works."""
    future = Executor(tmp_path, cluster="inline", ntasks=4).submit(together.place)

    assert [value[:2] for value in future.ranks()] == [(0, 1)]


# Output.


@elsewhere
def test_output(ranked: Executor, backend: str) -> None:
    """Of each item there is what each rank wrote, exactly, also where one was killed; the log has all of it."""

    def print_all(item: int) -> None:
        rank = current_task().rank
        if rank != 3:
            print_in_all_ways(10 * item + rank, 200, killed=(item, rank) == (1, 2))

    launcher = "srun" if backend == "slurm" else []
    futures = ranked.options(launcher=launcher, nodes=1).map_array(print_all, range(2), tasks=2)

    first, error = futures.results(PATIENCE, return_exceptions=True)
    assert first is None
    assert isinstance(error, WorkerDied)
    assert error.rank == 2
    for rank in range(3):
        check_output(futures[0].stdout(rank), rank, 200)
        assert f"error {rank}" == futures[0].stderr(rank)
    check_output(futures[1].stdout(2), 12, 200, killed=True)
    assert not futures[0].stdout(3)
    assert (
        "".join([futures[0].stdout(0), *(f"[slurmlaunch: rank {rank}]\n{futures[0].stdout(rank)}" for rank in (1, 2))])
        == futures[0].stdout()
    )
    assert all(futures.logs(0).count(f"descriptor {rank} ") == 200 for rank in range(3))
    files = {path.name for path in (futures.folder / "output").iterdir()}  # the kill may come before others print
    assert (
        {"0.0.0", "0.0.1", "0.0.2", "1.0.2"} <= files <= {f"{task}.0.{rank}" for task in range(2) for rank in range(3)}
    )


@pytest.mark.anywhere
@elsewhere
def test_output_while_it_runs(ranked: Executor, gate: Gate) -> None:
    """What a rank has printed is there while its item runs; what it prints into the log at its end is of no item."""

    def wait(item: int) -> None:
        atexit.register(print, "bye")
        print("begun", item)  # noqa: T201
        if not current_task().rank:
            gate.enter(item)

    future = ranked.options(ntasks=2, nodes=1, launcher=[]).map_array(wait, range(1), tasks=1)[0]
    gate.await_arrival(0)
    wait_until(lambda: future.stdout() == "begun 0\n[slurmlaunch: rank 1]\nbegun 0\n")
    gate.open()
    future.result(PATIENCE)

    assert "begun 0\n" == future.stdout(1)
    wait_until(lambda: future.run.logs(0).count("bye") == 2)
    assert "bye" not in future.stdout()


# Ends.


@elsewhere
@pytest.mark.parametrize(
    ("deed", "said"), [("kill", "was killed by SIGKILL (9)"), ("exit", "ended with exit status 5")]
)
def test_a_rank_dies(mpi: None, ranked: Executor, backend: str, deed: str, said: str) -> None:
    """A dead rank ends the ranks that wait for it; the error names rank, signal and node; other items continue."""
    futures = ranked.map_array(together.fall, range(3), [{(1, 3): deed}] * 3, tasks=1)

    first, error, last = futures.results(PATIENCE, return_exceptions=True)
    assert (first, last) == ((0, 0), (2, 0))
    assert futures[2].ranks() == [(2, rank) for rank in ALL]
    assert isinstance(error, WorkerDied)
    assert (error.rank, error.what) == (3, f"rank 3 of 4 {said}")
    assert error.node == ("n2" if backend == "slurm" else os.uname().nodename)
    with pytest.raises(WorkerDied):
        futures[1].ranks()


@pytest.mark.anywhere
@elsewhere
def test_a_rank_dies_while_it_writes(ranked: Executor) -> None:
    """A rank's torn record is cut off, its death is reported, and later records in its file are read."""
    ranked = ranked.options(launcher=[])

    def work(item: int) -> bytes:
        if item == 0 and current_task().rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # the kernel kills it in the middle
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        return bytes(1_000_000)

    array = ranked.map_array(work, range(2), tasks=1)
    found = array.results(PATIENCE, return_exceptions=True)

    assert isinstance(found[0], WorkerDied)
    assert "SIGXFSZ" in str(found[0])
    assert found[1] == bytes(1_000_000)
    assert [1_000_000] * 4 == [len(value) for value in array[1].ranks(PATIENCE)]


@elsewhere
def test_a_death_outranks_other_errors(ranked: Executor) -> None:
    """When a rank has died, errors of the other ranks do not replace its death as the item's failure."""
    error = ranked.submit(together.lose_caller).exception(PATIENCE)

    assert isinstance(error, WorkerDied)
    assert error.rank == 2


@elsewhere
@pytest.mark.parametrize(("deed", "kind"), [("raise", ValueError), ("sys.exit", FunctionExited)])
def test_a_rank_raises(mpi: None, ranked: Executor, deed: str, kind: type[BaseException]) -> None:
    """A rank's exception arrives with its type and its rank, even if the other ranks wait for that rank for ever."""
    futures = ranked.map_array(together.fall, range(3), [{(1, 2): deed}] * 3, tasks=1)

    first, error, last = futures.results(PATIENCE, return_exceptions=True)
    assert (first, last) == ((0, 0), (2, 0))
    assert type(error) is kind
    assert vars(error)["__notes__"][-2].startswith("on rank 2 of 4, node ")


@pytest.mark.anywhere
@elsewhere
def test_all_ranks_raise(mpi: None, ranked: Executor) -> None:
    """If several ranks raise, the item's failure is that of the lowest rank."""
    deeds = dict.fromkeys([(0, 1), (0, 2), (0, 3)], "raise")

    error = ranked.submit(together.fall, 0, deeds).exception(PATIENCE)

    assert str(error) == "0 1"


@pytest.mark.anywhere
@elsewhere
def test_a_function_that_does_not_load(ranked: Executor) -> None:
    """A function that no rank can load fails all items with the reason."""
    absent = _Absent()
    futures = ranked.map_array(lambda _: absent, range(2), tasks=1)

    errors = futures.results(PATIENCE, return_exceptions=True)

    assert [type(error) for error in errors] == [NodeStartError] * 2
    assert "no_such_module_here" in str(errors[0])


class _Absent:
    def __reduce__(self) -> Any:
        return __import__, ("no_such_module_here",)


def test_without_mpi4py(tmp_path: Path) -> None:
    """Without mpi4py ranks start as usual, and a function that imports it gets an error with the package to install."""
    with Executor(tmp_path, cluster="local", ntasks=2, launcher=[]) as executor:
        error = executor.submit(together.start_mpi_without_its_package).exception(PATIENCE)

    assert isinstance(error, ModuleNotFoundError)
    assert f"mpi4py: install it with {sys.executable} -m pip install mpi4py" in error.__dict__["__notes__"][-2]


@pytest.mark.anywhere
@elsewhere
@pytest.mark.parametrize("launcher", ["false", "no-such-launcher"])
def test_a_launcher_that_fails(make_executor: ExecutorFactory, launcher: str) -> None:
    """If the ranks cannot be started, the error says so and names the option."""
    error = make_executor(ntasks=2, launcher=launcher).submit(together.place).exception(PATIENCE)

    assert isinstance(error, NodeStartError)
    assert launcher in str(error)
    assert "launcher=" in str(error)


@pytest.mark.parametrize(
    ("end", "signal", "expected"),
    [
        ("kill -TERM $$", 15, "sh was ended by SIGTERM (15)"),
        ("exit 129", 1, "sh was ended by SIGHUP (1)"),
        ("exit 255", None, "sh ended with exit status 255"),
    ],
)
def test_a_launcher_that_a_signal_ends(end: str, signal: int | None, expected: str) -> None:
    """The status of a launcher whose ranks a signal has ended, 128 more than its number, is read as the signal."""
    plan = RanksPlan(2, ("sh", "-c", end), ())
    processes = RankProcesses(plan, ())
    wait_until(lambda: not processes.alive)

    error = _launcher_error(plan, processes, began=True)

    assert isinstance(error, WorkerDied)
    assert (error.signal, error.what) == (signal, f"the ranks ended too early: {expected}")


@pytest.mark.anywhere
@elsewhere
def test_the_message_of_the_launcher(make_executor: ExecutorFactory, tmp_path: Path) -> None:
    """The launcher's reason for starting nothing is part of the error; its earlier output is not."""
    launcher = tmp_path / "launcher"
    launcher.write_text("#!/bin/sh\necho no such dialect >&2\nexit 5\n", encoding="utf-8")
    launcher.chmod(0o700)
    ranked = make_executor(ntasks=2, launcher=str(launcher), setup=["echo good morning >&2"])

    error = ranked.submit(together.place).exception(PATIENCE)

    assert isinstance(error, NodeStartError)
    assert f"{launcher} ended with exit status 5; the end of the log:\nno such dialect\n" in str(error)
    assert "good morning" not in str(error)


@elsewhere
def test_cancel(ranked: Executor, gate: Gate, story: Story) -> None:
    """A cancelled item ends on all ranks; the other items of its task continue."""
    futures = ranked.map_array(together.Walk(gate, story, (1, 0), (1, 2)), range(3), tasks=1)
    gate.await_arrival("1-0", "1-2")
    process = gate.process_of("1-2")

    assert futures[1].cancel()

    assert futures[0].ranks(PATIENCE) == [(0, rank) for rank in ALL]
    assert futures[2].ranks(PATIENCE) == [(2, rank) for rank in ALL]
    with pytest.raises(CancelledError):
        futures[1].ranks()
    assert not is_alive(process)


@pytest.mark.parametrize("backend", [SLURM], indirect=True)
def test_requeue(cluster: Cluster, ranked: Executor, gate: Gate, story: Story) -> None:
    """A requeued task runs only the items that not all ranks have finished, on all ranks."""
    walk = together.Walk(gate, story, (1, 2))
    futures = ranked.map_array(walk, range(3), tasks=1)
    gate.await_arrival("1-2")
    assert futures[0].ranks(PATIENCE) == [(0, rank) for rank in ALL]

    cluster.run("scontrol", "requeue", str(futures[0].job_id))
    wait_until(lambda: story.lines.count("1 2") == 2)
    gate.open()

    assert [future.ranks(PATIENCE) for future in futures] == [[(item, rank) for rank in ALL] for item in range(3)]
    assert [story.lines.count(f"0 {rank}") for rank in ALL] == [1] * 4
    assert [story.lines.count(f"1 {rank}") for rank in ALL] == [2] * 4


class _Resumed:
    """Adds up numbers on every rank; resumes from its checkpoint, which only rank 0 is asked for."""

    def __init__(self, gate: Gate, begun: int = 0) -> None:
        self.gate, self.begun = gate, begun

    def __call__(self, item: int) -> tuple[int, int]:
        rank = current_task().rank
        before, self.begun = self.begun, item
        if not before:
            self.gate.enter(rank)
        return before, rank

    def checkpoint(self, _item: int) -> _Resumed:
        return _Resumed(self.gate, self.begun)


@pytest.mark.parametrize("backend", [SLURM], indirect=True)
def test_checkpoint(cluster: Cluster, ranked: Executor, gate: Gate) -> None:
    """A requeued task resumes on all ranks from the checkpoint of rank 0."""
    future = ranked.submit(_Resumed(gate), 7)
    gate.await_arrival(*ALL)

    cluster.run("scontrol", "requeue", str(future.job_id))

    assert future.ranks(PATIENCE) == [(7, rank) for rank in ALL]


@elsewhere
def test_warning(ranked: Executor, backend: str) -> None:
    """USR1 has no handler in a rank and does no harm; what the function installs gets the warning of its task."""

    def warned() -> tuple[bool, bool, str | None]:
        free = signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGUSR1)
        subprocess.run(["sh", "-c", "kill -USR1 $$"], check=True)
        got: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, _: got.append(number))
        os.kill(os.getppid(), signal.SIGUSR1)  # the process that the launcher signals
        wait_until(lambda: got)
        return free, got[0] == signal.SIGUSR1, os.environ.get("SLURM_NTASKS_PER_NODE")

    ranks = ranked.options(nodes=1).submit(warned).ranks(PATIENCE)
    assert ranks == [(True, True, "4" if backend == "slurm" else None)] * 4


@pytest.mark.long
@pytest.mark.parametrize("backend", [SLURM], indirect=True)
@pytest.mark.parametrize("nodes", [1, 2])
def test_time_limit(ranked: Executor, gate: Gate, nodes: int) -> None:
    """Near its time limit a task with a checkpoint is requeued, though it has finished no item."""
    future = ranked.options(time=1, nodes=nodes).submit(_Resumed(gate), 7)

    assert future.ranks(3 * PATIENCE) == [(7, rank) for rank in ALL]
    assert len(future.attempts) == 2


@pytest.mark.anywhere
@elsewhere
def test_retry(mpi: None, ranked: Executor) -> None:
    """A retry runs the failed items again, on all ranks."""
    again = ranked.map_array(together.fall, range(2), [{(0, 3): "kill"}] * 2, tasks=1)
    assert again.wait(PATIENCE)

    retried = again.retry()

    assert isinstance(retried[0].exception(PATIENCE), WorkerDied)
    assert retried[1].ranks(PATIENCE) == [(1, rank) for rank in ALL]


def test_the_client_is_killed(tmp_path: Path) -> None:
    """Local ranks end with their client."""
    script = scripts.start(
        tmp_path,
        """
        import sys
        from pathlib import Path
        from slurmlaunch import Executor
        from tests.support import together
        from tests.support.waiting import Gate, Story
        gate = Gate(Path("gate"))
        walk = together.Walk(gate, Story(Path("story")), (0, 0), (0, 1))
        Executor("runs", cluster="local", ntasks=2).submit(walk, 0).result()
        """,
    )
    here = [tmp_path / "gate" / f"0-{rank}.here" for rank in range(2)]
    wait_until(lambda: all(path.exists() for path in here))
    processes = [int(path.read_text(encoding="utf-8")) for path in here]

    script.kill()

    wait_until(lambda: not any(map(is_alive, processes)))


# Options.


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ({}, 1),
        ({"ntasks": 1}, 1),
        ({"ntasks": 6, "nodes": 2}, 6),
        ({"ntasks": 6, "nodes": "2-4"}, 6),
        ({"ntasks_per_node": 4}, 4),
        ({"ntasks_per_node": 2, "nodes": 3}, 6),
        ({"nodes": 2}, 2),
        ({"nodes": "1-1"}, 1),
    ],
)
def test_number_of_ranks(options: dict[str, Any], ranks: int, tmp_path: Path) -> None:
    """The number of ranks is the number of tasks that srun would start."""
    executor = Executor(tmp_path, cluster="local", launcher=[], **options)

    values = executor.submit(together.place).ranks(PATIENCE)

    assert [value[:2] for value in values] == [(rank, ranks) for rank in range(ranks)]


@pytest.mark.parametrize(
    "options",
    [{"nodes": "2-4"}, {"ntasks": 2, "processes": 2}, {"ntasks": 0}, {"ntasks": 2, "container": "docker://debian"}],
)
def test_options_that_cannot_be(options: dict[str, Any], tmp_path: Path) -> None:
    """Options that leave the number of ranks open, or have no meaning with ranks, are refused."""
    with pytest.raises(OptionError):
        Executor(tmp_path, cluster="local", cpus_per_task=4, **options)


@pytest.mark.parametrize("flag", ["--ntasks=4", "-n4", "--nodes=2", "-N2", "--ntasks-per-node=2"])
def test_flags_that_must_be_known(flag: str, tmp_path: Path) -> None:
    """Raw flags that set the number of ranks are refused."""
    with pytest.raises(OptionError, match="instead of"):
        Executor(tmp_path, cluster="local", sbatch=[flag])


def test_sbatch_gets_the_number_of_ranks() -> None:
    """If sbatch needs the number of tasks, it gets the number of ranks."""
    job = ArrayJob(Path("/run"), "name", ranks=6, options={"gpus_per_task": "1", "nodes": "2", "ntasks_per_node": "3"})

    assert "--ntasks=6" in sbatch_words(job)


# Launchers' variables.

SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_STEP_NODELIST": "nowhere.invalid",
    "SLURM_LAUNCH_NODE_IPADDR": "192.0.2.7",
}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}


@pytest.mark.parametrize(
    ("environ", "world"),
    [
        (SRUN, RankEnvironment(5, 7, 1, 2, 2)),
        (SRUN | {"PMI_RANK": "5", "PMI_SIZE": "7"}, RankEnvironment(5, 7, 1, 2, 2)),
        (SRUN | HYDRA, RankEnvironment(3, 4, 1, 2, 1)),
        (SRUN | OPEN_MPI, RankEnvironment(3, 8, 3, 4, 0)),
    ],
)
def test_launchers(environ: dict[str, str], world: RankEnvironment) -> None:
    """A rank gets its number from its launcher's variables, from the innermost launcher if there are several."""
    assert RankEnvironment.of(environ) == world


def test_no_launcher_known() -> None:
    """Without a known launcher's variables, the error names the remedy."""
    with pytest.raises(NodeStartError, match="launcher="):
        RankEnvironment.of({})


def test_master() -> None:
    """The ranks meet on the first machine, by its name, or by its address if the name does not resolve."""
    known = SRUN | {"SLURM_STEP_NODELIST": "localhost,nowhere.invalid"}

    assert RankEnvironment.of(known).variables(known, "head", 1)["MASTER_ADDR"] == "localhost"
    assert RankEnvironment.of(SRUN).variables(SRUN, "head", 1)["MASTER_ADDR"] == "192.0.2.7"
    assert RankEnvironment.of(SRUN | HYDRA).variables(SRUN | HYDRA, "head", 1)["MASTER_ADDR"] == "head"


@pytest.mark.parametrize(
    ("nodes", "changes", "expected"),
    [
        ("2", {}, "2"),
        ("4", {}, None),
        ("x", {}, None),
        ("2", {"SLURM_NTASKS_PER_NODE": "9"}, None),
    ],
)
def test_ranks_per_node(nodes: str, changes: dict[str, str], expected: str | None) -> None:
    """A rank gets Slurm's number of ranks per node if all nodes have as many, and sbatch has not set it."""
    environ = HYDRA | {"SLURM_NNODES": nodes} | changes

    assert expected == RankEnvironment.of(environ).variables(environ, "head", 1).get("SLURM_NTASKS_PER_NODE")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("n[07-09,11],m1", "n07"),
        ("a,b", "a"),
        ("r[1,3]n2,x", "r1n2"),
        ("c-1-[3]-x", "c-1-3-x"),
    ],
)
def test_first_host(nodes: str, first: str) -> None:
    """The first host of a list in Slurm's notation is found."""
    assert first_host(nodes) == first
