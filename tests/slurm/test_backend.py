"""The Slurm backend: the command lines for Slurm, and the reading of Slurm's answers."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurmlaunch.backends.base import ArrayJob, Limits, TaskState
from slurmlaunch.backends.slurm import SlurmBackend, commands
from slurmlaunch.backends.slurm.commands import Command, Finished
from slurmlaunch.backends.slurm.shared_states import Intervals
from slurmlaunch.client.executor import Executor
from slurmlaunch.errors import SchedulerError, SubmissionError
from slurmlaunch.runfolder.layout import RunFolder
from tests.support.cluster import Cluster, ClusterSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Short, since these tests wait for queries, and long enough that no two follow at once.
QUICK = Intervals(shortest=0.2, longest=0.4, gone=1.0)


class FakeSlurm:
    """A runner that gives prepared answers, and records its calls."""

    def __init__(self, **answers: Finished) -> None:
        """Answer each program as given, all others with nothing."""
        self.answers = answers
        self.commands: list[Command] = []

    def __call__(self, given: Command, /) -> Finished:
        """Answer a command."""
        self.commands.append(given)
        return self.answers.get(given.words[0], Finished(0))

    def words(self) -> list[str]:
        """Return the command lines so far."""
        return [" ".join(given.words) for given in self.commands]


@pytest.fixture
def job(tmp_path: Path) -> ArrayJob:
    """Return an array of one task that ends well at once."""
    return ArrayJob(tmp_path, "law", cwd=tmp_path, python=("true",))


@pytest.fixture(autouse=True)
def _no_cluster_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CLUSTERS", "SBATCH_CLUSTERS"):
        monkeypatch.delenv(name, raising=False)


def failed(stderr: str) -> Finished:
    """Return the end of a command that complained."""
    return Finished(1, stderr=stderr)


# Command lines and answers.


def test_the_script_is_all_that_sbatch_is_given(job: ArrayJob) -> None:
    """Sbatch reads the script in the task's folder, and its command line has none of the job's options."""
    slurm = FakeSlurm(sbatch=Finished(0, "123\n"))
    backend = SlurmBackend(run=slurm)
    assert backend.submit(job) == "123"
    (given,) = slurm.commands
    assert (given.words, given.stdin, given.cwd) == (("sbatch", "--parsable"), backend.script(job), job.cwd)


@pytest.mark.parametrize(
    ("clusters", "printed", "job_id"),
    [
        (None, "123\n", "123"),
        (None, "123;alpha\n", "123;alpha"),
        ("alpha", "123;alpha\n", "123"),
        ("alpha,beta", "123;beta\n", "123;beta"),
        (None, "welcome to the machine\n123\n", "123"),
    ],
)
def test_the_printed_id_is_read(job: ArrayJob, clusters: str | None, printed: str, job_id: str) -> None:
    """An id names its cluster where that is not the backend's own."""
    assert SlurmBackend(clusters, run=FakeSlurm(sbatch=Finished(0, printed))).submit(job) == job_id


def test_every_command_goes_to_the_jobs_cluster(runtime: Path) -> None:
    """Commands about a job go to the job's cluster."""
    slurm = FakeSlurm()
    backend = SlurmBackend("alpha", run=slurm, intervals=QUICK)
    backend.cancel("1")
    backend.cancel("2;beta", [3])
    backend.set_throttle("2;beta", 4)
    backend.query(["1", "2;beta"])
    backend.find("law", time.time())
    assert slurm.words()[:3] == [
        "scancel --clusters=alpha 1",
        "scancel --clusters=beta 2_[3]",
        "scontrol --clusters=beta update JobId=2 ArrayTaskThrottle=4",
    ]
    assert {word for line in slurm.words()[3:] for word in line.split() if word.startswith("--clusters")} == {
        "--clusters=alpha",
        "--clusters=beta",
    }


def test_jobs_of_the_same_number_are_kept_apart(runtime: Path) -> None:
    """A snapshot of two clusters has the state of each job from its own cluster."""

    def run(given: Command, /) -> Finished:
        return Finished(0, f"7_0|{'RUNNING' if '--clusters=alpha' in given.words else 'PENDING'}|n1|N/A|None")

    snapshot = SlurmBackend("alpha", run=run).query({"7": 0.0, "7;beta": 0.0})
    assert snapshot
    found = [snapshot.get(job_id, 0) for job_id in ("7", "7;beta", "7;gamma")]
    assert [record and record.state for record in found] == [TaskState.RUNNING, TaskState.PENDING, None]


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a runtime folder of the test's own, so that its answers are shared with nobody."""
    folder = tmp_path / "runtime"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder


