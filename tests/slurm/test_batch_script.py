"""The batch script: its requests to Slurm, and the commands of a task, for any values from the user."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch.backends.base import ArrayJob
from slurmlaunch.backends.slurm import SlurmBackend
from slurmlaunch.backends.slurm.batch_script import render, shell_quote
from slurmlaunch.errors import OptionError
from slurmlaunch.runfolder.environment import Environment
from slurmlaunch.runfolder.layout import EndMark, RunFolder, Status
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.cluster import Cluster

HOSTILE = "run; 'single' \"double\" %j %% $HOME `id` # é 100% *"

GOLDEN = """\
#!/bin/bash
#SBATCH --job-name=fit-0-0-1a2b
#SBATCH --array=0-9%3
#SBATCH --output=/runs/r1/logs/0-1-%a.out
#SBATCH --error=/runs/r1/logs/0-1-%a.err
#SBATCH --open-mode=append
#SBATCH --export=ALL
#SBATCH --dependency=afterok:7,afterany:12,singleton
#SBATCH --cpus-per-task=4
#SBATCH --time=00:10:00
#SBATCH --exclusive
#SBATCH --comment="for \\"us\\""
#SBATCH --plugin=x

umask 0027; unset SLURM_UMASK  # as at the submission; sbatch had 077, for the logs
# Not at once: a signal for the task reaches this script too, which has to outlive the node.
trap '' USR1 TERM
export SLURMLAUNCH_STARTED; printf -v SLURMLAUNCH_STARTED '%(%s)T' -1

slurmlaunch_task=$((100 + SLURM_ARRAY_TASK_ID))
slurmlaunch_enter() {  # a folder in the run folder, unless another one is in its place
    builtin cd -P -- /runs/r1 && [ -O . ] && [ -e ./secret-5e ] && builtin cd -P -- ./"$1"
}
slurmlaunch_marked= slurmlaunch_node=
slurmlaunch_mark() {  # how this start of the task ended
    [ -z "$slurmlaunch_marked" ] || return 0; slurmlaunch_marked=1
    (umask 077; set -C; slurmlaunch_enter ended && : > ./"${slurmlaunch_task}.${SLURM_RESTART_COUNT:-0}.$1") || :
}
slurmlaunch_give_up() {
    trap - ERR EXIT; echo "slurmlaunch: the task was not started: $1" >&2
    slurmlaunch_mark 3; exit 3
}
slurmlaunch_killed() {  # by a signal: the node ends in good order, and the mark names the signal
    trap "" "$1"; [ -z "$slurmlaunch_node" ] || { kill "$slurmlaunch_node"; wait "$slurmlaunch_node"; } || :
    slurmlaunch_mark $((128 + $1)); trap - ERR EXIT "$1"; kill -"$1" $$
} 2>/dev/null
for slurmlaunch_signal in 1 2 3 6 12 14 24; do
    trap "slurmlaunch_killed $slurmlaunch_signal" "$slurmlaunch_signal"
done
trap 'slurmlaunch_mark $?' EXIT

cd -- '/home/my work' || slurmlaunch_give_up 'its working directory is not there'
export MODE='a b'
"""


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Return a run folder whose name holds characters that shells and Slurm treat specially."""
    folder = tmp_path / HOSTILE
    for part in ("ended", "logs"):
        (folder / part).mkdir(parents=True)
    return folder


@pytest.fixture
def job(run_folder: Path) -> ArrayJob:
    """Return an array of one task whose node succeeds at once."""
    return ArrayJob(run_folder, "law", cwd=run_folder, python=node(run_folder, "raise SystemExit(0)"))


def node(folder: Path, code: str) -> tuple[str, ...]:
    """Return the first words of a node's command line that runs some Python; its arguments follow."""
    file = folder / "the node.py"
    file.write_text(f"import os, signal, sys, time\n{code}\n")
    return (sys.executable, "-I", str(file))


