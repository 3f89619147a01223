"""The names in a folder, listed again only where there may be new ones.

Listing a folder of 10^5 names takes hundreds of calls, looking at its time of
modification one. That time may be as coarse as a second or two, so that what
comes just after a listing does not change it: a folder that has just changed is
listed a few times more.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_FIRST_GAP, _GAP_GROWTH = 0.02, 4.0
"""Seconds after which a folder that has changed is listed again, and by what that grows each time."""

_COARSEST = 2.0
"""Seconds of the coarsest time of modification, as some file systems keep it."""

_AT_LEAST_EVERY = 60.0
"""Seconds after which a folder is listed whatever its time of modification says."""

_LISTING_COST = 4
"""Opening, looking, closing, and the call that says there are no more names."""

NAMES_PER_CALL = 1000
"""How many names the system hands over at once: 32 KiB of them."""


class Listing:
    """The names in one folder.

    Attributes:
        operations: how many file operations it has taken so far.
    """

    def __init__(self, path: Path, clock: Callable[[], float], *, network: bool) -> None:
        """Begin with no names.

        Args:
            path: the folder.
            clock: tells the seconds.
            network: whether its time of modification may be an old one of a cache, as that of a network file system
                is until the folder is opened.
        """
        self.operations = 0
        self._path, self._clock, self._network = path, clock, network
        self._seen: set[str] = set()
        self._changed = -1
        self._changed_at = self._listed_at = float("-inf")
        self._gap = _FIRST_GAP

    def new(self) -> set[str]:
        """Return the names that have come since the last time."""
        if not self._is_due():
            return set()
        names = os.listdir(self._path)  # noqa: PTH208  (a Path for each of 10^5 names is felt)
        self.operations += _LISTING_COST + -(-len(names) // NAMES_PER_CALL)
        new = set(names) - self._seen
        self._seen |= new
        return new

    def forget(self, names: set[str]) -> None:
        """Take these for new when the folder is listed again, which is the next time."""
        self._seen -= names
        self._changed = -1

    def _is_due(self) -> bool:
        now, changed = self._clock(), self._modified()
        if changed != self._changed:
            self._changed, self._changed_at, self._gap = changed, now, _FIRST_GAP
        elif self._gap <= _COARSEST * _GAP_GROWTH and now >= self._changed_at + self._gap:
            self._gap *= _GAP_GROWTH
        elif now < self._listed_at + _AT_LEAST_EVERY:
            return False
        self._listed_at = now
        return True

    def _modified(self) -> int:
        if not self._network:
            self.operations += 1
            return self._path.stat().st_mtime_ns
        self.operations += 3
        descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return os.fstat(descriptor).st_mtime_ns
        finally:
            os.close(descriptor)
