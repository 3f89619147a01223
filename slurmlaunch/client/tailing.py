"""Output printed as it grows: `Future.tail`, and `FutureArray.tail` with the logs of all tasks.

It reads what the run folder holds, and asks no scheduler.
"""

from __future__ import annotations

import codecs
import sys
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from slurmlaunch.client.item_details import outputs_by_rank, rank_line
from slurmlaunch.runfolder.changes import is_on_network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from slurmlaunch.client.run import Run
    from slurmlaunch.runfolder.files import Location

_LINES = 10
"""How many lines are printed first."""

_LAST_BYTES = 1 << 14
"""How much of the end of a log is read for them."""

_EVERY = 1.0
"""Seconds between two looks."""

_VISITS_PER_SECOND = 20.0
"""How many logs are looked at per second on a network file system."""

STREAMS = ("out", "err")


class Growing(Protocol):
    """A text that grows."""

    def new(self) -> str:
        """Return what is new, at first the last lines."""


class _ItemOutput:
    def __init__(self, run: Run, item: int, stream: str) -> None:
        self._run, self._item, self._stream = run, item, stream
        self._seen: Counter[int] = Counter()

    def new(self) -> str:
        return "".join(
            rank_line(rank) + new if new and rank else new
            for rank, text in outputs_by_rank(self._run, self._item, self._stream).items()
            for new in [self._new_of(rank, text)]
        )

    def _new_of(self, rank: int, text: str) -> str:
        before, self._seen[rank] = self._seen[rank], len(text)
        return text[before:] if before else _last_lines(text)


class _Log:
    def __init__(self, file: Location) -> None:
        self._file = file
        self._at: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def new(self) -> str:
        first = self._at is None
        try:
            start = max(0, self._file.status().st_size - _LAST_BYTES) if self._at is None else self._at
            new = self._file.read_from(start)
        except FileNotFoundError:
            return ""
        self._at = start + len(new)
        text = self._decoder.decode(new)
        return _last_lines(text) if first else text


def _last_lines(text: str) -> str:
    return "".join(text.splitlines(keepends=True)[-_LINES:])


def tail_item(run: Run, item: int, done: Callable[[], bool], wait: Callable[[float], object] | None) -> None:
    """Print the last lines of an item's output, and with *wait* (of seconds) what comes until it is *done*."""
    outputs = [("", _ItemOutput(run, item, stream)) for stream in STREAMS]
    _print(lambda: outputs, done, wait)


def tail_run(run: Run, done: Callable[[], bool], wait: Callable[[float], object] | None) -> None:
    """Print the last lines of the logs of all tasks, and with *wait* (of seconds) what comes until all are *done*."""
    logs = _Logs(run)
    on_network = is_on_network(run.folder.path)

    def pause(seconds: float) -> None:
        if wait is not None:
            wait(max(seconds, len(logs) / _VISITS_PER_SECOND) if on_network else seconds)

    _print(logs, done, pause if wait else None)


class _Logs:
    """The logs of the tasks that have started; those of a task that has ended come once more."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._open: dict[int, list[_Log]] = {}
        self._over: set[int] = set()

    def __len__(self) -> int:
        return len(STREAMS) * len(self._open)

    def __call__(self) -> Iterator[tuple[str, Growing]]:
        tasks = self._run.tasks
        with self._run.changed:
            started = {task: view.closed for task, view in sorted(tasks.views.items()) if view.started}
        for task, closed in started.items():
            if task not in self._over:
                logs = self._open.setdefault(task, [_Log(tasks.log(task, stream)) for stream in STREAMS])
                yield from ((name_of(task, self._run), log) for log in logs)
            if closed:
                self._over.add(task)
                self._open.pop(task, None)


def name_of(task: int, run: Run) -> str:
    """Return the name of a task for the line above its log; empty if the run has no other."""
    return f"task {task}" if sum(len(each.plan.tasks) for each in run.tasks.rounds) > 1 else ""


def heading(name: str) -> str:
    """Return the line above a log, as tail(1) writes it."""
    return f"==> {name} <==\n" if name else ""


def _print(
    texts: Callable[[], Iterable[tuple[str, Growing]]], done: Callable[[], bool], wait: Callable[[float], object] | None
) -> None:
    last, ends_line = "", True
    while True:
        is_last = wait is None or done()
        for name, text in texts():
            if new := text.new():
                if name != last:
                    sys.stdout.write(("" if ends_line else "\n") + heading(name))
                sys.stdout.write(new)
                last, ends_line = name, new.endswith("\n")
        sys.stdout.flush()
        if is_last or wait is None:
            return
        wait(_EVERY)
