"""The newest job states of one cluster, shared by all processes of the user on this machine.

The Slurm backend takes its snapshots from here; `job_states` interprets the rows. Ten notebooks that watch ten runs
cost the scheduler as much as one: one file per cluster, a JSON object with the fields of `Content`, holds the states
and the jobs that each living process watches, and the first process that finds the states too old asks for the jobs of
all. States may be 30 s old, and up to 180 s while nothing ends. A new job is not asked for in its first 30 s, and
causes no earlier query for the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
import secrets
import stat
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.backends.slurm.job_states import STATES, JobStates
from slurmlaunch.backends.slurm.queries import sacct, squeue
from slurmlaunch.errors import OptionError, RunFolderError
from slurmlaunch.runfolder import forms
from slurmlaunch.runfolder.clients import ClientId
from slurmlaunch.runfolder.runs_folder import others_may_exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from slurmlaunch.backends.slurm.commands import Cluster
    from slurmlaunch.backends.slurm.job_states import Row

_VERSION = 1
# The lock is held during one small write, never while a command runs.
_LOCK_TIMEOUT = 5.0
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
# A site without accounting may get it one day.
_ASK_SACCT_AGAIN = 3600.0
_GROWTH = 1.5
# The last query may lie so far ahead of this clock: another process has just asked.
_AHEAD = 60.0

_log = logging.getLogger("slurmlaunch")
_numbers = itertools.count()


@dataclass(frozen=True)
class Intervals:
    """How old states may be, in seconds; ``$SLURMLAUNCH_QUERY_INTERVAL`` sets *shortest* and scales the others."""

    shortest: float = 30.0  # at first, and after something has ended
    longest: float = 180.0  # while nothing ends
    gone: float = 70.0  # how long an element must be missing from squeue and sacct to count as cancelled

    VARIABLE = "SLURMLAUNCH_QUERY_INTERVAL"

    @classmethod
    def from_environment(cls) -> Intervals:
        """Return the default intervals, scaled by the variable if it is set.

        Raises:
            OptionError: its value is not a number of seconds.
        """
        text = os.environ.get(cls.VARIABLE) or str(cls.shortest)
        try:
            scale = float(text) / cls.shortest
        except ValueError:
            scale = 0.0
        if not 0 < scale < math.inf:
            raise OptionError(f"{cls.VARIABLE}={text!r} is not a number of seconds", option=cls.VARIABLE)
        return cls(cls.shortest * scale, cls.longest * scale, cls.gone * scale)


@dataclass(frozen=True)
class Content:
    """The content of the shared file; times are in seconds since the epoch."""

    asked: float = 0.0  # when Slurm was last asked
    taken: float = 0.0  # when it last answered
    age: float = 0.0  # how many seconds after *asked* it may be asked again; 0.0 for the shortest time
    no_accounts_until: float = 0.0  # until then sacct is not asked, because the site keeps no accounts
    # The jobs that each process watches, with their times of submission (0.0: not known).
    watchers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    jobs: Mapping[str, JobStates] = field(default_factory=dict)  # by the job's number

    @classmethod
    def parse(cls, text: bytes, path: Path = Path()) -> Content:
        """Read a file; a damaged file, or one of another version, is an empty content."""
        try:
            data = forms.parse(text, _FORM, path)
        except RunFolderError:
            return cls()
        return cls(
            **{name: float(data[name]) for name in ("asked", "taken", "age", "no_accounts_until")},
            watchers=data["watchers"],
            jobs={job: JobStates.from_json(states) for job, states in data["jobs"].items()},
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content as stored in the file."""
        jobs = {job: states.to_json() for job, states in self.jobs.items()}
        return {"version": _VERSION, **vars(self), "jobs": jobs}

    def watched(self) -> dict[str, float]:
        """Return the jobs that any process watches, and when they were submitted if one of them knows."""
        jobs: dict[str, float] = {}
        for watcher in self.watchers.values():
            for job, since in watcher.items():
                jobs[job] = max(since, jobs.get(job, 0.0))
        return jobs

    def watched_by(self, me: str, jobs: Mapping[str, float]) -> Content:
        """Return the content with our jobs, and without ended processes and the jobs that only they watched."""
        watchers = {who: watched for who, watched in self.watchers.items() if who != me and _is_alive(who)}
        if jobs:
            watchers[me] = dict(jobs)
        new = replace(self, watchers=watchers)
        watched = new.watched()
        # The pace found for other jobs says nothing about these.
        other_jobs = watched.keys().isdisjoint(self.watched())
        known = {job: states for job, states in self.jobs.items() if job in watched}
        return replace(new, age=0.0 if other_jobs else self.age, jobs=known)


