"""submitit's own documented examples, with ``cluster="slurmlaunch"``, run as scripts, and further uses.

The calls are those of its README.md, docs/examples.md, docs/checkpointing.md and docs/structure.md (version 1.5, MIT
licence). Only the cluster's name and the prefixes of its parameters differ.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import submitit
from submitit.core import plugins, utils

import slurmlaunch
from tests.conftest import several_cpus
from tests.support import scripts
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]

EVERYWHERE = ["local", pytest.param("slurm", marks=pytest.mark.slurm)]
EXECUTOR = 'executor = submitit.AutoExecutor(folder="log_test", cluster="slurmlaunch")'


pytestmark = pytest.mark.slow


@pytest.fixture(scope="session", autouse=True)
def _installed() -> None:
    """Fail if submitit cannot find the plugin: entry points are registered at installation."""
    found = {point.name: point.value for point in metadata.entry_points(group="submitit")}
    if not found.get("executor", "").startswith("slurmlaunch."):
        pytest.fail("the installed slurmlaunch has no entry points for submitit: install this version of it")


@pytest.fixture(params=EVERYWHERE)
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Choose the backend by a variable, as a user does without changing an example."""
    name: str = request.param
    if name == "slurm":
        request.getfixturevalue("cluster")
    monkeypatch.setenv("SLURMLAUNCH_CLUSTER", name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return name


@pytest.fixture
def run(where: str, tmp_path: Path) -> Callable[[str], str]:
    """Return a function that runs a script and returns its output."""

    def run(text: str) -> str:
        lines = textwrap.dedent(text).replace("EXECUTOR\n", EXECUTOR + "\n")
        return scripts.run(tmp_path, "import submitit\n" + lines)

    return run


# The documented examples.


def test_addition(run: Callable[[str], str], where: str) -> None:
    """The first example, of the README: submit, job id, result; a folder may hold %j."""
    printed = run("""
        def add(a, b):
            print("adding")
            return a + b

        executor = submitit.AutoExecutor(folder="log_test/%j", cluster="slurmlaunch")
        executor.update_parameters(timeout_min=4, slurmlaunch_partition="debug", mem_gb=0.5)
        job = executor.submit(add, 5, 7)
        print(job.job_id)
        output = job.result()
        assert output == 12
        assert job.stdout() == "adding\\n", job.stdout()
        print(job.state, job.done(), job.num_tasks, job.paths.stdout)
    """)
    job_id, _, told = printed.partition("\n")
    assert job_id.endswith("_0")
    assert told.startswith("COMPLETED True 1 ")
    log = Path(told.split()[-1])
    assert log.read_text() == "adding\n"
    assert log.parents[2].name == "log_test"


def test_map_array(run: Callable[[str], str], where: str) -> None:
    """An array, with at most two of its jobs at once: one run, one array, a task per item."""
    printed = run("""
        from operator import add
        EXECUTOR
        executor.update_parameters(slurmlaunch_array_parallelism=2)
        a = [1, 2, 3, 4]
        b = [10, 20, 30, 40]
        jobs = executor.map_array(add, a, b)
        print([job.result() for job in jobs])
        print({job.job_id.rpartition("_")[0] for job in jobs} == {jobs[0].job_id.rpartition("_")[0]})
        print([job.job_id.rpartition("_")[2] for job in jobs], jobs[0].future.run.throttle)
    """)
    assert printed == "[11, 22, 33, 44]\nTrue\n['0', '1', '2', '3'] 2\n"


def test_batch(run: Callable[[str], str]) -> None:
    """``with executor.batch()`` makes one array of different calls, with keyword arguments."""
    printed = run("""
        EXECUTOR
        jobs = []
        with executor.batch():
            for arg in range(3):
                jobs.append(executor.submit(int, str(arg), base=10))
            jobs.append(executor.submit(divmod, 7, 2))
            try:
                jobs[0].job_id
            except AttributeError as error:
                print("not yet")
        print([job.result() for job in jobs], len(set(job.paths.folder for job in jobs)))
        print([job.result() for job in executor.submit_array([list, dict])])
    """)
    assert printed == "not yet\n[0, 1, 2, (3, 1)] 1\n[[], {}]\n"


@pytest.mark.anywhere
def test_concurrent_jobs(run: Callable[[str], str]) -> None:
    """Several jobs, polled with done() and awaited with result()."""
    printed = run("""
        import time
        EXECUTOR
        executor.update_parameters(timeout_min=1, slurmlaunch_partition="debug")
        jobs = [executor.submit(time.sleep, k / 10) for k in range(1, 4)]
        assert sum(job.done() for job in jobs) < 3
        outputs = [job.result() for job in jobs]
        print(outputs, sum(job.done() for job in jobs))
        print(len(list(submitit.helpers.as_completed(jobs, poll_frequency=0.1))))
        submitit.helpers.monitor_jobs(jobs, test_mode=True)
    """)
    first, second, *monitored = printed.splitlines()
    assert (first, second) == ("[None, None, None] 3", "3")
    assert "All jobs finished, jobs with indices [] failed" in monitored


@pytest.mark.anywhere
def test_asyncio(run: Callable[[str], str]) -> None:
    """A job can be awaited, alone and with others."""
    printed = run("""
        import asyncio, time

        def slow_multiplication(x, y):
            time.sleep(x * y / 10)
            return x * y

        EXECUTOR

        async def main():
            job = executor.submit(slow_multiplication, 2, 2)
            print(await job.awaitable().result(poll_interval=0.1))
            jobs = [executor.submit(slow_multiplication, k, 1) for k in range(1, 4)]
            found = []
            for aws in asyncio.as_completed([j.awaitable().result(poll_interval=0.1) for j in jobs]):
                found.append(await aws)
            print(sorted(found), await asyncio.gather(*(job.future for job in jobs)))

        asyncio.run(main())
    """)
    assert printed == "4\n[1, 2, 3] [1, 2, 3]\n"


def test_errors(run: Callable[[str], str]) -> None:
    """A failure is submitit's own error with the stack trace, which is in the log too; its cause is the exception."""
    printed = run("""
        from operator import truediv
        from submitit.core.utils import FailedJobError
        EXECUTOR
        job = executor.submit(truediv, 1, 0)
        try:
            job.result()
        except FailedJobError as error:
            assert "ZeroDivisionError: division by zero" in str(error)
            print(repr(error.__cause__))
        assert "ZeroDivisionError" in job.stderr()
        print(type(job.exception()).__name__, job.state)
    """)
    assert printed == "ZeroDivisionError('division by zero')\nFailedJobError FAILED\n"


def test_commands(run: Callable[[str], str]) -> None:
    """A CommandFunction of submitit's runs in a job as it does locally."""
    printed = run("""
        import sys
        function = submitit.helpers.CommandFunction(["which", "python3"])
        here = function()
        EXECUTOR
        job = executor.submit(function)
        assert job.result() == here
        print(executor.submit(submitit.helpers.CommandFunction(["echo"], verbose=False), "pip").result())
        bad = executor.submit(submitit.helpers.CommandFunction(["false"]))
        print(type(bad.exception()).__name__)
    """)
    assert printed.splitlines()[-2:] == ["pip", "FailedJobError"]


@several_cpus
def test_several_tasks(run: Callable[[str], str], where: str) -> None:
    """Several tasks call the same function, each has its rank, and all results come back."""
    nodes, per_node = (2, 3) if where == "slurm" else (1, 2)
    printed = run(f"""
        from math import ceil
        from operator import add

        def my_func(inputs):
            job_env = submitit.JobEnvironment()
            print("task", job_env.global_rank)
            number = ceil(len(inputs) / job_env.num_tasks)
            chunk = inputs[job_env.global_rank * number:(job_env.global_rank + 1) * number]
            return chunk, job_env.num_nodes, job_env.node, job_env.local_rank

        EXECUTOR
        executor.update_parameters(tasks_per_node={per_node}, nodes={nodes}, timeout_min=1)
        job = executor.submit(add, 5, 7)
        print(job.result(), job.results(), job.num_tasks, job.task(1).result())
        job = executor.submit(my_func, list(range(12)))
        for each in job.results():
            print(*each)
        print(sorted(job.stdout().split()))
        job = executor.submit(lambda: submitit.helpers.TorchDistributedEnvironment().export().rank)
        print(job.results())
    """)
    tasks = nodes * per_node
    first, *others = printed.splitlines()
    assert first == f"{[12] * tasks} {[12] * tasks} {tasks} 12"
    each = 12 // tasks
    chunks = [list(range(12))[rank * each : (rank + 1) * each] for rank in range(tasks)]
    expected = [f"{chunks[rank]} {nodes} {rank // per_node} {rank % per_node}" for rank in range(tasks)]
    assert others[:tasks] == expected
    assert others[tasks] == str(sorted(["task"] * tasks + [str(rank) for rank in range(tasks)]))
    assert others[tasks + 1] == str(list(range(tasks)))


def test_function_sequence(run: Callable[[str], str]) -> None:
    """Several calls in one job."""
    printed = run("""
        function = submitit.helpers.FunctionSequence(verbose=True)
        function.add(int, 3)
        function.add(int, "4")
        EXECUTOR
        job = executor.submit(function)
        print(job.result(), repr(job.stdout()))
    """)
    assert printed == "[3, 4] 'Starting from 0/2\\n'\n"


# Checkpoints.

TRAINING = """
import os, sys, time
import submitit

class NetworkTraining:
    def __init__(self):
        self.model = None

    def __call__(self, checkpointpath):
        if not os.path.exists(checkpointpath):
            self.model = "begun"
            open("started", "w").close()
            time.sleep(600)
        with open(checkpointpath) as file:
            return file.read() + " and finished"

    def checkpoint(self, checkpointpath):
        with open(checkpointpath, "w") as file:
            file.write(self.model)
        return submitit.helpers.DelayedSubmission(NetworkTraining(), checkpointpath)


class Counter(submitit.helpers.Checkpointable):
    def __init__(self):
        self.count = 0

    def __call__(self, until, *, name):
        while self.count < until:
            self.count += 1
            if self.count == 2:
                open(name, "w").close()
                time.sleep(600)
        return self.count

    def __submitit_checkpoint__(self, *args, **kwargs):
        open("asked", "w").close()
        return super().checkpoint(*args, **kwargs)


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.05)
"""


@pytest.mark.slurm
@pytest.mark.parametrize("where", [pytest.param("slurm", marks=pytest.mark.slurm)], indirect=True)
def test_checkpointing(run: Callable[[str], str], where: str) -> None:
    """The checkpoint of an interrupted callable, by either name, is where the requeued task resumes."""
    printed = run(
        TRAINING
        + textwrap.dedent("""
        executor = submitit.AutoExecutor(folder="logs", cluster="slurmlaunch", slurmlaunch_max_num_timeout=3)
        executor.update_parameters(timeout_min=30, slurmlaunch_partition="debug", cpus_per_task=2)
        job = executor.submit(NetworkTraining(), "network")
        counter = executor.submit(Counter(), 4, name="counted")
        wait_for("started")
        wait_for("counted")
        job._interrupt(timeout=False)
        counter._interrupt(timeout=True)
        print(job.result())
        print(counter.result(), os.path.exists("asked"))
        """)
    )
    assert printed == "begun and finished\n4 True\n"


# In tasks.


def test_environment(run: Callable[[str], str]) -> None:
    """A task has its job and its log in the environment, also if slurmlaunch itself submitted it."""
    printed = run("""
        import slurmlaunch

        def look():
            env = submitit.JobEnvironment()
            return env.job_id, str(env.paths.stdout), env.num_tasks, env.global_rank, env.hostname, env.cluster

        EXECUTOR
        job = executor.submit(look)
        assert job.result()[:2] == (job.job_id, str(job.paths.stdout)), job.result()
        future = slurmlaunch.Executor("log_test").submit(look)
        assert future.result()[:2] == (future.job_id, str(future.log("out"))), future.result()
        print(job.result()[2:4], job.result()[5], future.result()[5])
        try:
            submitit.JobEnvironment()
        except RuntimeError:
            print("not here")
    """)
    assert printed == "(1, 0) slurmlaunch slurmlaunch\nnot here\n"


def test_error_to_output(run: Callable[[str], str]) -> None:
    """Both streams go into one log if requested."""
    printed = run("""
        import sys

        def speak():
            print("a", flush=True)
            print("b", file=sys.stderr, flush=True)

        EXECUTOR
        executor.update_parameters(stderr_to_stdout=True)
        job = executor.submit(speak)
        job.wait()
        print(job.stdout().split(), repr(job.stderr()))
    """)
    assert printed == "['a', 'b'] ''\n"


# In this process.


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[submitit.AutoExecutor]:
    """Return an executor on this machine; its jobs are cancelled after the test."""
    yield submitit.AutoExecutor(tmp_path, cluster="slurmlaunch", slurmlaunch_cluster="local")
    for run in tmp_path.glob("*/manifest.json"):
        slurmlaunch.attach(run.parent).cancel()


def test_common_function_is_pickled_once(executor: submitit.AutoExecutor) -> None:
    """Data that all jobs of an array share is written once; a callable with a state is not shared."""
    data = bytes(100_000)
    jobs = executor.map_array(lambda number: len(data) + number, range(20))
    assert [job.result() for job in jobs] == [100_000 + number for number in range(20)]
    files = [path for path in jobs[0].paths.folder.rglob("*") if path.is_file() and path.name != "modules"]
    assert sum(path.stat().st_size for path in files) < 300_000


class Remembers(submitit.helpers.Checkpointable):
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, _: int) -> int:
        """Count."""
        self.calls += 1
        return self.calls


