"""The local backend: tasks of this machine, started as the batch script starts them.

The node is played by a line of shell: ``$4`` is the run folder, ``$5`` the task index.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import caps
from slurmlaunch.backends.base import ArrayJob, Limits, TaskState, parse_memory, parse_time
from slurmlaunch.backends.local import LocalBackend, scheduler
from slurmlaunch.backends.local.scheduler import TaskResources, machine_cpus, new_job_id, owner_of
from slurmlaunch.client.watcher import current_client
from slurmlaunch.errors import SchedulerError, SubmissionError
from slurmlaunch.runfolder.clients import ClientId
from slurmlaunch.runfolder.environment import Environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CPUS = machine_cpus()
LINUX = sys.platform == "linux"

backend = LocalBackend()

several_cpus = pytest.mark.skipif(CPUS < 2, reason="needs two CPUs")
needs_proc = pytest.mark.skipif(not LINUX, reason="needs Linux's /proc")
needs_bash = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")

# Each writes when it begins and when it ends, with one system call.
LOGGED = 'echo "+$5" >>"$4/story"; sleep 0.02; echo "-$5" >>"$4/story"'
# Runs until the gate is opened.
GATED = 'while [ ! -e "$4/gate" ]; do sleep 0.01; done'


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return an empty run folder; its jobs are cancelled after the test."""
    path = tmp_path / "a run's $(folder) %j"
    for name in ("logs", "ended"):
        (path / name).mkdir(parents=True)
    yield path
    for job in list(backend.scheduler._jobs.values()):  # noqa: SLF001 - whatever a failed test left running
        if not job.ended:
            backend.scheduler.cancel(job)
    backend.scheduler.wait()


def array(folder: Path, script: str, length: int = 1, **changes: Any) -> ArrayJob:
    """Return an array whose node is a line of shell."""
    python = ("/bin/sh", "-c", script, "node")
    return ArrayJob(**{"run_folder": folder, "name": "test", "length": length, "python": python, **changes})


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition that must come true; the test's own time-out ends a wait in vain."""
    while not condition():
        time.sleep(0.005)


def state(job_id: str, element: int = 0) -> TaskState:
    """Return the state of an element of a job of this process."""
    record = backend.query([job_id]).get(job_id, element)
    assert record is not None
    return record.state


def states(job_id: str, length: int) -> list[TaskState]:
    """Wait until all elements of a job have ended; return their states."""
    until(lambda: all(state(job_id, i).is_final for i in range(length)))
    return [state(job_id, i) for i in range(length)]


def run(job: ArrayJob) -> list[TaskState]:
    """Run a job to its end; return the states of its elements."""
    return states(backend.submit(job), job.length)


def marks(folder: Path) -> list[str]:
    """Return the names of the end marks."""
    return sorted(path.name for path in (folder / "ended").iterdir())


def story(folder: Path) -> list[str]:
    """Return the log of the tasks: ``+1`` when task 1 began, ``-1`` when it ended."""
    return (folder / "story").read_text().split()


def most_at_once(folder: Path) -> int:
    """Return how many logged tasks ran side by side at most."""
    return max(itertools.accumulate(1 if line[0] == "+" else -1 for line in story(folder)))


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip()[:1] not in {"", "Z"}


# How a task is started.


def test_a_task_runs_the_nodes_command_in_its_folder(folder: Path, tmp_path: Path) -> None:
    """A task is the node's command with the run folder and the task index, in the job's working directory."""
    assert run(array(folder, 'echo "$PWD" "$@"', cwd=tmp_path, first_task=7)) == [TaskState.COMPLETED]
    log = folder / "logs" / "0-0-0.out"
    assert log.read_text() == f"{tmp_path} -P -m slurmlaunch.node {folder} 7\n"


def test_logs_are_named_by_element_and_private(folder: Path) -> None:
    """Output is appended to the log of round, array and element, which only the user can read."""
    for _ in range(2):
        run(array(folder, "echo to out; echo to err >&2", round=1, array=2, first_task=5))
    logs = [folder / "logs" / f"1-2-0.{stream}" for stream in ("out", "err")]
    assert [log.read_text() for log in logs] == ["to out\n" * 2, "to err\n" * 2]
    assert [log.stat().st_mode & 0o777 for log in logs] == [0o600, 0o600]


