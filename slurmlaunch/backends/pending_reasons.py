"""The reasons of pending jobs, in words: what Slurm's word means, whether the job will ever start, and what to change.

The client shows them. The table is ``pending_reasons.tsv`` beside this file, with the reasons of Slurm 22.05 to 26.05;
a reason that is not in it is shown as Slurm gives it. Nothing here asks Slurm.
"""

from __future__ import annotations

import functools
import re
import time
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from slurmlaunch.backends.base import TaskRecord


class Kind(Enum):
    """What a job waits for; of several reasons the first kind in this order decides."""

    LATER = "later"
    OWN = "own"
    LIMIT = "limit"
    SITE = "site"
    REQUEST = "request"
    UNKNOWN = "unknown"


_RELEASE = "scontrol release"
_NEEDS_RELEASE = re.compile(r"scontrol (-M \S+ )?release")
_LEADS = {
    Kind.LATER: "it starts later",
    Kind.OWN: "it waits by your own words",
    Kind.LIMIT: "it waits for a limit of yours or your group's",
    Kind.SITE: "it waits for the site",
    Kind.REQUEST: "it does not start as asked",
}


class Reason(NamedTuple):
    """A reason, explained.

    Attributes:
        word: Slurm's own word, or its own text if it is not known.
        kind: what the job waits for.
        meaning: what the word means; empty if it is not known.
        advice: what to change; may be empty.
    """

    word: str
    kind: Kind
    meaning: str = ""
    advice: str = ""

    @property
    def never_starts(self) -> bool:
        """Whether the job does not start unless somebody acts: it asks for what it cannot have, or is held."""
        return self.kind is Kind.REQUEST or _NEEDS_RELEASE.search(self.advice) is not None

    def of_job(self, job_id: str | None, clusters: str | None) -> Reason:
        """Return the reason of a job, with the whole command where the advice names one."""
        number, _, cluster = (job_id or "").partition(";")
        words = ["scontrol", *(["-M", cluster or clusters] if cluster or clusters else []), "release", number]
        return self._replace(advice=self.advice.replace(_RELEASE, " ".join(filter(None, words))))

    def __str__(self) -> str:
        if self.kind is Kind.UNKNOWN:
            return self.word
        advice = f"; {self.advice}" if self.advice else ""
        return f"{_LEADS[self.kind]} ({self.word}): {self.meaning}{advice}"


def explain(text: str) -> Reason:
    """Explain a reason as squeue prints it: a word, several with commas, a word with details, or free text."""
    plain = text.replace("_", " ").strip("() ")
    table = _table()
    if plain in table:
        return table[plain]
    # Details follow some words: "ReqNodeNotAvail, UnavailableNodes:n[1-2]".
    known = [table[word] for word in re.findall(r"[A-Za-z]+", plain.partition(":")[0]) if word in table]
    words = [reason for reason in known if reason.word != "None"] or known
    if not words or " " in plain.replace(", ", ","):  # a sentence that happens to hold such a word
        return Reason(text, Kind.UNKNOWN)
    first = min(words, key=lambda reason: _ORDER[reason.kind])
    return first._replace(word=text)


def in_words(record: TaskRecord, job_id: str | None = None, clusters: str | None = None) -> str | None:
    """Return why a task waits, with the time at which Slurm expects to start it; None if nothing is known.

    The id of its job, and the cluster of jobs whose id names none, complete the commands that the text names.
    """
    if not record.state.is_queued or not record.reason:
        return None
    reason = explain(record.reason).of_job(job_id, clusters)
    if record.starts is None or reason.never_starts:
        return str(reason)
    return f"{reason}; Slurm expects its start at {time.strftime('%Y-%m-%d %H:%M', time.localtime(record.starts))}"


_ORDER = {kind: position for position, kind in enumerate(Kind)}


@functools.cache
def _table() -> dict[str, Reason]:
    from importlib import resources  # here, since most runs have no pending job

    table = resources.files(__package__).joinpath("pending_reasons.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in table.splitlines() if not line.startswith("#")]
    return {word: Reason(word, Kind(kind), *rest) for word, kind, *rest in rows}
