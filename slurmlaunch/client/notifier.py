"""The thread in which the futures of one run get their outcomes.

Unpickling a result or calling a callback may take long, or never end: that delays the other futures of its own run, and
no other run. `Run` uses one `Notifier`. It knows no outcomes, and nothing of the run.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Batch: TypeAlias = "Sequence[tuple[int, Any]]"
"""Items, and their futures."""

_REPORT_EVERY = 0.02


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
