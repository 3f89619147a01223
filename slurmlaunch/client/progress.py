"""Progress while a program waits: one line in a terminal that is rewritten, or one output of a notebook's cell.

`FutureArray.results`, `wait` and the end of a ``with`` block use it. It looks at what the process knows anyway, a few
times a second, in the thread that waits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from slurmlaunch.client.status import Status, status_of
from slurmlaunch.client.wording import pace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from slurmlaunch.client.run import Run

_AFTER = 3.0
"""Seconds of waiting before anything is shown."""

_VARIABLE = "SLURMLAUNCH_PROGRESS"
"""The environment variable that silences all progress if it is 0."""

_log = logging.getLogger("slurmlaunch")

_shown = threading.Lock()
"""Held by the one display of a process: two would write over each other's line."""


class Progress:
    """A context in which a thread waits for items and the display is kept up to date."""

    def __init__(self, run: Run, items: Sequence[int], *, wanted: bool | None) -> None:
        """Show it if *wanted*; None: if a person is looking."""
        self._run, self._items = run, items
        self._surface = _surface(wanted=wanted)
        self._at = time.monotonic() + _AFTER  # the next look
        self._first: tuple[float, int] | None = None
        self._is_shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._surface and self._is_shown:
            try:
                self._surface.show(self._status(), "")
                self._surface.end()
            finally:
                self._is_shown = False
                _shown.release()

    def wait(self, ready: Callable[[], bool], deadline: float | None) -> bool:
        """Wait until a condition on settled items holds, or until *deadline* (monotonic); return whether it holds."""
        try:
            return self._wait(ready, deadline)
        except BaseException:
            self._end()  # what is printed about it stands on lines of its own
            raise

    def _wait(self, ready: Callable[[], bool], deadline: float | None) -> bool:
        while True:
            ends = [each for each in (deadline, self._at if self._surface else None) if each is not None]
            if self._run.wait_for(ready, max(0.0, min(ends) - time.monotonic()) if ends else None):
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
            self._show()

    def _show(self) -> None:
        if self._surface is None:
            return
        self._is_shown = self._is_shown or _shown.acquire(blocking=False)
        if self._is_shown:
            status, now = self._status(), time.monotonic()
            since, settled = self._first = self._first or (now, status.settled)
            rate = (status.settled - settled) / (now - since) if now > since + 1 else 0.0
            self._surface.show(status, pace(rate, status.items - status.settled))
        self._at = time.monotonic() + self._surface.every

    def _status(self) -> Status:
        return status_of(self._run, self._items, tasks=isinstance(self._surface, _Notebook))


class _Surface(Protocol):
    """A place where progress is shown."""

    every: float
    """Seconds between two looks."""

    def show(self, status: Status, pace: str) -> None:
        """Show a status in the place of the last one."""

    def end(self) -> None:
        """Leave the last status there."""


class _Terminal:
    """One line of a terminal."""

    every = 0.5

    def show(self, status: Status, pace: str) -> None:
        _log.addFilter(_clear)  # once, however often
        line = _line(status, pace)[: _columns() - 1]
        print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)  # noqa: T201

    def end(self) -> None:
        _log.removeFilter(_clear)
        print(file=sys.stderr, flush=True)  # noqa: T201


def _clear(_: logging.LogRecord) -> bool:
    """Clear the line before a thread of slurmlaunch logs something; the next look shows it again."""
    print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # noqa: T201
    return True


def _columns() -> int:
    with contextlib.suppress(OSError, ValueError):  # of the terminal as it is now
        return os.get_terminal_size(sys.stderr.fileno()).columns
    return shutil.get_terminal_size().columns


class _Log:
    """A file or a pipe: a line each minute."""

    every = 60.0

    def show(self, status: Status, pace: str) -> None:
        print(_line(status, pace), file=sys.stderr, flush=True)  # noqa: T201

    def end(self) -> None:
        pass


class _Notebook:
    """One output of a notebook's cell."""

    every = 1.0

    def __init__(self, display: Any) -> None:
        self._display = display
        self._handle: Any = None

    def show(self, status: Status, pace: str) -> None:
        output = self._display.HTML(status.to_html(pace))
        if self._handle is None:
            self._handle = self._display.display(output, display_id=True)
        else:
            self._handle.update(output)

    def end(self) -> None:
        pass


def _surface(*, wanted: bool | None) -> _Surface | None:
    """Return where progress is shown; None if nowhere."""
    if wanted is False or os.environ.get(_VARIABLE) == "0":
        return None
    ipython = sys.modules.get("IPython")
    if ipython and hasattr(ipython.get_ipython(), "kernel"):
        return _Notebook(ipython.display)
    if sys.stderr and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return _Terminal()
    return _Log() if wanted else None


def _line(status: Status, pace: str) -> str:
    reason = "" if status.counts["running"] or not status.reasons else status.reasons[0]
    return "; ".join(filter(None, (f"{status.name}: {status.summary()}", pace, reason)))