def test_jobs_share_no_state(executor: submitit.AutoExecutor) -> None:
    """Jobs that run in one task, one after the other, each have a callable of their own."""
    executor.update_parameters(slurmlaunch_chunksize=3)
    assert [job.result() for job in executor.map_array(Remembers(), range(3))] == [1, 1, 1]


def test_job(executor: submitit.AutoExecutor, tmp_path: Path) -> None:
    """A job can be cancelled, pickled and found by its id, and returns its submission."""
    gate = tmp_path / "gate"
    job: Any = executor.submit(subprocess.run, ["sh", "-c", f"while ! [ -e {gate} ]; do sleep 0.05; done"])
    assert job.submission().args[0][0] == "sh"
    assert repr(job).startswith(f"SlurmlaunchJob<job_id={job.job_id}, task_id=0, state=")
    job.cancel()
    job.wait()
    assert isinstance(job.exception(), utils.UncompletedJobError)
    with pytest.raises(utils.UncompletedJobError, match="was cancelled"):
        job.result()

    job = executor.submit(divmod, 7, 2)
    assert job.result() == (3, 1)
    again = type(job)(tmp_path, job.job_id)
    assert again.result() == (3, 1)
    assert again.get_info()["JobID"] == job.job_id
    with pytest.raises(slurmlaunch.RunFolderError, match="has the job 9_9"):
        type(job)(tmp_path, "9_9")