def start(job: ArrayJob, **variables: str) -> subprocess.Popen[str]:
    """Start a job's script as slurmd would."""
    script = RunFolder(job.run_folder).path / "script"
    script.write_text(render(job))
    kept = {k: v for k, v in os.environ.items() if k not in {"PYTHON_CPU_COUNT", "SLURMLAUNCH_SET"}}
    return subprocess.Popen(
        ["bash", str(script)],
        env={**kept, "SLURM_ARRAY_TASK_ID": "0", **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(job: ArrayJob, process: subprocess.Popen[str]) -> tuple[int, list[EndMark | None], str, str]:
    """Return a script's exit status, its end marks, and its output."""
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, end_marks(job), stdout, stderr


def end_marks(job: ArrayJob) -> list[EndMark | None]:
    """Return the end marks of a run, in the order of their tasks."""
    return [EndMark.parse(file.name) for file in sorted(Path(RunFolder(job.run_folder).ended).iterdir())]


def options(script: str) -> list[str]:
    """Return the script's sbatch options, line by line."""
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGUSR2])
@pytest.mark.parametrize("setup", [("touch begun", "while sleep 0.1; do :; done"), ("set -e",)])
def test_a_signal_from_outside_is_in_the_end_mark(
    job: ArrayJob, setup: tuple[str, ...], number: signal.Signals
) -> None:
    """A script that a signal ends says so, before and after the start of its node, which has ended before."""
    folder = job.run_folder
    work = "open('begun', 'w').close()\ntime.sleep(60)"
    code = f"signal.signal(signal.SIGTERM, lambda *_: (open('told', 'w').close(), sys.exit(143)))\n{work}"
    process = start(replace(job, python=node(folder, code), setup=setup))
    wait_until((folder / "begun").exists)

    process.send_signal(number)

    assert (-number, [EndMark(0, 0, 128 + number)], "") == outcome(job, process)[:3]
    assert (folder / "told").exists() == (setup == ("set -e",))


def test_a_job_has_one_script() -> None:
    """The script is a function of the job, in an order that people read."""
    job = ArrayJob(
        Path("/runs/r1"),
        "fit-0-0-1a2b",
        array=1,
        first_task=100,
        length=10,
        throttle=3,
        cwd=Path("/home/my work"),
        cpus_per_task=4,
        threads=2,
        options={
            "time": "00:10:00",
            "exclusive": True,
            "hold": False,
            "comment": 'for "us"',
            "dependency": "afterok:7",
        },
        flags=("--plugin=x",),
        env={"MODE": "a b"},
        environment=Environment({}, {}, 0o027, {}),
        after="12;other",
        recognized_by="secret-5e",
    )
    assert render(job).startswith(GOLDEN)
    assert render(job) == render(replace(job))


def test_a_single_call_is_an_array_of_length_one(job: ArrayJob) -> None:
    """There is one form of job, so that every task is an element and has the same kind of id."""
    assert "--array=0-0" in options(render(job))


def test_our_settings_appear_once(job: ArrayJob) -> None:
    """Each setting of slurmlaunch appears once, whatever the options hold."""
    lines = options(
        render(replace(job, options={"cpus_per_task": "9", "array": "0-99", "output": "x"}, cpus_per_task=2))
    )
    assert [line for line in lines if line.startswith(("--cpus", "--array", "--output=x"))] == [
        "--array=0-0",
        "--cpus-per-task=2",
    ]


def test_cpus_per_gpu_replaces_cpus_per_task(job: ArrayJob) -> None:
    """Two ways to count CPUs, which sbatch refuses together, are not both given."""
    assert not any("cpus-per-task" in line for line in options(render(replace(job, options={"cpus_per_gpu": "4"}))))


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"comment": "a\n#SBATCH --account=theirs"}},
        {"options": {"comment": "a\rb"}},
        {"options": {"comment": "a\0b"}},
        {"flags": ("--flag=a\nb",)},
        {"env": {"X": "a\0b"}},
        {"run_folder": Path("/runs/a\nb")},
        {"run_folder": Path("/runs/a\\b")},
        {"options": {"dependency": "afterok:1?afterok:2"}},
    ],
)
def test_values_that_break_a_script_are_refused(job: ArrayJob, change: dict[str, Any]) -> None:
    """A value that could add a line, or that Slurm would misread, raises OptionError."""
    with pytest.raises(OptionError):
        render(replace(job, **change))


