"""The Slurm backend: Slurm is spoken to through its own commands, and in no other way.

A job id is what sbatch prints: ``"123"``, or ``"123;cluster"`` where the job went
to another cluster than the one that the backend was made for.
"""

from __future__ import annotations

import logging
import os
import random
import re
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slurmlaunch.backends.base import Limits
from slurmlaunch.backends.slurm.batch_script import render, sbatch_words
from slurmlaunch.backends.slurm.commands import Command, for_queries, for_submission, run
from slurmlaunch.backends.slurm.job_states import Elements
from slurmlaunch.backends.slurm.queries import NO_SUCH_JOB, TIMEOUT, Queries, on_cluster, scheduler_error
from slurmlaunch.backends.slurm.refusal import is_ambiguous, is_transient, submission_error
from slurmlaunch.backends.slurm.shared_states import Intervals, SharedSnapshot
from slurmlaunch.errors import SchedulerError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from slurmlaunch.backends.base import ArrayJob, Snapshot, TaskRecord
    from slurmlaunch.backends.slurm.commands import Finished, Runner

# A busy controller lets sbatch wait; killed too early, it leaves a job that nobody knows of.
_SUBMIT_TIMEOUT = 120.0
# A line of its own: a site's wrapper may say more.
_PRINTED_ID = re.compile(r"^(?P<id>\d+)(?:;(?P<cluster>\S+))?$", re.MULTILINE)
_ENDED_ALREADY = re.compile(
    rf"{NO_SUCH_JOB.pattern}|already completing or completed|job has already finished|: No error$", re.IGNORECASE
)
# Linux takes no argument of more than 128 KiB, and a few times as much in all.
_LONGEST_ARGUMENT = 60_000
_ARGUMENTS = 10
_STARTED = re.compile(r"no longer pending|disabled|not permitted|invalid job state|requested operation", re.IGNORECASE)
# Seconds between two tries of a submission, half a minute in all.
_PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)
_log = logging.getLogger("slurmlaunch")

_DEFAULT_MAX_ARRAY_SIZE = 1001
# What clusters allow, by where they are: asked once per process.
_LIMITS: dict[tuple[str | None, str | None], Limits] = {}


