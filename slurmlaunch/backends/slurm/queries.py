"""Slurm's queries, squeue and sacct: how they are called, and the rows that they print.

The backend and `shared_states` use it; when to ask and how rows combine is decided there. An element that has started
has a row of its own; all pending elements share one row with a bracket at the end of its id::

    12_3              element 3
    12_[4-9%2]        elements 4 to 9, at most two at a time
    12_3.batch        a step of element 3 (sacct only)
    12, 12.batch      the same of a single job, whose only element is 0
"""

from __future__ import annotations

import calendar
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slurmlaunch.backends.base import TaskRecord, TaskState
from slurmlaunch.backends.slurm.commands import NO_SUCH_JOB, scheduler_error
from slurmlaunch.backends.slurm.job_states import Elements, Row

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from slurmlaunch.backends.slurm.commands import Cluster, Finished

# The fields that `squeue_rows` and `sacct_rows` read.
_SQUEUE_FORMAT = "%i|%T|%B|%S|%r"
_SACCT_FORMAT = "JobID,State,ExitCode,NodeList"

_ID = re.compile(r"(?P<job>\d+)(?:_(?:(?P<one>\d+)|\[(?P<many>[^\]]*)(?P<closed>\]?)))?(?:\.(?P<step>\S+))?")
_ELIDED = "..."
_TIME = "%Y-%m-%dT%H:%M:%S"
_NOTHING = frozenset({"", "None", "n/a", "(null)", "None assigned"})

_NO_ACCOUNTING = re.compile(r"accounting storage is disabled", re.IGNORECASE)
# Clocks differ, and a time zone may be wrong by an hour without anyone noticing.
_MARGIN = 7200.0
_LONG_AGO = 400 * 86400.0


@dataclass(frozen=True)
class Answer:
    """The answer to one query."""

    rows: tuple[Row, ...] | None  # None: the command failed
    error: str = ""
    disabled: bool = False  # the site keeps no accounts, so that sacct never answers


def squeue(cluster: Cluster, jobs: Collection[str]) -> Answer:
    """Ask for the elements that are pending, running, or ended a few minutes ago."""
    done = cluster.call(
        "squeue",
        "--noheader",
        "--states=all",
        f"--format={_SQUEUE_FORMAT}",
        # With one user's name the controller sends a short answer; with job ids alone, all jobs there are.
        f"--user={os.geteuid()}",
        f"--jobs={','.join(sorted(jobs))}",
    )
    if done.ok or NO_SUCH_JOB.search(done.stderr):  # the latter for a single job that squeue no longer knows
        return Answer(tuple(row for row in squeue_rows(done.stdout) if row.job in jobs))
    return Answer(None, f"squeue: {done.error}")


def sacct(cluster: Cluster, jobs: Collection[str], since: float) -> Answer:
    """Ask for the accounting records of jobs submitted after *since* (seconds since the epoch; 0: not known).

    Only the newest record of an element is asked for (no ``--duplicates``): the end of an
    earlier attempt is not the element's.
    """
    done = cluster.call(
        "sacct",
        "--noheader",
        "--parsable2",
        f"--format={_SACCT_FORMAT}",
        f"--starttime={_start_time(since)}",  # Slurm reuses job ids
        f"--jobs={','.join(sorted(jobs))}",
    )
    if done.ok:
        return Answer(tuple(row for row in sacct_rows(done.stdout) if row.job in jobs))
    return Answer(None, f"sacct: {done.error}", disabled=_is_disabled(done))


def find_job(cluster: Cluster, name: str, since: float) -> str | None:
    """Return the number of the first job of that name submitted after *since*, or None.

    Raises:
        SchedulerError: neither squeue nor sacct can say.
    """
    in_queue = cluster.call("squeue", "--noheader", "--states=all", "--format=%F", f"--name={name}")
    if numbers := _numbers(in_queue):
        return numbers[0]
    in_accounts = cluster.call(
        "sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID",
        f"--starttime={_start_time(since)}", f"--name={name}",
    )  # fmt: skip
    numbers = _numbers(in_accounts)
    if not numbers and not in_queue.ok:
        raise scheduler_error(("squeue",), in_queue)
    if not in_accounts.ok and not _is_disabled(in_accounts):
        raise scheduler_error(("sacct",), in_accounts)
    return next(iter(numbers), None)


def unended_jobs(cluster: Cluster) -> set[str]:
    """Return the numbers of this user's jobs that wait or run.

    Raises:
        SchedulerError: squeue does not say.
    """
    words = (
        "squeue",
        "--noheader",
        "--format=%F",
        f"--user={os.geteuid()}",
    )  # without states: those that have not ended
    done = cluster.call(*words)
    if not done.ok:
        raise scheduler_error(words, done)
    return set(_numbers(done))


def squeue_rows(text: str) -> Iterator[Row]:
    """Read the answer to `squeue`; other lines are skipped."""
    for line in text.splitlines():
        fields = line.split("|", _SQUEUE_FORMAT.count("|"))  # a reason may hold anything
        if len(fields) == _SQUEUE_FORMAT.count("|") + 1:
            name, word, node, starts, reason = fields
            state = TaskState.parse(word)
            # Those of elements that run differ, and nobody needs them: a record is shared by all elements like it.
            expected = _seconds(starts) if state.is_queued else None
            yield from _row(name, TaskRecord(state, node=_known(node), reason=_known(reason), starts=expected))


def sacct_rows(text: str) -> Iterator[Row]:
    """Read the answer to `sacct`; other lines are skipped."""
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) == _SACCT_FORMAT.count(",") + 1:
            name, state, exit_code, nodes = fields
            reason = state if " by " in state else None  # CANCELLED by 1000
            yield from _row(name, TaskRecord(TaskState.parse(state), _known(exit_code), _known(nodes), reason))


def _row(name: str, record: TaskRecord) -> Iterator[Row]:
    found = _ID.fullmatch(name.strip())
    if found is None:
        return
    shared = found["many"] is not None
    text = found["many"].partition("%")[0] if shared else found["one"] or "0"
    elided = shared and (not found["closed"] or _ELIDED in text)
    if elided:
        # The last number may be cut in two.
        text = text.partition(_ELIDED)[0].rpartition(",")[0]
    elements = Elements.parse(text) if text else Elements()
    if elements is not None:
        unnumbered = found["one"] is None and not shared
        yield Row(found["job"], elements, record, shared, elided, unnumbered, found["step"])


def _known(field: str) -> str | None:
    return None if field.strip() in _NOTHING else field.strip()


def _seconds(field: str) -> float | None:
    """Return a time that squeue printed, with the variables of `Cluster.call`, in seconds since the epoch."""
    try:
        return float(calendar.timegm(time.strptime(field.strip(), _TIME)))
    except ValueError:  # N/A
        return None


def _start_time(since: float) -> str:
    """Return a time a little before *since*, as sacct reads it with the variables of `Cluster.call`."""
    start = since - _MARGIN if since > 0 else time.time() - _LONG_AGO
    return time.strftime(_TIME, time.gmtime(max(0.0, start)))


def _numbers(done: Finished) -> list[str]:
    """Return the job numbers that a command printed, the first submitted first."""
    found = re.findall(r"^\s*(\d+)", done.stdout, re.MULTILINE) if done.ok else []
    return sorted(set(found), key=int)


def _is_disabled(done: Finished) -> bool:
    return done.missing or _NO_ACCOUNTING.search(done.stderr) is not None