_FORM = forms.Keys(
    {
        "version": lambda value: value == _VERSION,
        **dict.fromkeys(("asked", "taken", "age", "no_accounts_until"), forms.seconds),
        "watchers": forms.mapping(forms.mapping(forms.seconds)),
        "jobs": forms.mapping(STATES),
    }
)


class SharedStates:
    """The newest states of one cluster, and the rule that says when to ask again."""

    def __init__(self, cluster: Cluster, intervals: Intervals, *, clock: Callable[[], float] = time.time) -> None:
        self._cluster = cluster
        self._intervals = intervals
        self._clock = clock
        self._number = next(_numbers)
        self._file: _SharedFile | _PrivateFile = _SharedFile(_file_name(cluster.name))
        self._error = ""

    def query(self, watched: Mapping[str, float]) -> Content | None:
        """Return the newest states, asking Slurm first if they are too old; None if it has never answered.

        *watched* are the numbers of the jobs that this process watches from now on, with their
        times of submission (seconds since the epoch; 0.0 if not known).
        """
        try:
            content = self._newest(watched)
        except _UnsharableError as reason:
            _log.info("slurmlaunch asks Slurm for this process alone: %s", reason)
            self._file = _PrivateFile()
            content = self._newest(watched)
        return content if content.taken else None

    def _newest(self, watched: Mapping[str, float]) -> Content:
        now = self._clock()
        process = ClientId.current()
        me = f"{process.pid}-{process.started}-{self._number}"
        content = self._file.read()
        if content.watchers.get(me, {}) == watched and not self._is_due(content, watched, now):
            return content
        with self._file.locked():
            content = self._file.read().watched_by(me, watched)
            due = self._is_due(content, watched, now)
            if due:
                # Written before asking, which takes a while without the lock, so that no other process asks too.
                content = replace(content, asked=now)
            self._file.write(content)
        return self._ask(content, now) if due else content

    def _is_due(self, content: Content, watched: Mapping[str, float], now: float) -> bool:
        # A time far in the future was written before the clock was set back.
        if content.asked - _AHEAD <= now < content.asked + (content.age or self._intervals.shortest):
            return False
        return any(not since <= now < since + self._intervals.shortest for since in watched.values())

    def _ask(self, content: Content, now: float) -> Content:
        answer = _ask_slurm(self._cluster, content, now, self._intervals.gone)
        self._report("" if answer.ok else answer.error)
        with self._file.locked():
            # Other processes may have come and gone meanwhile: only the answer is ours to write.
            newest = self._file.read()
            newest = replace(
                newest,
                taken=now if answer.ok else newest.taken,
                age=self._next_age(content, answer),
                no_accounts_until=answer.no_accounts_until,
                jobs={**newest.jobs, **answer.jobs},
            )
            self._file.write(newest)
        return newest

    def _next_age(self, content: Content, answer: _Answer) -> float:
        shortest, longest = self._intervals.shortest, self._intervals.longest
        grown = min(max(content.age, shortest) * _GROWTH, longest)
        if not answer.ok:
            return grown
        if any(
            states.ended_count() > content.jobs.get(job, JobStates()).ended_count()
            for job, states in answer.jobs.items()
        ):
            return shortest
        # The second query confirms that elements left the queue.
        return min(grown, self._intervals.gone) if any(map(JobStates.needs_sacct, answer.jobs.values())) else grown

    def _report(self, error: str) -> None:
        if error and not self._error:
            _log.warning(
                "Slurm does not report the states of your jobs (%s). The jobs are not affected, and results are "
                "still collected; slurmlaunch keeps asking.",
                error,
            )
        elif self._error and not error:
            _log.info("Slurm reports the states of your jobs again.")
        self._error = error


class _Answer(NamedTuple):
    jobs: Mapping[str, JobStates]
    no_accounts_until: float
    ok: bool
    error: str