class SlurmBackend:
    """Arrays on Slurm.

    Attributes:
        clusters: what sbatch's ``--clusters`` is given, or None for the default cluster.
    """

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
        """Speak to these clusters; *run* runs the commands, *intervals* say how often to ask for states, by a clock."""
        self.clusters = clusters
        self._run = run
        self._sleep = sleep
        self._clock = clock
        self._intervals = intervals or Intervals.from_environment()
        self._submitted: dict[str, float] = {}
        self._warned: set[str] = set()
        self._snapshots: dict[str | None, SharedSnapshot] = {}

    def limits(self) -> Limits:
        """Return what the cluster allows; Slurm's own default where it does not answer."""
        cluster = self._clusters()[0]
        place = (os.environ.get("SLURM_CONF"), cluster)
        if place not in _LIMITS:
            done = self._call("scontrol", *on_cluster(cluster), "show", "config")
            if not done.ok:
                return Limits(max_array_size=_DEFAULT_MAX_ARRAY_SIZE)
            _LIMITS[place] = _limits(done.stdout)
        return _LIMITS[place]

    def launcher(self, ranks: int, cpus_per_task: int, options: Mapping[str, str | bool]) -> tuple[str, ...]:
        """Return srun's command line: it does not take the CPUs over from sbatch, since Slurm 22.05."""
        # The other options srun takes over from sbatch, this one too; it refuses both together.
        cpus = () if "cpus_per_gpu" in options else (f"--cpus-per-task={cpus_per_task}",)
        return ("srun", "--kill-on-bad-exit=1", f"--ntasks={ranks}", *cpus)

    def script(self, job: ArrayJob) -> str:
        """Return the batch script that `submit` hands to sbatch."""
        return render(job)

    def submit(self, job: ArrayJob) -> str:
        """Hand the array to sbatch; return its job id.

        Where Slurm is away for a moment, or sbatch had no answer, it is tried
        again for half a minute, the job looked for by its name before.

        Raises:
            OptionError: a value cannot stand in a batch script.
            SubmissionError: Slurm refused it, or did not answer in time.
        """
        env = for_submission(os.environ, sbatch_words(job))
        command = Command(("sbatch", "--parsable"), env, _SUBMIT_TIMEOUT, stdin=render(job), cwd=job.cwd)
        before, in_doubt = time.time(), False
        for pause in (*_PAUSES, None):
            done = self._run(command)
            job_id = self._printed_id(done)
            in_doubt = in_doubt or is_ambiguous(done)
            if job_id is None and in_doubt:
                job_id = self._found(job.name, before)
            if job_id is not None:
                self._submitted[job_id] = before
                return job_id
            if pause is None or not (is_transient(done) or is_ambiguous(done)) or done.timed_out:
                break
            if job.name not in self._warned:
                self._warned.add(job.name)
                _log.warning("%s; trying again", done.stderr.strip() or "sbatch does not answer")
            self._sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  (so that many clients do not come back at once)
        raise submission_error(command, done, job.name, in_doubt=in_doubt)

    def _printed_id(self, done: Finished) -> str | None:
        printed = _PRINTED_ID.search(done.stdout) if done.ok else None
        if printed is None:
            return None
        cluster = printed["cluster"]
        return printed["id"] if cluster in {None, self.clusters} else f"{printed['id']};{cluster}"

    def _found(self, name: str, before: float) -> str | None:
        """Look for the job of an sbatch that may have submitted it without saying so.

        The answer may come too early. A second job of the name waits for the
        first (``singleton``), and then finds nothing left to do.
        """
        try:
            return self.find(name, before)
        except SchedulerError:
            return None

    def find(self, name: str, since: float) -> str | None:
        """Return the id of the job of that unique name, submitted after *since*, or None.

        Raises:
            SchedulerError: neither the queue nor the accounts can say.
        """
        for cluster in self._clusters():
            number = Queries(self._run, cluster).find(name, since)
            if number is not None:
                return number if cluster == self.clusters else f"{number};{cluster}"
        return None

    def cancel(self, job_id: str, elements: Collection[int] | None = None) -> None:
        """End a job, or these of its elements, pending or running; what has ended already is no error.

        Raises:
            SchedulerError: Slurm did not do it.
        """
        number, cluster = self._place(job_id)
        whole = elements is None
        named = [number] if whole else [f"{number}_[{part}]" for part in _parts(Elements.of(elements or ()))]
        for start in range(0, len(named), _ARGUMENTS):
            self._change("scancel", *on_cluster(cluster), *named[start : start + _ARGUMENTS])

    def requeue(self, job_id: str, element: int) -> None:
        """End an element that runs, and start it again.

        Raises:
            SchedulerError: Slurm did not do it.
        """
        number, cluster = self._place(job_id)
        self._change("scontrol", *on_cluster(cluster), "requeue", f"{number}_{element}")

    def set_throttle(self, job_id: str, throttle: int | None, *, after: str | None = None) -> None:
        """Change how many elements run at once (None: all); for a job that has ended, nothing happens.

        With *after* it also waits for that job, if it has not started.

        Raises:
            SchedulerError: Slurm did not do it.
        """
        number, cluster = self._place(job_id)
        update = ("scontrol", *on_cluster(cluster), "update", f"JobId={number}")
        self._change(*update, f"ArrayTaskThrottle={throttle or 0}")
        if after is not None:
            self._change(*update, f"Dependency=singleton,afterany:{self._place(after)[0]}", harmless=_STARTED)

    def query(self, job_ids: Collection[str]) -> Snapshot | None:
        """Return the newest answers, asking first if they are too old; None while there are none.

        Where *job_ids* is a mapping, its values are the times of submission, which keep jobs
        of the same number in an earlier age apart.
        """
        known: Mapping[str, float] = job_ids if isinstance(job_ids, Mapping) else self._submitted
        watched: defaultdict[str | None, dict[str, float]] = defaultdict(dict)
        for job_id in job_ids:
            number, cluster = self._place(job_id)
            watched[cluster][number] = known.get(job_id, 0.0)
        # A cluster that nothing is left on has to hear of it too.
        found = {cluster: self._snapshot(cluster).query(watched[cluster]) for cluster in {*watched, *self._snapshots}}
        snapshots = {cluster: snapshot for cluster, snapshot in found.items() if snapshot is not None}
        if not snapshots:
            return None
        return _Snapshots(min(snapshot.taken for snapshot in snapshots.values()), snapshots, self.clusters)

    def _clusters(self) -> list[str | None]:
        return [*self.clusters.split(",")] if self.clusters else [None]

    def _place(self, job_id: str) -> tuple[str, str | None]:
        return place(job_id, self.clusters)

    def _snapshot(self, cluster: str | None) -> SharedSnapshot:
        if cluster not in self._snapshots:
            queries = Queries(self._run, cluster)
            self._snapshots[cluster] = SharedSnapshot(queries, self._intervals, clock=self._clock)
        return self._snapshots[cluster]

    def _call(self, *words: str) -> Finished:
        return self._run(Command(words, for_queries(os.environ), TIMEOUT))

    def _change(self, *words: str, harmless: re.Pattern[str] | None = None) -> None:
        done = self._call(*words)
        fine = (_ENDED_ALREADY, harmless) if harmless else (_ENDED_ALREADY,)
        complaints = done.stderr.strip().splitlines()
        if not done.ok and not (complaints and all(any(each.search(line) for each in fine) for line in complaints)):
            raise scheduler_error(words, done)


@dataclass(frozen=True)
class _Snapshots:
    """The answers of several clusters, as one."""

    taken: float
    of: Mapping[str | None, Snapshot]
    default: str | None

    def get(self, job_id: str, element: int) -> TaskRecord | None:
        number, cluster = place(job_id, self.default)
        snapshot = self.of.get(cluster)
        return None if snapshot is None else snapshot.get(number, element)


def place(job_id: str, default: str | None) -> tuple[str, str | None]:
    """Return the number of a job and its cluster."""
    number, _, cluster = job_id.partition(";")
    return number, cluster or default


def _limits(configuration: str) -> Limits:
    """Read what ``scontrol show config`` prints."""
    settings = dict(re.findall(r"^(\w+)\s*= (.*)$", configuration, re.MULTILINE))
    tasks = re.search(r"\bmax_array_tasks=(\d+)", settings.get("SchedulerParameters", ""))
    size = settings.get("MaxArraySize", "")
    return Limits(
        max_array_size=int(size) if size.isdigit() else _DEFAULT_MAX_ARRAY_SIZE,
        max_array_tasks=int(tasks[1]) if tasks else None,
    )


def _parts(elements: Elements) -> Iterator[str]:
    """Yield the elements as text, in pieces that an argument can hold."""
    text = str(elements)
    while len(text) > _LONGEST_ARGUMENT:
        end = text.rindex(",", 0, _LONGEST_ARGUMENT)
        yield text[:end]
        text = text[end + 1 :]
    if text:
        yield text