def test_a_process_that_dies(executor: submitit.AutoExecutor) -> None:
    """An end from outside is submitit's UncompletedJobError, with the reason as its cause."""
    error = executor.submit(eval, "__import__('os')._exit(3)").exception()
    assert isinstance(error, utils.UncompletedJobError)
    assert not isinstance(error, utils.FailedJobError)
    assert isinstance(error.__cause__, slurmlaunch.WorkerDied)


def test_cancelled_at_deletion(executor: submitit.AutoExecutor, tmp_path: Path) -> None:
    """A job with cancel_at_deletion is cancelled when its object is deleted."""
    job: Any = executor.submit(eval, "__import__('time').sleep(600)").cancel_at_deletion()
    future = job.future
    del job
    wait_until(future.cancelled)


# Parameters.


def test_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the guide runs unchanged, and prints the output in its comments."""
    monkeypatch.setenv("SLURMLAUNCH_CLUSTER", "local")
    guide = (ROOT / "docs" / "from-submitit.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL):
        assert scripts.run(tmp_path, block).splitlines() == re.findall(r"# prints (.+)$", block, re.MULTILINE)


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that returns the batch script for parameters."""

    def script(**parameters: Any) -> str:
        executor = submitit.AutoExecutor(tmp_path, cluster="slurmlaunch", slurmlaunch_cluster="slurm")
        executor.update_parameters(**parameters)
        inner: Any = executor._executor  # noqa: SLF001
        text: str = inner._configured(executor.parameters).script(len, ["a"])  # noqa: SLF001
        return text

    monkeypatch.setenv("PATH", "/nonexistent")  # there is no Slurm to query
    return script