def test_no_value_begins_a_line(job: ArrayJob) -> None:
    """A line break in a variable's value cannot make a line that sbatch reads."""
    script = render(replace(job, env={"X": "a\n#PBS -q theirs\n#BSUB -q theirs\n#SBATCH -p theirs"}))
    assert [line for line in script.splitlines() if line.startswith(("#PBS", "#BSUB"))] == []
    assert options(script) == options(render(job))


@pytest.mark.parametrize("text", ["", "a b", "it's", "a\nb", "\r\n'\\'\t", HOSTILE, "-n", "$(id)", "!!", "\\n", "~"])
def test_quoted_values_reach_bash(text: str) -> None:
    """A quoted value is one word of bash's, and the value itself."""
    done = subprocess.run(["bash", "-c", f"printf '<%s>' {shell_quote(text)}"], capture_output=True, check=True)
    assert done.stdout.decode() == f"<{text}>"


def test_the_node_gets_the_folder_and_its_task(job: ArrayJob) -> None:
    """The node's arguments are the run folder, whatever its name, and the index of the task in the run."""
    code = "print(sys.argv[-5:], os.getcwd())"
    job = replace(job, first_task=40, length=5, python=node(job.run_folder, code))
    status, marks, stdout, _ = outcome(job, start(job, SLURM_ARRAY_TASK_ID="2"))
    assert stdout.strip() == f"{['-P', '-m', 'slurmlaunch.node', str(job.run_folder), '42']} {job.cwd}"
    assert (status, marks) == (0, [EndMark(42, 0, 0)])


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(0)", 0),
        ("raise SystemExit(1)", 1),
        ("os._exit(75)", 75),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
)
def test_the_script_ends_as_the_node_did(job: ArrayJob, code: str, status: int) -> None:
    """The script's exit status and the end mark are the node's own end, 128 + n for signal n."""
    job = replace(job, python=node(job.run_folder, code))
    assert outcome(job, start(job))[:2] == (status, [EndMark(0, 0, status)])


def test_every_start_leaves_a_mark_of_its_own(job: ArrayJob) -> None:
    """A requeued task's mark carries the number of the start."""
    assert outcome(job, start(job, SLURM_RESTART_COUNT="2"))[1] == [EndMark(0, 2, 0)]


@pytest.fixture
def shared(job: ArrayJob) -> ArrayJob:
    """Return an array whose tasks share items, of which none is left."""
    claims = Path(RunFolder(job.run_folder).surplus(0, 0)).parent
    claims.mkdir(parents=True)
    (claims / "surplus.0").touch()
    (job.run_folder / "outcomes").mkdir()
    return replace(job, shares=True, python=node(job.run_folder, "print('ran')"), setup=("echo set up",))


@pytest.mark.parametrize(("begun", "restarts", "said"), [("", "0", ""), ("0.0", "0", "ran"), ("", "1", "ran")])
def test_an_element_that_comes_too_late(shared: ArrayJob, begun: str, restarts: str, said: str) -> None:
    """When no item is left, a task ends at once, unless it has begun before."""
    if begun:
        (shared.run_folder / "outcomes" / begun).touch()

    status, marks, stdout, _ = outcome(shared, start(shared, SLURM_RESTART_COUNT=restarts))
    assert (status, marks, stdout) == (0, [EndMark(0, int(restarts), 0)], f"set up\n{said}\n" if said else "")


@pytest.mark.parametrize(("options", "told"), [({}, "7_[3-5]\n"), ({"dependency": "singleton"}, "")])
def test_elements_that_come_too_late_are_cancelled(shared: ArrayJob, options: dict[str, Any], told: str) -> None:
    """A task that named them has them cancelled by their numbers, unless other jobs may depend on theirs."""
    folder = shared.run_folder
    (folder / "outcomes" / "0.0").touch()
    Path(f"{RunFolder(folder).surplus(0, 0)}.0").write_text("3-5\n", encoding="ascii")
    (folder / "scancel").write_text(f"#!/bin/sh\necho $1 >> '{folder.parent}/told'\n", encoding="utf-8")
    (folder / "scancel").chmod(0o700)
    job = replace(shared, options=options)
    for _ in range(2):
        assert outcome(job, start(job, SLURM_ARRAY_JOB_ID="7", PATH=f"{folder}:{os.environ['PATH']}"))[0] == 0

    path = folder.parent / "told"
    assert (path.read_text(encoding="utf-8") if path.exists() else "") == told


