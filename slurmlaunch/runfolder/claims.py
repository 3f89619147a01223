"""Claims: which task has which block of a dynamic round, without a server.

A claim is a name in the round's folder ``claims``: the block's number, as a hard
link to a file of the attempt that took it. ``link`` makes a name once, also on
NFS and whatever is cached there; where its answer was lost, the inode behind the
name says who has it. A claim is never taken back: who took a block and died is
followed by the next attempt of its own task, or by a later round.

Blocks are taken in order: a task links a number only after it has seen the one
before it, so that the numbers taken have no gap, and the first free one is found
in O(log blocks) looks. A look may be fooled by a cache into "free"; then the link
fails, and the search goes on.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.errors import NodeStartError
from slurmlaunch.runfolder.layout import YOUNG

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05
"""Seconds to wait, at random, after others were faster: a thousand tasks may start at once."""

_NO_INODES = frozenset({0, 0xFFFFFFFF})
"""What listings give in place of an inode where the file system has no better: 0, or FUSE's "unknown"."""


class Owner(NamedTuple):
    """The attempt that has a block.

    Attributes:
        task: its task.
        attempt: its number.
    """

    task: int
    attempt: int

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """Read the name or the content of an attempt's file; None for anything else."""
        parts = text.split(".")
        if len(parts) == _PARTS and all(part.isascii() and part.isdigit() for part in parts):
            return cls(int(parts[0]), int(parts[1]))
        return None


_PARTS = 3


class Listing:
    """Reads who has which block, as far as it was not read before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: set[str] = set()
        self._owners: dict[int, Owner | None] = {}
        self._changed = -1

    def new(self) -> Iterator[tuple[int, Owner]]:
        """Yield the blocks that were taken since the last call, and by whom.

        Costs one look at the folder where nothing has changed for long, else one listing.
        What is no claim, or one of nobody, is passed over.
        """
        status = self._folder.stat()
        if status.st_mtime_ns == self._changed:
            return
        taken = self._list()
        young = abs(time.time() - status.st_mtime) < YOUNG
        self._changed = -1 if young else status.st_mtime_ns
        for name, inode in taken:
            owner = self._owners.get(inode) or self._written_in(name)
            if owner is None:
                self._changed = -1
            else:
                self._known.add(name)
                yield int(name), owner

    def _list(self) -> list[tuple[str, int]]:
        """Note the attempts that are new; return the names and inodes of the claims that are."""
        taken: list[tuple[str, int]] = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                name = entry.name
                if name in self._known:
                    continue
                owner, inode = Owner.parse(name), entry.inode()
                if owner is not None:
                    alone = inode not in self._owners and inode not in _NO_INODES
                    self._owners[inode] = owner if alone else None
                    self._known.add(name)
                elif name.isascii() and name.isdigit() and name == str(int(name)):
                    taken.append((name, inode))
        return taken

    def _written_in(self, name: str) -> Owner | None:
        """Return who has a block whose inode tells nothing: its owner's name came later, or the folder was copied."""
        with suppress(OSError):
            descriptor = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                return Owner.parse(os.read(descriptor, 64).decode("ascii", "replace").strip())
            finally:
                os.close(descriptor)
        return None


_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP})
"""What a file system answers that makes no hard links, see link(2)."""


class Claimer:
    """Takes blocks for one attempt of a task."""

    def __init__(self, folder: Path, task: int, attempt: int, number: int) -> None:
        """Begin.

        Args:
            folder: the folder of the round's claims.
            task: the task.
            attempt: the number of the attempt, which no other process has.
            number: how many blocks there are.
        """
        self._folder, self._owner, self._number = folder, Owner(task, attempt), number
        self._next = 0
        self._signed: tuple[Path, tuple[int, int]] | None = None
        self._listing: Listing | None = None

    def own(self) -> list[int]:
        """Return the blocks of the task, of earlier attempts too, those left out that were returned before."""
        if self._signed is None:
            self._signed = self._sign()  # first: what is written into a folder makes a network's cache list it again
        if self._listing is None:
            self._listing = Listing(self._folder)
        return sorted(block for block, owner in self._listing.new() if owner.task == self._owner.task)

    def _sign(self) -> tuple[Path, tuple[int, int]]:
        """Make a file that the attempt's claims are links to; return it, and what tells it from others."""
        serial = 0
        while True:
            path = self._folder / f"{self._owner.task}.{self._owner.attempt}.{serial}"
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                serial += 1
                continue
            try:
                os.write(descriptor, f"{path.name}\n".encode())
                status = os.fstat(descriptor)
            finally:
                os.close(descriptor)
            return path, (status.st_dev, status.st_ino)

    def first_free(self) -> int | None:
        """Look for the first block that is free; None where all are taken."""
        if self._next < self._number and self._is_taken(self._next):
            self._next += 1
            self._skip_taken()
        return self._next if self._next < self._number else None

    def claim(self) -> int | None:
        """Take the first free block; None where none is left.

        Raises:
            OSError: none can be taken (disk full, no permission, ...).
        """
        pause = _SHORTEST_PAUSE
        while self._next < self._number:
            block = self._next
            self._next += 1
            if self._take(block):
                return block
            self._skip_taken()
            time.sleep(pause * (time.monotonic_ns() % 1000) / 1000)  # so that those who met do not meet again
            pause = min(_LONGEST_PAUSE, pause * 2)
        return None

    def _take(self, block: int) -> bool:
        if self._signed is None:
            if self._is_taken(block):
                return False  # who comes late leaves no trace
            self._signed = self._sign()
        path, identity = self._signed
        claim = self._folder / str(block)
        try:
            os.link(path, claim)
        except OSError as error:
            if error.errno == errno.EMLINK:  # a file system allows so many links of one file: ext4, 65000
                self._signed = self._sign()
                return self._take(block)
            if error.errno in _NO_LINKS:
                msg = f"the file system of {self._folder} makes no hard links, and by these tasks share their items"
                raise NodeStartError(msg, advice="Name a folder on another one, or leave schedule= out.") from error
            try:
                status = claim.lstat()  # perhaps it was made, and the answer was lost and asked for again
            except FileNotFoundError:
                raise error from None
            return (status.st_dev, status.st_ino) == identity
        return True

    def _skip_taken(self) -> None:
        """Go to the first block that looks free: in steps that double, then by halves."""
        if self._is_taken(self._number - 1):
            self._next = self._number  # who comes late finds it out at once
            return
        low, step = self._next - 1, 1  # low is taken
        while low + step < self._number and self._is_taken(low + step):
            low, step = low + step, 2 * step
        high = min(low + step, self._number)  # looks free, or is the end
        while high - low > 1:
            middle = (low + high) // 2
            if self._is_taken(middle):
                low = middle
            else:
                high = middle
        self._next = high

    def _is_taken(self, block: int) -> bool:
        return os.path.lexists(self._folder / str(block))
