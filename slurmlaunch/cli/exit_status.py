"""The exit statuses of the command line, and which of them an error becomes.

`main` and the verbs use them; the page ``docs/for-programs.md`` tells programs what they mean.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from slurmlaunch.errors import SIGNALLED, RunFolderError, SchedulerError, SubmissionError

if TYPE_CHECKING:
    from collections.abc import Mapping

OK = 0
FAILED = 1
"""An item failed or was cancelled, or the doctor found an error."""
USAGE = 2
"""The command line or a configuration file is wrong, or Slurm refused the submission."""
NOT_FOUND = 3
"""There is no such run or item, or the run cannot be used here."""
NOT_STARTED = 3
"""The doctor's job has not started in time."""
NOT_DONE = 4
"""Items have not ended yet."""
NO_ANSWER = 5
"""Slurm does not answer; the same command may work later."""
INTERRUPTED = SIGNALLED + signal.SIGINT
READER_ENDED = SIGNALLED + signal.SIGPIPE


def of_counts(counts: Mapping[str, int]) -> int:
    """Return the exit status for items, by the counts of `slurmlaunch.Status`."""
    if counts["pending"] or counts["running"]:
        return NOT_DONE
    return FAILED if counts["failed"] or counts["cancelled"] else OK


class VerbError(Exception):
    """A verb cannot do what it was told; the text says why, and *status* is its exit status."""

    def __init__(self, text: str, status: int = USAGE) -> None:
        super().__init__(text)
        self.status = status


def status_of(error: Exception) -> int:
    """Return the exit status for an error that ends a verb."""
    if isinstance(error, VerbError):
        return error.status
    if isinstance(error, RunFolderError):
        return NOT_FOUND
    is_away = isinstance(error, SubmissionError) and (error.transient or error.ambiguous)
    return NO_ANSWER if is_away or isinstance(error, SchedulerError) else USAGE