@pytest.mark.parametrize(
    ("stderr", "advice"),
    [
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination", "account="),
        ("sbatch: error: invalid partition specified: nope", "partition="),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", "qos="),
        (
            "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds ...)",
            "time=",
        ),
        ("sbatch: error: Batch job submission failed: Invalid job array specification", "tasks="),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", "tasks="),
        ("sbatch: error: AssocMaxSubmitJobLimit", "tasks="),
        ("sbatch: error: Memory specification can not be satisfied", "mem="),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", "cpus_per_task="),
        ("sbatch: error: Batch job submission failed: Invalid node name specified", "nodelist="),
        ("sbatch: error: Invalid generic resource (gres) specification", "gres="),
        ("sbatch: unrecognized option '--nope'", "sbatch="),
    ],
)
def test_a_refusal_comes_with_advice(job: ArrayJob, stderr: str, advice: str) -> None:
    """The message of sbatch comes with the option to change, and with its data."""
    with pytest.raises(SubmissionError) as caught:
        SlurmBackend(run=FakeSlurm(sbatch=failed(stderr))).submit(job)
    assert stderr in str(caught.value)
    assert advice in str(caught.value).splitlines()[-1]
    assert (caught.value.stderr, caught.value.returncode, caught.value.command[0]) == (stderr, 1, "sbatch")


@pytest.mark.parametrize(
    ("stderr", "answers", "told"),
    [
        ("Invalid account", {"sacctmgr": "test\nlab\ntest\n"}, "You gave account='nope'. Your accounts: test, lab."),
        ("Invalid qos specification", {"sacctmgr": "normal,long\n"}, "Yours: normal, long."),
        ("Requested time limit is invalid", {"sinfo": "debug* 1:00:00\n"}, "The limits: 1:00:00 in debug."),
        ("invalid partition specified: nope", {"sinfo": "debug*\nlarge\n"}, "The partitions: debug, large."),
        ("Invalid account", {}, "You gave account='nope'."),
    ],
)
def test_a_refusal_names_valid_values(job: ArrayJob, stderr: str, answers: dict[str, str], told: str) -> None:
    """One query, of a second at most, tells which values the refused option may have."""
    slurm = FakeSlurm(sbatch=failed(stderr), **{name: Finished(0, text) for name, text in answers.items()})
    with pytest.raises(SubmissionError) as caught:
        SlurmBackend(run=slurm).submit(replace(job, options={"account": "nope"}))
    assert str(caught.value).endswith(told)
    assert [given.timeout for given in slurm.commands[1:]] == [1.0]


def test_a_refusal_on_another_cluster(job: ArrayJob) -> None:
    """The account is looked up without naming the cluster, since sacctmgr knows no option for that."""
    slurm = FakeSlurm(sbatch=failed("Invalid account"), sacctmgr=Finished(0, "test\n"))
    with pytest.raises(SubmissionError, match=r"Your accounts: test\."):
        SlurmBackend("other", run=slurm).submit(job)
    assert "--clusters=other" not in slurm.words()[-1]


_POLICY = (
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy "
    "(job submit limit, user's size and/or time limits)"
)