def test_the_mark_is_the_users_alone(job: ArrayJob) -> None:
    """The end mark has mode 0600, and the task keeps its umask."""
    job = replace(job, python=node(job.run_folder, "print(oct(os.umask(0)))"), setup=("umask 002",))
    _, _, stdout, _ = outcome(job, start(job))
    (mark,) = Path(RunFolder(job.run_folder).ended).iterdir()
    assert (mark.stat().st_mode & 0o777, stdout.strip()) == (0o600, "0o2")


def test_the_task_has_the_umask_of_the_submission(job: ArrayJob) -> None:
    """The first line of the script restores the umask of the submission: sbatch is called with another one."""
    code = "print(oct(os.umask(0)))"
    job = replace(job, python=node(job.run_folder, code), environment=replace(job.environment, umask=0o026))
    assert outcome(job, start(job))[2].strip() == "0o26"


@pytest.fixture
def exposed(job: ArrayJob) -> ArrayJob:
    """Return an array whose script opens its logs itself, and whose node writes to both."""
    code = "sys.stdout.write('out\\n'); sys.stderr.write('err\\n'); print(os.getcwd(), oct(os.umask(0)))"
    (job.run_folder / "secret-5e").touch()
    environment = replace(job.environment, umask=0o022)
    python = node(job.run_folder, code)
    return replace(job, python=python, environment=environment, exposed=True, recognized_by="secret-5e")


def test_the_script_opens_its_logs_where_slurm_must_not(exposed: ArrayJob) -> None:
    """Its logs are private, a second start appends to them, and the task's folder and umask stay the submission's."""
    words = options(render(exposed))
    assert {"--output=/dev/null", "--error=/dev/null"} <= {*words}
    for restarts in range(2):
        status, _, *output = outcome(exposed, start(exposed, SLURM_RESTART_COUNT=str(restarts)))
        assert (0, ["", ""]) == (status, output)

    out, err = (RunFolder(exposed.run_folder).log(0, 0, 0, stream) for stream in ("out", "err"))
    assert (f"out\n{exposed.cwd} 0o22\n" * 2, "err\n" * 2) == (out.read().decode(), err.read().decode())
    assert [0o600, 0o600] == [path.status().st_mode & 0o777 for path in (out, err)]


@pytest.mark.parametrize(("own_logs", "status"), [(True, Status.EXCHANGED), (False, 0)])
def test_the_script_writes_into_no_other_folder(
    exposed: ArrayJob, tmp_path: Path, *, own_logs: bool, status: int
) -> None:
    """If another folder is in the place of the run folder, even one of this user's, nothing is made in it."""
    script, other = tmp_path / "script", tmp_path / "other"
    job = replace(exposed, exposed=own_logs, cwd=tmp_path, python=node(tmp_path, "raise SystemExit(0)"))
    script.write_text(render(job))
    job.run_folder.rename(tmp_path / "aside")
    for name in ("logs", "ended"):
        (other / name).mkdir(parents=True)
    job.run_folder.symlink_to(other)

    env = {**os.environ, "SLURM_ARRAY_TASK_ID": "0"}
    assert status == subprocess.run(["bash", script], env=env, capture_output=True, check=False).returncode

    made = [path for place in (other, tmp_path / "aside") for path in place.rglob("*/*") if path.parent.parent == place]
    assert made == []


def test_a_python_that_is_not_there_is_a_status_of_its_own(job: ArrayJob) -> None:
    """A wrong interpreter leaves a mark, and the log names the missing command."""
    job = replace(job, python=("/no/such/python",))
    status, marks, _, stderr = outcome(job, start(job))
    assert (status, marks, "/no/such/python" in stderr) == (127, [EndMark(0, 0, 127)], True)