def test_the_exit_status_becomes_state_and_end_mark(folder: Path) -> None:
    """Each task's end is reported by its state and by an end mark with its exit status, 128 + n for signal n."""
    job = array(folder, "case $5 in 10) exit 0;; 11) exit 7;; 12) kill -KILL $$;; esac", 3, first_task=10)
    job_id = backend.submit(job)
    assert states(job_id, 3) == [TaskState.COMPLETED, TaskState.FAILED, TaskState.FAILED]
    assert marks(folder) == ["10.0.0", "11.0.7", "12.0.137"]
    snapshot = backend.query([job_id])
    records = [snapshot.get(job_id, element) for element in range(4)]
    assert [record and record.exit_code for record in records] == ["0:0", "7:0", "0:9", None]


def test_the_environment_is_the_clients_and_the_jobs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task sees the client's variables as they were at submission, and the job's own before them."""
    monkeypatch.setenv("OF_BOTH", "client")
    monkeypatch.setenv("OF_CLIENT", "it's")
    monkeypatch.setenv("of.client", "also")
    shows = "import os; print(*map(os.environ.get, ('OF_CLIENT', 'OF_BOTH', 'of.client')))"
    job_id = backend.submit(array(folder, "", python=(sys.executable, "-c", shows), env={"OF_BOTH": "job"}))
    monkeypatch.setenv("OF_CLIENT", "changed too late")
    states(job_id, 1)
    assert (folder / "logs" / "0-0-0.out").read_text() == "it's job also\n"


def test_umask_and_soft_limits_are_the_submissions(folder: Path) -> None:
    """A task has the umask and soft limits of the submission, and ignores no signal that this process ignores."""
    environment = replace(Environment.of_this_process(), umask=0o013, limits={"RLIMIT_NOFILE": 77})
    lines = "umask; ulimit -S -n; grep SigIgn /proc/self/status; cat"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(array(folder, lines, environment=environment)) == [TaskState.COMPLETED]
    finally:
        signal.signal(signal.SIGHUP, before)
    umask, limit, ignored = (folder / "logs" / "0-0-0.out").read_text().splitlines()
    assert (umask, limit) == ("0013", "77")
    assert not int(ignored.split()[1], 16) & ((1 << 31) - 1)  # those behind belong to the C library


def test_a_task_that_starts_later_has_the_umask_of_the_submission(folder: Path) -> None:
    """What this process has by the time a queued task starts does not matter."""
    umask = os.umask(0o026)
    try:
        job_id = backend.submit(array(folder, f"umask; {GATED}", 2, throttle=1))
        os.umask(0o013)
        (folder / "gate").touch()
        states(job_id, 2)
    finally:
        os.umask(umask)
    assert (folder / "logs" / "0-0-1.out").read_text() == "0026\n"


@pytest.mark.parametrize(
    ("client", "job", "expected"),
    [
        ({}, {}, "2 PYTHON_CPU_COUNT"),
        ({"PYTHON_CPU_COUNT": "9"}, {}, "9 -"),
        ({}, {"PYTHON_CPU_COUNT": "8"}, "8 -"),
        ({"PYTHON_CPU_COUNT": "9", caps.OURS: "A:PYTHON_CPU_COUNT"}, {}, "2 PYTHON_CPU_COUNT"),
        ({}, {caps.OURS: "A"}, "2 A:PYTHON_CPU_COUNT"),
    ],
)
def test_python_counts_the_threads_unless_the_user_said_otherwise(
    folder: Path, monkeypatch: pytest.MonkeyPatch, client: dict[str, str], job: dict[str, str], expected: str
) -> None:
    """PYTHON_CPU_COUNT is the user's own or, noted as ours, the job's threads; an outer task's counts as neither."""
    monkeypatch.delenv("PYTHON_CPU_COUNT", raising=False)
    monkeypatch.delenv(caps.OURS, raising=False)
    for name, value in client.items():
        monkeypatch.setenv(name, value)
    run(array(folder, 'echo "$PYTHON_CPU_COUNT" "${SLURMLAUNCH_SET:--}"', env=job, threads=2))
    assert (folder / "logs" / "0-0-0.out").read_text() == expected + "\n"


def test_an_outer_tasks_variables_are_dropped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task does not inherit an outer task's variables, such as its place in an array."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv(caps.OURS, "OMP_NUM_THREADS")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    monkeypatch.setenv("SLURM_CONF", "/kept")
    run(array(folder, 'echo "$OMP_NUM_THREADS,$SLURM_ARRAY_TASK_ID,$SLURM_CONF"'))
    assert (folder / "logs" / "0-0-0.out").read_text() == ",,/kept\n"


