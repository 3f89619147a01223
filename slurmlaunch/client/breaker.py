"""The breaker: when the first tasks all die in the same way, the rest is not worth starting.

A missing module, a wrong interpreter, a full quota: what keeps a node from
calling the function keeps a thousand nodes from it. Only ends of that kind
count, and only while the run has no outcome of the function at all.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from slurmlaunch.client.ledger import Fate
from slurmlaunch.errors import ItemError, NodeStartError, SchedulerError

if TYPE_CHECKING:
    from slurmlaunch.client.run import Run

_log = logging.getLogger("slurmlaunch")

THRESHOLD = 3
"""How many tasks have to die in the same way."""


class Breaker:
    """Watches the first tasks of a run die."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._died: dict[str, set[int]] = {}
        self._tripped = False

    def note(self, task: int, error: BaseException) -> None:
        """Take in how a task died; end the rest of the run where that was once too often."""
        if self._tripped or not isinstance(error, NodeStartError):
            return
        if self._run.was_called or self._run.ledger.count(Fate.VALUE):
            return
        tasks = self._died.setdefault(error.what.partition("\n")[0], set())
        tasks.add(task)
        if len(tasks) >= THRESHOLD:
            self._trip(error)

    def _trip(self, error: NodeStartError) -> None:
        run = self._run
        self._tripped = True
        what = f"not started, since the first {THRESHOLD} tasks died in the same way: {error.what}"

        def left_out(item: int) -> ItemError:
            return NodeStartError(what, advice=error.advice, exit_code=error.exit_code).located(item=item)

        run.ended(range(run.manifest.items), left_out, final=True)
        # From a thread: the scheduler's commands may hang, and this one settles the futures.
        threading.Thread(target=self._cancel, name="slurmlaunch-cancel", daemon=True).start()

    def _cancel(self) -> None:
        for job_id in self._run.job_ids:
            try:
                self._run.backend.cancel(job_id)
            except SchedulerError as error:
                _log.warning("slurmlaunch could not cancel %s, whose first tasks could not start: %s", job_id, error)
