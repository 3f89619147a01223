"""The content of the shared file: what was answered, and who watches which jobs."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurmlaunch.backends.scheduler.jobstates import JobStates

if TYPE_CHECKING:
    from collections.abc import Mapping

_VERSION = 1


@dataclass(frozen=True)
class Shared:
    """What the processes of one user share of one cluster.

    Attributes:
        asked: when Slurm was last asked.
        taken: when it last answered.
        age: how many seconds after *asked* it may be asked again; 0.0 for the shortest time.
        no_accounts_until: until when sacct is not asked, since the site keeps no accounts.
        watchers: for each process, its jobs and when they were submitted (0.0: not known).
        jobs: what is known of each job.
    """

    asked: float = 0.0
    taken: float = 0.0
    age: float = 0.0
    no_accounts_until: float = 0.0
    watchers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    jobs: Mapping[str, JobStates] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Shared:
        """Read what `to_json` wrote; what is no such object is an empty one."""
        try:
            if data["version"] != _VERSION:
                return cls()
            return cls(
                asked=float(data["asked"]),
                taken=float(data["taken"]),
                age=float(data["age"]),
                no_accounts_until=float(data["no_accounts_until"]),
                watchers={who: {job: float(since) for job, since in j.items()} for who, j in data["watchers"].items()},
                jobs={job: JobStates.from_json(states) for job, states in data["jobs"].items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            return cls()

    def to_json(self) -> dict[str, Any]:
        """Return the object as it stands in the file."""
        return {
            "version": _VERSION,
            "asked": self.asked,
            "taken": self.taken,
            "age": self.age,
            "no_accounts_until": self.no_accounts_until,
            "watchers": {who: dict(jobs) for who, jobs in self.watchers.items()},
            "jobs": {job: states.to_json() for job, states in self.jobs.items()},
        }

    def watched(self) -> dict[str, float]:
        """Return all jobs that somebody watches, and when they were submitted as far as one of them knows."""
        jobs: dict[str, float] = {}
        for watcher in self.watchers.values():
            for job, since in watcher.items():
                jobs[job] = max(since, jobs.get(job, 0.0))
        return jobs

    def watched_by(self, me: str, jobs: Mapping[str, float]) -> Shared:
        """Return it with our jobs, and without processes that are no more and what only they watched."""
        living = {who: watched for who, watched in self.watchers.items() if who != me and is_alive(who)}
        if jobs:
            living[me] = dict(jobs)
        new = replace(self, watchers=living)
        watched = new.watched()
        # The pace that was found for other jobs says nothing of these.
        idle = watched.keys().isdisjoint(self.watched())
        return replace(
            new,
            age=0.0 if idle else self.age,
            jobs={job: states for job, states in self.jobs.items() if job in watched},
        )


def myself() -> str:
    """Return what no other process of this machine is called, before or after."""
    return f"{os.getpid()}-{_started(os.getpid())}"


def is_alive(who: str) -> bool:
    """Whether the process of a name that begins as `myself` gave it still runs."""
    pid, _, rest = who.partition("-")
    return pid.isdigit() and _started(int(pid)) == rest.partition("-")[0]


def _started(pid: int) -> str:
    """Return when a process started, in the kernel's ticks; empty if it is no more."""
    try:
        # The second field is the program's name in brackets, which may itself hold brackets and spaces.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == b"Z" else fields[19].decode()
