"""What squeue and sacct print, row by row.

An element that has started, or once had, has a row of its own; all that are
still pending share one, whose id ends with a bracket::

    12_3              element 3
    12_[4-9%2]        elements 4 to 9, at most two at a time
    12_3.batch        a step of element 3 (sacct only)

Asking the scheduler what has become of jobs: one squeue, and one sacct where that has forgotten.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slurmlaunch.backends.base import TaskRecord, TaskState
from slurmlaunch.backends.slurm.commands import Command, for_queries
from slurmlaunch.backends.slurm.job_states import Elements, Row
from slurmlaunch.errors import SchedulerError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from slurmlaunch.backends.slurm.commands import Finished, Runner


SQUEUE_FORMAT = "%i|%T|%B|%r"
"""The fields that `squeue_rows` reads, as squeue's ``--format`` has them."""

SACCT_FORMAT = "JobID,State,ExitCode,NodeList"
"""The fields that `sacct_rows` reads, as sacct's ``--format`` has them."""

_ID = re.compile(r"(?P<job>\d+)_(?:(?P<one>\d+)|\[(?P<many>[^\]]*)(?P<closed>\]?))(?:\.(?P<step>\S+))?")
_ELIDED = "..."
_NOTHING = frozenset({"", "None", "n/a", "(null)", "None assigned"})


def squeue_rows(text: str) -> Iterator[Row]:
    """Read what squeue printed with `SQUEUE_FORMAT`; what is no row of an array is left out."""
    for line in text.splitlines():
        fields = line.split("|", 3)  # a reason may hold anything
        if len(fields) == SQUEUE_FORMAT.count("|") + 1:
            name, state, node, reason = fields
            record = TaskRecord(TaskState.parse(state), node=_known(node), reason=_known(reason))
            yield from _row(name, record)


def sacct_rows(text: str) -> Iterator[Row]:
    """Read what sacct printed with `SACCT_FORMAT`; what is no row of an array is left out."""
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) == SACCT_FORMAT.count(",") + 1:
            name, state, exit_code, nodes = fields
            reason = state if " by " in state else None  # CANCELLED by 1000
            yield from _row(name, TaskRecord(TaskState.parse(state), _known(exit_code), _known(nodes), reason))


def _row(name: str, record: TaskRecord) -> Iterator[Row]:
    found = _ID.fullmatch(name.strip())
    if found is None:
        return
    text = found["one"] or found["many"].partition("%")[0]
    shared = found["one"] is None
    elided = shared and (not found["closed"] or _ELIDED in text)
    if elided:
        # The last number may be cut in two.
        text = text.partition(_ELIDED)[0].rpartition(",")[0]
    elements = Elements.parse(text) if text else Elements()
    if elements is not None:
        yield Row(found["job"], elements, record, shared, elided, found["step"])


def _known(field: str) -> str | None:
    return None if field.strip() in _NOTHING else field.strip()


TIMEOUT = 60.0
"""Seconds that a command may take; Slurm's own commands give up after about ten of a controller's silence."""

NO_SUCH_JOB = re.compile(r"Invalid job id specified|Invalid job id", re.IGNORECASE)
_NO_ACCOUNTING = re.compile(r"accounting storage is disabled", re.IGNORECASE)
# Clocks differ, and a zone may be wrong by an hour without anyone noticing.
_MARGIN = 7200.0
_LONG_AGO = 400 * 86400.0


@dataclass(frozen=True)
class Answer:
    """What one command said.

    Attributes:
        rows: its rows, or None where it failed.
        trouble: why it failed.
        disabled: whether the site keeps no accounts, so that sacct never answers.
    """

    rows: tuple[Row, ...] | None
    trouble: str = ""
    disabled: bool = False