@needs_bash
def test_setup_lines_run_in_the_tasks_shell(folder: Path) -> None:
    """A task has the variables that the set-up lines export."""
    job = array(folder, 'echo "$GREETING"', setup=("if true; then", "  export GREETING=hello", "fi"))
    assert run(job) == [TaskState.COMPLETED]
    assert (folder / "logs" / "0-0-0.out").read_text() == "hello\n"


@needs_bash
@pytest.mark.parametrize("lines", [("false", "true"), ("exit 0",), ("exit 9",), ("if [; then",), ("no-such-program",)])
def test_a_failing_setup_ends_the_task_with_status_3(folder: Path, lines: tuple[str, ...]) -> None:
    """Where any set-up line fails, or ends the shell, Python does not start and the status is 3."""
    assert run(array(folder, "echo started", setup=lines)) == [TaskState.FAILED]
    assert marks(folder) == ["0.0.3"]
    assert (folder / "logs" / "0-0-0.out").read_text() == ""


@needs_bash
def test_a_failure_inside_a_sourced_file_is_ignored(folder: Path) -> None:
    """A failing command inside a sourced file does not matter; the file's last status is the set-up's."""
    (folder / "good").write_text("false; true")
    (folder / "bad").write_text("true; false")
    for task, name in enumerate(["good", "bad"]):
        run(array(folder, "true", first_task=task, setup=(f". {shlex.quote(str(folder / name))} \\",)))
    assert marks(folder) == ["0.0.0", "1.0.3"]
    assert "the task was not started" in (folder / "logs" / "0-0-0.err").read_text()


@needs_bash
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (None, ["0.0.0"]),
        ('() { [ "$*" = "load gcc/12 py thon" ] && [ "$3" = "py thon" ]; }', ["0.0.0"]),
        ("() { false; }", ["0.0.3"]),
    ],
)
def test_modules_are_loaded_where_there_are_modules(
    folder: Path, monkeypatch: pytest.MonkeyPatch, function: str | None, expected: list[str]
) -> None:
    """Modules are loaded where ``module`` exists, a failure being a failed set-up; elsewhere they are ignored."""
    monkeypatch.delenv("BASH_FUNC_module%%", raising=False)
    monkeypatch.delenv("BASH_ENV", raising=False)
    if function:
        monkeypatch.setenv("BASH_FUNC_module%%", function)
    run(array(folder, "true", modules=("gcc/12", "py thon")))
    assert marks(folder) == expected


def test_the_script_runs_the_same_tasks(folder: Path, tmp_path: Path) -> None:
    """The commands that `script` shows run the same tasks, whatever the names of folders and the values."""
    job = array(folder, 'echo "$PWD" "$ODD" "$5"', 3, first_task=5, cwd=tmp_path, env={"ODD": "a'b\nc $d"})
    subprocess.run(["/bin/sh", "-c", backend.script(job)], check=True)
    shown = [(folder / "logs" / f"0-0-{i}.out").read_text() for i in range(3)]
    shutil.rmtree(folder / "logs")
    (folder / "logs").mkdir()
    run(job)
    assert [(folder / "logs" / f"0-0-{i}.out").read_text() for i in range(3)] == shown


# Tasks that cannot be started.


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"python": ("no-such-python",)}, "no-such-python"),
        ({"python": ("/no/such/python",)}, "/no/such/python"),
        ({"run_folder": Path("/no/such/folder")}, "/no/such/folder"),
        ({"cwd": Path("/no/such/cwd")}, "/no/such/cwd"),
        ({"options": {"time": "an hour"}}, "an hour"),
        ({"options": {"mem": "much"}}, "much"),
        ({"after": "12345"}, "12345"),
    ],
)
def test_impossible_jobs_are_refused(folder: Path, changes: dict[str, Any], named: str) -> None:
    """A job that can only fail is refused at submission, and the error names the cause."""
    with pytest.raises(SubmissionError, match=re.escape(named)):
        backend.submit(array(folder, "true", **changes))