@pytest.mark.parametrize(
    "setup",
    [
        ("false",),
        ("set -e", "false"),
        ("true", "no-such-command --option"),
        ("source /no/such/file",),
        ("if true; then", "    false", "fi"),
        ("(exit 4)",),
    ],
)
def test_a_failing_set_up_line_ends_the_task(job: ArrayJob, setup: tuple[str, ...]) -> None:
    """A failing set-up line keeps the node from starting, and is named."""
    job = replace(job, setup=setup, python=node(job.run_folder, "print('started')"))
    status, marks, stdout, stderr = outcome(job, start(job))
    assert (status, marks, stdout) == (Status.SETUP, [EndMark(0, 0, Status.SETUP)], "")
    assert "slurmlaunch: the task was not started: set-up failed" in stderr


@pytest.mark.parametrize("number", [0, 1, 9])
def test_set_up_lines_that_exit(job: ArrayJob, number: int) -> None:
    """Set-up lines that leave the script fail the task for any exit status: the node is not started."""
    job = replace(job, setup=(f"exit {number}",), python=node(job.run_folder, "print('started')"))
    status, marks, stdout, stderr = outcome(job, start(job))
    assert (status, marks, stdout) == (Status.SETUP, [EndMark(0, 0, Status.SETUP)], "")
    assert f"the set-up lines exited with status {number}" in stderr


@pytest.mark.parametrize("setup", [("echo 'open",), ("if fi",), ("exit 9",)])
def test_a_set_up_that_ends_the_shell_still_leaves_a_mark(job: ArrayJob, setup: tuple[str, ...]) -> None:
    """Even lines that bash cannot read, or that exit, leave an end mark with a status that is no success."""
    job = replace(job, setup=setup)
    status, marks, _, _ = outcome(job, start(job))
    assert marks == [EndMark(0, 0, status)]
    assert status not in {0, 1}


@pytest.mark.parametrize(
    "setup",
    [
        ("set -eu",),
        ("set -C",),
        ("trap 'true' EXIT",),
        ("PATH=/nowhere",),
        ("false || true", "for i in 1 2; do", "    [ $i = 3 ] && true", "    true", "done"),
        ("cat <<'END' >/dev/null", "it's false", "END"),
        ("true \\",),
        ("f() { false; true; }", "f"),
    ],
)
def test_set_up_lines_are_the_users_own(job: ArrayJob, setup: tuple[str, ...]) -> None:
    """Whatever options, traps or unfinished lines the set-up leaves behind, the node runs and its end is reported."""
    job = replace(job, setup=setup, python=node(job.run_folder, "raise SystemExit(1)"))
    assert outcome(job, start(job))[:2] == (1, [EndMark(0, 0, 1)])


def test_a_failure_inside_a_sourced_file_is_ignored(job: ArrayJob) -> None:
    """A command that fails inside a sourced file ends nothing as long as the file itself ends well."""
    file = job.run_folder / "activate"
    file.write_text("false\nexport FOUND=1\n")
    job = replace(
        job, setup=(f"source {shell_quote(str(file))}",), python=node(job.run_folder, "print(os.environ['FOUND'])")
    )
    assert outcome(job, start(job))[2] == "1\n"


def test_a_missing_working_directory_ends_the_task(job: ArrayJob) -> None:
    """A folder that the compute node does not have is an error, not another folder."""
    job = replace(job, cwd=job.run_folder / "gone")
    status, marks, _, stderr = outcome(job, start(job))
    assert (status, marks) == (Status.SETUP, [EndMark(0, 0, Status.SETUP)])
    assert "working directory" in stderr


@pytest.mark.parametrize(("body", "status"), [("true", 0), ("return 1", Status.SETUP)])
def test_modules_are_loaded_with_the_command_that_is_there(job: ArrayJob, body: str, status: int) -> None:
    """An inherited module function is used, and a module that it cannot load ends the task."""
    job = replace(job, modules=("python/3.11",))
    process = start(job, **{"BASH_FUNC_module%%": f"() {{ echo module $*; {body}; }}"})
    assert outcome(job, process)[:3] == (status, [EndMark(0, 0, status)], "module load python/3.11\n")


