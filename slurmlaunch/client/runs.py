"""The runs below a folder, as a list for people: `slurmlaunch.runs`.

A listing and the manifest of each run make the list. What needs more of a run folder (counts, state, size) is read
when it is asked for, and then for the rows that are shown. It watches, submits and writes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from slurmlaunch.client import html
from slurmlaunch.client.attach import inspect, manifests_in
from slurmlaunch.client.default_folder import folder_of_runs
from slurmlaunch.client.status import counts_of, state_of
from slurmlaunch.client.submission import Submission
from slurmlaunch.client.watcher import current_client
from slurmlaunch.client.wording import readable
from slurmlaunch.errors import RunFolderError, SchedulerError
from slurmlaunch.runfolder.files import Location

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from slurmlaunch.client.run import Run
    from slurmlaunch.runfolder.layout import Manifest

__all__ = ["RunList", "RunSummary", "runs"]

_SHOWN = 20
"""How many runs are printed; the others can be had by slices."""


class _Content(NamedTuple):
    """What a look into the run folder finds."""

    counts: dict[str, int]
    job_ids: tuple[str, ...]
    to_submit: bool  # whether a client that runs may submit some of it yet
    changed: str
    damage: str = ""


class RunSummary:
    """One run in a `RunList`.

    Attributes:
        folder: the run folder, for `slurmlaunch.attach`.
        name: the name of the run.
        function: module and name of its function.
        created: when it was submitted, in seconds since the epoch.
        items: the number of items with which it was submitted.
        cluster: the backend: ``slurm``, ``allocation``, ``local`` or ``inline``.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.name, self.function, self.items = manifest.name, manifest.function, manifest.items
        self.created, self.cluster, self._clusters = manifest.created, manifest.backend, manifest.clusters
        self._listed: set[str] | None = None
        """The jobs that may still run, as far as they have been asked about."""

    @classmethod
    def of(cls, run: Run) -> RunSummary:
        """Return the summary of a run that `inspect` has read."""
        summary = cls(run.folder.path, run.manifest)
        summary.__dict__["_content"] = _content_of(run)
        return summary

    @cached_property
    def _content(self) -> _Content:
        try:
            return _content_of(inspect(self.folder))
        except (OSError, RunFolderError) as error:
            return _Content({}, (), to_submit=False, changed="", damage=str(error))

    @property
    def counts(self) -> dict[str, int]:
        """How many items are ``pending``, ``running``, ``done``, ``failed``, ``cancelled``; none if it is damaged."""
        return self._content.counts

    @property
    def job_ids(self) -> tuple[str, ...]:
        """The ids of its jobs, in the order of submission."""
        return self._content.job_ids

    @property
    def changed(self) -> str:
        """What has changed since its code was recorded, as a line; empty if nothing has."""
        return self._content.changed

    @cached_property
    def size(self) -> int:
        """The bytes that the run folder takes on disk."""
        return Location(self.folder).usage()[0]

    @property
    def state(self) -> str:
        """The state of the run in one word or two.

        ``running``: items are open, and jobs wait or run, or are to be submitted. ``done``: all items have values.
        ``failed``: all have settled, some with an error. ``cancelled``: all have settled, some by a cancellation.
        ``never submitted``: there is no job, and nobody will submit one. ``gone``: items are open, and none of its jobs
        runs. ``unknown``: the scheduler does not answer. ``damaged``: the run folder cannot be read.
        """
        content = self._content
        if content.damage:
            return "damaged"
        counts = content.counts
        if not (counts["pending"] or counts["running"]):
            return state_of(counts)
        if content.to_submit:
            return "running"
        if not content.job_ids:
            return "never submitted"
        if self._listed is None:
            _ask([self])
        if self._listed is None:
            return "unknown"
        return "running" if self._listed else "gone"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a dict of numbers, strings, lists and dicts, ready for JSON."""
        return {
            "folder": str(self.folder),
            "name": self.name,
            "function": self.function,
            "created": self.created,
            "items": self.items,
            "counts": dict(self.counts),
            "state": self.state,
            "size": self.size,
            "cluster": self.cluster,
            "job_ids": list(self.job_ids),
            "changed": self.changed,
        }

    def __repr__(self) -> str:
        return f"<Run {self.name}: {self.state}; slurmlaunch.attach({str(self.folder)!r})>"


def _content_of(run: Run) -> _Content:
    if not run.rounds:
        return _Content({}, (), to_submit=False, changed="", damage=f"{run.folder.path} has no round")
    return _Content(counts_of(run, None), run.job_ids, may_be_submitted(run), run.explanations.changed_code())


class RunList(Sequence[RunSummary]):
    """The runs below a folder, the newest first; printed as a table.

    Attributes:
        folder: the folder that holds the run folders.
    """

    def __init__(self, folder: Path, found: Sequence[RunSummary]) -> None:
        self.folder, self._runs = folder, found

    def __len__(self) -> int:
        return len(self._runs)

    @overload
    def __getitem__(self, index: int) -> RunSummary: ...

    @overload
    def __getitem__(self, index: slice) -> RunList: ...

    def __getitem__(self, index: int | slice) -> RunSummary | RunList:
        return RunList(self.folder, self._runs[index]) if isinstance(index, slice) else self._runs[index]

    def to_dict(self) -> dict[str, Any]:
        """Return all runs as a dict, ready for JSON; reads every run folder."""
        _ask(self._runs)
        return {"folder": str(self.folder), "runs": [run.to_dict() for run in self._runs]}

    def __repr__(self) -> str:
        if not self._runs:
            return f"no runs in {self.folder}"
        rows = self[:_SHOWN].table()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, *self._more()])

    def _repr_html_(self) -> str:
        if not self._runs:
            return html.box([html.text(repr(self))])
        cells = (
            [html.marked(state, _COLOURS.get(state, html.GREY)), *map(html.text, others)]
            for state, *others in self[:_SHOWN].table()[1:]
        )
        return html.box([html.table(_HEAD, cells), *map(html.small, self._more())])

    def table(self) -> list[tuple[str, ...]]:
        """Return the names of the columns, and a row for each run; reads every run folder."""
        _ask(self._runs)
        return [_HEAD, *map(_row, self._runs)]

    def _more(self) -> Iterator[str]:
        if len(self) > _SHOWN:
            yield f"and {len(self) - _SHOWN} more: slices such as runs()[{_SHOWN}:] show them"
        yield f"in {self.folder}; slurmlaunch.attach(name or run folder) returns the futures of one"


_HEAD = ("state", "submitted", "name", "function", "items", "size", "cluster", "code", "run folder")

_COLOURS = {
    "running": html.BLUE, "done": html.GREEN, "failed": html.RED, "damaged": html.RED, "cancelled": html.BROWN,
    "gone": html.BROWN, "never submitted": html.BROWN,
}  # fmt: skip


def _row(run: RunSummary) -> tuple[str, ...]:
    counts = ", ".join(f"{number} {word}" for word, number in run.counts.items() if number)
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created))
    changed = "changed" if run.changed else ""
    size = readable(run.size)
    return run.state, when, run.name, run.function, counts or "0", size, run.cluster, changed, run.folder.name


def runs(folder: str | os.PathLike[str] | None = None) -> RunList:
    """Return the runs below a folder, the newest first.

    Args:
        folder: holds the run folders; by default as for `slurmlaunch.Executor`.
    """
    path = folder_of_runs(folder)
    found = [RunSummary(each, manifest) for each, manifest in manifests_in(path)]
    return RunList(path, sorted(found, key=lambda run: run.created, reverse=True))


def may_be_submitted(run: Run) -> bool:
    """Whether a client that runs may submit some array of a run yet."""
    may_be, views = Submission(run).may_be_submitted, run.tasks.rounds
    return any(may_be(each, number) for each in run.rounds for number in views[each.number].missing_arrays)


def _ask(some: Iterable[RunSummary]) -> None:
    """Ask each scheduler once for the jobs of all those runs that have open items and are not known yet."""
    waiting: dict[tuple[str, str | None], list[RunSummary]] = {}
    for run in some:
        open_ = run.counts and run.counts["pending"] + run.counts["running"]
        if run._listed is None and open_ and run.job_ids:  # noqa: SLF001
            waiting.setdefault((run.cluster, run._clusters), []).append(run)  # noqa: SLF001
    for place, those in waiting.items():
        try:
            listed = current_client().backend(*place).listed({job for run in those for job in run.job_ids})
        except SchedulerError:
            continue
        for run in those:
            run._listed = listed.intersection(run.job_ids)  # noqa: SLF001
