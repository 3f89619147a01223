"""What Slurm said last, shared by all processes of the user on this machine.

Ten notebooks that watch ten runs cost the scheduler what one costs: the answers
lie in one file per cluster, with the ids of the jobs that live processes watch,
and whoever finds the answers too old asks for all. They may be 30 s old, and up
to 180 s while nothing ends. A job that was just submitted is not asked for
earlier, and forces no earlier question about the others.

The file is a JSON object with the fields of `Shared`. Where no such file can be
shared, a process keeps its own answers.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import socket
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from slurmlaunch.backends.scheduler.elements import Elements
from slurmlaunch.backends.scheduler.jobstates import JobStates, undecided
from slurmlaunch.backends.scheduler.shared_file import PrivateFile, SharedFile, Unshared
from slurmlaunch.backends.scheduler.watchers import Shared, myself
from slurmlaunch.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from slurmlaunch.backends.base import TaskRecord
    from slurmlaunch.backends.scheduler.queries import Answer, Queries
    from slurmlaunch.backends.scheduler.rows import Row

_log = logging.getLogger("slurmlaunch")
_numbers = itertools.count()
# A site without accounts may get them; nobody waits for that.
_ASK_FOR_ACCOUNTS_AGAIN = 3600.0
_GROWTH = 1.5
_AHEAD = 60.0


@dataclass(frozen=True)
class Intervals:
    """How old an answer may be, in seconds; ``$SLURMLAUNCH_QUERY_INTERVAL`` sets the shortest, and scales the others.

    Attributes:
        shortest: at first, and again once something has ended.
        longest: while nothing ends.
        gone: how long an element must have left the queue without a trace to be called cancelled.
    """

    shortest: float = 30.0
    longest: float = 180.0
    gone: float = 70.0

    VARIABLE = "SLURMLAUNCH_QUERY_INTERVAL"

    @classmethod
    def from_environment(cls) -> Intervals:
        """Return the usual ones, or those that the variable scales by its value for the shortest.

        Raises:
            OptionError: its value is not a number of seconds.
        """
        usual = cls()
        text = os.environ.get(cls.VARIABLE)
        if not text:
            return usual
        try:
            scale = float(text) / usual.shortest
        except ValueError:
            scale = 0.0
        if not 0 < scale < float("inf"):
            raise OptionError(f"{cls.VARIABLE}={text!r} is not a number of seconds", option=cls.VARIABLE)
        return cls(usual.shortest * scale, usual.longest * scale, usual.gone * scale)


@dataclass(frozen=True)
class SlurmSnapshot:
    """What Slurm said at one moment.

    Attributes:
        taken: when, in seconds since the epoch.
        jobs: what is known of each job, by its number.
    """

    taken: float
    jobs: Mapping[str, JobStates]

    def get(self, job_id: str, element: int) -> TaskRecord | None:
        """Return what is known of an element; None means not yet."""
        states = self.jobs.get(job_id.partition(";")[0])
        return None if states is None else states.get(element)


class SharedSnapshot:
    """The newest answers of one cluster, and the rule that says when to ask again."""

    def __init__(
        self,
        queries: Queries,
        intervals: Intervals | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._queries = queries
        self._intervals = intervals or Intervals.from_environment()
        self._clock = clock
        self._number = next(_numbers)
        self._file: SharedFile | PrivateFile = SharedFile(_file_name(queries.cluster))
        self._trouble = ""
        self._read: tuple[object, Shared] = (None, Shared())

    def query(self, watched: Mapping[str, float]) -> SlurmSnapshot | None:
        """Return the newest answers, asking first if they are too old; None while there are none.

        *watched* are the numbers of the jobs that this process cares for from now on, and when
        they were submitted (0.0 where that is not known).
        """
        try:
            shared = self._newest(watched)
        except Unshared as reason:
            _log.info("slurmlaunch asks Slurm for this process alone: %s", reason)
            self._file = PrivateFile()
            shared = self._newest(watched)
        return SlurmSnapshot(shared.taken, shared.jobs) if shared.taken else None

    def _newest(self, watched: Mapping[str, float]) -> Shared:
        now = self._clock()
        me = f"{myself()}-{self._number}"
        shared = self._shared()
        if shared.watchers.get(me, {}) == watched and not self._is_due(shared, watched, now):
            return shared
        with self._file.locked():
            shared = self._shared().watched_by(me, watched)
            due = self._is_due(shared, watched, now)
            if due:
                # Before asking, which takes a while without the lock: nobody else is to ask as well.
                shared = replace(shared, asked=now)
            self._file.write(shared.to_json())
        return self._ask(shared, now) if due else shared

    def _shared(self) -> Shared:
        data = self._file.read()
        if self._read[0] is not data:  # the same object as long as the file has not changed
            self._read = (data, Shared.from_json(data))
        return self._read[1]

    def _is_due(self, shared: Shared, watched: Mapping[str, float], now: float) -> bool:
        # Times well in the future come from a clock that was set back; just ahead is who asked a moment ago.
        if shared.asked - _AHEAD <= now < shared.asked + (shared.age or self._intervals.shortest):
            return False
        return any(not since <= now < since + self._intervals.shortest for since in watched.values())

    def _ask(self, shared: Shared, now: float) -> Shared:
        asked = _Look(self._queries, shared, now, self._intervals.gone).run()
        self._report(asked.trouble if not asked.answered else "")
        with self._file.locked():
            # Others may have come and gone meanwhile; what was learned is ours to write.
            newest = self._shared()
            newest = replace(
                newest,
                taken=now if asked.answered else newest.taken,
                age=self._next_age(shared, asked),
                no_accounts_until=asked.no_accounts_until,
                jobs={**newest.jobs, **asked.jobs},
            )
            self._file.write(newest.to_json())
        return newest

    def _next_age(self, shared: Shared, asked: _Look) -> float:
        shortest, longest = self._intervals.shortest, self._intervals.longest
        if asked.answered and asked.something_ended():
            return shortest
        grown = min(max(shared.age, shortest) * _GROWTH, longest)
        # The second look at what left the queue is the one that counts.
        return min(grown, self._intervals.gone) if asked.answered and asked.something_lost() else grown

    def _report(self, trouble: str) -> None:
        if trouble and not self._trouble:
            _log.warning(
                "Slurm does not say how the jobs are (%s). They are not affected, and results are still "
                "collected; slurmlaunch keeps asking.",
                trouble,
            )
        elif self._trouble and not trouble:
            _log.info("Slurm answers again.")
        self._trouble = trouble


class _Look:
    """One question to the scheduler, about all jobs that are watched."""

    def __init__(self, queries: Queries, shared: Shared, now: float, gone: float) -> None:
        self._queries = queries
        self._now = now
        self._gone = gone
        self._watched = shared.watched()
        self._before = {job: shared.jobs.get(job, JobStates()) for job in self._watched}
        self.jobs = dict(self._before)
        self.no_accounts_until = shared.no_accounts_until
        self.answered = False
        self.trouble = ""

    def run(self) -> _Look:
        """Ask squeue, then sacct for what squeue does not show; each alone where the other fails."""
        queue = self._queries.squeue(self._watched)
        if queue.rows is not None:
            rows = _by_job(queue.rows)
            self.jobs = {job: states.queued(rows[job], self._now) for job, states in self.jobs.items()}
            unknown = [job for job, states in self.jobs.items() if states.is_forgotten()]
        else:
            unknown = [job for job, states in self.jobs.items() if not states.is_over()]
        accounts = self._ask_accounts(unknown)
        if accounts is not None and accounts.rows is not None:
            self._account(_by_job(accounts.rows), unknown, queue_answered=queue.rows is not None)
        if queue.rows is not None:
            self._give_up(accounts)
        answers = (queue, accounts)
        self.answered = any(answer is not None and answer.rows is not None for answer in answers)
        self.trouble = "; ".join(answer.trouble for answer in answers if answer is not None and answer.trouble)
        return self

    def something_ended(self) -> bool:
        """Whether more has a final state than before."""
        return any(states.ended_count() > self._before[job].ended_count() for job, states in self.jobs.items())

    def something_lost(self) -> bool:
        """Whether something left the queue, and it is not known how it ended."""
        return any(states.is_forgotten() for states in self.jobs.values())

    def _ask_accounts(self, jobs: list[str]) -> Answer | None:
        if not jobs or self._now < self.no_accounts_until:
            return None
        submitted = [self._watched[job] for job in jobs]
        answer = self._queries.sacct(jobs, since=min(submitted))
        if answer.disabled:
            self.no_accounts_until = self._now + _ASK_FOR_ACCOUNTS_AGAIN
        return answer

    def _account(self, rows: Mapping[str, list[Row]], jobs: Iterable[str], *, queue_answered: bool) -> None:
        for job in jobs:
            self.jobs[job] = self.jobs[job].accounted(rows[job], queue_answered=queue_answered)

    def _give_up(self, accounts: Answer | None) -> None:
        failed = accounts is not None and accounts.rows is None and not accounts.disabled
        rows = _by_job(accounts.rows or () if accounts is not None else ())
        for job, states in self.jobs.items():
            still_running = undecided(rows[job]) if rows[job] else Elements()
            self.jobs[job] = states.given_up(self._now, self._gone, undecided=still_running, accounts_failed=failed)


def _by_job(rows: Iterable[Row]) -> Mapping[str, list[Row]]:
    jobs: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        jobs[row.job].append(row)
    return jobs


def _file_name(cluster: str | None) -> str:
    # A configuration is a cluster; and a temporary folder may, against its purpose, be one for many machines.
    place = "\0".join((os.environ.get("SLURM_CONF", ""), cluster or "", socket.gethostname()))
    return f"slurm-{hashlib.sha256(place.encode(errors='surrogateescape')).hexdigest()[:16]}"
