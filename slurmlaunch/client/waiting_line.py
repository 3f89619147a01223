"""The line of arrays that wait to be submitted, of all runs on one backend, and the one thread that submits them.

`submission` puts arrays into the line: those of a run after its first, and those for which there was no room. What is
in the way of one array, such as a limit on queued jobs, is in the way of all that share it: the first of them is tried
again, after growing pauses, and the others follow when it gets through. So a thousand runs that wait cost one thread,
one sbatch per pause and one warning. The line knows neither rounds nor journals.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Protocol
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable
    from pathlib import Path

    from slurmlaunch.backends.base import Backend

SHORTEST_WAIT, LONGEST_WAIT = 5.0, 60.0
"""Seconds between two attempts to submit what waits."""

_LOOK_AGAIN = 0.2
"""Seconds after which a waiting line sees that the interpreter exits, which must not wait for room in the queue."""

_log = logging.getLogger("slurmlaunch")


class Obstacle(NamedTuple):
    """What is in the way of an array, and passes by itself."""

    waits_for: str  # such as "room in the queue"
    said: str  # the complaint
    of: Hashable  # which arrays it is in the way of: one of their `shares`


def jittered(seconds: float) -> float:
    """Return about so many seconds, so that clients do not come back at once."""
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311


class Waiting(Protocol):
    """Arrays of one run in the line."""

    @property
    def run_folder(self) -> Path:
        """The folder of the run."""

    @property
    def shares(self) -> tuple[Hashable, ...]:
        """What they have in common with those of other runs that have the same obstacle."""

    @property
    def is_left(self) -> bool:
        """Whether there is one to submit."""

    def is_needed(self) -> bool:
        """Whether they still have work to do; if not, `attempt` only says so."""

    def attempt(self) -> Obstacle | None:
        """Submit the next one; return what is in the way, or None if this one need not be tried again."""

    def note(self) -> None:
        """Record, once, that the next one waits and that this process will submit it."""


class _Pause(NamedTuple):
    until: float
    seconds: float


class WaitingLine:
    """The arrays of one backend that wait, in order."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[Waiting, None] = {}
        self._sharing: Counter[Hashable] = Counter()
        self._pauses: dict[Hashable, _Pause] = {}
        self._warned: set[Hashable] = set()
        self._thread: threading.Thread | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def holds(self, share: Hashable) -> bool:
        """Whether arrays with this in common wait, so that others have to join them."""
        with self._changed:
            return share in self._sharing

    def join(self, arrays: Waiting, obstacle: Obstacle | None = None) -> None:
        """Put arrays at the end of the line, of which the first may just have met an obstacle.

        Raises:
            RuntimeError: no thread can be started, because there are too many or the interpreter exits.
        """
        with self._changed:
            if self._thread is None:
                # No daemon: a script that exits has its arrays submitted, as far as there is room for them.
                thread = threading.Thread(target=self._submit, name="slurmlaunch-submit", daemon=False)
                thread.start()
                self._thread = thread
            if obstacle is not None and obstacle.of not in self._pauses:
                self._pause(obstacle.of)
            self._waiting[arrays] = None
            self._sharing.update(arrays.shares)
            held_up = not self._pauses.keys().isdisjoint(arrays.shares)
            self._changed.notify_all()
        if held_up:
            arrays.note()

    def _pause(self, share: Hashable) -> None:
        seconds = SHORTEST_WAIT
        if share in self._pauses:
            seconds = min(LONGEST_WAIT, self._pauses[share].seconds * 2)
        self._pauses[share] = _Pause(time.monotonic() + jittered(seconds), seconds)

    def _submit(self) -> None:
        while (arrays := self._next()) is not None:
            needed, obstacle = arrays.is_needed(), self._attempt(arrays)
            with self._changed:
                if obstacle is None:
                    if needed:
                        self._clear(arrays.shares)
                    if not arrays.is_left:
                        self._remove(arrays)
                    continue
                self._pause(obstacle.of)
                held_up = [each for each in self._waiting if obstacle.of in each.shares]
            for each in held_up:
                each.note()
            self._warn(obstacle, held_up)

    @staticmethod
    def _attempt(arrays: Waiting) -> Obstacle | None:
        try:
            return arrays.attempt()
        except Exception:  # noqa: BLE001  (a fault of slurmlaunch must not stop the line)
            _log.exception("slurmlaunch could not submit arrays of %s", arrays.run_folder)
            return None

    def _clear(self, shares: Iterable[Hashable]) -> None:
        """Let those that met the same obstacle follow at once."""
        for share in shares:
            self._pauses.pop(share, None)

    def _remove(self, arrays: Waiting) -> None:
        del self._waiting[arrays]
        self._sharing.subtract(arrays.shares)
        gone = [share for share in arrays.shares if not self._sharing[share]]
        self._clear(gone)
        for share in gone:
            del self._sharing[share]
            self._warned.discard(share)

    def _next(self) -> Waiting | None:
        """Wait for arrays that may be tried, and return them; None if there are none, or if the interpreter exits."""
        with self._changed:
            while self._waiting:
                now, soonest = time.monotonic(), math.inf
                for each in self._waiting:
                    until = max(self._pauses[share].until if share in self._pauses else 0.0 for share in each.shares)
                    if until <= now or not each.is_needed():
                        return each
                    soonest = min(soonest, until)
                if not self._sleep(soonest):
                    break
            left, self._thread = [each for each in self._waiting if each.is_needed()], None
            for each in list(self._waiting):
                self._remove(each)
        _say_what_is_left(left)
        return None

    def _sleep(self, until: float) -> bool:
        """Sleep until then, or until arrays join; return False at once when the interpreter exits."""
        while (left := until - time.monotonic()) > 0:
            if not threading.main_thread().is_alive():
                return False
            if self._changed.wait(min(left, _LOOK_AGAIN)):
                return True
        return True

    def _warn(self, obstacle: Obstacle, held_up: list[Waiting]) -> None:
        """Say once what all wait for, and how many do."""
        if obstacle.of in self._warned:
            return
        self._warned.add(obstacle.of)
        runs = len({each.run_folder for each in held_up})
        what = f"{runs} runs" if runs > 1 else "a run"
        _log.warning("slurmlaunch waits for %s to submit %s: %s", obstacle.waits_for, what, obstacle.said)


def _say_what_is_left(arrays: list[Waiting]) -> None:
    folders = list(dict.fromkeys(str(each.run_folder) for each in arrays))
    if len(folders) == 1:
        _log.warning("slurmlaunch exits before all arrays are submitted: slurmlaunch.attach(%r) continues", folders[0])
    elif folders:
        _log.warning(
            "slurmlaunch exits before all arrays of %d runs are submitted. slurmlaunch.attach(folder) continues each, "
            "such as slurmlaunch.attach(%r); slurmlaunch.runs() lists them",
            len(folders),
            folders[0],
        )


_lines: WeakKeyDictionary[Backend, WaitingLine] = WeakKeyDictionary()


def line_of(backend: Backend) -> WaitingLine:
    """Return the line of a backend, which this process has once; a forked child has other backends."""
    return _lines.setdefault(backend, WaitingLine())
