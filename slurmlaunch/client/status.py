"""The status of a run at one moment: how many items are where, what its tasks do, and why some wait.

`FutureArray.status` makes it, the progress display and notebooks show it. Making one asks no scheduler, and reads only
the first failures, once: everything else is what this process knows already.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from slurmlaunch.backends.base import TaskState
from slurmlaunch.client import html
from slurmlaunch.client.failures import first_failures
from slurmlaunch.client.ledger import ItemStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slurmlaunch.client.run import Run

__all__ = ["Status"]


@dataclass(frozen=True)
class Status:
    """What is known of a run, or of a part of it, at one moment; ``str()`` is for a terminal.

    Attributes:
        name: the name of the run.
        folder: the run folder.
        cluster: the backend: ``slurm``, ``allocation``, ``local`` or ``inline``.
        created: when the run was submitted, in seconds since the epoch.
        items: the number of items.
        counts: how many items are ``pending``, ``running``, ``done``, ``failed``, ``cancelled``; running ones are in
            the hands of a process.
        tasks: how many tasks are in each state, by Slurm's word.
        job_ids: the ids of the run's jobs.
        reasons: why tasks are pending, in words, the most frequent reason first.
        failures: the first items that failed, with their arguments and errors, in words.
    """

    name: str
    folder: str
    cluster: str
    created: float
    items: int
    counts: dict[str, int]
    tasks: dict[str, int] = field(default_factory=dict)
    job_ids: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()

    @property
    def settled(self) -> int:
        """The number of items that are done, failed or cancelled."""
        return self.items - self.counts["pending"] - self.counts["running"]

    @property
    def state(self) -> str:
        """The state in a word: ``running`` while items are open; then ``failed``, ``cancelled`` or ``done``."""
        return state_of(self.counts)

    def to_dict(self) -> dict[str, Any]:
        """Return the status as a dict of numbers, strings, lists and dicts, ready for JSON."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {**values, "state": self.state}

    def summary(self) -> str:
        """Return the counts in one line: ``312 of 1000 done, 3 failed, 16 running``."""
        words = [f"{self.counts['done']} of {self.items} done"]
        words += [
            f"{self.counts[word]} {word}" for word in ("failed", "cancelled", "running", "pending") if self.counts[word]
        ]
        return ", ".join(words)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.summary()}", f"  tasks: {self._tasks}" if self.tasks else ""]
        lines += [f"  jobs: {', '.join(self.job_ids)}" if self.job_ids else ""]
        lines += [f"  pending: {reason}" for reason in self.reasons]
        lines += [f"  failed: {failure}" for failure in self.failures]
        lines += [f"  submitted {time.strftime('%Y-%m-%d %H:%M', time.localtime(self.created))}; {self.folder}"]
        return "\n".join(filter(None, lines))

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self, pace: str = "") -> str:
        """Return the status as HTML for a notebook, perhaps with a rate in words."""
        counts = [(self.counts[word], word) for word in _COLOURS if self.counts[word]]
        words = " · ".join(html.marked(f"{number} {word}", _COLOURS[word]) for number, word in counts)
        of = f" of {self.items}" + (f" · {pace}" if pace else "")
        rows = [
            html.row(f"<b>{html.text(self.name)}</b>: {words}{html.text(of)}"),
            html.strip((html.Part(number, _COLOURS[word], f"{number} {word}") for number, word in counts), 10),
        ]
        if self.tasks:
            colours = [
                html.Part(number, _STATES.get(word, html.RED), f"{number} {word}")
                for word, number in self.tasks.items()
            ]
            colours.sort(key=lambda part: [*_COLOURS.values()].index(part.colour))
            rows += [html.strip(colours, 4), html.small(f"tasks: {self._tasks}")]
        rows += [html.small(f"pending: {reason}") for reason in self.reasons]
        rows += [html.small(f"failed: {failure}") for failure in self.failures]
        rows += [html.small(f"jobs: {', '.join(self.job_ids)}")] if self.job_ids else []
        return html.box([*rows, html.small(f"to come back: slurmlaunch.attach({self.folder!r})")])

    @property
    def _tasks(self) -> str:
        return ", ".join(f"{number} {word}" for word, number in self.tasks.items())


_COLOURS = {
    "done": html.GREEN,
    "failed": html.RED,
    "cancelled": html.BROWN,
    "running": html.BLUE,
    "pending": html.GREY,
}
"""The colours of the counts, in the order of the strip."""

_STATES = {
    "COMPLETED": html.GREEN,
    "RUNNING": html.BLUE,
    "COMPLETING": html.BLUE,
    "CANCELLED": html.BROWN,
    "PREEMPTED": html.BROWN,
    **{state.value: html.GREY for state in TaskState if state.is_queued},
}
"""The colours of task states; other states are failures."""


def state_of(counts: Mapping[str, int]) -> str:
    """Return the state of items in a word, as `Status.state` does."""
    if counts["pending"] or counts["running"]:
        return "running"
    return next((word for word in ("failed", "cancelled") if counts[word]), "done")


def counts_of(run: Run, part: Sequence[int] | None) -> dict[str, int]:
    """Return how many items, of a part or (None) of all, are in each state of `Status.counts`."""
    ledger = run.ledger
    with run.changed:
        open_ = ledger.count(ItemStatus.OPEN, part)
        running = run.tasks.count_running(part) if open_ else 0
        return {
            "pending": open_ - running,
            "running": running,
            "done": ledger.count(ItemStatus.VALUE, part),
            "failed": ledger.count(ItemStatus.FAILURE, part) + ledger.count(ItemStatus.ENDED, part),
            "cancelled": ledger.count(ItemStatus.CANCELLED, part),
        }


def status_of(run: Run, items: Sequence[int], *, tasks: bool = True) -> Status:
    """Return the status of some items of a run; without *tasks* it is quicker, and has no states of tasks."""
    part = None if len(items) == run.manifest.items else items
    counts = counts_of(run, part)
    states: Counter[str] = Counter()
    if tasks:
        with run.changed:
            states.update(run.tasks.state_of(task).value for task in run.tasks.all())
    reasons = tuple(run.tasks.why_tasks_wait()) if counts["pending"] else ()
    manifest = run.manifest
    return Status(
        manifest.name,
        str(run.folder.path),
        manifest.backend,
        manifest.created,
        len(items),
        counts,
        dict(sorted(states.items())),
        run.job_ids,
        reasons,
        first_failures(run, items) if tasks and counts["failed"] else (),
    )
