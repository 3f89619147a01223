"""The plot: for each contest the time of each system."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.series import Series

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_OURS, _FLOOR, _PEER = "#1f77b4", "#7f7f7f", "#ff7f0e"
_WIDTH, _LINE_HEIGHT, _PANEL_HEIGHT = 9.0, 0.28, 0.9


def plot(contests: Iterable[list[Series]], path: Path) -> None:
    """Draw a panel for each contest, the slowest on top: medians, with minimum and maximum.

    Args:
        path: the path of the picture; its suffix gives the format.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    ran = [[each for each in contest if each.samples] for contest in contests]
    panels = [sorted(panel, key=Series.median) for panel in ran if panel]
    heights = [_PANEL_HEIGHT + _LINE_HEIGHT * len(panel) for panel in panels]
    figure = Figure(figsize=(_WIDTH, sum(heights) or 1.0), layout="constrained")
    if panels:
        axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights)
        for panel, (ax,) in zip(panels, axes, strict=True):
            _draw(ax, panel)
        axes[-1][0].set_xlabel("seconds: median, minimum and maximum")
    figure.savefig(path)


def _draw(ax: Any, panel: list[Series]) -> None:
    works = [each.entry.work for each in panel]
    most = max(works, key=lambda work: work.items)
    for height, each in enumerate(panel):
        seconds = [sample.seconds for sample in each.samples]
        median, colour = each.median(), _colour(each.entry.name)
        # Points, not bars: the scale is logarithmic and has no zero for a bar to begin at.
        spread = [[median - min(seconds)], [max(seconds) - median]]
        ax.errorbar([median], [height], xerr=spread, fmt="o", capsize=3, color=colour)
    fewer = ["" if work.items == most.items else f" ({work.items:,} items)" for work in works]
    names = [each.entry.name + few for each, few in zip(panel, fewer, strict=True)]
    ax.set_yticks(range(len(panel)), names)
    ax.set_ylim(-0.6, len(panel) - 0.4)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.grid(visible=True, axis="x", which="both", alpha=0.3)
    ax.set_title(f"{most.items:,} × {most.name}")


def _colour(name: str) -> str:
    if name.startswith("slurmlaunch"):
        return _OURS
    return _FLOOR if name.startswith(("floor", "ProcessPool")) else _PEER
