"""What the ranks of a task returned, beside rank 0, whose value is the item's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from slurmlaunch.errors import ResultLost
from slurmlaunch.runfolder.changes import latency_of
from slurmlaunch.runfolder.outcomes import OutcomeFile
from slurmlaunch.runfolder.records import Damage

if TYPE_CHECKING:
    from slurmlaunch.client.run import Run
    from slurmlaunch.runfolder.outcomes import Recorded

_TICK = 0.5


def values_of_further_ranks(run: Run, item: int) -> list[Any]:
    """Return what ranks 1, 2, ... returned for an item that has a value.

    Raises:
        ResultLost: a value cannot be read.
        UnpicklableResult: a value does not unpickle here.
    """
    task, attempt = map(int, run.ledger.file_of(item).name.split("."))
    its_round = run.tasks.place(task).round
    number = its_round.plan.ranks.number if its_round.plan.ranks else 1
    files = [run.folder.rank_file(its_round.number, task, attempt, rank) for rank in range(1, number)]
    # The supervisor has seen them; here a network file system may be behind.
    deadline = time.monotonic() + latency_of(run.folder.path)
    return [_value(OutcomeFile(path, run.folder.salt), item, deadline) for path in files]


def _value(file: OutcomeFile, item: int, deadline: float) -> Any:
    while (recorded := _last_record(file, item)) is None:
        if time.monotonic() > deadline:
            raise ResultLost("what a rank returned is not on disk", file=str(file.path)).located(item=item)
        time.sleep(_TICK)
    return recorded.read().outcome(item).unwrap()


def _last_record(file: OutcomeFile, item: int) -> Recorded | None:
    """Return the last record of an item: earlier ones are of launches that did not come to their end."""
    last = None
    file.position = 0
    try:
        for found in file.read(final=True):
            if not isinstance(found, Damage) and found.header.first <= item < found.header.stop:
                last = found
    except FileNotFoundError:
        return None
    return last