@dataclass(frozen=True)
class Queries:
    """Slurm's querying commands.

    Attributes:
        run: how they are run.
        cluster: the cluster to ask, or None for the default one.
    """

    run: Runner
    cluster: str | None = None

    def squeue(self, job_ids: Collection[str]) -> Answer:
        """Ask for what is alive, or ended a few minutes ago."""
        done = self._ask(
            "squeue",
            "--noheader",
            "--states=all",
            f"--format={SQUEUE_FORMAT}",
            # Of one user's jobs the controller makes a short answer, of a list of jobs it sends all there are.
            f"--user={os.geteuid()}",
            f"--jobs={','.join(sorted(job_ids))}",
        )
        if done.ok or NO_SUCH_JOB.search(done.stderr):  # said of a single job that is forgotten
            return Answer(tuple(row for row in squeue_rows(done.stdout) if row.job in job_ids))
        return Answer(None, _trouble("squeue", done))

    def sacct(self, job_ids: Collection[str], since: float) -> Answer:
        """Ask for what the accounts hold of jobs that were submitted after *since* (0: not known).

        Only the newest record of an element is asked for (no ``--duplicates``): an earlier
        attempt's end is not the element's.
        """
        done = self._ask(
            "sacct",
            "--noheader",
            "--parsable2",
            f"--format={SACCT_FORMAT}",
            f"--starttime={utc(since)}",  # ids are used again
            f"--jobs={','.join(sorted(job_ids))}",
        )
        if done.ok:
            return Answer(tuple(row for row in sacct_rows(done.stdout) if row.job in job_ids))
        return Answer(None, _trouble("sacct", done), disabled=_is_disabled(done))

    def find(self, name: str, since: float) -> str | None:
        """Return the number of the first job of a name that was submitted after *since*, or None.

        Raises:
            SchedulerError: neither the queue nor the accounts can say.
        """
        in_queue = self._ask("squeue", "--noheader", "--states=all", "--format=%F", f"--name={name}")
        numbers = _numbers(in_queue)
        if numbers:
            return numbers[0]
        in_accounts = self._ask(
            "sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID",
            f"--starttime={utc(since)}", f"--name={name}",
        )  # fmt: skip
        numbers = _numbers(in_accounts)
        if not numbers and not in_queue.ok:
            raise scheduler_error(("squeue",), in_queue)
        if not in_accounts.ok and not _is_disabled(in_accounts):
            raise scheduler_error(("sacct",), in_accounts)
        return next(iter(numbers), None)

    def _ask(self, program: str, *arguments: str) -> Finished:
        words = (program, *on_cluster(self.cluster), *arguments)
        return self.run(Command(words, for_queries(os.environ), TIMEOUT))


def on_cluster(cluster: str | None) -> tuple[str, ...]:
    """Return the argument that sends a command to a cluster."""
    return (f"--clusters={cluster}",) if cluster else ()


def utc(since: float) -> str:
    """Return a time a little before *since* as sacct reads it in the variables of `for_queries`."""
    start = since - _MARGIN if since > 0 else time.time() - _LONG_AGO
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(max(0.0, start)))


def scheduler_error(words: tuple[str, ...], done: Finished) -> SchedulerError:
    """Return the error for a command other than sbatch that failed."""
    stderr = done.stderr.strip()
    return SchedulerError(
        f"`{shlex.join(words)}` failed: {stderr or f'exit status {done.returncode}'}",
        command=words,
        stderr=stderr,
        returncode=done.returncode,
    )


def _numbers(done: Finished) -> list[str]:
    """Return the numbers of the jobs that a command printed, the first submitted first."""
    found = re.findall(r"^\s*(\d+)", done.stdout, re.MULTILINE) if done.ok else []
    return sorted(set(found), key=int)


def _is_disabled(done: Finished) -> bool:
    return done.missing or _NO_ACCOUNTING.search(done.stderr) is not None


def _trouble(program: str, done: Finished) -> str:
    return f"{program}: {done.stderr.strip() or f'exit status {done.returncode}'}"
