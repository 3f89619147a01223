"""Running one of Slurm's commands: in bounded time, apart from the terminal, with clean variables.

The variables that Slurm's commands are given: what a submission inherits, and what a query must not.

A job that is submitted from inside another job (or from ``salloc``) must not
inherit what describes the outer one: a leaked ``SLURM_ARRAY_TASK_ID`` would run
the wrong slice, a leaked binding would run it on the wrong CPUs. What the user
set on purpose stays: where Slurm is, and defaults such as ``SBATCH_ACCOUNT``.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from slurmlaunch.caps import GPU_VARIABLES, without_ours

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Command:
    """What to run.

    Attributes:
        words: the program and its arguments.
        env: all variables of the program.
        timeout: how many seconds it may take.
        stdin: what it reads.
        cwd: the folder that it runs in, or None for ours.
    """

    words: tuple[str, ...]
    env: Mapping[str, str]
    timeout: float
    stdin: str = ""
    cwd: Path | None = None


@dataclass(frozen=True)
class Finished:
    """How a command ended.

    Attributes:
        returncode: its exit status; None where it could not be started, or was killed.
        stdout: what it printed.
        stderr: its complaints, or why it could not be started.
        missing: whether there is no such program.
        timed_out: whether it was killed because it took too long.
    """

    returncode: int | None
    stdout: str = ""
    stderr: str = ""
    missing: bool = False
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        """Whether it ended by itself and well."""
        return self.returncode == 0


class Runner(Protocol):
    """How commands are run; tests hand in their own."""

    def __call__(self, command: Command, /) -> Finished:
        """Run a command to its end; never raises for what the command does."""


def run(command: Command, /) -> Finished:
    """Run a command in a session of its own, so that a Ctrl-C at the terminal does not end it half-way."""
    try:
        process = subprocess.Popen(
            command.words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(command.env),
            cwd=command.cwd,
            start_new_session=True,
            # Paths may hold any bytes; what Slurm prints is only read where it is plain.
            encoding="utf-8",
            errors="surrogateescape",
        )
    except OSError as error:
        # A folder that is gone is an OSError as well, but then it is the folder that is named.
        missing = isinstance(error, FileNotFoundError) and error.filename == command.words[0]
        return Finished(None, stderr=str(error), missing=missing)
    with process:
        try:
            stdout, stderr = process.communicate(command.stdin, timeout=command.timeout)
        except subprocess.TimeoutExpired:
            return _kill(process, command.timeout)
        return Finished(process.returncode, stdout, stderr)


def _kill(process: subprocess.Popen[str], timeout: float) -> Finished:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    stdout = stderr = ""
    # What it printed helps to say why; a pipe that something else holds open is not waited for.
    with contextlib.suppress(subprocess.TimeoutExpired):
        stdout, stderr = process.communicate(timeout=1)
    return Finished(None, stdout, f"{stderr}\nno answer in {timeout:g} s".lstrip(), timed_out=True)


# How a client finds its cluster and prints, and what sites call Slurm's own folders: these are
# never set by Slurm for a job. All other SLURM_ variables describe one.
_CLIENT = frozenset({
    "SLURM_BITSTR_LEN", "SLURM_CLUSTERS", "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_DEBUG_FLAGS", "SLURM_DIR",
    "SLURM_HOME", "SLURM_JWT", "SLURM_MPI_TYPE", "SLURM_PATH", "SLURM_PREFIX", "SLURM_ROOT", "SLURM_TIME_FORMAT",
    "SLURM_VERSION",
})  # fmt: skip
_OF_A_JOB = re.compile(
    r"_?SLURM_.*|SLURMD_.*|SLURMSTEPD_.*|SRUN_.*|PMI.*|MPI_LOCAL.*|OMPI_COMM_WORLD_.*|SBATCH_.*_BIND(_.*)?"
)
_OF_THE_ALLOCATION = re.compile(r"SLURM_(JOB_.*|JOBID|NODELIST|CLUSTER_NAME|WORKING_CLUSTER)")
_INSIDE_A_JOB = ("SLURM_JOB_ID", "SLURM_JOBID")

# sbatch's variables outrank the script's #SBATCH lines. Those that are named for their option
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
# Of these, one given drops all: sbatch would refuse them together, or let the wrong one win.
_EXCLUSIVE = (
    {"mem", "mem-per-cpu", "mem-per-gpu"},
    {"requeue", "no-requeue"},
    {"bb", "bbf"},
    {"cpus-per-gpu", "cpus-per-task"},
)
# No user's default is to change these: whether sbatch waits for the job's end, its input, its signals.
_NEVER = frozenset({"wait", "input", "signal"})

# What changes which rows a query prints, and how.
_OF_QUERIES = re.compile(r"(SQUEUE|SACCT|SCANCEL|SCONTROL)_.*|SLURM_TIME_FORMAT|SLURM_CLUSTERS")

SHORT = {
    "A": "account", "C": "constraint", "G": "gpus", "M": "clusters", "O": "overcommit", "S": "core-spec",
    "k": "no-kill", "m": "distribution", "p": "partition", "q": "qos", "t": "time",
}  # fmt: skip
"""The options that have a variable and a short name."""


def for_submission(environ: Mapping[str, str], words: Collection[str]) -> dict[str, str]:
    """Return the variables of sbatch, which are also those of the tasks.

    *words* are sbatch's arguments, which no variable is to override.
    """
    given = {option_of(word) for word in words} | _NEVER
    for group in _EXCLUSIVE:
        if given & group:
            given |= group
    return {name: value for name, value in _outside(environ).items() if _option_named(name) not in given}


def for_steps(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of srun in an allocation: which one it is, and not what else was asked for with it."""
    ours = {name: value for name, value in environ.items() if _OF_THE_ALLOCATION.fullmatch(name)}
    return {**_outside(environ), **ours}


def for_queries(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of every other command, so that its answer can be read."""
    kept = {name: value for name, value in _outside(environ).items() if not _OF_QUERIES.fullmatch(name)}
    return {
        **kept,
        "LC_ALL": "C",
        "TZ": "UTC0",  # a time of day without summer time
        "SLURM_BITSTR_LEN": "0",  # element lists in full
    }


def option_of(word: str) -> str:
    """Return the long name of the option that an argument of sbatch sets, without its dashes."""
    if word.startswith("--"):
        return word[2:].partition("=")[0]
    return SHORT.get(word[1:2], "")


def _outside(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables less all that belongs to a job or task that we are in."""
    dropped = set(GPU_VARIABLES) if any(name in environ for name in _INSIDE_A_JOB) else set()
    return {
        name: value
        for name, value in without_ours(environ).items()
        if name not in dropped and (name in _CLIENT or not _OF_A_JOB.fullmatch(name))
    }


def _option_named(variable: str) -> str | None:
    if variable in _OPTION_OF:
        return _OPTION_OF[variable]
    prefix, _, rest = variable.partition("_")
    return rest.lower().replace("_", "-") if prefix == "SBATCH" else None
