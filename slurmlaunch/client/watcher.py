"""The objects that one client process has once: the watcher, which settles all futures, and the caches.

The watcher is one thread that polls each run (`Collector`), passes the events to the run's
state machine and executes the effects, while nothing is locked. It polls often while
results are likely and rarely otherwise, within one rate limit for all runs. A second
thread per backend queries the scheduler, whose commands may hang: each answer is one event.
`current_client()` returns the process-wide object; a forked child gets a new one.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, WeakValueDictionary

from slurmlaunch.backends.base import OF_THE_CLIENT
from slurmlaunch.client import events
from slurmlaunch.client.collector import Collector
from slurmlaunch.client.rounds import add_round, close_tasks
from slurmlaunch.client.submission import Submission, say_how_to_come_back
from slurmlaunch.errors import ResultLost, SchedulerError
from slurmlaunch.messages import say
from slurmlaunch.runfolder.clients import writer_name
from slurmlaunch.runfolder.storage import Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from slurmlaunch.backends.base import Backend, Snapshot
    from slurmlaunch.client.events import Effect, Event
    from slurmlaunch.client.run import Run

_log = logging.getLogger("slurmlaunch")

SHORTEST, LONGEST = 0.015, 1.0
"""Seconds between two polls of a run: while results are likely, and when nothing has happened for long."""

SHARE_OF_QUIET = 0.03
"""The next poll comes after this share of the time since the last news: a result is seen at most so much later."""

LIKELY_FOR = 60.0
"""Seconds after the last news for which a run on a local disk is polled most often, since a poll costs little there."""

BUSY_SHARE = 0.05
"""The share of the time that visits in vain may take on a local disk; after a poll that reads much the next follows."""

_LAST_POLL = 5.0
"""Seconds that a poll may take when the interpreter exits."""

VISITS_PER_SECOND = {"folders": 3.5, "growing": 2.5, "ended": 3.0, "last": 50.0}
SAVED_VISITS = {"folders": 60.0, "growing": 40.0, "ended": 2000.0, "last": 500.0}
"""The bound on file operations on network file systems, for all runs of this process together: how many folders are
looked at and files read per second on average, and how many visits may be saved up. A visit is about four file
operations, so that a process that waits causes fewer than 40 per second. The kinds are separate so that none delays
the others: folders that show what starts and ends, files of running tasks, files of ended tasks, each of which is read
once, and the same when no task of the run is left."""

LONGEST_DEBT = 60.0
"""Seconds after which visits of a kind are allowed again, however many one poll has made of tasks that died at once."""

_GONE = (
    "Something removed it, such as a clean-up of the storage, or your function itself, and the results with it: make "
    "the call again, perhaps with another folder."
)


class RateLimit:
    """The bound on reading from network file systems, for the polls of all runs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._at = clock, clock()
        self._saved = dict(SAVED_VISITS)

    def left(self, kind: str) -> float:
        """Return how many visits of a kind may be made now; negative after too many."""
        now = self._clock()
        for each, rate in VISITS_PER_SECOND.items():
            self._saved[each] = min(SAVED_VISITS[each], self._saved[each] + (now - self._at) * rate)
        self._at = now
        return self._saved[kind]

    def spend(self, visits: Mapping[str, float]) -> None:
        """Count visits that were made, by kind."""
        for kind, number in visits.items():
            self._saved[kind] = max(self._saved[kind] - number, -LONGEST_DEBT * VISITS_PER_SECOND[kind])

    def seconds_owed(self, kind: str) -> float:
        """Return the seconds until visits of a kind may be made again."""
        return max(0.0, -self.left(kind) / VISITS_PER_SECOND[kind])