def _ask_slurm(cluster: Cluster, content: Content, now: float, gone: float) -> _Answer:
    """Ask squeue for all watched jobs, then sacct for those that it no longer lists in full; one may fail."""
    watched = content.watched()
    jobs = {job: content.jobs.get(job, JobStates()) for job in watched}
    queue = squeue(cluster, watched)
    if queue.rows is not None:
        rows = _by_job(queue.rows)
        jobs = {job: states.after_squeue(rows[job], now) for job, states in jobs.items()}
        unclear = [job for job, states in jobs.items() if states.needs_sacct()]
    else:
        unclear = [job for job, states in jobs.items() if not states.is_over()]
    no_accounts_until = content.no_accounts_until
    accounts = None
    if unclear and now >= no_accounts_until:
        accounts = sacct(cluster, unclear, since=min(watched[job] for job in unclear))
        if accounts.disabled:
            no_accounts_until = now + _ASK_SACCT_AGAIN
    rows = _by_job(accounts.rows or () if accounts else ())
    failed = accounts is not None and accounts.rows is None and not accounts.disabled
    for job in unclear:
        if queue.rows is not None:
            jobs[job] = jobs[job].after_sacct(rows[job], now, gone, failed=failed)
        else:
            jobs[job] = jobs[job].after_sacct_alone(rows[job])
    answers = [answer for answer in (queue, accounts) if answer is not None]
    return _Answer(
        jobs,
        no_accounts_until,
        ok=any(answer.rows is not None for answer in answers),
        error="; ".join(answer.error for answer in answers if answer.error),
    )


def _by_job(rows: Iterable[Row]) -> Mapping[str, list[Row]]:
    jobs: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        jobs[row.job].append(row)
    return jobs


# The file.


class _UnsharableError(Exception):
    """The file cannot be shared: there is no safe folder, or no working lock."""


class _SharedFile:
    """A file that is replaced as a whole, under a lock with a bounded wait."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._read: tuple[tuple[int, ...], Content] = ((), Content())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        from filelock import FileLock, Timeout  # here: a command that lists runs needs none

        path = self._path()
        try:
            with FileLock(path.with_suffix(".lock"), timeout=_LOCK_TIMEOUT, mode=0o600):
                yield
        except (OSError, Timeout, NotImplementedError) as error:  # the last: a file system without flock
            raise _UnsharableError(str(error)) from error

    def read(self) -> Content:
        path = self._path()
        try:
            status = path.lstat()
            # Replaced as a whole, so another content is another file.
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._read[0] != version:
                self._read = (version, Content.parse(_own_content(path), path))
        except OSError:
            return Content()
        return self._read[1]

    def write(self, content: Content) -> None:
        path = self._path()
        # At a random name: what another user has put at one that can be guessed might be a link.
        beside = path.with_suffix(f".{secrets.token_hex(8)}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                json.dump(content.to_json(), file, separators=(",", ":"))
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise

    def _path(self) -> Path:
        return _folder() / f"{self._name}.json"


class _PrivateFile:
    """The stand-in for a `_SharedFile` that cannot be shared: the content of this process alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._content = Content()

    def locked(self) -> threading.Lock:
        return self._lock

    def read(self) -> Content:
        return self._content

    def write(self, content: Content) -> None:
        self._content = content


def _file_name(cluster: str | None) -> str:
    # A configuration is a cluster; and a temporary folder may, against its purpose, be shared by many machines.
    origin = "\0".join((os.environ.get("SLURM_CONF", ""), cluster or "", os.uname().nodename))
    return f"slurm-{hashlib.sha256(origin.encode(errors='surrogateescape')).hexdigest()[:16]}"


def _own_content(path: Path) -> bytes:
    """Return the content of a file of the user's; nothing of another user's, or behind a link."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        return file.read() if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() else b""


_said: set[Path] = set()
"""The folders of which this process has said that they are not used."""


def _folder() -> Path:
    """Return a folder that only the user may read and rename: of this machine, or else in the user's home."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and _is_private(Path(runtime)):
        first = Path(runtime, "slurmlaunch")
    else:
        first = Path(tempfile.gettempdir(), f"slurmlaunch-{os.geteuid()}")
    # Where anybody may write, somebody else may have made the folder first.
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "slurmlaunch")
    for folder in (first, own):
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=folder is own)
        if _is_private(folder) and not others_may_exchange(there := folder.resolve()):
            if folder is own and first not in _said:
                _said.add(first)
                _log.warning(
                    "%s is not a folder that only you can open and rename: another user may have made it. slurmlaunch "
                    "keeps the states of your jobs in %s instead",
                    first,
                    own,
                )
            return there
    raise _UnsharableError(f"neither {first} nor {own} is a folder that only you can open and rename")


def _is_private(folder: Path) -> bool:
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & _OTHERS


# The processes that watch.


def _is_alive(watcher: str) -> bool:
    """Whether the process of a watcher, named ``pid-started-number``, still runs."""
    pid, _, rest = watcher.partition("-")
    return pid.isdigit() and ClientId.of_process(int(pid)).started == rest.partition("-")[0]
