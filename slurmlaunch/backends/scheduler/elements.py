"""Sets of array elements, as Slurm writes them: ``0-4,7`` and ``0-98:2%5``.

A set is one integer whose bits are the elements. So a hundred thousand pending
elements, which are one row in Slurm's queue, stay one object here, and union
and difference are single operations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Slurm itself allows no larger index, whatever MaxArraySize says.
_LARGEST = 4_000_000
_PIECE = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")


@dataclass(frozen=True)
class Elements:
    """A set of array elements.

    Attributes:
        bits: bit *i* is set where element *i* belongs to the set.
    """

    bits: int = 0

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Elements:
        """Return the set of these numbers."""
        numbers = sorted(set(numbers))
        flags = bytearray((numbers[-1] >> 3) + 1 if numbers else 0)
        for number in numbers:
            flags[number >> 3] |= 1 << (number & 7)
        return cls(int.from_bytes(flags, "little"))

    @classmethod
    def upto(cls, length: int) -> Elements:
        """Return the set of the first *length* elements."""
        return cls((1 << length) - 1)

    @classmethod
    def parse(cls, text: str) -> Elements | None:
        """Read ``1,3-5,0-98:2%4``, the throttle being dropped; None for what is no such text."""
        ranges: list[range] = []
        for piece in text.partition("%")[0].split(","):
            numbers = _range(piece)
            if numbers is None:
                return None
            ranges.append(numbers)
        # Single elements come by the thousand, and each long integer made for one costs its length.
        bits = cls.of(numbers.start for numbers in ranges if len(numbers) == 1).bits
        for numbers in ranges:
            bits |= 0 if len(numbers) == 1 else _bits(numbers)
        return cls(bits)

    def __contains__(self, element: int) -> bool:
        return self.bits >> element & 1 == 1

    def __or__(self, other: Elements) -> Elements:
        return Elements(self.bits | other.bits)

    def __and__(self, other: Elements) -> Elements:
        return Elements(self.bits & other.bits)

    def __sub__(self, other: Elements) -> Elements:
        return Elements(self.bits & ~other.bits)

    def __bool__(self) -> bool:
        return self.bits != 0

    def __len__(self) -> int:
        return self.bits.bit_count()

    def __iter__(self) -> Iterator[int]:
        for first, last in self.spans():
            yield from range(first, last + 1)

    def __str__(self) -> str:
        """Return the set as Slurm reads it, ``0-4,7``; the empty set is the empty text."""
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self.spans())

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield the first and the last element of every unbroken stretch, in order."""
        # Text, because shifting a long integer once per stretch is quadratic.
        for match in re.finditer("1+", bin(self.bits)[:1:-1]):
            yield match.start(), match.end() - 1

    @property
    def largest(self) -> int:
        """The largest element, or -1 of the empty set."""
        return self.bits.bit_length() - 1


def _range(piece: str) -> range | None:
    match = _PIECE.fullmatch(piece)
    if match is None:
        return None
    first, last, step = (int(number) if number else None for number in match.groups())
    if first is None or max(first, last or 0) > _LARGEST or step == 0:
        return None
    return range(first, (first if last is None else last) + 1, step or 1)


def _bits(numbers: range) -> int:
    if not numbers:
        return 0
    bits, count = 1, 1
    while count < len(numbers):
        bits |= bits << count * numbers.step
        count *= 2
    return (bits & (1 << numbers[-1] - numbers.start + 1) - 1) << numbers.start
