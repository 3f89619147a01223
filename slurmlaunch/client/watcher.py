"""The watcher: one thread per process that settles all futures.

It looks at each run (`lookout`) often while news is likely, seldom when not,
and never at more than so many file operations a second in all. A second thread
asks the scheduler, since its commands may hang.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
from typing import TYPE_CHECKING

from slurmlaunch.backends.base import OF_THE_CLIENT
from slurmlaunch.client.lookout import Lookout
from slurmlaunch.client.submission import Submission
from slurmlaunch.errors import ResultLost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from slurmlaunch.backends.base import Backend, Snapshot
    from slurmlaunch.client.lookout import Look
    from slurmlaunch.client.run import Run

_log = logging.getLogger("slurmlaunch")

SHORTEST, LONGEST = 0.015, 1.0
"""Seconds between two looks at a run: at first, and where nothing has happened for long."""

_SHARE_OF_QUIET = 0.03
"""The next look comes after this share of the time since the last news: so what comes
after a wait is seen at most so much later than it could have been."""

_LAST_LOOK = 5.0
"""Seconds that a look may take when the interpreter ends."""

GLANCING, SAMPLING, COLLECTING, FINISHING = (15.0, 200.0), (25.0, 150.0), (25.0, 8000.0), (200.0, 2000.0)
"""File operations a second, on average and for all runs together, and how many may be saved up: to see whether a task
has begun or ended; to read what may have grown; to read what has ended, which comes but once for each task, while
others run; and when none does, so that somebody waits for nothing else."""

_DEEPEST = 500.0
"""What is read of tasks that have ended is taken off what may have grown, up to so many operations: where much ends,
that is news enough."""


class Budget:
    """So many file operations a second, on average."""

    def __init__(
        self,
        per_second: float,
        burst: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        deepest: float = math.inf,
    ) -> None:
        """Begin with as many as may be saved up; no more than *deepest* are ever owed."""
        self._per_second, self._burst, self._clock, self._deepest = per_second, burst, clock, deepest
        self._left = burst
        self._at = clock()

    def left(self) -> float:
        """Return how many operations may be made now."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        return self._left

    def seconds_owed(self) -> float:
        """Return how long it takes until what was spent too much has come in again."""
        return max(0.0, -self.left() / self._per_second)

    def spend(self, operations: int) -> None:
        """Note that they were made."""
        self._left = max(self._left - operations, -self._deepest)


