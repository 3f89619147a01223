"""The futures of one run: which of them exist, and the thread in which they get their outcomes.

Unpickling a result or calling a callback may take long, or never end: that delays the other futures of its own run, and
no other run. `Run` has one `FuturesRegistry` and one `Notifier`. They know no outcomes, and nothing of the run.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from weakref import ref

from slurmlaunch.client.ledger import common

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

Batch: TypeAlias = "Sequence[tuple[int, Any]]"
"""Items, and their futures."""

F = TypeVar("F")
"""The class of futures, which this module does not know: `slurmlaunch.client.futures.Future`."""

_REPORT_EVERY = 0.02


class FuturesRegistry:
    """The futures of one run: one per item, made when it is first requested.

    A future is kept while its item is open and until it has its outcome, and from then on
    only as long as somebody else holds it. Callers hold the lock of the run.
    """

    _FEWEST = 1024

    def __init__(self) -> None:
        self._waiting: dict[int, Any] = {}
        self._notifying: dict[int, Any] = {}
        # Not a WeakValueDictionary, which calls back for each object that goes, and costs several times as much.
        self._settled: dict[int, ref[Any]] = {}
        self._sweep_at = self._FEWEST

    def find(self, item: int) -> Any:
        """Return the future of an item, if somebody holds one."""
        found = self._waiting.get(item)
        settled = self._settled.get(item)  # in one step: another thread may replace the dictionary
        return settled() if found is None and settled is not None else found

    def add(self, item: int, future: Any, *, settled: bool) -> None:
        """Add the future of an item; if this has *settled*, the caller notifies it next."""
        if settled:
            self._remember(item, future)
            self._notifying[item] = future
        else:
            self._waiting[item] = future

    def _remember(self, item: int, future: Any) -> None:
        self._settled[item] = ref(future)
        if len(self._settled) > self._sweep_at:
            self._settled = {number: each for number, each in self._settled.items() if each() is not None}
            self._sweep_at = max(self._FEWEST, 2 * len(self._settled))

    def add_done(self, first: int, values: Iterable[Any], make: Callable[[int], F]) -> list[F]:
        """Return the futures of consecutive items that have settled with these values."""
        futures: list[F] = []
        for item, value in enumerate(values, first):
            future: Any = self._settled[item]() if item in self._settled else None
            if future is None:
                future = make(item)
                future.settle(value)
                self._remember(item, future)
            futures.append(future)
        return futures

    def take(self, ranges: Iterable[range]) -> list[tuple[int, Any]]:
        """Return the waiting futures of items that have settled, for the caller to notify."""
        taken = [(item, self._waiting[item]) for items in ranges for item in common(self._waiting, items)]
        for item, future in taken:
            self.add(item, future, settled=True)
            del self._waiting[item]  # after that: a child forked in between disowns it all the same
        return taken

    def notified(self, futures: Iterable[tuple[int, Any]]) -> None:
        """Keep these no longer: they have been notified."""
        for item, _ in futures:
            self._notifying.pop(item, None)

    @property
    def in_use(self) -> bool:
        """Whether somebody holds a future, or one has yet to be notified."""
        return bool(self._waiting or self._notifying) or any(each() is not None for each in self._settled.values())

    def all_notified(self, items: Collection[int] | None = None) -> bool:
        """Whether no future of settled items, of these or of all, has yet to be notified."""
        return all(future.done() for item, future in self._notifying.items() if items is None or item in items)

    def all_called_back(self) -> bool:
        """Whether no callback of a future that is done has yet to return."""
        return not self._notifying

    def disown_all(self, error: BaseException) -> None:
        """Have all futures that are not done raise this error."""
        for future in [*self._waiting.values(), *self._notifying.values()]:
            future.disown(error)
        self._waiting.clear()
        self._notifying.clear()


class Notifier:
    """Notifies futures in the order in which they are added; the thread ends when none is left."""

    def __init__(self, notify: Callable[[int, Any], None], report: Callable[[Batch], None]) -> None:
        """Begin without a thread; *notify* gives one future its outcome, *report* is told which have theirs."""
        self._notify, self._report = notify, report
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, Any]] = deque()
        self._notified: list[tuple[int, Any]] = []
        self._reported_at = 0.0
        self._thread: threading.Thread | None = None

    def add(self, futures: Batch) -> None:
        """Have futures notified soon."""
        with self._lock:
            self._waiting.extend(futures)
            if self._thread is not None or not self._waiting:
                return
            thread = self._thread = threading.Thread(target=self._run, name="slurmlaunch-notify", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # there are too many threads, or the interpreter exits
            self._thread = threading.current_thread()
            self._run()

    def _run(self) -> None:
        while True:
            while self.notify_next():
                pass
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return

    def notify_next(self) -> bool:
        """Notify the next future; return False if none waits. To be called in the thread."""
        try:
            item, future = self._waiting.popleft()
        except IndexError:
            return False
        self._notify(item, future)
        self._notified.append((item, future))
        now = time.monotonic()
        if not self._waiting or now - self._reported_at >= _REPORT_EVERY:
            notified, self._notified = self._notified, []
            self._reported_at = now
            self._report(notified)
        return True

    @property
    def is_current(self) -> bool:
        """Whether this is the thread, so that a callback waits for another future of its own run."""
        return self._thread is threading.current_thread()