def test_python_is_searched_where_the_task_runs(folder: Path, tmp_path: Path) -> None:
    """A relative path to Python starts at the working directory; a name is searched in the task's PATH."""
    program = tmp_path / "bin" / "py"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 5\n")
    program.chmod(0o700)
    run(array(folder, "", cwd=tmp_path, python=("bin/py",)))
    run(array(folder, "", first_task=1, python=("py",), env={"PATH": str(program.parent)}))
    assert marks(folder) == ["0.0.5", "1.0.5"]


def test_a_task_that_cannot_start_fails_alone(folder: Path) -> None:
    """A task whose process cannot be started fails with the reason, and the queue continues."""
    (folder / "logs" / "0-0-1.err").mkdir()
    job_id = backend.submit(array(folder, "true", 3))
    assert [s.value for s in states(job_id, 3)] == ["COMPLETED", "FAILED", "COMPLETED"]
    record = backend.query([job_id]).get(job_id, 1)
    assert record is not None
    assert "directory" in (record.reason or "")
    assert marks(folder) == ["0.0.0", "1.0.126", "2.0.0"]


# The queue.


def test_the_limit_is_the_cpus_that_can_be_used() -> None:
    """Tasks are clipped to the CPUs that this process may use."""
    assert backend.limits() == Limits(cpus=min(CPUS, caps.usable_cpus()))


def test_all_arrays_share_the_machine(folder: Path) -> None:
    """No more tasks run than there are CPUs, whatever array they belong to; a process has one local backend."""
    assert current_client().backend("local") is current_client().backend("local")
    ids = [backend.submit(array(folder, LOGGED, 3 * CPUS, array=i)) for i in range(2)]
    for job_id in ids:
        assert states(job_id, 3 * CPUS) == [TaskState.COMPLETED] * 3 * CPUS
    assert most_at_once(folder) <= CPUS


def test_a_task_wider_than_the_machine_takes_all_of_it(folder: Path) -> None:
    """A task that requests more CPUs than there are runs, and runs alone."""
    run(array(folder, LOGGED, 4, cpus_per_task=1000 * CPUS))
    assert story(folder) == ["+0", "-0", "+1", "-1", "+2", "-2", "+3", "-3"]


def test_arrays_and_elements_go_in_order(folder: Path) -> None:
    """Tasks start in the order of submission, element by element."""
    ids = [backend.submit(array(folder, LOGGED, 3, array=i, first_task=3 * i, cpus_per_task=CPUS)) for i in range(3)]
    for job_id in ids:
        states(job_id, 3)
    assert [line for line in story(folder) if line[0] == "+"] == [f"+{task}" for task in range(9)]


def test_the_throttle_is_obeyed(folder: Path) -> None:
    """No more elements of an array run at once than its throttle allows."""
    run(array(folder, LOGGED, 5, throttle=1))
    assert most_at_once(folder) == 1


@several_cpus
def test_the_throttle_can_be_changed_while_tasks_run(folder: Path) -> None:
    """A raised throttle lets further elements start at once, a lowered one holds back the next."""
    job_id = backend.submit(array(folder, GATED, 3, throttle=1))
    until(lambda: state(job_id, 0) is TaskState.RUNNING)
    backend.set_throttle(job_id, None)
    until(lambda: state(job_id, 1) is TaskState.RUNNING)
    backend.set_throttle(job_id, 1)
    (folder / "gate").touch()
    assert states(job_id, 3) == [TaskState.COMPLETED] * 3


@several_cpus
def test_a_throttled_array_delays_no_other(folder: Path) -> None:
    """CPUs that a throttled array may not use go to the next array."""
    throttled = backend.submit(array(folder, GATED, 2, throttle=1))
    assert run(array(folder, "true", array=1, first_task=2)) == [TaskState.COMPLETED]
    assert state(throttled, 1) is TaskState.PENDING


@several_cpus
def test_a_wide_task_is_not_overtaken(folder: Path) -> None:
    """A task that waits for many CPUs gets them before a narrow one that was submitted later."""
    narrow = backend.submit(array(folder, GATED))
    until(lambda: state(narrow) is TaskState.RUNNING)
    ids = [
        backend.submit(array(folder, LOGGED, array=1, first_task=1, cpus_per_task=CPUS)),
        backend.submit(array(folder, LOGGED, array=2, first_task=2)),
    ]
    (folder / "gate").touch()
    for job_id in ids:
        states(job_id, 1)
    assert story(folder) == ["+1", "-1", "+2", "-2"]