class Budgets:
    """What the looks at all runs of a process may cost.

    Attributes:
        glancing: to see whether something has begun or ended.
        sampling: to read what may have grown.
        collecting: to read what has ended, while something else runs.
        finishing: the same, when all has ended.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.glancing, self.sampling = Budget(*GLANCING, clock), Budget(*SAMPLING, clock, deepest=_DEEPEST)
        self.collecting, self.finishing = Budget(*COLLECTING, clock), Budget(*FINISHING, clock)


class Watch:
    """When a run is looked at next, and what is known so far.

    Attributes:
        lookout: looks at it.
        due: when, by the clock.
        news_at: when there was news last.
    """

    def __init__(self, run: Run, clock: Callable[[], float] = time.monotonic) -> None:
        self.lookout = Lookout(run, clock)
        self._submission = Submission(run)
        self._clock = clock
        self._folder = run.folder.path
        self._trouble_since: float | None = None
        self.news_at = self.due = clock()

    def look(self, budgets: Budgets) -> Look:
        """Look now, as far as the budgets allow, and decide when to look next."""
        sampling = budgets.sampling
        collecting = budgets.finishing if self.lookout.all_ended else budgets.collecting
        costly = self.lookout.run.backend.name != "local"
        look = self.lookout.look(sampling.left(), collecting.left()) if costly else self.lookout.look()
        now = self._clock()
        self._trouble_since = None
        if look.news:
            self.news_at = now
        self.due = now + min(LONGEST, max(SHORTEST, (now - self.news_at) * _SHARE_OF_QUIET))
        if costly:
            budgets.glancing.spend(look.glancing)
            sampling.spend(look.sampling + look.collecting)
            collecting.spend(look.collecting)
            self.due = max(self.due, now + budgets.glancing.seconds_owed())
        return look

    def keep_up(self) -> None:
        """Submit, now and then, what another client was to submit and has left; see what it was refused."""
        try:
            self._submission.keep_up()
        except OSError:
            pass  # whoever looks at the folder says what is wrong with it
        except Exception:  # noqa: BLE001  (a fault of ours: what is submitted is watched all the same)
            _log.exception("slurmlaunch cannot see what is left to submit of %s", self._folder)

    def stumble(self, error: OSError) -> None:
        """Look again later; where the folder is gone for good, so are the outcomes."""
        now = self._clock()
        if self._trouble_since is None:
            self._trouble_since = now
            _log.warning("slurmlaunch cannot look into %s (%s); it keeps trying", self._folder, error)
        elif isinstance(error, FileNotFoundError) and now - self._trouble_since > self.lookout.absences.latency:
            message = f"the run folder is gone: {self._folder}"
            run = self.lookout.run
            run.ended(range(run.manifest.items), lambda _: ResultLost(message), final=True)  # nothing runs there again
        self.due = now + LONGEST


class _Inquiry:
    """Asks one backend for the states of what is watched, from a thread of its own."""

    def __init__(self, backend: Backend, watcher: Watcher) -> None:
        self._backend = backend
        self._watcher = watcher
        self._taken = 0.0
        threading.Thread(target=self._ask, name=f"slurmlaunch-{backend.name}", daemon=True).start()

    def _ask(self) -> None:
        watcher, backend = self._watcher, self._backend
        while True:
            watches = watcher.watches_on(backend)
            for watch in watches:
                watch.keep_up()
            runs = [watch.lookout.run for watch in watches]
            jobs = {job_id: run.manifest.created for run in runs for job_id in run.job_ids}
            snapshot = self._query(jobs)
            if snapshot is not None and snapshot.taken != self._taken:
                self._taken = snapshot.taken
                watcher.told(watches, snapshot)
            if not watcher.more_to_ask(backend):
                self._query({})  # or other processes would go on asking for our jobs
                return

    def _query(self, jobs: Mapping[str, float]) -> Snapshot | None:
        try:
            return self._backend.query(jobs)
        except Exception:  # noqa: BLE001  (a fault of ours: results are collected all the same)
            _log.exception("slurmlaunch cannot ask for the states of the jobs")
            return None


class Watcher:
    """Watches the runs of this process that have open items, and that anybody wants to hear of."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._watches: dict[Run, Watch] = {}
        self._inquiries: dict[Backend, _Inquiry] = {}
        self._told: list[tuple[list[Watch], Snapshot]] = []
        self._budgets = Budgets()
        self._thread: threading.Thread | None = None
        self._last_look: threading.Event | None = None

    def watch(self, run: Run) -> None:
        """Take in what a run has come to so far, and watch it while it has open items."""
        watch = Watch(run)
        try:
            watch.lookout.look()
        except OSError as error:  # it may well run: then it is looked at again
            watch.stumble(error)
        if not run.ledger.open:
            return
        with self._news:
            self._watches[run] = watch
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="slurmlaunch-watcher", daemon=True)
                self._thread.start()
            if run.backend not in self._inquiries:
                self._inquiries[run.backend] = _Inquiry(run.backend, self)
            self._news.notify_all()

    def _look(self) -> None:
        while True:
            with self._news:
                self._sleep()
                told, self._told = self._told, []
                last, self._last_look = self._last_look, None
                now = time.monotonic()
                ready = [(run, watch) for run, watch in self._watches.items() if last or watch.due <= now]
            for watches, snapshot in told:
                self._pass_on(watches, snapshot)
            for run, watch in ready:
                self._look_at(run, watch)
            if last:
                last.set()

    def _sleep(self) -> None:
        """Wait until a run is due, or something is told."""
        while not (self._told or self._last_look):
            now = time.monotonic()
            due = min((watch.due for watch in self._watches.values()), default=None)
            if due is not None and due <= now:
                return
            self._news.wait(None if due is None else due - now)

    def _pass_on(self, watches: list[Watch], snapshot: Snapshot) -> None:
        for watch in watches:
            run = watch.lookout.run
            if self._watches.get(run) is watch:
                try:
                    watch.lookout.absences.hear(snapshot)
                except Exception:  # noqa: BLE001  (a fault of ours: the files are taken in all the same)
                    _log.exception("slurmlaunch cannot make out the states of %s", run.folder.path)
                watch.due = 0.0

    def _look_at(self, run: Run, watch: Watch) -> None:
        try:
            watch.look(self._budgets)
        except OSError as error:
            watch.stumble(error)
        except Exception as error:  # noqa: BLE001  (a fault of ours must not be an endless wait of theirs)
            _log.exception("slurmlaunch cannot watch %s", run.folder.path)
            failed = error
            run.ended(range(run.manifest.items), lambda _: failed, final=True)
        if not run.ledger.open or not run.is_wanted:
            with self._news:
                self._watches.pop(run, None)
        if not run.ledger.open:
            run.dismiss()

    def look_at_exit(self) -> None:
        """Settle what our own tasks have come to, callbacks included: they have ended, and nobody looks later."""
        with self._news:
            if not any(run.backend.name in OF_THE_CLIENT for run in self._watches):
                return
            self._last_look = looked = threading.Event()
            self._news.notify_all()
        looked.wait(_LAST_LOOK)

    # For the inquiries.

    def watches_on(self, backend: Backend) -> list[Watch]:
        """Return the watches of the runs that are on a backend."""
        with self._news:
            return [watch for run, watch in self._watches.items() if run.backend is backend]

    def told(self, watches: list[Watch], snapshot: Snapshot) -> None:
        """Take in what the scheduler said."""
        with self._news:
            self._told.append((watches, snapshot))
            self._news.notify_all()

    def more_to_ask(self, backend: Backend) -> bool:
        """Wait until it is time to ask again; False, and no inquiry, where nothing is left to ask about."""
        until = time.monotonic() + backend.query_every
        with self._news:
            while (left := until - time.monotonic()) > 0:
                self._news.wait(left)
            if not any(run.backend is backend for run in self._watches):
                del self._inquiries[backend]
                return False
            return True


WATCHER = Watcher()
"""The watcher of this process."""

# As the last one that is registered is called first, this comes after the wait for local tasks.
atexit.register(WATCHER.look_at_exit)


def _start_anew() -> None:
    """In a forked child: its parent's threads are not there, and its locks may be held."""
    WATCHER.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_start_anew)