def test_parameters(scripted: Callable[..., str]) -> None:
    """Shared parameters of submitit's, its Slurm executor's under our prefix, and all of sbatch's and slurmlaunch's."""
    text = scripted(
        name="mine",
        timeout_min=90,
        mem_gb=1.5,
        cpus_per_task=4,
        gpus_per_node=2,
        slurmlaunch_partition="dev",
        slurmlaunch_array_parallelism=3,
        slurmlaunch_setup=["export A=1"],
        slurmlaunch_mail_type="END",
        slurmlaunch_exclusive=True,
        slurmlaunch_additional_parameters={"mail-user": "me", "new-flag": 1},
        slurmlaunch_retries=2,
        slurm_partition="other",
    )
    for line in (
        "time=90", "mem=1536M", "cpus-per-task=4", "gpus-per-node=2", "partition=dev", "array=0-0%3", "mail-type=END",
        "exclusive", "mail-user=me", "new-flag=1",
    ):  # fmt: skip
        assert f"#SBATCH --{line}\n" in text
    assert "#SBATCH --job-name=mine-" in text
    assert "export A=1\n" in text
    assert "export SUBMITIT_EXECUTOR=slurmlaunch\n" in text


def test_parameters_of_the_cluster_win(scripted: Callable[..., str]) -> None:
    """As in submitit, a parameter with the cluster's prefix overrides the shared one."""
    text = scripted(timeout_min=90, slurmlaunch_time="2:00:00", mem_gb=4, slurmlaunch_mem_gb=8)
    assert "#SBATCH --time=2:00:00\n" in text
    assert "#SBATCH --mem=8192M\n" in text