def test_a_job_waits_for_the_one_before(folder: Path) -> None:
    """A job with ``after`` starts when that job has ended, however it ended."""
    before = backend.submit(array(folder, f"{GATED}; {LOGGED}; exit 1"))
    after = backend.submit(array(folder, LOGGED, array=1, first_task=1, after=before))
    independent = array(folder, LOGGED, array=2, first_task=2)
    if CPUS > 1:
        run(independent)
    (folder / "gate").touch()
    assert states(after, 1) == [TaskState.COMPLETED]
    assert [line for line in story(folder) if line[1] != "2"] == ["+0", "-0", "+1", "-1"]


def test_a_job_is_found_by_its_name(folder: Path) -> None:
    """A job of this process is found by its name, if it was submitted after the given moment."""
    before = time.time()
    job_id = backend.submit(array(folder, "true", name="unique-7"))
    assert backend.find("unique-7", before) == job_id
    assert backend.find("unique-7", time.time() + 60) is None
    assert backend.find("unique-8", before) is None


# Ends from outside.


def test_cancelling_drops_pending_tasks_and_ends_running_ones(folder: Path) -> None:
    """Cancelled elements that had not started leave no end mark; running ones end by SIGTERM."""
    job_id = backend.submit(array(folder, GATED, 3, cpus_per_task=CPUS))
    until(lambda: state(job_id, 0) is TaskState.RUNNING)
    backend.cancel(job_id)
    assert states(job_id, 3) == [TaskState.CANCELLED] * 3
    assert marks(folder) == ["0.0.143"]


def test_some_elements_can_be_cancelled(folder: Path) -> None:
    """Cancelling some elements leaves the others running."""
    job_id = backend.submit(array(folder, GATED, 4, cpus_per_task=CPUS))
    until(lambda: state(job_id, 0) is TaskState.RUNNING)
    backend.cancel(job_id, [1, 3])
    (folder / "gate").touch()
    assert [s.value for s in states(job_id, 4)] == ["COMPLETED", "CANCELLED", "COMPLETED", "CANCELLED"]


def test_cancelling_ended_tasks_changes_nothing(folder: Path) -> None:
    """Cancelling ended tasks does not change their states."""
    job_id = backend.submit(array(folder, "exit 4"))
    states(job_id, 1)
    backend.cancel(job_id)
    assert state(job_id) is TaskState.FAILED


def test_a_task_that_ignores_sigterm_is_killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL follows SIGTERM, and reaches the task's child processes."""
    monkeypatch.setattr(scheduler, "KILL_WAIT", 0.1)
    script = 'trap "" TERM; sleep 1000 & echo $! >"$4/pid"; mv "$4/pid" "$4/child"; wait'
    job_id = backend.submit(array(folder, script))
    until((folder / "child").exists)
    backend.cancel(job_id)
    assert states(job_id, 1) == [TaskState.CANCELLED]
    assert marks(folder) == ["0.0.143"]
    until(lambda: not alive(int((folder / "child").read_text())))


def test_to_cancel_again_gains_no_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a task is cancelled, SIGKILL comes when it was due."""
    monkeypatch.setattr(scheduler, "KILL_WAIT", 0.3)
    job_id = backend.submit(array(folder, 'trap "" TERM; touch "$4/started"; while :; do sleep 0.01; done'))
    until((folder / "started").exists)
    while not state(job_id).is_final:
        backend.cancel(job_id)
        time.sleep(0.01)
    assert marks(folder) == ["0.0.143"]


def test_nothing_of_a_task_outlives_it(folder: Path) -> None:
    """Processes that a task left in its process group are killed when it ends."""
    run(array(folder, 'sleep 1000 & echo $! >"$4/child"'))
    until(lambda: not alive(int((folder / "child").read_text())))


@needs_proc
@needs_bash
def test_a_group_of_its_own_is_no_refuge(folder: Path) -> None:
    """A cancelled task's processes are found by their session, also in another process group."""
    script = 'set -m; sleep 1000 & echo $! >"$4/pid"; mv "$4/pid" "$4/child"; wait'
    job_id = backend.submit(array(folder, "", python=("bash", "-c", script, "node")))
    until((folder / "child").exists)
    child = int((folder / "child").read_text())
    assert os.getpgid(child) == child
    backend.cancel(job_id)
    until(lambda: not alive(child))
    assert states(job_id, 1) == [TaskState.CANCELLED]


