"""Claims: which task has which block of a dynamic round, without a server.

A claim is a name in the round's folder ``claims``: the block's number, as a hard link to a file of the attempt that
claimed it. ``link`` makes a name once, on NFS too, caches or not; if its answer is lost, the inode
behind the name says who made it. A claim is never taken back: the blocks of a task that died go to the next attempt
of the same task, or to a later round.

Blocks are claimed in order: a task links a number only after it has seen the one before it, so that the claimed
numbers have no gap and O(log blocks) looks find the first unclaimed one. A cache may show a claimed block as
unclaimed; then the link fails, and the search continues.

Tasks claim with `Claimer`; clients and later attempts read with `ClaimReader`. `slurmlaunch.runfolder.plan.Blocks`
says which items a block has.
"""

from __future__ import annotations

import errno
import time
from bisect import bisect_left
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.errors import NodeStartError, UnsafeRunFolder
from slurmlaunch.runfolder.changes import NewNames
from slurmlaunch.runfolder.files import create, read_owned
from slurmlaunch.runfolder.layout import numbers_in
from slurmlaunch.runfolder.storage import Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurmlaunch.runfolder.files import Location

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05
"""Seconds to wait, at random, after other tasks were faster: a thousand tasks may start at once."""

_NO_INODES = frozenset({0, 0xFFFFFFFF})
"""The inode numbers in listings of file systems that have none: 0, or FUSE's "unknown"."""


class Claimant(NamedTuple):
    """The attempt that has claimed a block."""

    task: int
    attempt: int

    @classmethod
    def parse(cls, text: str) -> Claimant | None:
        """Read the name or the content of an attempt's file; None for anything else."""
        match numbers_in(text):
            case [task, attempt, _]:
                return cls(task, attempt)
        return None


class ClaimReader:
    """Reads the claims in one folder, each once."""

    def __init__(self, folder: Location, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._names = NewNames(folder, clock)
        self._claimants: dict[int, Claimant | None] = {}

    def new(self) -> Iterator[tuple[int, Claimant]]:
        """Yield the blocks that were claimed since the last call, and their claimants.

        Costs one file operation while nothing changes. Names that are no claims are passed over.

        Raises:
            OSError: the folder cannot be listed.
        """
        claimed: list[tuple[str, int]] = []
        for entry in self._names.new_entries():
            name, claimant, inode = entry.name, Claimant.parse(entry.name), entry.inode()
            if claimant is not None:
                unique = inode not in self._claimants and inode not in _NO_INODES
                self._claimants[inode] = claimant if unique else None
            elif [name] == list(map(str, numbers_in(name))):
                claimed.append((name, inode))
        found = {name: self._claimants.get(inode) or self._written_in(name) for name, inode in claimed}
        unknown = [name for name, claimant in found.items() if claimant is None]
        if unknown:
            self._names.forget(unknown)
        yield from ((int(name), claimant) for name, claimant in found.items() if claimant is not None)

    def _written_in(self, name: str) -> Claimant | None:
        """Read the claimant from the file: its own name appeared later, or the folder was copied."""
        with suppress(OSError, UnsafeRunFolder):
            return Claimant.parse(read_owned(self._folder / name).decode("ascii", "replace").strip())
        return None


_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP})
"""The errors of link(2) on a file system without hard links."""


_NO_MORE_LINKS = frozenset({errno.EMLINK, errno.ENOSPC})
"""The errors of link(2) for one more link to a file: ext4 allows 65000, and GlusterFS says ENOSPC after 45."""


class Claimer:
    """Claims blocks for one attempt of a task."""

    def __init__(
        self, folder: Location, task: int, attempt: int, number: int, patience: Patience | None = None
    ) -> None:
        """Begin; only this process has this attempt's number, and there are *number* blocks."""
        self._folder, self._claimant, self._number = folder, Claimant(task, attempt), number
        self._patience = patience or Patience()
        self._next = 0
        self._signed: tuple[Location, tuple[int, int]] | None = None
        self._reader = ClaimReader(folder)

    def own(self) -> list[int]:
        """Return the blocks that this task has claimed, in earlier attempts too, without those returned before."""
        if self._signed is None:
            # First: writing into a folder makes a network file system drop its cached listing.
            self._signed = self._patience.run(self._sign)
        new = self._patience.run(lambda: list(self._reader.new()))
        return sorted(block for block, claimant in new if claimant.task == self._claimant.task)

    def _sign(self) -> tuple[Location, tuple[int, int]]:
        """Make the file that the attempt's claims are links to; return its path, device and inode."""
        for serial in count():
            path = self._folder / f"{self._claimant.task}.{self._claimant.attempt}.{serial}"
            with suppress(FileExistsError):
                status = create(path, f"{path.name}\n".encode())
                return path, (status.st_dev, status.st_ino)
        raise AssertionError  # count() has no end

    def first_unclaimed(self) -> int | None:
        """Return the first unclaimed block; None if all are claimed."""
        if self._next < self._number and self._is_claimed(self._next):
            self._next += 1
            self._skip_claimed()
        return self._next if self._next < self._number else None

    def claim(self) -> int | None:
        """Claim the first unclaimed block; None if none is left.

        Raises:
            OSError: no block can be claimed (disk full, no permission, ...).
            NodeStartError: the file system has no hard links.
        """
        pause = _SHORTEST_PAUSE
        while self._next < self._number:
            block = self._next
            self._next += 1
            if self._link(block):
                return block
            self._skip_claimed()
            # At random, so that tasks that collided do not collide again.
            time.sleep(pause * (time.monotonic_ns() % 1000) / 1000)
            pause = min(_LONGEST_PAUSE, pause * 2)
        return None

    def _link(self, block: int) -> bool:
        if self._signed is None:
            if self._is_claimed(block):
                return False  # a task that comes too late leaves no file
            self._signed = self._patience.run(self._sign)
        try:
            return self._make_link(block, *self._signed)
        except OSError as error:
            if error.errno in _NO_MORE_LINKS:
                self._signed = self._patience.run(self._sign)
        return self._patience.run(partial(self._make_link, block, *self._signed))

    def _make_link(self, block: int, path: Location, identity: tuple[int, int]) -> bool:
        claim = self._folder / str(block)
        try:
            claim.link_to(path)
        except OSError as error:
            if error.errno in _NO_LINKS:
                msg = f"the file system of {self._folder} makes no hard links, through which tasks share their items"
                raise NodeStartError(
                    msg, advice="Use a run folder on another file system, or static slices (leave schedule= out)."
                ) from None
            try:
                status = claim.status()  # perhaps the link was made, and the answer was lost and the request repeated
            except FileNotFoundError:
                raise error from None
            return (status.st_dev, status.st_ino) == identity
        return True

    def _skip_claimed(self) -> None:
        """Move to the first block that looks unclaimed: in steps that double, then by bisection."""
        if self._is_claimed(self._number - 1):
            self._next = self._number  # a task that comes too late finds out at once
            return
        low, step = self._next - 1, 1  # low is claimed
        while low + step < self._number and self._is_claimed(low + step):
            low, step = low + step, 2 * step
        high = min(low + step, self._number)  # looks unclaimed, or is the end
        self._next = bisect_left(range(high), 1, low + 1, key=lambda block: not self._is_claimed(block))

    def _is_claimed(self, block: int) -> bool:
        return (self._folder / str(block)).exists()
