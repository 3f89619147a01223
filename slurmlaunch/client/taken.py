"""Which task has which items of a dynamic round, as far as this process knows.

What is known is a part of the truth and never wrong: claims are not taken back. It
costs four bytes for each block, whatever the number of items.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from slurmlaunch.runfolder.claims import ClaimReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from slurmlaunch.runfolder.journal import Round
    from slurmlaunch.runfolder.layout import RunFolder
    from slurmlaunch.runfolder.plan import Blocks

_NOBODY = -1


class Taken:
    """Who has what of one dynamic round.

    Attributes:
        free: how many blocks nobody is known to have.
    """

    def __init__(self, folder: RunFolder, its_round: Round, blocks: Blocks) -> None:
        self._plan = its_round.plan
        self._blocks = blocks
        self._listing = ClaimReader(folder.claims(its_round.number))
        self._owners = array("i", [_NOBODY]) * blocks.number
        self._blocks_of: dict[int, array[int]] = {}
        self.free = blocks.number

    def look(self) -> None:
        """Take in who has taken blocks since the last look."""
        for block, owner in self._listing.new():
            self._learn(block, owner.task)

    def infer(self, items: range, task: int) -> None:
        """Take in that a task recorded these items: then it had taken their blocks, listed or not yet."""
        first, last = (self._plan.position_of(item) for item in (items.start, items.stop - 1))
        for block in range(self._blocks.block_of(first), self._blocks.block_of(last) + 1):
            self._learn(block, task)

    def _learn(self, block: int, task: int) -> None:
        # What no task of ours can have taken is passed over, as is who comes second to a block.
        ours = task in self._plan.tasks and block < self._blocks.number
        if ours and self._owners[block] == _NOBODY:
            self._owners[block] = task
            self._blocks_of.setdefault(task, array("i")).append(block)
            self.free -= 1

    def owner_of(self, item: int) -> int | None:
        """Return the task that has an item of the round, or None."""
        owner = self._owners[self._blocks.block_of(self._plan.position_of(item))]
        return None if owner == _NOBODY else owner

    def parts_of(self, task: int) -> Iterator[Sequence[int]]:
        """Yield the items of a task, block by block."""
        return self._parts(self._blocks_of.get(task, ()))

    def free_parts(self) -> Iterator[Sequence[int]]:
        """Yield the items that nobody is known to have, block by block."""
        if self.free:
            yield from self._parts(block for block, owner in enumerate(self._owners) if owner == _NOBODY)

    def _parts(self, blocks: Iterable[int]) -> Iterator[Sequence[int]]:
        return (self._plan.items_at(self._blocks.positions_of(block)) for block in blocks)