def test_the_time_limit_ends_a_task(folder: Path) -> None:
    """A task that reaches its time limit gets SIGTERM, and its state is TIMEOUT."""
    job = array(folder, 'trap "exit 9" TERM; while :; do sleep 0.01; done', options={"time": "0:01"})
    assert run(job) == [TaskState.TIMEOUT]
    assert marks(folder) == ["0.0.9"]


def test_a_long_time_limit_is_no_short_one(folder: Path) -> None:
    """A limit of months works."""
    assert run(array(folder, "true", options={"time": "100-0"})) == [TaskState.COMPLETED]


@needs_proc
def test_the_memory_limit_ends_a_task(folder: Path) -> None:
    """A task whose processes use more than ``mem`` is killed, and its state shows it."""
    code = "data = b'x' * (300 << 20); import time; time.sleep(1000)"
    job = array(folder, "", python=(sys.executable, "-c", code), options={"mem": "200"})
    assert run(job) == [TaskState.OUT_OF_MEMORY]
    assert marks(folder) == ["0.0.77"]


@needs_proc
def test_shared_memory_counts_once(folder: Path) -> None:
    """Processes that share their memory are not over a limit which the memory itself is not over."""
    code = """\
import os, time
data = b'x' * (100 << 20)
pids = [os.fork() for _ in range(4) if os.getpid() == os.getsid(0)]
time.sleep(1)
"""
    job = array(folder, "", python=(sys.executable, "-c", code), options={"mem_per_cpu": "250M"})
    assert run(job) == [TaskState.COMPLETED]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10", 600),
        ("10:30", 630),
        ("1:02:03", 3723),
        ("2-3", 2 * 86400 + 3 * 3600),
        ("2-03:04", 2 * 86400 + 3 * 3600 + 4 * 60),
        ("2-03:04:05", 2 * 86400 + 3 * 3600 + 4 * 60 + 5),
        ("0", math.inf),
        ("UNLIMITED", math.inf),
        ("infinite", math.inf),
    ],
)
def test_times_are_read_as_sbatch_reads_them(text: str, seconds: float) -> None:
    """Every format of sbatch's ``--time`` is accepted."""
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("100", 100 << 20), ("7K", 7 << 10), ("2g", 2 << 30), ("3GB", 3 << 30), ("1T", 1 << 40), ("0", math.inf)],
)
def test_sizes_are_read_as_sbatch_reads_them(text: str, size: float) -> None:
    """Memory is in megabytes where no unit is given."""
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["x", "1:2:3:4", "1-", "-5", "1.5", "1-2-3"])
def test_times_and_sizes_that_sbatch_refuses_are_refused(text: str) -> None:
    """An invalid time or size is refused, never guessed."""
    with pytest.raises(ValueError, match=re.escape(text)):
        parse_time(text)
    with pytest.raises(ValueError, match=re.escape(text)):
        parse_memory(text)


def test_memory_per_cpu_counts_the_cpus_that_were_asked_for(folder: Path) -> None:
    """The CPUs of a task are clipped to the machine, its memory is not."""
    job = array(folder, "", cpus_per_task=8, options={"mem_per_cpu": "1G"})
    assert TaskResources.of(job, 2) == TaskResources(cpus=2, memory=8 << 30)


# Jobs of others.


def test_a_job_id_names_its_owner() -> None:
    """Any process can read the owner of a job from its id; ids never repeat."""
    me = ClientId.current()
    ids = [new_job_id() for _ in range(2)]
    assert ids[0] != ids[1]
    assert [owner_of(job_id) for job_id in ids] == [me, me]
    assert all(re.fullmatch(r"[A-Za-z0-9.-]+", job_id) for job_id in ids)
    assert owner_of("123") is None
    assert not me.has_ended


def test_the_jobs_of_an_ended_client_have_failed() -> None:
    """Jobs of an ended process are NODE_FAIL; cancelling or throttling them has no effect."""
    job_id = f"local-{ClientId.current()._replace(started='1')}-1"
    record = backend.query([job_id]).get(job_id, 0)
    assert record is not None
    assert (record.state, record.reason) == (TaskState.NODE_FAIL, "the client process that ran it has ended")
    backend.cancel(job_id)
    backend.set_throttle(job_id, 1)


