"""Claims: which task has which block of a dynamic round, without a server.

A claim is a name in the round's folder ``claims``: the block's number, as a hard link to a file whose own name and
content say who claims, and which positions. ``link`` makes a name once, on NFS too, caches or not; if its answer is
lost, the inode behind the name says who made it. Each claim has a file of its own, so that no limit on the links to
one file is met (GlusterFS refuses the 46th). A claim is never taken back: the blocks of a task that died go to the
next attempt of the same task, or to a later round.

Blocks are claimed in order, and each begins where the one before it ends: a task links a number only after it has
read the claim before it. So the claimed numbers have no gap, and O(log blocks) looks find the first unclaimed one. A
cache may show a claimed block as unclaimed; then the link fails, and the search continues.

Tasks claim with `Claimer`; clients and later attempts read with `ClaimReader`. `slurmlaunch.runfolder.plan` says how
long a block should be.
"""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.errors import NodeStartError, RunFolderError, UnsafeRunFolder
from slurmlaunch.runfolder.changes import NewNames
from slurmlaunch.runfolder.files import NO_LINKS, create, read_owned
from slurmlaunch.runfolder.layout import numbers_in
from slurmlaunch.runfolder.outcomes import ranges_of
from slurmlaunch.runfolder.storage import Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurmlaunch.runfolder.files import Location
    from slurmlaunch.runfolder.layout import RunFolder
    from slurmlaunch.runfolder.plan import Blocks

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05
"""Seconds to wait, at random, after other tasks were faster: a thousand tasks may start at once."""

_NO_INODES = frozenset({0, 0xFFFFFFFF})
"""The inode numbers in listings of file systems that have none: 0, or FUSE's "unknown"."""


class Claim(NamedTuple):
    """One claim of a block; the numbers, with dots between them, are the name and the content of its file."""

    task: int
    attempt: int
    block: int
    start: int
    """The first position of the block."""
    length: int
    tasks: int
    """How many tasks had claimed anything when it was made, its own included."""

    @property
    def positions(self) -> range:
        """The positions of the block."""
        return range(self.start, self.start + self.length)

    @property
    def filename(self) -> str:
        """The name of its file."""
        return ".".join(map(str, self))