def test_values_reach_the_node_as_they_are(job: ArrayJob) -> None:
    """The env option overrides inherited variables, and its values arrive unchanged."""
    job = replace(job, env={"X": f"{HOSTILE}\nsecond"}, python=node(job.run_folder, "print(os.environ['X'], end='')"))
    assert outcome(job, start(job, X="inherited"))[2] == f"{HOSTILE}\nsecond"


@pytest.mark.parametrize(
    ("given", "seen"),
    [({}, "3 PYTHON_CPU_COUNT"), ({"SLURMLAUNCH_SET": "A"}, "3 A:PYTHON_CPU_COUNT"), ({"PYTHON_CPU_COUNT": "7"}, "7 ")],
)
def test_python_cpu_count_is_set_before_the_start(job: ArrayJob, given: dict[str, str], seen: str) -> None:
    """PYTHON_CPU_COUNT is the user's, or else ours and named as ours."""
    code = "print(os.environ['PYTHON_CPU_COUNT'], os.environ.get('SLURMLAUNCH_SET', ''))"
    job = replace(job, threads=3, python=node(job.run_folder, code))
    assert outcome(job, start(job, **given))[2] == f"{seen}\n"


def test_signals_during_set_up_are_ignored(job: ArrayJob) -> None:
    """A USR1 or TERM during set-up ends nothing."""
    job = replace(job, setup=("kill -USR1 $$", "kill -TERM $$"), python=node(job.run_folder, "raise SystemExit(4)"))
    assert outcome(job, start(job))[:2] == (4, [EndMark(0, 0, 4)])


def test_usr1_is_forwarded_and_the_node_is_waited_for(job: ArrayJob) -> None:
    """The node receives the script's USR1 and TERM does not end the script; both wait for the node's own end."""
    ready, came = job.run_folder / "ready", job.run_folder / "came"
    code = f"""
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
open({str(ready)!r}, "w").close()
print(signal.sigwait([signal.SIGUSR1]).name, flush=True)
open({str(came)!r}, "w").close()
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
raise SystemExit(7)
"""
    job = replace(job, python=node(job.run_folder, code))
    process = start(job)
    wait_for(ready.exists)
    process.send_signal(signal.SIGTERM)
    while not came.exists():  # more than once: the node may be ready before the script's trap is
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
    assert outcome(job, process)[:3] == (7, [EndMark(0, 0, 7)], "SIGUSR1\n")


@pytest.mark.slurm
def test_sbatch_reads_the_given_values(cluster: Cluster, job: ArrayJob) -> None:
    """Option values reach Slurm unchanged."""
    comment = 'he said "hi" \\ it\'s # 50% é\t \\\\ end \\ ! $HOME'
    job = replace(
        job, name=f"law-{time.time_ns()}", options={"comment": comment, "hold": True}, flags=("--nice=7", "-t", "9")
    )
    job_id = SlurmBackend().submit(job)
    shown = cluster.run("scontrol", "show", "job", job_id)
    SlurmBackend().cancel(job_id)
    assert f"Comment={comment}" in [line.strip() for line in shown.splitlines()]
    assert ("Nice=7" in shown, "TimeLimit=00:09:00" in shown, f"JobName={job.name}\n" in shown) == (True, True, True)


@pytest.mark.slurm
def test_a_task_runs_in_any_folder(cluster: Cluster, job: ArrayJob) -> None:
    """Logs and end marks are written to a run folder whose name has quotes, patterns and a semicolon."""
    code = "print(os.getcwd()); sys.exit(int(sys.argv[-1]) % 2)"
    job = replace(
        job, name=f"law-{time.time_ns()}", length=3, first_task=5, throttle=2, python=node(job.run_folder, code)
    )
    SlurmBackend().submit(job)
    folder = RunFolder(job.run_folder)
    wait_for(lambda: len(end_marks(job)) == job.length)
    assert end_marks(job) == [EndMark(5, 0, 1), EndMark(6, 0, 0), EndMark(7, 0, 1)]
    assert [folder.log(0, 0, element, "out").read().decode() for element in range(3)] == [f"{job.cwd}\n"] * 3


def wait_for(happened: Callable[[], bool]) -> None:
    """Wait until a condition holds; pytest's time-out ends a wait in vain."""
    while not happened():
        time.sleep(0.02)