@pytest.mark.parametrize(
    ("reason", "advice", "no_room"),
    [
        ("QOSMaxSubmitJobPerUserLimit", "tasks=", True),
        ("AssocMaxSubmitJobLimit", "tasks=", True),
        ("AssocGrpSubmitJobsLimit", "tasks=", True),
        ("MaxSubmitJobsPerAccount", "tasks=", True),
        ("", "tasks=", True),
        ("QOSMaxWallDurationPerJobLimit", "time=", False),
        ("AssocMaxWallDurationPerJobLimit", "time=", False),
        ("QOSMaxCpuPerUserLimit", "cpus_per_task=", False),
        ("QOSMaxMemoryPerJob", "mem=", False),
        ("AssocMaxGRESPerJob", "gpus=", False),
        ("QOSMaxNodePerJobLimit", "nodes=", False),
        ("AssocMaxCpuMinutesPerJobLimit", "time=", False),
        ("QOSMinGRES", "larger jobs", False),
        ("AssocMaxBBPerNode", "sacctmgr show qos", False),
        ("PartitionTimeLimit", "time=", False),
        ("PartitionNodeLimit", "nodes=", False),
    ],
)
def test_the_reason_of_a_limit_decides_on_the_advice(job: ArrayJob, reason: str, advice: str, no_room: bool) -> None:  # noqa: FBT001
    """Slurm's last line names every kind of limit; the one before it says which, and only that one is advised on."""
    stderr = "\n".join(filter(None, (reason and f"sbatch: error: {reason}", _POLICY)))

    with pytest.raises(SubmissionError) as caught:
        SlurmBackend(run=FakeSlurm(sbatch=failed(stderr))).submit(job)

    said = str(caught.value).removeprefix(f"sbatch refused the job: {stderr}\n")
    assert advice in said
    assert (advice == "time=") == ("time=" in said)
    assert no_room == caught.value.no_room


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("You must specify an account with --account", "account="),
        ("Please provide a project (-A <project>)", "account="),
        ("Job rejected: no budget given", "account="),
        ("lua: Account not specified in script or ~/.accountrc", "account="),
        ("a walltime is required", "time="),
        ("Jobs of partition gpu must request a GPU (--gres=gpu:1)", "gres="),
        ("Please choose a partition: none is valid by default", "partition="),
        ("use --licenses for this", "licenses="),
        ("Invalid --time specification", "'1h30m'"),
        ("Invalid --mem specification", "'4G'"),
        ("invalid memory constraint 4X", "'4G'"),
        ("walltime exceeds 24h for queue short", "time="),
        ("user has reached the limit of 1000 jobs in queue", "fewer tasks="),
        ("You have exceeded your maximum of 100 pending jobs", "fewer tasks="),
        ("--mem, --mem-per-cpu, and --mem-per-gpu are mutually exclusive.", "only one"),
        ("Invalid Trackable RESource (TRES) specification", "gres="),
        ("QOS not permitted to use this partition", "qos="),
    ],
)
def test_a_sites_own_words_come_with_advice(job: ArrayJob, said: str, advice: str) -> None:
    """A check of the site's own words its refusal freely, and the option that it speaks of is advised on."""
    with pytest.raises(SubmissionError) as caught:
        SlurmBackend(run=FakeSlurm(sbatch=failed(f"sbatch: error: {said}"))).submit(job)

    assert advice in str(caught.value).splitlines()[-1]


@pytest.mark.parametrize(
    "end",
    [
        Finished(None, stderr="no answer in 120 s", timed_out=True),
        failed("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"),
        Finished(0, "no number"),
    ],
)
@pytest.mark.slow
def test_a_job_that_may_be_there_is_named(job: ArrayJob, end: Finished) -> None:
    """If sbatch did not report whether it submitted, the error explains how to find the job."""
    with pytest.raises(SubmissionError, match="squeue --name=law") as caught:
        SlurmBackend(run=FakeSlurm(sbatch=end)).submit(job)
    assert vars(caught.value)["ambiguous"]
    with pytest.raises(SubmissionError, match="`squeue --clusters=one,other --name=law"):
        SlurmBackend("one,other", run=FakeSlurm(sbatch=end)).submit(replace(job, options={"clusters": "one,other"}))


def test_advice_on_another_cluster(job: ArrayJob) -> None:
    """The command that lists what may be given asks the cluster of the job."""
    refusal = failed("sbatch: error: invalid partition specified: nope")
    with pytest.raises(SubmissionError, match="`sinfo --clusters=other --summarize` lists them"):
        SlurmBackend("other", run=FakeSlurm(sbatch=refusal)).submit(job)


def test_a_doubt_outlives_a_refusal(job: ArrayJob) -> None:
    """A job that a lost answer may refer to is searched even if the next try was refused, and stays in doubt."""
    said = iter([failed("Socket timed out on send/recv operation"), failed("QOSMaxSubmitJobPerUserLimit")])
    found = iter(["", "", "77\n", ""])

    def run(given: Command, /) -> Finished:
        return next(said) if given.words[0] == "sbatch" else Finished(0, next(found))

    assert SlurmBackend(run=run, sleep=lambda _: None).submit(job) == "77"
    said = iter([failed("Socket timed out on send/recv operation"), failed("QOSMaxSubmitJobPerUserLimit")])
    found = iter([""] * 4)
    with pytest.raises(SubmissionError, match="QOSMax") as caught:
        SlurmBackend(run=run, sleep=lambda _: None).submit(job)
    assert caught.value.ambiguous


