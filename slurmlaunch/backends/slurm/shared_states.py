"""A small JSON file that all processes of one user on one machine share.

The content of the shared file: what was answered, and who watches which jobs.

What Slurm said last, shared by all processes of the user on this machine.

Ten notebooks that watch ten runs cost the scheduler what one costs: the answers
lie in one file per cluster, with the ids of the jobs that live processes watch,
and whoever finds the answers too old asks for all. They may be 30 s old, and up
to 180 s while nothing ends. A job that was just submitted is not asked for
earlier, and forces no earlier question about the others.

The file is a JSON object with the fields of `Shared`. Where no such file can be
shared, a process keeps its own answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import socket
import stat
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from slurmlaunch.backends.slurm.job_states import Elements, JobStates, undecided
from slurmlaunch.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from slurmlaunch.backends.base import TaskRecord
    from slurmlaunch.backends.slurm.job_states import Row
    from slurmlaunch.backends.slurm.queries import Answer, Queries


# The lock is held for the time of one small write, never while a command runs.
_LOCK_TIMEOUT = 5.0
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Unshared(Exception):
    """The file cannot be shared: no safe folder, or a lock that is never free."""


class SharedFile:
    """One JSON object under one name, replaced as a whole, under a lock that is waited for in bounded time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._read: tuple[tuple[int, ...], dict[str, Any]] | None = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all others from writing.

        Raises:
            Unshared: there is no place for the file, or the lock was not to be had.
        """
        path = self._path()
        try:
            with FileLock(path.with_suffix(".lock"), timeout=_LOCK_TIMEOUT, mode=0o600):
                yield
        except (OSError, Timeout, NotImplementedError) as error:  # the last: a file system without flock
            raise Unshared(str(error)) from error

    def read(self) -> dict[str, Any]:
        """Return the object; empty where there is none, or none that can be read.

        Raises:
            Unshared: there is no place for the file.
        """
        path = self._path()
        try:
            status = path.stat()
            # Replaced as a whole, so another content is another file.
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._read is None or self._read[0] != version:
                self._read = (version, _object(path.read_bytes()))
        except OSError:
            return {}
        return self._read[1]

    def write(self, data: dict[str, Any]) -> None:
        """Replace the object; the lock is held.

        Raises:
            OSError: it could not be written.
        """
        path = self._path()
        beside = path.with_suffix(f".{os.getpid()}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(data, file, separators=(",", ":"))
        beside.replace(path)

    def _path(self) -> Path:
        return _folder() / f"{self._name}.json"


class PrivateFile:
    """What stands in for a `SharedFile` where none can be had: the object of this process alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._data: dict[str, Any] = {}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other threads from writing."""
        with self._lock:
            yield

    def read(self) -> dict[str, Any]:
        """Return the object."""
        return self._data

    def write(self, data: dict[str, Any]) -> None:
        """Replace the object."""
        self._data = data


def _object(content: bytes) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _folder() -> Path:
    """Return a folder of this machine that is the user's alone."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and _is_ours(Path(runtime)):
        folder = Path(runtime, "slurmlaunch")
    else:
        folder = Path(tempfile.gettempdir(), f"slurmlaunch-{os.geteuid()}")
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700)
    if not _is_ours(folder):
        # In a folder that anybody may write to, somebody else may have been there first.
        raise Unshared(f"{folder} is not a folder of yours alone")
    return folder


def _is_ours(folder: Path) -> bool:
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & _OTHERS


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