def test_refused_parameters(scripted: Callable[..., str]) -> None:
    """Unknown and unsupported parameters are refused; those without effect cause a warning."""
    with pytest.raises(NameError, match="Unknown argument 'partitio' for executor 'slurmlaunch'"):
        scripted(slurmlaunch_partitio="dev")
    with pytest.raises(slurmlaunch.OptionError, match="clean up at the end of the function"):
        scripted(slurmlaunch_teardown=["rm x"])
    with pytest.raises(slurmlaunch.OptionError, match="whole number"):
        scripted(slurmlaunch_array_parallelism="few")
    with pytest.warns(UserWarning, match="slurmlaunch_signal_delay_s is ignored"):
        scripted(slurmlaunch_signal_delay_s=30)
    with pytest.warns(UserWarning, match="slurmlaunch_srun_args is ignored"):
        scripted(slurmlaunch_srun_args=["--mpi=pmix"])


def test_defaults_of_launchers(scripted: Callable[..., str]) -> None:
    """What submitit and Hydra's launcher pass by default causes no warning, which would be an error here."""
    for seconds in (90, 120):
        scripted(slurmlaunch_signal_delay_s=seconds, slurmlaunch_use_srun=True, slurmlaunch_srun_args=None)


def test_async_functions_are_refused(tmp_path: Path) -> None:
    """An async function is told at the call to be wrapped."""

    async def wait() -> None: ...

    executor = submitit.AutoExecutor(tmp_path, cluster="slurmlaunch")
    with pytest.raises(TypeError, match=r"asyncio\.run"):
        executor.submit(wait)


# submitit's other users.


def test_other_clusters_are_left_alone(tmp_path: Path) -> None:
    """The plugin is never chosen automatically, and takes no name from submitit's own executors."""
    assert plugins.get_executors()["slurmlaunch"].affinity() == 0
    assert submitit.AutoExecutor.which() in {"slurm", "local"}
    executor = submitit.AutoExecutor(tmp_path, cluster="local")
    with pytest.warns(UserWarning, match="Use 'slurm_partition' instead"):
        executor.update_parameters(partition="dev")
    executor.update_parameters(slurmlaunch_partition="dev", slurmlaunch_retries=3)
    assert "partition" not in executor.parameters


def test_light_to_list() -> None:
    """Listing clusters in submitit does not load slurmlaunch's client; slurmlaunch itself never loads submitit."""
    listing = (
        "import sys, submitit; submitit.AutoExecutor.which(); print([m for m in sys.modules if 'slurmlaunch.' in m])"
    )
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert "slurmlaunch.integrations.submitit" in done.stdout
    assert "slurmlaunch.client" not in done.stdout
    using = "import sys, slurmlaunch; slurmlaunch.Executor; slurmlaunch.attach; print('submitit' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", using], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stdout == "False\n"


def test_without_submitit() -> None:
    """Without submitit, the error of importing the module names the package."""
    text = "import sys; sys.modules['submitit'] = None; import slurmlaunch; import slurmlaunch.integrations.submitit"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert "ImportError: submitit is not installed here: pip install 'slurmlaunch[submitit]'" in done.stderr
