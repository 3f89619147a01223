"""The comparisons that most lines are: with the floor, with a peer, with a number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.table import Row, plain

if TYPE_CHECKING:
    from harness.series import Series


def beyond(key: str, work: str, ours: Series, least: Series, bar: float) -> Row:
    """Compare with the floor: how many seconds more."""
    more = ours.beyond(least)
    return Row(key, work, ours.spread, f"floor: {least.spread}", f"{more:+.2f} s", f"at most +{bar} s", more <= bar)


def faster(key: str, work: str, ours: Series, peer: Series) -> Row:
    """Compare with a peer, which may have failed, or had fewer items (then the bar is met or missed all the same)."""
    how = ours.entry.name.partition(", ")[2]
    work = f"{work}, {how}" if how else work
    said = f"{peer.entry.name}: {plain(peer.spread)}"
    if not peer.samples:
        return Row(key, work, ours.spread, said, "", "faster")
    if peer.entry.work.items != ours.entry.work.items:
        said += f" for {peer.entry.work.items:,} items"
    ratio = ours.ratio(peer)
    return Row(key, work, ours.spread, said, f"{ratio:.2f} ×", "faster", ratio < 1)


def at_most(key: str, work: str, figure: float, bar: float, unit: str, *, ours: str = "", theirs: str = "") -> Row:
    """Compare with a number.

    Args:
        unit: the text after both numbers, as ``" ×"``.
        ours: slurmlaunch's part of it, as text; by default the figure.
    """
    said = f"{figure:.2f}{unit}"
    return Row(key, work, ours or said, theirs, said if ours else "", f"at most {bar:g}{unit}", figure <= bar)


def counted(number: int, thing: str) -> str:
    """Return a count as text."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
