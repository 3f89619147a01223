"""The Slurm backend: job arrays, submitted and watched through Slurm's own commands.

The client creates a `SlurmBackend` and sees nothing else of this folder; functions and items are unknown here. A job id
has the form that sbatch prints: ``"123"``, or ``"123;cluster"`` for a job on another cluster than the backend's own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import textwrap
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from slurmlaunch.backends.base import Backend, Limits, Snapshot
from slurmlaunch.backends.slurm.accounts import accounts_of, asked
from slurmlaunch.backends.slurm.batch_script import render, sbatch_words
from slurmlaunch.backends.slurm.commands import NO_SUCH_JOB, Cluster, Command, for_submission, run, scheduler_error
from slurmlaunch.backends.slurm.job_states import Elements
from slurmlaunch.backends.slurm.queries import find_job, unended_jobs
from slurmlaunch.backends.slurm.refusal import is_ambiguous, is_submit_limit, is_transient, submission_error
from slurmlaunch.backends.slurm.shared_states import Intervals, SharedStates
from slurmlaunch.errors import SchedulerError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from slurmlaunch.backends.base import ArrayJob
    from slurmlaunch.backends.slurm.commands import Finished, Runner

# A busy controller lets sbatch wait; an sbatch that is killed too early leaves a job with an unknown id.
_SUBMIT_TIMEOUT = 120.0
# A line of its own: a site's wrapper may print more.
_PRINTED_ID = re.compile(r"^(?P<id>\d+)(?:;(?P<cluster>\S+))?$", re.MULTILINE)
_ENDED = rf"{NO_SUCH_JOB.pattern}|already completing or completed|job has already finished|: No error$"
_ENDED_ALREADY = re.compile(_ENDED, re.IGNORECASE)
_STARTED_ALREADY = re.compile(
    rf"{_ENDED}|no longer pending|disabled|not permitted|invalid job state|requested operation", re.IGNORECASE
)
# Linux takes no argument of more than 128 KiB, and a few times as much in all.
_LONGEST_ARGUMENT = 60_000
_ARGUMENTS = 10
# Slurm makes the logs with the umask of sbatch; the script restores the user's.
_UMASK = 0o077
# Seconds between two tries of a submission, half a minute in all.
_PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)
_log = logging.getLogger("slurmlaunch")

_DEFAULT_MAX_ARRAY_SIZE = 1001


class SlurmBackend(Backend):
    """The `Backend` of Slurm; *clusters* is the value of sbatch's ``--clusters``, None for the default cluster."""

    name = "slurm"
    query_every = 2.0

    def __init__(
        self,
        clusters: str | None = None,
        *,
        run: Runner = run,
        intervals: Intervals | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Use these clusters; *intervals* are by default as the environment says."""
        self.clusters = clusters
        self.calls: Counter[str] = Counter()  # of Slurm's commands, by name
        self._run = self._counted(run)
        self._sleep = sleep
        self._clock = clock
        self._intervals = intervals or Intervals.from_environment()
        self._submitted: dict[str, float] = {}
        self._warned: set[str] = set()
        self._states: dict[str | None, SharedStates] = {}
        self._settings: dict[str | None, dict[str, str]] = {}
        self._max_submitted: dict[str | None, int] = {}

    def _counted(self, run: Runner) -> Runner:
        def counted(command: Command, /) -> Finished:
            self.calls[command.words[0]] += 1
            return run(command)

        return counted

    def settings(self) -> Mapping[str, str]:
        """Return the settings of the cluster by their names in slurm.conf; asked once, then remembered.

        Raises:
            SchedulerError: Slurm does not answer.
        """
        file = os.environ.get("SLURM_CONF")  # a process that changes it submits to another cluster
        if file not in self._settings:
            cluster = Cluster(self._run, self._cluster_names()[0])
            done = cluster.call("scontrol", "show", "config")
            if not done.ok:
                raise scheduler_error(cluster.words("scontrol", "show", "config"), done)
            self._settings[file] = dict(re.findall(r"^(\w+)\s*= (.*)$", done.stdout, re.MULTILINE))
        return self._settings[file]

    def limits(self) -> Limits:
        """Return the limits of the cluster; Slurm's default if it does not answer."""
        try:
            settings = self.settings()
        except SchedulerError:
            return Limits(max_array_size=_DEFAULT_MAX_ARRAY_SIZE)
        return replace(_limits(settings), max_submitted=self._max_submitted.get(os.environ.get("SLURM_CONF")))

    def cluster_name(self) -> str | None:
        """Return Slurm's name of the cluster."""
        names = self._cluster_names()
        return (names[0] or self.settings().get("ClusterName")) if len(names) == 1 else None

    def launcher(self, ranks: int, cpus_per_task: int, options: Mapping[str, str | bool]) -> tuple[str, ...]:
        """Return srun's command line."""
        # Since Slurm 22.05 srun does not take the CPUs over from sbatch. The other options it
        # does, also cpus_per_gpu; and it refuses both together.
        cpus = () if "cpus_per_gpu" in options else (f"--cpus-per-task={cpus_per_task}",)
        return ("srun", "--kill-on-bad-exit=1", f"--ntasks={ranks}", *cpus)

    def script(self, job: ArrayJob) -> str:
        """Return the batch script that `submit` passes to sbatch."""
        return render(self._alone_without_arrays(job))

    def _alone_without_arrays(self, job: ArrayJob) -> ArrayJob:
        return replace(job, alone=True) if job.length == 1 and self._has_no_arrays else job

    @property
    def _has_no_arrays(self) -> bool:
        """Whether the cluster has arrays switched off, as far as it was asked: a plan asks for its limits."""
        known = self._settings.get(os.environ.get("SLURM_CONF"))
        return known is not None and _limits(known).max_array_size == 0

    def submit(self, job: ArrayJob) -> str:
        """Submit the array with sbatch; return its job id.

        If Slurm is unreachable for a moment, or sbatch got no answer, it tries
        again for half a minute, and looks for the job by its name before each try.
        """
        job = self._alone_without_arrays(job)
        env = for_submission({**job.environment.variables, **job.secret_env}, sbatch_words(job))
        command = Command(
            ("sbatch", "--parsable"),
            env,
            _SUBMIT_TIMEOUT,
            stdin=render(job),
            cwd=job.cwd,
            umask=_UMASK,
            limits=job.environment.limits,
        )
        before, in_doubt = time.time(), False
        for pause in (*_PAUSES, None):
            done = self._run(command)
            job_id = self._printed_id(done)
            in_doubt = in_doubt or is_ambiguous(done)
            if job_id is None and in_doubt:
                # The answer may come too early. A second job of the name waits for the
                # first (``singleton``), and then finds nothing left to do.
                with contextlib.suppress(SchedulerError):
                    job_id = self.find(job.name, before)
            if job_id is not None:
                self._submitted[job_id] = before
                return job_id
            if pause is None or not (is_transient(done) or is_ambiguous(done)) or done.timed_out:
                break
            if job.name not in self._warned:
                self._warned.add(job.name)
                _log.warning("%s; trying again", done.stderr.strip() or "sbatch does not answer")
            self._sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  (so that many clients do not come back at once)
        cluster = Cluster(self._run, self._cluster_names()[0])
        error = submission_error(command, done, job, cluster, in_doubt=in_doubt)
        if is_submit_limit(done) and not in_doubt:
            error.limit = self._learn_submit_limit(job, cluster)
        raise error

    def _learn_submit_limit(self, job: ArrayJob, cluster: Cluster) -> int | None:
        """Return how many tasks the user may have in the queue, and remember it for later plans; None: not known."""
        try:
            name = cluster.name or self.settings().get("ClusterName", "")
        except SchedulerError:
            return None
        account, qos = (asked(option, job.options, job.environment.variables) for option in ("account", "qos"))
        found = accounts_of(cluster, name, account, qos)
        limit = found.submit if found else None
        if limit:
            self._max_submitted[os.environ.get("SLURM_CONF")] = limit
        return limit or None

    def _printed_id(self, done: Finished) -> str | None:
        printed = _PRINTED_ID.search(done.stdout) if done.ok else None
        return self._job_id(printed["id"], printed["cluster"] or self.clusters) if printed else None

    def _job_id(self, number: str, cluster: str | None) -> str:
        return number if cluster == self.clusters else f"{number};{cluster}"

    def find(self, name: str, since: float) -> str | None:
        """Return the id of the job of that name, or None; raises if neither squeue nor sacct can say."""
        for cluster in self._cluster_names():
            number = find_job(Cluster(self._run, cluster), name, since)
            if number is not None:
                return self._job_id(number, cluster)
        return None

    def cancel(self, job_id: str, elements: Collection[int] | None = None) -> None:
        """Cancel a job, or some of its elements, with scancel."""
        number, cluster = self._split(job_id)
        named = [number] if elements is None else [f"{number}_[{part}]" for part in _parts(elements)]
        for start in range(0, len(named), _ARGUMENTS):
            cluster.change("scancel", *named[start : start + _ARGUMENTS], harmless=_ENDED_ALREADY)

    def requeue(self, job_id: str, element: int) -> None:
        """End a running element and start it again."""
        number, cluster = self._split(job_id)
        named = number if self._has_no_arrays else f"{number}_{element}"
        cluster.change("scontrol", "requeue", named, harmless=_ENDED_ALREADY)

    def set_throttle(self, job_id: str, throttle: int | None, *, after: str | None = None) -> None:
        """Change how many elements run at once, and with *after* the job that it waits for."""
        number, cluster = self._split(job_id)
        update = ("scontrol", "update", f"JobId={number}")
        cluster.change(*update, f"ArrayTaskThrottle={throttle or 0}", harmless=_ENDED_ALREADY)
        if after is not None:
            dependency = f"Dependency=singleton,afterany:{self._split(after)[0]}"
            cluster.change(*update, dependency, harmless=_STARTED_ALREADY)

    def query(self, job_ids: Collection[str]) -> Snapshot | None:
        """Return the newest states, asking first if they are too old; None if Slurm has never answered.

        The times of submission tell a job from an older one with the same number.
        """
        since: Mapping[str, float] = job_ids if isinstance(job_ids, Mapping) else self._submitted
        # Also clusters without a job: they record that this process watches nothing any more.
        watched: dict[str | None, dict[str, float]] = {name: {} for name in self._states}
        for job_id in job_ids:
            number, cluster = self._split(job_id)
            watched.setdefault(cluster.name, {})[number] = since.get(job_id, 0.0)
        contents = {}
        for name, numbers in watched.items():
            if name not in self._states:
                self._states[name] = SharedStates(Cluster(self._run, name), self._intervals, clock=self._clock)
            if content := self._states[name].query(numbers):
                contents[name] = content
        jobs = {}
        for job_id in job_ids:
            number, cluster = self._split(job_id)
            if cluster.name in contents and number in contents[cluster.name].jobs:
                jobs[job_id] = contents[cluster.name].jobs[number].get
        return Snapshot(min(each.taken for each in contents.values()), jobs) if contents else None

    def listed(self, job_ids: Collection[str]) -> set[str]:
        """Return those of the jobs that squeue lists as not ended, also if it names a later job of that number."""
        numbers: dict[str | None, dict[str, str]] = {}
        for job_id in job_ids:
            number, cluster = self._split(job_id)
            numbers.setdefault(cluster.name, {})[number] = job_id
        return {
            jobs[number]
            for name, jobs in numbers.items()
            for number in unended_jobs(Cluster(self._run, name))
            if number in jobs
        }

    def _cluster_names(self) -> list[str | None]:
        return [*self.clusters.split(",")] if self.clusters else [None]

    def _split(self, job_id: str) -> tuple[str, Cluster]:
        number, _, name = job_id.partition(";")
        return number, Cluster(self._run, name or self.clusters)


def _limits(settings: Mapping[str, str]) -> Limits:
    tasks = re.search(r"\bmax_array_tasks=(\d+)", settings.get("SchedulerParameters", ""))
    size = settings.get("MaxArraySize", "")
    return Limits(
        max_array_size=int(size) if size.isdigit() else _DEFAULT_MAX_ARRAY_SIZE,
        max_array_tasks=int(tasks[1]) if tasks else None,
    )


def _parts(elements: Collection[int]) -> list[str]:
    """Return the elements as text, in parts that fit into one argument."""
    parts = textwrap.wrap(str(Elements.of(elements)).replace(",", " "), _LONGEST_ARGUMENT, break_on_hyphens=False)
    return [part.replace(" ", ",") for part in parts]