class ClaimReader:
    """Reads the claims in one folder, each once."""

    def __init__(
        self, folder: Location, blocks: Blocks | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with nothing read; *blocks* are those of a round of 0.1.0, whose claims do not state positions."""
        self._folder, self._blocks = folder, blocks
        self._names = NewNames(folder, clock)
        self._found: dict[int, Claim | None] = {}

    def new(self) -> Iterator[Claim]:
        """Yield the claims since the last call.

        Costs one file operation while nothing changes. Names that are no claims are passed over.

        Raises:
            OSError: the folder cannot be listed.
        """
        claimed: list[tuple[str, int]] = []
        for entry in self._names.new_entries():
            name, numbers, inode = entry.name, numbers_in(entry.name), entry.inode()
            if [name] == list(map(str, numbers)):
                claimed.append((name, inode))
            elif (claim := self._parse(name)) is not None:
                unique = inode not in self._found and inode not in _NO_INODES
                self._found[inode] = claim if unique else None
        found = {name: self._made_by(int(name), self._found.get(inode)) for name, inode in claimed}
        unknown = [name for name, claim in found.items() if claim is None]
        if unknown:
            self._names.forget(unknown)
        yield from (claim for claim in found.values() if claim is not None)

    def read(self, block: int) -> Claim | None:
        """Return the claim of a block, from its content; None if that is no claim."""
        with suppress(OSError, UnsafeRunFolder):
            text = read_owned(self._folder / str(block)).decode("ascii", "replace")
            # Without the line feed it is torn: a length may lack digits.
            return self._made_by(block, self._parse(text[:-1]), read=True) if text.endswith("\n") else None
        return None

    def _parse(self, text: str) -> Claim | None:
        match numbers_in(text):
            case [_, _, _, _, _, _] as numbers:
                return Claim(*numbers)
            case [task, attempt, _] if self._blocks is not None:
                return Claim(task, attempt, -1, 0, 0, 0)
        return None

    def _made_by(self, block: int, claim: Claim | None, *, read: bool = False) -> Claim | None:
        """Return the claim of a block, whose file may have appeared later than it, or may be a copy."""
        if claim is not None and claim.block == block:
            return claim
        if claim is not None and claim.block < 0 and self._blocks is not None and block < self._blocks.number:
            positions = self._blocks.positions_of(block)
            return claim._replace(block=block, start=positions.start, length=len(positions))
        return None if read else self.read(block)


def mark_surplus(folder: RunFolder, number: int, array: int, tasks: range, task: int) -> None:
    """Name the elements of an array for which no item is left, unless another task has done so.

    Args:
        folder: the run folder.
        number: the number of a round whose blocks are all claimed.
        array: the number of the array in the round.
        tasks: the array's tasks.
        task: the one that writes; its batch script cancels the elements.

    Raises:
        OSError: the folder cannot be read or written.
    """
    marker, own = folder.surplus(number, array), folder.surplus(number, array, task)
    if marker.exists() or own.exists():
        return
    beside = own.beside(f"{own.name}.new")
    create(beside, b"")  # first: a network file system then drops its cached listing
    begun = {claim.task for claim in ClaimReader(folder.claims(number)).new()}
    begun |= {numbers[0] for numbers in map(numbers_in, folder.outcomes.names()) if numbers}
    ranges = ranges_of(each - tasks.start for each in tasks if each not in begun)
    text = ",".join(f"{each[0]}-{each[-1]}" for each in ranges)
    beside.unlink()
    create(own, f"{text}\n".encode() if text else b"")
    try:
        marker.link_to(own)
    except OSError:
        own.unlink()


class Claimer:
    """Claims blocks for one attempt of a task.

    Attributes:
        block: the number of the first block that looks unclaimed.
        start: its first position.
        tasks: how many tasks have claimed the blocks before it.
    """

    def __init__(
        self,
        folder: Location,
        task: int,
        attempt: int,
        items: int,
        patience: Patience | None = None,
        *,
        blocks: Blocks | None = None,
    ) -> None:
        """Begin; only this process has this attempt's number, and there are positions for so many *items*."""
        self._folder, self._task, self._attempt, self._items = folder, task, attempt, items
        self._patience = patience or Patience()
        self.block = self.start = self.tasks = 0
        self._has_claimed = False
        self._reader = ClaimReader(folder, blocks)

    def own(self) -> list[Claim]:
        """Return the claims of this task, by earlier attempts too, without those returned before."""
        # First: writing into a folder makes a network file system drop its cached listing.
        self._patience.run(self._touch)
        new = self._patience.run(lambda: list(self._reader.new()))
        own = sorted((claim for claim in new if claim.task == self._task), key=lambda claim: claim.block)
        self._has_claimed |= bool(own)
        return own

    def _touch(self) -> None:
        path = self._folder / f"{self._task}.{self._attempt}.new"
        path.unlink(missing_ok=True)
        create(path, b"")
        path.unlink()

    @property
    def unclaimed(self) -> int:
        """How many positions no task has claimed."""
        self._find_unclaimed()
        return self._items - self.start

    def claim(self, length: Callable[[Claimer], int] = lambda _: 1) -> range | None:
        """Claim the first unclaimed block; return its positions, or None if none is left.

        Args:
            length: returns how many positions the block should have, once its number and start are known.

        Raises:
            OSError: no block can be claimed (disk full, no permission, ...).
            NodeStartError: the file system has no hard links.
            RunFolderError: a claim is damaged.
        """
        pause = _SHORTEST_PAUSE
        while self.unclaimed:
            tasks = self.tasks + (not self._has_claimed)
            wanted = max(1, min(length(self), self._items - self.start))
            claim = Claim(self._task, self._attempt, self.block, self.start, wanted, tasks)
            if self._make(claim):
                self._has_claimed = True
                self._pass(claim)
                return claim.positions
            self._pass(self._read(self.block))
            # At random, so that tasks that collided do not collide again.
            time.sleep(pause * (time.monotonic_ns() % 1000) / 1000)
            pause = min(_LONGEST_PAUSE, pause * 2)
        return None

    def _make(self, claim: Claim) -> bool:
        """Make a claim; False if another task was faster, which leaves no file of this one."""
        path = self._folder / claim.filename
        status = self._patience.run(partial(create, path, f"{claim.filename}\n".encode()))
        if self._patience.run(partial(self._link, path, claim.block, (status.st_dev, status.st_ino))):
            return True
        with suppress(OSError):
            path.unlink()
        return False

    def _link(self, path: Location, block: int, identity: tuple[int, int]) -> bool:
        claim = self._folder / str(block)
        try:
            claim.link_to(path)
        except OSError as error:
            if error.errno in NO_LINKS:
                msg = f"the file system of {self._folder} makes no hard links, through which tasks share their items"
                raise NodeStartError(
                    msg, advice='Use a run folder on another file system, or slices: schedule="static".'
                ) from None
            try:
                status = claim.status()  # perhaps the link was made, and the answer was lost and the request repeated
            except FileNotFoundError:
                raise error from None
            return (status.st_dev, status.st_ino) == identity
        return True

    def _pass(self, claim: Claim) -> None:
        self.block, self.start = claim.block + 1, claim.positions.stop
        self.tasks = max(self.tasks, claim.tasks)

    def _find_unclaimed(self) -> None:
        """Move to the first block that looks unclaimed: in steps that double, then by halves."""
        if self.start >= self._items or not self._is_claimed(self.block):
            return
        low, step = self.block, 1  # low is claimed
        while self._is_claimed(low + step):
            low, step = low + step, 2 * step
        high = low + step  # looks unclaimed
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._is_claimed(middle) else (low, middle)
        self._pass(self._read(low))

    def _read(self, block: int) -> Claim:
        claim = self._patience.run(partial(self._reader.read, block))
        if claim is None:
            path = self._folder / str(block)
            raise RunFolderError(f"the claim {path} is damaged: the items behind it cannot be found", path=str(path))
        return claim

    def _is_claimed(self, block: int) -> bool:
        return self._patience.run((self._folder / str(block)).exists)
