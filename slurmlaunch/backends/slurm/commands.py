"""Runs Slurm's commands: in bounded time, apart from the terminal, with clean environment variables.

They do not inherit the variables of a job around this process (`slurmlaunch.backends.outer_job`). Variables that users
set on purpose stay: where Slurm is, and defaults such as ``SBATCH_ACCOUNT``. The backend, `queries` and the allocation
backend call it, and read the output themselves.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slurmlaunch.backends.outer_job import outside_jobs
from slurmlaunch.backends.sbatch_tables import EXCLUSIVE, SHORT
from slurmlaunch.backends.soft_limits import set_soft_limits
from slurmlaunch.errors import SchedulerError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

TIMEOUT = 60.0
"""Seconds that a command may take; Slurm's own commands give up after about ten without an answer of the controller."""

NO_SUCH_JOB = re.compile(r"Invalid job id specified|Invalid job id", re.IGNORECASE)


@dataclass(frozen=True)
class Command:
    """A command to run."""

    words: tuple[str, ...]
    env: Mapping[str, str]  # all variables of the program
    timeout: float  # seconds
    stdin: str = ""
    cwd: Path | None = None
    umask: int = -1  # this process's
    limits: Mapping[str, int] = field(default_factory=dict)  # soft, from when it reads its standard input; else ours


@dataclass(frozen=True)
class Finished:
    """The outcome of a command."""

    returncode: int | None  # None: it could not be started, or was killed
    stdout: str = ""
    stderr: str = ""  # or why it could not be started
    missing: bool = False  # there is no such program
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with status 0."""
        return self.returncode == 0

    @property
    def error(self) -> str:
        """Its complaint, or its exit status if it printed none."""
        return self.stderr.strip() or f"exit status {self.returncode}"


Runner = Callable[[Command], Finished]
"""Runs a command to its end and never raises if it fails; tests pass their own."""


def run(command: Command, /) -> Finished:
    """Run a command in a session of its own, so that a Ctrl-C at the terminal does not end it half-way."""
    # On this process's PATH: the variables of the program may come from another machine.
    program = shutil.which(command.words[0])
    if program is None:
        return Finished(None, stderr=f"{command.words[0]}: command not found", missing=True)
    try:
        process = subprocess.Popen(
            (program, *command.words[1:]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(command.env),
            cwd=command.cwd,
            start_new_session=True,
            umask=command.umask,
            # Paths may hold any bytes; only plain parts of the output are read.
            encoding="utf-8",
            errors="surrogateescape",
        )
    except OSError as error:
        return Finished(None, stderr=str(error))
    with process:
        set_soft_limits(process.pid, command.limits)
        try:
            stdout, stderr = process.communicate(command.stdin, timeout=command.timeout)
        except subprocess.TimeoutExpired:
            return _kill(process, command.timeout)
        return Finished(process.returncode, stdout, stderr)


def _kill(process: subprocess.Popen[str], timeout: float) -> Finished:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    stdout = stderr = ""
    # Its output helps to say why it hung; a pipe that another process holds open is not waited for.
    with contextlib.suppress(subprocess.TimeoutExpired):
        stdout, stderr = process.communicate(timeout=1)
    return Finished(None, stdout, f"{stderr}\nno answer in {timeout:g} s".lstrip(), timed_out=True)


@dataclass(frozen=True)
class Cluster:
    """One cluster, reached through Slurm's commands."""

    run: Runner
    name: str | None = None  # None is the default cluster

    def call(self, program: str, *arguments: str, timeout: float | None = None) -> Finished:
        """Run one of Slurm's commands other than sbatch on this cluster, for *timeout* seconds at most."""
        return self.run(Command(self.words(program, *arguments), for_queries(os.environ), timeout or TIMEOUT))

    def change(self, program: str, *arguments: str, harmless: re.Pattern[str]) -> None:
        """Run a command that changes a job, and accept a failure with only *harmless* complaints.

        Raises:
            SchedulerError: the command failed.
        """
        done = self.call(program, *arguments)
        complaints = done.stderr.strip().splitlines()
        if not (done.ok or (complaints and all(map(harmless.search, complaints)))):
            raise scheduler_error(self.words(program, *arguments), done)

    def words(self, program: str, *arguments: str) -> tuple[str, ...]:
        """Return the command line."""
        named = self.name and program != "sacctmgr"  # which asks the one database of all clusters
        return (program, *([f"--clusters={self.name}"] if named else []), *arguments)


def scheduler_error(words: tuple[str, ...], done: Finished) -> SchedulerError:
    """Return the error for a command other than sbatch that failed."""
    return SchedulerError(
        f"`{shlex.join(words)}` failed: {done.error}",
        command=words,
        stderr=done.stderr.strip(),
        returncode=done.returncode,
    )


_OF_THE_ALLOCATION = re.compile(r"SLURM_(JOB_.*|JOBID|NODELIST|CLUSTER_NAME|WORKING_CLUSTER)")

# sbatch's variables outrank the script's #SBATCH lines. Those named after their option
# (SBATCH_GPUS_PER_TASK) need no entry.
_OPTION_OF = {
    "SBATCH_ARRAY_INX": "array",
    "SBATCH_BURST_BUFFER": "bb",
    "SBATCH_CPU_FREQ_REQ": "cpu-freq",
    "SBATCH_MEM_PER_NODE": "mem",
    "SBATCH_REQ_SWITCH": "switches",
    "SBATCH_SEGMENT_SIZE": "segment",
    "SBATCH_TIMELIMIT": "time",
    "SBATCH_WAIT4SWITCH": "switches",
    "SLURM_CLUSTERS": "clusters",
}
# No user's default may change these: whether sbatch waits for the job's end, its input, its signals.
_NEVER = frozenset({"wait", "input", "signal"})

# Variables that change which rows a query prints, and how.
_OF_QUERIES = re.compile(r"(SQUEUE|SACCT|SCANCEL|SCONTROL)_.*|SLURM_TIME_FORMAT|SLURM_CLUSTERS")


def for_submission(environ: Mapping[str, str], words: Collection[str]) -> dict[str, str]:
    """Return the variables of sbatch, which the tasks inherit.

    *words* are sbatch's arguments; a variable that would override one is dropped.
    """
    given = {option_of(word) for word in words} | _NEVER
    for group in EXCLUSIVE:
        if given & group:
            given |= group
    return {name: value for name, value in outside_jobs(environ).items() if _option_named(name) not in given}


def for_steps(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of srun in the allocation of this process: those given, and the allocation's identity.

    The options with which the allocation was requested are not among them.
    """
    identity = {name: value for name, value in os.environ.items() if _OF_THE_ALLOCATION.fullmatch(name)}
    return {**outside_jobs(environ), **identity}


def for_queries(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of all other commands, so that their output has one form."""
    kept = {name: value for name, value in outside_jobs(environ).items() if not _OF_QUERIES.fullmatch(name)}
    return {
        **kept,
        "LC_ALL": "C",
        "TZ": "UTC0",  # a time of day without summer time
        "SLURM_BITSTR_LEN": "0",  # element lists in full
    }


def option_of(word: str) -> str:
    """Return the long name, without dashes, of the option that an argument of sbatch sets."""
    if word.startswith("--"):
        return word[2:].partition("=")[0]
    return SHORT.get(word[1:2], "").replace("_", "-")


def _option_named(variable: str) -> str | None:
    if variable in _OPTION_OF:
        return _OPTION_OF[variable]
    prefix, _, rest = variable.partition("_")
    return rest.lower().replace("_", "-") if prefix == "SBATCH" else None
