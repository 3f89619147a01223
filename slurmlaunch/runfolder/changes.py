"""Names that are new in a folder, and how late a network file system may show them.

The one place that lists a folder again and again: a client does so for outcomes and end marks, a client and a task
for claims and cancellations. Listing a folder of 10^5 names takes hundreds of calls, reading its modification time
takes one. That time may be as coarse as two seconds, so that a file created just after a listing does not change it:
a folder that has just changed is listed a few times more.
"""

from __future__ import annotations

import functools
import os
import re
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch.runfolder.files import undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from slurmlaunch.runfolder.files import Location

LATENCY_VARIABLE = "SLURMLAUNCH_LATENCY"

NETWORK_LATENCY = 70.0
"""Seconds for which an existing file may be invisible: NFS caches absent names for up to a minute."""

_LOCAL_LATENCY = 1.0

_LOCAL_FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs"})

_GAP_GROWTH = 4.0
"""Factor by which the time to the next listing of a changed folder grows."""

_COARSEST = 2.0
"""Seconds of the coarsest modification time of any file system."""

_AT_LEAST_EVERY = 60.0
"""Seconds after which a folder is listed whatever its modification time says."""


class NewNames:
    """The names that appear in one folder: each is returned once."""

    def __init__(
        self,
        folder: Location,
        clock: Callable[[], float] = time.monotonic,
        *,
        network: bool = False,
        first_gap: float = 0.0,
    ) -> None:
        """Begin with no names.

        Args:
            folder: the folder.
            clock: returns the seconds.
            network: whether to open the folder before its modification time is read: until then a network file
                system may return an old one from its cache.
            first_gap: seconds after which a folder that has changed is listed again; 0 for each call in the first
                two seconds, which suits callers that poll rarely.
        """
        self._folder, self._clock, self._network, self._first_gap = folder, clock, network, first_gap
        self._seen: set[str] = set()
        self._modified = -1
        self._gap = first_gap
        self._changed_at = self._listed_at = float("-inf")
        self._may_repeat = False

    def new(self) -> set[str]:
        """Return the names that were not there at the last call.

        Raises:
            OSError: the folder cannot be listed.
        """
        with undisturbed():
            if not self.may_have_changed():
                return set()
            with self._listing():
                names = self._folder.names()
        new = set(names) - self._seen
        self._seen |= new
        return new

    def new_entries(self) -> list[os.DirEntry[str]]:
        """Return the directory entries that were not there at the last call.

        Raises:
            OSError: the folder cannot be listed.
        """
        if not self.may_have_changed():
            return []
        with self._listing(), self._folder.entries() as entries:
            new = [entry for entry in entries if entry.name not in self._seen]
        self._seen.update(entry.name for entry in new)
        return new

    @contextmanager
    def _listing(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.forget()  # what it would have shown is still new
            raise

    def forget(self, names: Iterable[str] = ()) -> None:
        """List the folder at the next call, and return these names again then."""
        self._seen.difference_update(names)
        self._modified = -1

    def may_have_changed(self) -> bool:
        """Whether the folder has to be listed now; costs one look at its modification time.

        Raises:
            OSError: the folder does not exist, or its status cannot be read.
        """
        now, modified = self._clock(), self._folder.modified(anew=self._network)
        if modified != self._modified:
            self._modified, self._changed_at, self._gap, self._may_repeat = modified, now, self._first_gap, True
        elif self._may_repeat and now >= self._changed_at + self._gap:
            self._gap *= _GAP_GROWTH
            self._may_repeat = now < self._changed_at + _COARSEST
        elif now < self._listed_at + _AT_LEAST_EVERY:
            return False
        self._listed_at = now
        return True


def latency_of(folder: Path) -> float:
    """Return for how many seconds a file in a folder may exist and not be visible here."""
    given = os.environ.get(LATENCY_VARIABLE)
    if given:
        return float(given)
    return NETWORK_LATENCY if is_on_network(folder) else _LOCAL_LATENCY


@functools.lru_cache(maxsize=256)
def is_on_network(folder: Path) -> bool:
    """Whether a folder's file system may be another machine's.

    If it is this machine's own disk, and the nodes reach it through this machine, nothing is cached in between. A file
    system that is not listed, as in a chroot or a container, is taken for this machine's.
    """
    kind = file_system_of(folder)
    return bool(kind) and kind not in _LOCAL_FILE_SYSTEMS


def file_system_of(folder: Path) -> str:
    """Return the kind of a folder's file system, such as ``nfs4``; empty if it is not listed."""
    return mount_of(folder)[0]


def mount_of(folder: Path) -> tuple[str, str]:
    """Return the kind of a folder's file system and the options of its mount; both empty if it is not listed."""
    best, found = "", ("", "")
    with Path("/proc/self/mounts").open(encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            _, escaped, kind, options, *_ = line.split(" ")
            point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), escaped)
            inside = os.path.commonpath([point, folder]) == point if point.startswith("/") else False
            if inside and len(point) >= len(best):
                best, found = point, (kind, options)
    return found