def test_without_sbatch_the_local_backend_is_named(job: ArrayJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without Slurm the error says so, and names the local backend."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SubmissionError, match=r"(?s)no sbatch on PATH.*cluster='local'"):
        SlurmBackend().submit(job)


def test_a_removed_folder_is_not_reported_as_a_missing_program(job: ArrayJob, tmp_path: Path) -> None:
    """A working directory that was removed is named itself."""
    with pytest.raises(SubmissionError, match="gone"):
        SlurmBackend().submit(replace(job, cwd=tmp_path / "gone"))


def test_a_command_that_hangs_is_ended() -> None:
    """A command that hangs is ended with its child processes, and the error has its output so far."""
    hangs = Command(("sh", "-c", "echo trouble >&2; sleep 600 & wait"), dict(os.environ), timeout=0.2)
    done = commands.run(hangs)
    assert (done.returncode, done.ok, done.timed_out) == (None, False, True)
    assert "trouble" in done.stderr
    assert "no answer" in done.stderr


def test_a_terminals_ctrl_c_does_not_reach_commands() -> None:
    """A command runs in a session of its own."""
    code = "import os; print(os.getsid(0) == os.getpid())"
    assert commands.run(Command((sys.executable, "-c", code), dict(os.environ), timeout=60)).stdout == "True\n"


def test_cancelling_names_elements_shortly() -> None:
    """Elements are ranges on one command line, a long list is cut between them, and none at all is no command."""
    slurm = FakeSlurm()
    backend = SlurmBackend(run=slurm)
    backend.cancel("5", [4, 1, 2, 3, 7])
    backend.cancel("5", [])
    assert slurm.words() == ["scancel 5_[1-4,7]"]
    slurm.commands.clear()
    scattered = range(0, 200_000, 2)
    backend.cancel("5", scattered)
    arguments = [word for given in slurm.commands for word in given.words[1:]]
    named = [int(number) for word in arguments for number in word[3:-1].split(",")]
    assert named == list(scattered)
    assert max(map(len, arguments)) < 131_072
    assert max(len(line) for line in slurm.words()) < 1_000_000


@pytest.mark.parametrize(
    "stderr",
    [
        "scancel: error: Kill job error on job id 5: Invalid job id specified",
        "scancel: error: Kill job error on job id 5_1: Job/step already completing or completed",
        "81_0,2-9: No error\n81_1: Job has already finished",
    ],
)
def test_cancelling_an_ended_job_is_no_error(stderr: str) -> None:
    """Cancelling or throttling an ended job is no error."""
    backend = SlurmBackend(run=FakeSlurm(scancel=failed(stderr), scontrol=failed(stderr)))
    backend.cancel("5", [1])
    backend.set_throttle("5", None)


def test_a_command_that_fails_raises_with_its_data() -> None:
    """Another failure is a SchedulerError with the command and the reason."""
    backend = SlurmBackend(run=FakeSlurm(scancel=failed("scancel: error: Access/permission denied")))
    with pytest.raises(SchedulerError, match="permission denied") as caught:
        backend.cancel("5")
    assert (caught.value.command, caught.value.returncode) == (("scancel", "5"), 1)


def test_a_job_is_found_in_the_queue_or_in_the_accounts() -> None:
    """The first job of a name counts; if neither the queue nor the accounts have it, there is none."""
    found = SlurmBackend(run=FakeSlurm(squeue=Finished(0, "12\n9\n")))
    assert found.find("law", time.time()) == "9"
    ended = SlurmBackend(run=FakeSlurm(sacct=Finished(0, "12_0\n12_[1-3]\n")))
    assert ended.find("law", time.time()) == "12"
    assert SlurmBackend(run=FakeSlurm()).find("law", time.time()) is None
    disabled = failed("Slurm accounting storage is disabled")
    assert SlurmBackend(run=FakeSlurm(sacct=disabled)).find("law", time.time()) is None


@pytest.mark.parametrize("program", ["squeue", "sacct"])
def test_a_failed_query_reports_no_job_as_missing(program: str) -> None:
    """If one of the two queries fails, a job is not reported as missing."""
    slurm = FakeSlurm(**{program: failed("Unable to contact slurm controller (connect failure)")})
    with pytest.raises(SchedulerError, match=program):
        SlurmBackend(run=slurm).find("law", time.time())


def test_limits_belong_to_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that names another slurm.conf gets the limits of that cluster."""
    slurm = FakeSlurm(scontrol=Finished(0, "MaxArraySize            = 5\n"))
    backend = SlurmBackend(run=slurm)
    assert backend.limits() == Limits(max_array_size=5)

    monkeypatch.setenv("SLURM_CONF", "/of/another/cluster")
    slurm.answers["scontrol"] = Finished(0, "MaxArraySize            = 7\n")

    assert backend.limits() == Limits(max_array_size=7)


def test_limits_are_read_once() -> None:
    """The limits of a cluster are read once per backend, of which a process has one."""
    config = "MaxArraySize            = 5001\nSchedulerParameters     = bf_interval=2,max_array_tasks=400\n"
    slurm = FakeSlurm(scontrol=Finished(0, config))
    expected = Limits(max_array_size=5001, max_array_tasks=400)
    backend = SlurmBackend(run=slurm)
    assert [backend.limits(), backend.limits()] == [expected] * 2
    assert slurm.words() == ["scontrol show config"]
    slurm.answers["scontrol"] = failed("Unable to contact slurm controller")
    assert SlurmBackend("other", run=slurm).limits() == Limits(max_array_size=1001)


# Variables.


def test_an_outer_job_is_not_inherited() -> None:
    """Variables of the outer job are dropped; Slurm's configuration and the user's defaults are inherited."""
    outer = {
        "SLURM_JOB_ID": "1",
        "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_CPU_BIND": "x",
        "SLURM_PROCID": "0",
        "SLURM_UMASK": "0000",
        "SLURM_HINT": "nomultithread",
        "SLURMD_NODENAME": "n1",
        "_SLURM_SPANK_OPTION_x": "1",
        "SRUN_CPUS_PER_TASK": "2",
        "PMI_RANK": "0",
        "PMIX_RANK": "0",
        "OMPI_COMM_WORLD_RANK": "0",
        "SBATCH_MEM_BIND": "x",
        "SBATCH_CPU_BIND_TYPE": "x",
        "SBATCH_ARRAY_INX": "0-9",
        "SBATCH_JOB_NAME": "theirs",
        "SBATCH_WAIT": "1",
        "CUDA_VISIBLE_DEVICES": "0",
        "SLURMLAUNCH_SET": "OMP_NUM_THREADS:PYTHON_CPU_COUNT",
        "OMP_NUM_THREADS": "4",
        "PYTHON_CPU_COUNT": "4",
    }
    kept = {
        "SLURM_CONF": "/etc/slurm.conf",
        "SLURM_JWT": "token",
        "SLURM_TIME_FORMAT": "relative",
        "SBATCH_ACCOUNT": "mine",
        "SBATCH_PARTITION": "small",
        "SBATCH_TIMELIMIT": "5",
        "SBATCH_MEM_PER_CPU": "1G",
        "MKL_NUM_THREADS": "3",
        "PATH": "/bin",
        "SLURMLAUNCH_FOLDER": "/runs",
    }
    assert commands.for_submission({**outer, **kept}, ["--job-name=x", "--array=0-0"]) == kept


@pytest.mark.parametrize(
    ("word", "variables"),
    [
        ("--time=5", ["SBATCH_TIMELIMIT"]),
        ("--mem=5G", ["SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU"]),
        ("--clusters=a", ["SBATCH_CLUSTERS", "SLURM_CLUSTERS"]),
        ("--exclusive", ["SBATCH_EXCLUSIVE"]),
        ("--requeue", ["SBATCH_NO_REQUEUE", "SBATCH_REQUEUE"]),
        ("--gpus-per-task=1", ["SBATCH_GPUS_PER_TASK"]),
        ("-pbig", ["SBATCH_PARTITION"]),
        ("--cpu-freq=low", ["SBATCH_CPU_FREQ_REQ"]),
    ],
)
def test_the_executors_options_outrank_variables(word: str, variables: list[str]) -> None:
    """A variable that would override a given option is left out; without the option it is the user's default."""
    environ = {**dict.fromkeys(variables, "theirs"), "SBATCH_QOS": "mine"}
    assert commands.for_submission(environ, [word]) == {"SBATCH_QOS": "mine"}
    assert commands.for_submission(environ, ["--comment=x"]) == environ


def test_cuda_devices_outside_a_job_are_the_users() -> None:
    """Devices that no job gave were chosen by the user."""
    environ = {"CUDA_VISIBLE_DEVICES": "1"}
    assert commands.for_submission(environ, []) == environ


def test_variables_do_not_change_queries() -> None:
    """No variable of the user's changes a query's output."""
    environ = {
        "SQUEUE_FORMAT": "%A", "SACCT_FORMAT": "User", "SCANCEL_STATE": "RUNNING", "SLURM_TIME_FORMAT": "relative",
        "SLURM_JOB_ID": "1", "SLURM_CLUSTERS": "x", "LC_ALL": "de_DE.UTF-8", "TZ": "CET", "SLURM_CONF": "/x",
    }  # fmt: skip
    assert commands.for_queries(environ) == {
        "SLURM_CONF": "/x",
        "LC_ALL": "C",
        "TZ": "UTC0",
        "SLURM_BITSTR_LEN": "0",
    }


# On a real Slurm.


@pytest.fixture
def array(cluster: Cluster, tmp_path: Path, runtime: Path) -> Callable[..., ArrayJob]:
    """Return a function that makes arrays whose tasks run a line of shell."""
    for part in ("ended", "logs"):
        (tmp_path / part).mkdir()

    def make(line: str, **fields: object) -> ArrayJob:
        name = f"law-{time.time_ns()}"
        job = ArrayJob(tmp_path, name, cwd=tmp_path, python=("/bin/sh", "-c", line, "sh"))
        return replace(job, **fields)  # type: ignore[arg-type]  # by the tests, each with what the field takes

    return make


@pytest.fixture
def backend() -> Iterator[SlurmBackend]:
    """Return a backend that queries often, and whose jobs do not outlive the test."""
    backend = SlurmBackend(intervals=QUICK)
    submitted: list[str] = []
    submit = backend.submit
    backend.submit = lambda job: submitted.append(submit(job)) or submitted[-1]  # type: ignore[func-returns-value,method-assign]
    yield backend
    for job_id in submitted:
        backend.cancel(job_id)


def await_states(backend: SlurmBackend, job_id: str, *expected: TaskState | None) -> None:
    """Wait until the backend reports these states for a job's elements."""
    while True:
        snapshot = backend.query([job_id])
        records = [snapshot.get(job_id, element) if snapshot else None for element in range(len(expected))]
        if tuple(record.state if record else None for record in records) == expected:
            return
        time.sleep(0.05)


@pytest.mark.slurm
def test_a_clusters_own_limits_are_read(
    start_cluster: Callable[[ClusterSpec], Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MaxArraySize and max_array_tasks come from the cluster's configuration."""
    lines = ("MaxArraySize=77", "SchedulerParameters=bf_interval=2,max_array_tasks=50")
    other = start_cluster(ClusterSpec(nodes=1, accounting=False, lines=lines))
    for name, value in other.env.items():
        monkeypatch.setenv(name, value)
    assert SlurmBackend().limits() == Limits(max_array_size=77, max_array_tasks=50)


@pytest.mark.slurm
def test_states_of_a_real_array(backend: SlurmBackend, array: Callable[..., ArrayJob]) -> None:
    """Each element's end is reported: done, failed, cancelled while running, and cancelled before it started."""
    stay = 'case "$5" in 0) exit 0;; 1) exit 1;; esac; exec sleep 600'
    job_id = backend.submit(array(stay, length=5, throttle=3))
    done, fails, runs, waits = TaskState.COMPLETED, TaskState.FAILED, TaskState.RUNNING, TaskState.PENDING
    await_states(backend, job_id, done, fails, runs, runs, runs)
    backend.cancel(job_id, [2, 3])
    await_states(backend, job_id, done, fails, TaskState.CANCELLED, TaskState.CANCELLED, runs)
    held = backend.submit(array("exec sleep 600", length=4, options={"hold": True}))
    await_states(backend, held, waits, waits, waits, waits)
    backend.cancel(held, [1, 3])
    await_states(backend, held, waits, TaskState.CANCELLED, waits, TaskState.CANCELLED)
    backend.cancel(held)
    await_states(backend, held, *[TaskState.CANCELLED] * 4)


@pytest.mark.slurm
def test_the_throttle_changes_while_it_runs(backend: SlurmBackend, array: Callable[..., ArrayJob]) -> None:
    """A new throttle lets more elements run, and none lets all."""
    job_id = backend.submit(array("exec sleep 600", length=4, throttle=1))
    runs, waits = TaskState.RUNNING, TaskState.PENDING
    await_states(backend, job_id, runs, waits, waits, waits)
    backend.set_throttle(job_id, 2)
    await_states(backend, job_id, runs, runs, waits, waits)
    backend.set_throttle(job_id, None)
    await_states(backend, job_id, runs, runs, runs, runs)
    backend.cancel(job_id)
    await_states(backend, job_id, *[TaskState.CANCELLED] * 4)
    backend.cancel(job_id)
    backend.set_throttle(job_id, 1)


@pytest.mark.slurm
def test_a_job_is_found_by_its_name(backend: SlurmBackend, array: Callable[..., ArrayJob], cluster: Cluster) -> None:
    """A job is found while it waits, while it runs, and by the clusters' name; another name finds none."""
    since = time.time()
    job = array("exec sleep 600", length=2, options={"hold": True})
    job_id = backend.submit(job)
    assert backend.find(job.name, since) == job_id
    cluster.run("scontrol", "release", job_id)
    await_states(backend, job_id, TaskState.RUNNING, TaskState.RUNNING)
    assert backend.find(job.name, since) == job_id
    assert SlurmBackend(cluster.name).find(job.name, since) == job_id
    assert backend.find(f"{job.name}-no", since) is None


@pytest.mark.slurm
def test_a_named_cluster_is_used_throughout(array: Callable[..., ArrayJob], cluster: Cluster) -> None:
    """With clusters= everything works as without, and the id stays plain."""
    backend = SlurmBackend(cluster.name, intervals=QUICK)
    job_id = backend.submit(array("exec sleep 600", length=2, throttle=1, options={"clusters": cluster.name}))
    assert job_id.isdigit()
    await_states(backend, job_id, TaskState.RUNNING, TaskState.PENDING)
    backend.set_throttle(job_id, None)
    await_states(backend, job_id, TaskState.RUNNING, TaskState.RUNNING)
    backend.cancel(job_id)
    await_states(backend, job_id, TaskState.CANCELLED, TaskState.CANCELLED)


@pytest.mark.slurm
def test_a_second_job_of_a_name_waits_for_the_first(backend: SlurmBackend, array: Callable[..., ArrayJob]) -> None:
    """A duplicate that could not be prevented starts after the first has ended."""
    job = array("exec sleep 600", length=2)
    first = backend.submit(job)
    await_states(backend, first, TaskState.RUNNING, TaskState.RUNNING)
    second = backend.submit(job)
    await_states(backend, second, TaskState.PENDING, TaskState.PENDING)
    backend.cancel(first)
    await_states(backend, second, TaskState.RUNNING, TaskState.RUNNING)


@pytest.mark.slurm
def test_a_job_starts_after_its_dependency(backend: SlurmBackend, array: Callable[..., ArrayJob]) -> None:
    """A job after another starts however that one ended."""
    first = backend.submit(array("exec sleep 600"))
    second = backend.submit(array("exit 0", after=first))
    await_states(backend, second, TaskState.PENDING)
    backend.cancel(first)
    await_states(backend, second, TaskState.COMPLETED)


@pytest.mark.slurm
@pytest.mark.slow
def test_a_requeued_task_is_alive(backend: SlurmBackend, array: Callable[..., ArrayJob], cluster: Cluster) -> None:
    """A task that Slurm requeues is alive, however its first attempt ended, and its mark counts the starts."""
    job = array('[ -e "$0.go" ] || { touch "$0.go"; exec sleep 600; }')
    job = replace(job, python=(*job.python[:3], str(job.run_folder / "first")))
    job_id = backend.submit(job)
    while not (job.run_folder / "first.go").exists():
        time.sleep(0.05)
    await_states(backend, job_id, TaskState.RUNNING)
    cluster.run("scontrol", "requeue", f"{job_id}_0")
    await_states(backend, job_id, TaskState.COMPLETED)
    assert (RunFolder(job.run_folder).ended / "0.1.0").exists()


@pytest.mark.slurm
def test_a_real_refusal_is_explained(cluster: Cluster, array: Callable[..., ArrayJob]) -> None:
    """Slurm's messages about a wrong partition and about too much memory come with advice."""
    with pytest.raises(SubmissionError, match=r"partition=\.\.\..*'nope'\. The partitions: \w+"):
        SlurmBackend().submit(array("true", options={"partition": "nope"}))
    with pytest.raises(SubmissionError, match="mem="):
        SlurmBackend().submit(array("true", options={"mem": "900000G"}))
    with pytest.raises(SubmissionError, match="tasks="):
        SlurmBackend().submit(array("true", length=5000))


@pytest.mark.slurm
def test_a_job_submitted_from_inside_a_job(cluster: Cluster, array: Callable[..., ArrayJob], tmp_path: Path) -> None:
    """A nested submission is a job of its own: the outer one's index, name and bindings do not reach it."""
    inner = array('env > "$PWD/inner.env"', first_task=0, length=1)
    file = tmp_path / "inner.py"
    file.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from slurmlaunch.backends.base import ArrayJob\nfrom slurmlaunch.backends.slurm import SlurmBackend\n"
        f"SlurmBackend().submit(ArrayJob(Path({str(tmp_path)!r}), {inner.name!r}, cwd=Path({str(tmp_path)!r}), "
        f"python={inner.python!r}))\n"
    )
    package = Path(commands.__file__).parents[3]
    python = shlex.join([sys.executable, str(file)])
    outer = array(f"PYTHONPATH={shlex.quote(str(package))} exec {python}", first_task=4, length=6, throttle=1)
    outer = replace(outer, name=f"{outer.name}-outer", threads=5, options={"time": "7", "ntasks": "1"})
    backend = SlurmBackend(intervals=QUICK)
    job_id = backend.submit(outer)
    found = tmp_path / "inner.env"
    while not found.exists() or "SLURM_JOB_NAME" not in found.read_text():
        time.sleep(0.05)
    backend.cancel(job_id)
    variables = dict(line.split("=", 1) for line in found.read_text().splitlines() if "=" in line)
    assert variables["SLURM_ARRAY_TASK_ID"] == "0"
    assert variables["SLURM_ARRAY_TASK_COUNT"] == "1"
    assert variables["SLURM_JOB_NAME"] == inner.name
    assert variables["PYTHON_CPU_COUNT"] == "1"
    assert "SLURM_NTASKS" not in variables


@pytest.mark.slurm
def test_without_accounts_the_queue_is_enough(
    start_cluster: Callable[[ClusterSpec], Cluster], tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a site that keeps no accounts, ends and cancellations are reported all the same."""
    for name, value in start_cluster(ClusterSpec(nodes=1, accounting=False)).env.items():
        monkeypatch.setenv(name, value)
    for part in ("ended", "logs"):
        (tmp_path / part).mkdir()
    backend = SlurmBackend(intervals=QUICK)
    stay = 'case "$5" in 0) exit 0;; esac; exec sleep 600'
    job = ArrayJob(
        tmp_path, f"law-{time.time_ns()}", length=3, throttle=1, cwd=tmp_path, python=("/bin/sh", "-c", stay, "sh")
    )
    job_id = backend.submit(job)
    await_states(backend, job_id, TaskState.COMPLETED, TaskState.RUNNING, TaskState.PENDING)
    backend.cancel(job_id, [2])
    await_states(backend, job_id, TaskState.COMPLETED, TaskState.RUNNING, TaskState.CANCELLED)
    assert backend.find("no-such-name", time.time()) is None


@pytest.mark.slurm
@pytest.mark.slow
def test_a_restarted_controller_is_queried_again(
    start_cluster: Callable[[ClusterSpec], Cluster], tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While slurmctld is away the last answer stands, and later answers include the events of the outage."""
    site = start_cluster(ClusterSpec(nodes=1))
    for name, value in site.env.items():
        monkeypatch.setenv(name, value)
    for part in ("ended", "logs"):
        (tmp_path / part).mkdir()
    go = tmp_path / "go"
    wait = f"while [ ! -e {go} ]; do sleep 0.1; done"
    backend = SlurmBackend(intervals=QUICK)
    job = ArrayJob(tmp_path, f"law-{time.time_ns()}", cwd=tmp_path, python=("/bin/sh", "-c", wait, "sh"))
    job_id = backend.submit(job)
    await_states(backend, job_id, TaskState.RUNNING)
    site.stop_daemon("slurmctld", signal.SIGTERM)  # killed, it would lose its unsaved state
    go.touch()
    while not (tmp_path / "ended" / "0.0.0").exists():
        time.sleep(0.05)
    snapshot = backend.query([job_id])
    assert snapshot
    assert snapshot.get(job_id, 0)
    site.start_daemon("slurmctld")
    await_states(backend, job_id, TaskState.COMPLETED)


@pytest.mark.parametrize("name", ["SLURM_CLUSTERS", "SBATCH_CLUSTERS"])
def test_a_cluster_of_the_environment_stays_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The environment's cluster is recorded in the run: an attaching client may have another one there, or none."""
    monkeypatch.setenv(name, "beta")
    executor = Executor(tmp_path, cluster="slurm")
    monkeypatch.delenv(name)

    assert "#SBATCH --clusters=beta\n" in executor.script(abs, [1])
    assert "--clusters" not in Executor(tmp_path, cluster="slurm").script(abs, [1])
    assert "--clusters=a" in executor.options(clusters="a").script(abs, [1])
