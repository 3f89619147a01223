"""The local backend: tasks as processes of this machine, on a laptop and in tests.

The client creates a `LocalBackend`; functions, items and outcomes are unknown here. A task starts as the batch script
starts it on Slurm, with the same logs and the same end mark, and a thread of the client is the scheduler: see
`scheduler`. It never runs tasks of more CPUs than the machine has. Of sbatch's options these count: ``cpus_per_task``,
``time``, ``mem`` and ``mem_per_cpu``.

The client waits for its jobs when the interpreter exits, and they end if it is killed. Their states lie in its memory:
only the process that runs a job can tell its state, change its throttle or cancel it. After that process has ended, the
job's tasks are `NODE_FAIL`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch import caps
from slurmlaunch.backends.base import Backend, Limits, Snapshot, TaskRecord, TaskState
from slurmlaunch.backends.container import OF_THE_HOST
from slurmlaunch.backends.local.scheduler import (
    LocalJob,
    LocalScheduler,
    TaskResources,
    fits,
    machine_cpus,
    new_job_id,
    owner_of,
)
from slurmlaunch.backends.outer_job import inside_job
from slurmlaunch.errors import OptionError, SchedulerError, SubmissionError
from slurmlaunch.runfolder.layout import RunFolder, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from slurmlaunch.backends.base import ArrayJob
    from slurmlaunch.runfolder.files import Location

_CLIENT_ENDED = TaskRecord(TaskState.NODE_FAIL, reason="the client process that ran it has ended")

_ELEMENT = "ELEMENT"

# Open MPI refuses more ranks than the machine has cores unless these are set; others do not read them.
_OPEN_MPI = ("OMPI_MCA_rmaps_base_oversubscribe=1", "PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe")

# Variables of an outer task: its element, its start, its rank. Those of the outer
# job's allocation stay, because local tasks run there too.
_OF_AN_OUTER_TASK = (
    "SLURM_ARRAY_", "SLURM_RESTART_COUNT", "SLURM_STEP", "SLURM_PROCID", "SLURM_LOCALID", "PMI", "MPI_LOCAL",
    "OMPI_COMM_WORLD_",
)  # fmt: skip


class LocalBackend(Backend):
    """The `slurmlaunch.backends.base.Backend` of this machine."""

    name = "local"
    query_every = 0.25

    def __init__(self) -> None:
        self.scheduler = LocalScheduler(fits)

    def disown(self) -> None:
        """Leave the tasks to the parent of this forked child."""
        self.scheduler.disown()

    def limits(self) -> Limits:
        """Return the CPUs of this machine; arrays may have any length."""
        return Limits(cpus=machine_cpus())

    def launcher(self, ranks: int, cpus_per_task: int, options: Mapping[str, str | bool]) -> tuple[str, ...]:
        """Return the command line of mpiexec, or no words if there is none: then MPI sees each rank as alone."""
        del cpus_per_task, options
        beside = str(Path(sys.executable).parent)  # Python packages install it there
        mpiexec = shutil.which("mpiexec", path=os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]))
        return ("env", *_OPEN_MPI, mpiexec, "-n", str(ranks)) if mpiexec else ()

    def script(self, job: ArrayJob) -> str:
        """Return shell commands that run the same tasks, one after the other."""
        folder = RunFolder(job.run_folder)
        out, err = (_log_words(folder.log(job.round, job.array, _ELEMENT, stream)) for stream in ("out", "err"))
        variables = added_variables(job, job.environment.variables)
        at_once = min(job.length, job.throttle or job.length, self.at_once(job))
        command = shlex.join((*self.starter(job), *job.command("")[:-1]))
        lines = [
            f"#!{_shell(job)}",
            f"# {job.name}: one after the other here, up to {at_once} at once when submitted",
            *([f"unset {' '.join(OF_THE_HOST)}"] if job.container else []),
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
            f"cd -- {shlex.quote(str(_cwd(job)))} || exit {Status.SETUP}",
            *_preparation(job),
            f"for element in $(seq 0 {job.length - 1}); do",
            f"    {command} $(({job.first_task} + element)) >>{out} 2>>{err}",
            "done",
        ]
        return "\n".join(lines) + "\n"

    def submit(self, job: ArrayJob) -> str:
        """Put the array in the queue of this process; return its job id."""
        env = self.environment(job)
        _check(job, env)
        try:
            queued = LocalJob(
                new_job_id(),
                job,
                resources=self.resources(job),
                command=self.command(job),
                env=env,
                after=self._own(job.after, "waited for") if job.after else None,
            )
            self.scheduler.submit(queued)
        except (OptionError, SchedulerError, RuntimeError, OSError) as error:
            raise refusal(job, str(error)) from error
        return queued.id

    def find(self, name: str, since: float) -> str | None:
        """Return the id of this process's newest job of that name, submitted after *since*, or None."""
        return self.scheduler.find(name, since)

    def cancel(self, job_id: str, elements: Collection[int] | None = None) -> None:
        """As `Backend.cancel`: with SIGTERM, and SIGKILL five seconds later.

        The tasks of another process's job read the cancellations in the run folder.
        """
        if job := self.scheduler.get(job_id):
            self.scheduler.cancel(job, elements)

    def set_throttle(self, job_id: str, throttle: int | None, *, after: str | None = None) -> None:
        """Change how many elements run at once; running ones continue."""
        del after  # a local run is one array
        if job := self._own(job_id, "throttled"):
            self.scheduler.set_throttle(job, throttle)

    def query(self, job_ids: Collection[str]) -> Snapshot:
        """Return the states of the jobs at this moment, none for the job of another living process."""
        taken = time.time()
        jobs: dict[str, Callable[[int], TaskRecord | None]] = {}
        for job_id in job_ids:
            if job := self.scheduler.get(job_id):
                jobs[job_id] = partial(_record, job.records.copy())
            elif (owner := owner_of(job_id)) and owner.has_ended:
                jobs[job_id] = lambda _: _CLIENT_ENDED
        return Snapshot(taken, jobs)

    def listed(self, job_ids: Collection[str]) -> set[str]:
        """Return those of the jobs that may still run: another process tells nothing of its own while it lives."""
        return {job_id for job_id in job_ids if self._may_run(job_id)}

    def _may_run(self, job_id: str) -> bool:
        if job := self.scheduler.get(job_id):
            return not all(record.state.is_final for record in job.records)
        owner = owner_of(job_id)
        return owner is not None and not owner.has_ended

    # Overridden by the allocation backend.

    def at_once(self, job: ArrayJob) -> int:
        """Return how many tasks of an array run at once if no other tasks run."""
        return max(1, machine_cpus() // self.resources(job).cpus)

    def resources(self, job: ArrayJob) -> TaskResources:
        """Return the resources of a task; raises as `TaskResources.of` does."""
        return TaskResources.of(job, machine_cpus())

    def starter(self, job: ArrayJob) -> tuple[str, ...]:
        """Return the words that start the node's command line elsewhere: none."""
        del job
        return ()

    def command(self, job: ArrayJob) -> tuple[str, ...]:
        """Return the command line of a task, as `TaskProcess` takes it, without the task index at its end."""
        umask = f"umask {job.environment.umask:04o}"
        lines = (umask, f'cd -- "$1" || exit {Status.SETUP}', "shift", *_preparation(job), 'exec "$@"')
        return (str(_shell(job)), "-c", "\n".join(lines), job.name, str(_cwd(job)), *job.command("")[:-1])

    def environment(self, job: ArrayJob) -> dict[str, str]:
        """Return the variables of the tasks: those of the submission, without what describes an outer task."""
        outer = inside_job(job.environment.variables)
        return task_environment(job, {k: v for k, v in outer.items() if not k.startswith(_OF_AN_OUTER_TASK)})

    def _own(self, job_id: str, deed: str) -> LocalJob | None:
        """Return a job of this process, or None if its process has ended."""
        job = self.scheduler.get(job_id)
        if job is None:
            owner = owner_of(job_id)
            if owner is None:
                raise SchedulerError(f"{job_id!r} is not the id of a local job")
            if not owner.has_ended:
                whose = f"process {owner.pid} on {owner.machine}"
                raise SchedulerError(f"job {job_id} can only be {deed} by the client that runs it, {whose}")
        return job


def _record(records: Sequence[TaskRecord], element: int) -> TaskRecord | None:
    return records[element] if element < len(records) else None


def refusal(job: ArrayJob, message: str) -> SubmissionError:
    """Return the error for an array that cannot run here."""
    return SubmissionError(message, command=job.command("0"), stderr=message)


def task_environment(job: ArrayJob, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the tasks from the inherited variables."""
    hidden = OF_THE_HOST if job.container else ()
    kept = {k: v for k, v in inherited.items() if k not in hidden}
    return {**kept, **job.secret_env, **added_variables(job, inherited)}


def added_variables(job: ArrayJob, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the tasks have in addition to the client's."""
    env = dict(job.env)
    if caps.PYTHON_CPU_COUNT not in env and caps.PYTHON_CPU_COUNT not in inherited:
        ours = filter(None, (env.get(caps.OURS), caps.PYTHON_CPU_COUNT))
        env |= {caps.PYTHON_CPU_COUNT: str(job.threads), caps.OURS: ":".join(ours)}
    return env


def _check(job: ArrayJob, env: Mapping[str, str]) -> None:
    """Refuse at once an array with a missing folder or program: all its tasks would fail later."""
    if not job.folder.logs.exists():
        raise refusal(job, f"there is no folder {job.folder.logs}")
    if not _cwd(job).is_dir():
        raise refusal(job, f"there is no folder {_cwd(job)}")
    if _shell(job) is None:
        raise refusal(job, "modules and setup need bash, which is not on the PATH")
    programs = job.container.programs if job.container else (job.python[0],)
    # Modules and set-up lines may bring their own program.
    if not (job.modules or job.setup or any(_is_there(job, program, env) for program in programs)):
        option = "container=Container(..., runtime=...)" if job.container else "python=[...]"
        missing = " or ".join(map(repr, programs))
        raise refusal(job, f"there is no program {missing} to start Python with: see the option {option}")


def _is_there(job: ArrayJob, program: str, env: Mapping[str, str]) -> bool:
    path = str(_cwd(job) / program) if os.sep in program else program
    return shutil.which(path, path=env.get("PATH")) is not None


def _cwd(job: ArrayJob) -> Path:
    return job.cwd or Path.cwd()


def _shell(job: ArrayJob) -> str | None:
    """Return the shell that starts the tasks: bash, as on Slurm, if it runs the user's own lines; else a faster one.

    Another one may drop variables with a name that it cannot use, such as bash's exported functions.
    """
    bash = shutil.which("bash")
    if job.modules or job.setup:
        return bash
    plain = all(map(_NAME_IN_SHELLS.fullmatch, (*job.environment.variables, *job.secret_env)))
    return "/bin/sh" if plain or bash is None else bash


_NAME_IN_SHELLS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _preparation(job: ArrayJob) -> tuple[str, ...]:
    """Return the shell lines before Python: if one fails, the task ends with status 3.

    Modules are loaded if there is a `module` command. A laptop has none: its
    programs are installed already, or the task names the missing one.
    """
    if not (job.modules or job.setup):
        return ()
    load = f"if type module >/dev/null 2>&1; then module load {shlex.join(job.modules)}; fi"
    # The empty line is for a backslash that ends the last line: it would take the next one.
    return (*_PREPARATION_BEGINS, *([load] if job.modules else []), *job.setup, "", "trap - ERR EXIT")


# Lines may belong together (an if, a loop), so each is not tested on its own. A failure inside
# a file that they source is left to that file.
_PREPARATION_BEGINS = (
    "slurmlaunch_depth=${#BASH_SOURCE[@]}",
    "slurmlaunch_failed() {",
    '    [ "$3" -le "$slurmlaunch_depth" ] || return 0',
    "    trap - ERR EXIT",
    '    echo "slurmlaunch: the task was not started: set-up ended with status $1: $2" >&2',
    f"    exit {Status.SETUP}",
    "}",
    """trap 'slurmlaunch_failed $? "$BASH_COMMAND" ${#BASH_SOURCE[@]}' ERR""",
    """trap 'slurmlaunch_failed $? "$BASH_COMMAND" 0' EXIT""",
)


def _log_words(path: Location) -> str:
    """Return the shell words for the log of ``$element``, whatever the folder is called."""
    name = path.name.replace(_ELEMENT, "${element}")
    return f"{shlex.quote(str(path.parent))}/{name}"