class Watch:
    """One run that is watched: polls it, and executes the effects; *due* is its next poll, by the run's clock."""

    def __init__(self, run: Run, *, network: bool | None = None) -> None:
        """Begin; *network* overrides the system's list of mounts."""
        self.run = run
        self.collector = Collector(run, network=network)
        self.submission = Submission(run)
        self._trouble_since: float | None = None
        self._news_at = self.due = run.clock()

    def first_poll(self) -> None:
        """Read all that there is of the run, however much it is."""
        try:
            for event in self.collector.poll():
                self.handle(event)
        except OSError as error:  # the run may well go on: then it is polled again
            self.report_trouble(error)

    def poll(self, limit: RateLimit) -> None:
        """Handle all changes, within the limit on a network file system, and decide when to poll next.

        Raises:
            OSError: the folder cannot be read now.
        """
        collector, clock = self.collector, self.run.clock
        before, visits, unchanged = collector.progress, Counter(collector.visits), collector.unchanged
        ended = "last" if collector.all_ended else "ended"
        new = collector.poll(limit.left("growing"), limit.left(ended)) if collector.network else collector.poll()
        reading, began = 0.0, clock()
        for event in new:
            reading += clock() - began
            self.handle(event)
            began = clock()
        now, news = clock(), before != collector.progress
        self._trouble_since = None
        if news:
            self._news_at = now
        quiet = now - self._news_at
        visits = Counter(collector.visits) - visits
        if collector.network:
            visits[ended] = visits.pop("ended", 0)
            limit.spend(visits)
            pause = max(min(LONGEST, quiet * SHARE_OF_QUIET), limit.seconds_owed("folders"))
        else:
            in_vain = (collector.unchanged - unchanged) / visits.total() if news else 1.0
            busy = reading * max(1.0, in_vain / BUSY_SHARE)
            pause = min(LONGEST, max((quiet - LIKELY_FOR) * SHARE_OF_QUIET, busy))
        self.due = now + max(SHORTEST, pause)

    def handle(self, event: Event) -> None:
        """Pass an event to the run, and execute the effects.

        Raises:
            OSError: files cannot be read now; the next poll reads them.
        """
        trouble: list[OSError] = []
        for effect in self.run.handle(event):
            try:
                self._execute(effect)
            except OSError as error:  # the other effects are executed all the same: they come only once
                trouble.append(error)
        if trouble:
            raise trouble[0]

    def _execute(self, effect: Effect) -> None:
        match effect:
            case events.ReadTasks():
                for event in self.collector.read_tasks(effect):
                    self.handle(event)
            case events.ReadEnds():
                self.handle(self.collector.read_ends())
            case events.RecordEnds():
                self._record_ends(effect)
            case events.SubmitRound():
                self._in_thread("retry", self._retry, effect)
            case events.CancelJobs():
                self._in_thread("cancel", self._cancel_jobs, effect)
            case events.Warn():
                _log.warning("%s", effect.message)

    def _record_ends(self, effect: events.RecordEnds) -> None:
        try:
            self.run.rounds[effect.round].record_ends(writer_name(), effect.ends)
        except OSError as error:  # the folder may only be read: then later clients have to ask the scheduler
            _log.info("slurmlaunch cannot record ends in %s: %s", self.run.folder.path, error)

    def _in_thread(self, name: str, work: Callable[[Any], object], effect: Effect) -> None:
        # The scheduler's commands may hang, while this thread settles futures.
        thread = threading.Thread(target=work, args=(effect,), name=f"slurmlaunch-{name}", daemon=name == "retry")
        try:
            thread.start()
        except RuntimeError as error:  # there are too many threads, or the interpreter exits
            _log.warning("slurmlaunch cannot %s jobs of %s: %s", name, self.run.folder.path, error)
            if name == "retry":
                self.handle(events.RetryEnded(error))

    def _cancel_jobs(self, effect: events.CancelJobs) -> None:
        try:
            self.run.cancel_jobs(effect)
        except SchedulerError as error:
            _log.warning("slurmlaunch could not cancel jobs of %s (%s): %s", self.run.folder.path, effect.why, error)

    def _retry(self, effect: events.SubmitRound) -> None:
        """Make and submit a round for items that failed for an external reason."""
        run = self.run
        with run.changed:
            left = [item for item in effect.items if item in run.state.pending and not run.state.pending[item].recorded]
        try:
            if began := Patience().run(lambda: close_tasks(run, left)):
                run.handle(events.TasksBeganAgain(began))
                self._retry_ended()
                return
            added = Patience().run(lambda: add_round(run, effect.items, effect.options))
            run.handle(events.RoundAdded(added.number, added.plan))
            self.submission.submit(added, ended=self._retry_ended)
            _log.info("slurmlaunch retries %d items of %s", len(effect.items), run.folder.path)
        except FileExistsError:
            self._retry_ended()  # another client was first: the next poll reads its round
        except Exception as error:  # noqa: BLE001  (whatever it is, nobody may wait for items that will not run)
            self._retry_ended(error)

    def _retry_ended(self, error: Exception | None = None) -> None:
        if error is not None:
            _log.warning("slurmlaunch could not submit a retry: %s", error)
        self.run.handle(events.RetryEnded(error))

    def report_trouble(self, error: OSError) -> None:
        """Poll again later; if the folder is gone for good, so are the outcomes."""
        now, path = self.run.clock(), self.run.folder.path
        if self._trouble_since is None:
            self._trouble_since = now
            _log.warning("slurmlaunch cannot look into %s (%s); it keeps trying", path, error)
        elif isinstance(error, FileNotFoundError) and now - self._trouble_since > self.run.state.latency:
            self.handle(events.RunLost(ResultLost(f"the run folder is gone: {path}", advice=_GONE)))
        self.due = now + LONGEST

    def follow(self) -> None:
        """Check, at intervals, the arrays that other clients should submit."""
        what = f"check which arrays of {self.run.folder.path} are left to submit"
        with _faults_logged(what), contextlib.suppress(OSError):  # the next poll reports an OSError
            self.submission.follow()


