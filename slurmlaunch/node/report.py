"""The failures of items: pickled also where file descriptors have run out, and shown in the log of the task.

A worker or a rank pickles them. The supervisor of a pool shows them, since a worker's standard error is its item's; a
rank, whose standard error is its item's too, shows its own by another descriptor. This module knows neither queues nor
files of outcomes.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from slurmlaunch.node import system
from slurmlaunch.outcome import Failure
from slurmlaunch.runfolder.files import identity
from slurmlaunch.runfolder.records import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurmlaunch.outcome import Bundle
    from slurmlaunch.runfolder.function import Work

_SPARE = 4
"""More than an import opens at once."""

_LOG_BYTES, _LONGEST = 1 << 17, 1 << 13
"""How much of the log the failures of one attempt may take, and one of them."""

_LAST = b"slurmlaunch: the log of this task shows no more failures; the futures have all of them\n"


class FailureLog:
    """Shows failures in the log of a task, as far as there is space for them."""

    def __init__(self, size: int = _LOG_BYTES, descriptor: int = 2) -> None:
        """Write to a descriptor: standard error, or a copy of it."""
        self._left, self._descriptor, self._log = size, descriptor, identity(descriptor)

    @classmethod
    def of_rank(cls, ranks: int, launch: int, descriptor: int) -> FailureLog:
        """Return the log of one rank: launches follow each other while items fail."""
        return cls((_LOG_BYTES >> launch) // ranks, descriptor)

    def show_item(self, item: int, pickled: bytes | memoryview) -> None:
        """Write the pickled failure of an item, if its function raised: the storage's failures have no traceback."""
        if Failure.parts(pickled).traceback:
            self.show(f"item {item}", pickled)

    def show(self, who: str, pickled: bytes | memoryview) -> None:
        """Write a pickled failure."""
        _, traceback, type_name, message = Failure.parts(pickled)
        left = self._left
        if left <= 0 or identity(self._descriptor) != self._log:  # the user's function may have put another file there
            return
        text = f"slurmlaunch: {who} failed\n{(traceback or f'{type_name}: {message}').rstrip()}\n"
        data = text.encode("utf-8", "replace")
        if len(data) > _LONGEST:
            data = data[: _LONGEST // 4] + b"\n[...]\n" + data[-_LONGEST * 3 // 4 :]
        self._left = left - len(data)
        if left <= len(data):
            data += _LAST
        system.flush_streams()
        with suppress(OSError):  # a full disk: the outcome matters more
            os.write(self._descriptor, data)


class Reporter:
    """Pickles the outcomes of items.

    It keeps a few file descriptors for that, so that an item which uses up all others gets its own error: to pickle a
    failure, modules may have to be imported.
    """

    def __init__(self, work: Work, descriptor: int) -> None:
        """Keep copies of a descriptor that is this process's own."""
        self._work = work
        self._descriptor, self._original = descriptor, identity(descriptor)
        self._spare: list[int] = []
        self._keep_spare()

    def run(self, item: int, is_copy: Callable[[], bool]) -> tuple[Kind, bytes | Bundle]:
        """Run an item; return the kind of its outcome's record and the pickled outcome.

        A copy of the process is ended: the function forked, and returned there as well.
        """
        try:
            value = self._work.call(item)
        except BaseException as error:  # noqa: BLE001  (any exception of the function is its outcome)
            if is_copy():
                system.leave(status=1)
            system.end_if_interrupted(item)
            return Kind.FAILURE, self.failure(error)
        if is_copy():
            system.leave(status=0)
        return self.pickled(value)

    def failure(self, error: BaseException) -> bytes:
        """Return the pickled failure of an item that raised."""
        with self._using_spare():
            return self._work.failure(error)

    def pickled(self, value: object) -> tuple[Kind, bytes | Bundle]:
        """Return the kind of a value's record and its pickle, as `Work.pickled` does."""
        kind, data = self._work.pickled(value)
        if kind == Kind.FAILURE:
            with self._using_spare():
                kind, data = self._work.pickled(value)  # a module may have been missing for want of a descriptor
        return kind, data

    def _keep_spare(self) -> None:
        with suppress(OSError):
            while len(self._spare) < _SPARE and identity(self._descriptor) == self._original:
                self._spare.append(os.dup(self._descriptor))

    @contextmanager
    def _using_spare(self) -> Iterator[None]:
        while self._spare:
            descriptor = self._spare.pop()
            if identity(descriptor) == self._original:  # else the user's function has closed it
                os.close(descriptor)
        try:
            yield
        finally:
            self._keep_spare()
