"""What is shown as a picture: for each workload the time of each system that ran it."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from harness.series import Series

_OURS, _FLOOR, _PEER = "#1f77b4", "#7f7f7f", "#ff7f0e"
_WIDTH, _BAR_HEIGHT, _PANEL_HEIGHT = 9.0, 0.28, 0.9


def plot(series: Iterable[Series], path: Path) -> None:
    """Draw a panel for each workload that several systems ran: medians, with minimum and maximum.

    Args:
        path: where to; its suffix says in which format.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    panels = _panels(series)
    heights = [_PANEL_HEIGHT + _BAR_HEIGHT * len(panel) for panel in panels.values()]
    figure = Figure(figsize=(_WIDTH, sum(heights) or 1.0), layout="constrained")
    if panels:
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
        for (work, panel), (ax,) in zip(panels.items(), axes, strict=True):
            _draw(ax, work, panel)
    figure.savefig(path)


def _panels(series: Iterable[Series]) -> dict[str, list[Series]]:
    """Sort what ran by its workload, the slowest first; what ran alone is left out."""
    panels: dict[str, list[Series]] = {}
    for each in series:
        if each.samples:
            panels.setdefault(f"{each.entry.work.items:,} × {each.entry.work.name}", []).append(each)
    ordered = {work: sorted(panel, key=lambda each: -each.median()) for work, panel in panels.items()}
    return {work: panel for work, panel in ordered.items() if len(panel) > 1}


def _draw(ax: Any, work: str, panel: list[Series]) -> None:
    seconds = [[sample.seconds for sample in each.samples] for each in panel]
    medians = [statistics.median(each) for each in seconds]
    errors = [
        [median - min(each) for median, each in zip(medians, seconds, strict=True)],
        [max(each) - median for median, each in zip(medians, seconds, strict=True)],
    ]
    names = [each.entry.name for each in panel]
    ax.barh(range(len(panel)), medians, xerr=errors, color=[_colour(name) for name in names])
    ax.set_yticks(range(len(panel)), names)
    ax.set_xscale("log")
    ax.set_xlabel("seconds")
    ax.set_title(work)


def _colour(name: str) -> str:
    if name.startswith("slurmlaunch"):
        return _OURS
    return _FLOOR if name.startswith(("floor", "ProcessPool")) else _PEER
