"""Waiting for several things at once: descriptors, each with what is to be done when it has news."""

from __future__ import annotations

import os
import select
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Waiting:
    """What a supervisor waits for."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._calls: dict[int, Callable[[], None]] = {}

    def add(self, descriptor: int, call: Callable[[], None]) -> None:
        """Call that when the descriptor can be read, or has come to its end."""
        self._poll.register(descriptor, select.POLLIN)
        self._calls[descriptor] = call

    def remove(self, descriptor: int) -> None:
        """Wait for a descriptor no more; nothing happens if nobody waits for it."""
        if self._calls.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def wait(self, seconds: float) -> None:
        """Wait for news, or so long; make the calls."""
        for descriptor, _ in self._poll.poll(seconds * 1000):
            if descriptor in self._calls:  # one call may end what another was for
                self._calls[descriptor]()


class Signals:
    """Turns the signals of a task into something that can be waited for.

    Attributes:
        terminated: whether SIGTERM has come.
        warned: whether USR1 has: the time limit is near.
    """

    def __init__(
        self,
        waiting: Waiting,
        at_term: Callable[[], None] | None = None,
        at_once: Callable[[], None] | None = None,
    ) -> None:
        """Listen later.

        Args:
            waiting: tells of the signals.
            at_term: is called when SIGTERM has come, before what is added to *waiting* later.
            at_once: is called for it too, but in the middle of whatever is being done.
        """
        self.terminated = self.warned = False
        self._at_term, self._at_once = at_term, at_once
        self._reading, self._writing = os.pipe()
        for descriptor in (self._reading, self._writing):
            os.set_blocking(descriptor, False)
        waiting.add(self._reading, self._clear)

    def listen(self) -> None:
        """Begin."""
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, self._note)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    @staticmethod
    def forget() -> None:
        """End: what comes now is not for us (in a forked child), or comes too late."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Python puts the default back while it ends, and a late warning would then kill it.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def _clear(self) -> None:
        os.read(self._reading, 4096)
        if self.terminated and self._at_term is not None:
            self._at_term()

    def _note(self, number: int, _frame: object) -> None:
        if number == signal.SIGTERM:
            self.terminated = True
            if self._at_once is not None:
                self._at_once()
        elif number == signal.SIGUSR1:
            self.warned = True
