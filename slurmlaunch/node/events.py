"""The node's event loop: descriptors with callbacks, and signals as events.

Used by the supervisors and by `rank`; knows nothing of items. It is built on
`select.poll`: importing `selectors` would cost a tenth of a task's start.
"""

from __future__ import annotations

import os
import select
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Events:
    """Calls a function whenever its descriptor becomes readable."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[], None]] = {}

    def add(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Call *callback* whenever the descriptor is readable or at its end."""
        self._poll.register(descriptor, select.POLLIN)
        self._callbacks[descriptor] = callback

    def remove(self, descriptor: int) -> None:
        """Stop watching a descriptor; do nothing if it is not watched."""
        if self._callbacks.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def wait(self, seconds: float) -> None:
        """Wait at most *seconds* for a readable descriptor, then run the callbacks."""
        for descriptor, _ in self._poll.poll(seconds * 1000):
            if descriptor in self._callbacks:  # an earlier callback may have removed it
                self._callbacks[descriptor]()


class Signals:
    """Notes the signals of a task, SIGTERM and the time limit's SIGUSR1, and wakes `Events.wait` for them."""

    def __init__(self, events: Events, on_term: Callable[[], None] | None = None) -> None:
        """Prepare to listen; *on_term* is called for SIGTERM within the signal handler, at any moment."""
        self.terminated = self.warned = False
        self._on_term = on_term
        self._reading, self._writing = os.pipe()
        for descriptor in (self._reading, self._writing):
            os.set_blocking(descriptor, False)
        events.add(self._reading, self._drain)

    def listen(self) -> None:
        """Install the handlers."""
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, self._handle)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    @staticmethod
    def ignore() -> None:
        """Stop listening: in a forked child, or at the end of the task."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Python restores the default while it ends, and a late warning would then kill it.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def _drain(self) -> None:
        os.read(self._reading, 4096)

    def _handle(self, number: int, _frame: object) -> None:
        if number == signal.SIGTERM:
            self.terminated = True
            if self._on_term is not None:
                self._on_term()
        elif number == signal.SIGUSR1:
            self.warned = True