def test_the_jobs_of_another_client_are_left_to_it(folder: Path) -> None:
    """The jobs of another living process have no known state, and only that process can act on them."""
    with subprocess.Popen(["sleep", "1000"]) as other:
        job_id = f"local-{ClientId.of_process(other.pid)}-1"
        assert backend.query([job_id]).get(job_id, 0) is None
        backend.cancel(job_id)  # its tasks read for themselves which items are cancelled
        with pytest.raises(SchedulerError, match=f"process {other.pid}"):
            backend.set_throttle(job_id, 1)
        with pytest.raises(SubmissionError, match=f"process {other.pid}"):
            backend.submit(array(folder, "true", after=job_id))
        other.kill()


def test_jobs_of_another_machine_are_unknown() -> None:
    """A process of another machine cannot be observed, so its jobs are not reported as ended."""
    job_id = f"local-{ClientId('another-machine.org', 1, '1')}-1"
    assert backend.query([job_id]).get(job_id, 0) is None


# The client's own end, each test with a separate program.

PRELUDE = """\
import os, signal, sys, time
from dataclasses import replace
from pathlib import Path
from slurmlaunch.backends.base import ArrayJob
from slurmlaunch.backends.local import LocalBackend

folder = Path(sys.argv[1])
backend = LocalBackend()

def submit(script, length=1, **changes):
    python = ("/bin/sh", "-c", script, "node")
    return backend.submit(ArrayJob(folder, "test", length=length, python=python, cpus_per_task=1000, **changes))

def until(condition):
    while not condition():
        time.sleep(0.005)

def state(job_id):
    return backend.query([job_id]).get(job_id, 0).state.value
"""