class Watcher:
    """Watches the runs of this process that have open items and that somebody wants."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._watches: dict[Run, Watch] = {}
        self._queried: set[Backend] = set()
        self._reports: list[tuple[Watch, Snapshot]] = []
        self._limit = RateLimit()
        self._thread: threading.Thread | None = None
        self._last_poll: threading.Event | None = None

    def keep_watching(self, watch: Watch) -> None:
        """Watch a run while it has open items."""
        run = watch.run
        if not run.ledger.open:
            return
        with self._news:
            self._watches[run] = watch
            # Noted once they have started: if there are too many threads now, the next run to be watched tries again.
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="slurmlaunch-watcher", daemon=True)
                thread.start()
                self._thread = thread
            if run.backend not in self._queried:
                name = f"slurmlaunch-{run.backend.name}"
                threading.Thread(target=self._query_states, args=(run.backend,), name=name, daemon=True).start()
                self._queried.add(run.backend)
            self._news.notify_all()

    def _run(self) -> None:
        while True:
            with self._news:
                self._sleep()
                reports, self._reports = self._reports, []
                last, self._last_poll = self._last_poll, None
                now = time.monotonic()
                due = [watch for watch in self._watches.values() if last or watch.due <= now]
            for watch, snapshot in reports:
                if self._watches.get(watch.run) is watch:
                    with _faults_logged(f"use the states of {watch.run.folder.path}"):
                        watch.handle(events.SchedulerReported(snapshot))
                    due.append(watch)
            for watch in dict.fromkeys(due):
                try:
                    self._poll(watch)
                except Exception:  # noqa: BLE001  (not even a fault in the report of a fault ends the other runs)
                    watch.due = time.monotonic() + LONGEST
            if last:
                last.set()

    def _sleep(self) -> None:
        """Wait until a run is due, or the scheduler has answered."""
        while not (self._reports or self._last_poll):
            now = time.monotonic()
            due = min((watch.due for watch in self._watches.values()), default=None)
            if due is not None and due <= now:
                return
            self._news.wait(None if due is None else due - now)

    def _poll(self, watch: Watch) -> None:
        run = watch.run
        try:
            watch.poll(self._limit)
        except OSError as error:
            if self._watches.get(run) is watch:  # else its folder may have been removed meanwhile
                watch.report_trouble(error)
        except Exception as error:  # noqa: BLE001  (a fault of slurmlaunch must not be an endless wait)
            _log.exception("slurmlaunch cannot watch %s", run.folder.path)
            watch.handle(events.RunLost(error))
        if not run.ledger.open or not run.is_wanted:
            with self._news:
                self._watches.pop(run, None)
        if not run.ledger.open:
            watch.handle(events.WatchEnded())

    def stop_watching(self, folder: Path) -> None:
        """Watch no run below a folder any more: its caller has cancelled all of them, and removes it."""
        with self._news:
            for run in [run for run in self._watches if run.folder.path.is_relative_to(folder)]:
                del self._watches[run]

    def finish(self) -> None:
        """Settle the items of tasks that this process ran: nothing polls later."""
        with self._news:
            if not any(run.backend.name in OF_THE_CLIENT for run in self._watches):
                return
            self._last_poll = polled = threading.Event()
            self._news.notify_all()
        polled.wait(_LAST_POLL)

    def left_behind(self) -> list[Run]:
        """Return the runs whose jobs go on when this process ends."""
        with self._news:
            return [run for run in self._watches if run.ledger.open and run.backend.name == "slurm" and run.job_ids]

    # Queries, from a thread for each backend.

    def _query_states(self, backend: Backend) -> None:
        """Query a backend, again and again, for the states of all watched runs on it."""
        taken, what = 0.0, "query the states of the jobs"
        while True:
            watches = self.watches_on(backend)
            for watch in watches:
                watch.follow()
            runs = [watch.run for watch in watches]
            with _faults_logged(what):
                snapshot = backend.query({job_id: run.manifest.created for run in runs for job_id in run.job_ids})
                if snapshot is not None and snapshot.taken != taken:
                    taken = snapshot.taken
                    with self._news:
                        self._reports += [(watch, snapshot) for watch in watches]
                        self._news.notify_all()
            time.sleep(backend.query_every)
            with self._news:
                if not any(run.backend is backend for run in self._watches):
                    self._queried.discard(backend)
                    break
        with _faults_logged(what):
            backend.query({})  # or other processes would keep querying for these jobs

    def watches_on(self, backend: Backend) -> list[Watch]:
        """Return the watches of the runs on a backend."""
        with self._news:
            return [watch for run, watch in self._watches.items() if run.backend is backend]


@contextlib.contextmanager
def _faults_logged(what: str) -> Iterator[None]:
    try:
        yield
    except Exception:  # noqa: BLE001  (a fault of slurmlaunch: results are collected all the same)
        _log.exception("slurmlaunch cannot %s", what)


class Client:
    """Everything that exists once per client process.

    Attributes:
        views: the views that were unpickled, by folder and number of rounds: futures that are unpickled one by one
            share one.
        runs: all views whose futures this process may hold.
        backends: the backends, by name and cluster.
        announced: the run folders in which it is recorded that this process uses them.
    """

    def __init__(self) -> None:
        self.watcher = Watcher()
        self.views: WeakValueDictionary[tuple[Path, int], Run] = WeakValueDictionary()
        self.runs: WeakSet[Run] = WeakSet()
        self.announced: set[Path] = set()
        self.backends: dict[tuple[str, str | None], Backend] = {}
        self._lock = threading.Lock()

    def backend(self, name: str, clusters: str | None = None) -> Backend:
        """Return the backend of that name: one for all runs, which share its queries."""
        with self._lock:
            if (name, clusters) not in self.backends:
                self.backends[name, clusters] = _new_backend(name, clusters)
            return self.backends[name, clusters]

    def watch(self, run: Run) -> None:
        """Read everything that a run has recorded so far, and watch it while it has open items."""
        self.runs.add(run)
        watch = Watch(run)
        watch.first_poll()
        self.watcher.keep_watching(watch)


def _new_backend(name: str, clusters: str | None) -> Backend:
    """Return a backend; only its own module is imported, so that a command line starts fast."""
    if name == "slurm":
        from slurmlaunch.backends.slurm import SlurmBackend

        return SlurmBackend(clusters)
    if name == "allocation":
        from slurmlaunch.backends.allocation import AllocationBackend

        return AllocationBackend()
    if name == "local":
        from slurmlaunch.backends.local import LocalBackend

        return LocalBackend()
    from slurmlaunch.backends.inline import InlineBackend

    return InlineBackend()


_client = Client()


def current_client() -> Client:
    """Return the client of this process."""
    return _client


def _start_anew() -> None:
    """In a forked child: the parent's threads do not exist here, and its locks may be locked."""
    global _client
    inherited, _client = _client, Client()
    _client.runs = inherited.runs  # a child of this process disowns them, too
    for run in list(_client.runs):
        run.disown()
    for backend in inherited.backends.values():
        backend.disown()


os.register_at_fork(after_in_child=_start_anew)


_MOST_NAMED = 5
"""How many runs a script that ends names as those that it leaves behind."""


def _finish() -> None:
    left = _client.watcher.left_behind()
    for run in left[:_MOST_NAMED]:
        say_how_to_come_back(run)
    if len(left) > _MOST_NAMED:
        say(f"{len(left) - _MOST_NAMED} more runs go on: slurmlaunch.runs()")
    until = time.monotonic() + _LAST_POLL
    _client.watcher.finish()
    for run in list(_client.runs):
        if run.backend.name in OF_THE_CLIENT:
            run.wait_for(run.all_called_back, max(0.0, until - time.monotonic()))


# Functions registered later run earlier: this one runs after the wait for local tasks.
atexit.register(_finish)