def client(folder: Path, program: str, python: str = sys.executable) -> subprocess.Popen[str]:
    """Start a program that uses the backend."""
    code = PRELUDE + textwrap.dedent(program)
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [python, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", code, str(folder)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def said(process: subprocess.Popen[str]) -> tuple[str, str, int]:
    """Wait for a client; return its standard output, standard error and exit status."""
    out, err = process.communicate()
    return out, err, process.returncode


def pythons() -> list[str]:
    """Return the supported Pythons that are installed here."""
    found = [shutil.which(f"python3.{minor}") for minor in range(11, 15)]
    works = [p for p in found if p and subprocess.run([p, "-V"], capture_output=True, check=False).returncode == 0]
    return [*works, sys.executable]


@pytest.mark.parametrize("python", pythons())
def test_the_interpreter_waits_for_the_queue(folder: Path, python: str) -> None:
    """At exit queued tasks are still started, and waited for, on every Python."""
    assert said(client(folder, "submit('sleep 0.1', 3); print('exits')", python)) == ("exits\n", "", 0)
    assert marks(folder) == ["0.0.0", "1.0.0", "2.0.0"]


@pytest.mark.parametrize("ignored", [False, True])
def test_an_interrupt_at_exit_ends_the_tasks(folder: Path, *, ignored: bool) -> None:
    """Ctrl-C during the wait at exit ends running tasks and drops pending ones; a second one kills."""
    trap = "trap '' TERM;" if ignored else ""
    process = client(folder, f"submit({trap!r} + 'touch \"$4/started\"; while :; do sleep 0.1; done', 3)")
    until((folder / "started").exists)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, messages = process.communicate()
    assert marks(folder) == ["0.0.143"]
    assert "Traceback" not in messages
    assert f"tasks of {folder} on this machine: 1 running, 2 waiting. Ending them; Ctrl-C kills them." in messages


@pytest.mark.parametrize("end", ["pass", "raise ValueError"])
def test_a_wait_at_exit_says_what_goes_on(folder: Path, end: str) -> None:
    """A script that ends, or raises, before its tasks do says how many are left and how to end them."""
    process = client(folder, f"submit('until [ -e \"$4/gate\" ]; do sleep 0.05; done', 3)\n{end}")
    assert process.stderr
    lines = iter(process.stderr.readline, "")
    line = next(line for line in lines if line.startswith("slurmlaunch"))
    (folder / "gate").touch()
    process.communicate()
    assert line.startswith(f"slurmlaunch: tasks of {folder} on this machine: ")
    assert line.endswith("Python waits for them; Ctrl-C ends them.\n")


def test_a_wait_at_exit_for_cancelled_tasks_says_nothing(folder: Path) -> None:
    """A script that has cancelled its tasks waits for their end without a message."""
    process = client(
        folder,
        """
        job_id = submit("trap 'sleep 2; exit 1' TERM; touch \\"$4/started\\"; while :; do sleep 0.05; done")
        until((folder / "started").exists)
        backend.cancel(job_id)
        """,
    )
    assert said(process) == ("", "", 0)


# Plays the node: ends when its parent does.
WATCHER = """\
import os, pathlib, sys
folder = pathlib.Path(sys.argv[4])
(folder / "node").write_text(str(os.getpid()))
os.read(int(os.environ["SLURMLAUNCH_LIFELINE"]), 1)
"""


@pytest.mark.parametrize("forked", [False, True])
def test_tasks_end_with_their_killed_client(folder: Path, *, forked: bool) -> None:
    """A task is notified when its client dies, even if a forked child of the client lives on."""
    process = client(
        folder,
        f"""
        from slurmlaunch.client.watcher import current_client
        backend = current_client().backend("local")
        job = ArrayJob(folder, "test", python=(sys.executable, "-c", {WATCHER!r}))
        backend.submit(job)
        until(lambda: (folder / "node").exists() and (folder / "node").read_text())
        if {forked} and not (child := os.fork()):
            os.close(1), os.close(2)
            time.sleep(1000)
        print(child if {forked} else 0, flush=True)
        time.sleep(1000)
        """,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    node = int((folder / "node").read_text())
    assert alive(node)
    process.kill()
    process.communicate()
    until(lambda: not alive(node))
    if child:
        assert alive(child)
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_has_no_jobs(folder: Path) -> None:
    """A forked child does not see or wait for its parent's jobs, and can run its own."""
    process = client(
        folder,
        """
        from slurmlaunch.client.watcher import current_client
        backend = current_client().backend("local")
        job_id = submit('while [ ! -e "$4/gate" ]; do sleep 0.01; done')
        until(lambda: state(job_id) == "RUNNING")
        if not os.fork():
            print(backend.query([job_id]).get(job_id, 0), backend.find("test", 0), flush=True)
            own = submit("exit 6", first_task=1, array=1)
            until(lambda: state(own) == "FAILED")
            sys.exit()  # through atexit, where the parent's job would be waited for
        os.wait()
        print(state(job_id), flush=True)
        (folder / "gate").touch()
        """,
    )
    assert said(process) == ("None None\nRUNNING\n", "", 0)
    assert marks(folder) == ["0.0.0", "1.0.6"]


def test_a_client_that_reaps_all_children_is_survived(folder: Path) -> None:
    """If SIGCHLD is ignored, a task's end is noticed, and its status is reported as unknown."""
    process = client(
        folder,
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        job_id = submit("true")
        until(lambda: state(job_id) == "FAILED")
        print(backend.query([job_id]).get(job_id, 0).reason)
        """,
    )
    assert said(process) == ("its exit status is not known\n", "", 0)
    assert marks(folder) == ["0.0.256"]


def test_without_pidfds_all_is_the_same(folder: Path) -> None:
    """Tasks start, end and are cancelled alike if the system, or its Python, has no pidfds."""
    program = """
    if hasattr(os, "pidfd_open"):
        del os.pidfd_open
    ids = [submit("exit 5"), submit("sleep 1000 & wait", first_task=1), submit("exit 6", first_task=2)]
    until(lambda: state(ids[1]) == "RUNNING")
    backend.cancel(ids[1])
    until(lambda: state(ids[2]) == "FAILED")
    print([state(job_id) for job_id in ids])
    """
    assert said(client(folder, program)) == ("['FAILED', 'CANCELLED', 'FAILED']\n", "", 0)
    assert marks(folder) == ["0.0.5", "1.0.143", "2.0.6"]


def test_a_failed_scheduler_thread_ends_its_tasks(folder: Path) -> None:
    """If the scheduler's thread fails, its tasks are NODE_FAIL, and the next submission starts another thread."""
    program = """
    import threading
    from slurmlaunch.backends.local.scheduler import LocalTask
    threading.excepthook = lambda failure: print(failure.exc_value)
    settle, LocalTask.settle = LocalTask.settle, lambda task, code: 1 / 0
    job_id = submit("true", 2)
    until(lambda: state(job_id) == "NODE_FAIL")
    LocalTask.settle = settle
    job_id = submit("true", array=1)
    until(lambda: state(job_id) == "COMPLETED")
    """
    assert said(client(folder, program)) == ("division by zero\n", "", 0)
