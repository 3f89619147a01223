"""What an error says of its item beside the error itself: the call, the place, and the line that runs it again.

`Run` has every outcome that is an error completed here, whichever call raises it. It reads the item's arguments from
the run folder, and otherwise knows what the client knows anyway.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from slurmlaunch.client.arguments import ArgumentsReader
from slurmlaunch.client.code import differences
from slurmlaunch.client.ledger import ItemStatus
from slurmlaunch.client.options import Options
from slurmlaunch.client.retries import MEMORY, Cause, more_for
from slurmlaunch.client.wording import duration
from slurmlaunch.errors import (
    ItemError,
    NodeStartError,
    OutOfMemory,
    Place,
    ResultLost,
    RunFolderError,
    TimeLimitExceeded,
    UnsafeRunFolder,
    amount,
)
from slurmlaunch.outcome import add_note
from slurmlaunch.runfolder.outcomes import times_behind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from slurmlaunch.client.code import Code
    from slurmlaunch.client.ledger import RecordLocation
    from slurmlaunch.client.state import RunState
    from slurmlaunch.runfolder.layout import Manifest, RunFolder
    from slurmlaunch.runfolder.rounds import Round

_MODULE = re.compile(
    r"No module named '([\w.]+)'|cannot import name '\w+' from '([\w.]+)'|"
    r"module '([\w.]+)' has no attribute|Can't get attribute '\w+' on <module '([\w.]+)'"
)
"""What Python says of a module that is missing, or has not what is looked for."""


class Explanations:
    """Completes the errors of one view of a run."""

    def __init__(
        self,
        state: RunState,
        folder: RunFolder,
        manifest: Manifest,
        rounds: Sequence[Round],
        code: Callable[[int], Code],
    ) -> None:
        """Begin with the run's rounds, of which the caller may add more; *code* returns the code of one."""
        self._tasks, self._ledger = state.tasks, state.ledger
        self._folder, self._manifest, self._rounds, self._code = folder, manifest, rounds, code
        self._changed: dict[int, str] = {}  # by round, as of the first error for want of a module
        self._arguments: dict[int, ArgumentsReader] = {}  # by round

    @property
    def arguments(self) -> ArgumentsReader:
        """What reads the arguments of items, as the last round has them."""
        latest = self._rounds[-1]
        if latest.number not in self._arguments:
            self._arguments[latest.number] = ArgumentsReader(self._folder, self._manifest.changed(latest.plan.manifest))
        return self._arguments[latest.number]

    def changed_code(self) -> str:
        """Return what has changed since the code of the last round was recorded, or an empty text."""
        return differences(self._folder, self._manifest.changed(self._rounds[-1].plan.manifest))

    def complete(self, item: int, error: BaseException) -> None:
        """Add to an error of an item what a person needs to find and mend its cause, and to run the item again."""
        task, status = self._tasks.claimant_of(item), self._ledger.status(item)
        place = Place(item=item) if task is None else self._tasks.place_of(task)._replace(item=item)
        changes: dict[str, str] = {}
        if isinstance(error, ItemError):
            error.located(**place._asdict())
            changes = self._more(error, task)
        if _is_of_import(error):
            for note in self._notes_on_import(error):
                _add(error, note)
        # An array that was refused has one error for all its items.
        is_shared = status == ItemStatus.ENDED and not isinstance(error, ItemError)
        lines = [] if is_shared else [f"item {item}: {self.arguments.call_of(item)}"]
        if not isinstance(error, ItemError):  # which says it itself
            where = str(place._replace(item=None))
            lines += [] if is_shared else [f"{where}; log: {place.log}" if place.log else where]
        is_gone = isinstance(error, ResultLost) and not os.path.exists(self._folder.path)  # noqa: PTH110  (never raises)
        if status != ItemStatus.VALUE and not is_gone:  # a value that does not load here
            lines.append(self._again(error, changes))
        _add(error, "\n".join(filter(None, lines)))

    def _again(self, error: BaseException, changes: dict[str, str]) -> str:
        """Return the line that runs the item again."""
        given = ", ".join(f"{name}={value!r}" for name, value in changes.items())
        line = f"to run again what failed: slurmlaunch.attach({str(self._folder.path)!r}).retry({given})"
        module, _, name = self._manifest.function.partition(".")
        if module == "__main__" and name.isidentifier() and not isinstance(error, ItemError):
            line += f", or .retry({name}) with the mended function"
        return line

    def _more(self, error: ItemError, task: int | None) -> dict[str, str]:
        """Say how much of what was short there was; return the options that ask for more."""
        if task is None or not isinstance(error, (OutOfMemory, TimeLimitExceeded)):
            return {}
        view = self._tasks.view(task)
        # The limits are for automatic retries; who reads the error may go beyond them.
        options = Options.from_json(view.round.plan.options).changed(max_mem=None, max_time=None)
        peak = view.last_notes.get("peak")
        if isinstance(error, OutOfMemory):
            known = [f"held {amount(peak)}"] if peak else []
            known += [f"has {name}={options.slurm[name]!r}" for name in MEMORY if name in options.slurm]
            if known:
                error.what += f"; the task {' and '.join(known)}"
        else:
            error.what += f"; {self._pace(self._tasks.items_of(task))}"
        more = more_for(
            options, [Cause(error, view.node, peak, error.limit if isinstance(error, TimeLimitExceeded) else None)]
        )
        return more or {"mem" if isinstance(error, OutOfMemory) else "time": "..."}

    def _pace(self, items: Sequence[int]) -> str:
        """Return how many items of a task were done by the time limit, and how long finished items of the run took."""
        ledger = self._ledger
        done = ledger.count(ItemStatus.VALUE, items)
        finished = ledger.first_done(items if done else range(ledger.items), _SAMPLE)
        seconds = sorted(filter(None, (self._seconds(ledger.records.find(item), item) for item in finished)))
        took = f"; finished items took {duration(seconds[0])} to {duration(seconds[-1])}" if seconds else ""
        return f"{done} of the task's {len(items)} items {'was' if done == 1 else 'were'} done by then{took}"

    def _seconds(self, found: RecordLocation, item: int) -> float | None:
        with suppress(OSError, UnsafeRunFolder):
            if times := times_behind(found.source, found.offset, self._folder.salt):
                return times[1].part(item - times[0].start, item - times[0].start + 1).seconds[0]
        return None

    def _notes_on_import(self, error: BaseException) -> Iterator[str]:
        last = self._rounds[-1].number
        if last not in self._changed:  # thousands of items may fail for it
            self._changed[last] = self.changed_code()
        if self._changed[last]:
            yield self._changed[last]
        found = _MODULE.search(f"{error} {error.__cause__}")
        name = found[found.lastindex or 0] if found else ""
        with suppress(OSError, RunFolderError, UnsafeRunFolder):
            first, now = (self._code(number).modules.get(name) for number in (0, last))
            if first != now:
                yield f'the run has {name} as it was submitted: retry(code="submitted") runs that'
                return
        installs = "install it" in "".join(getattr(error, "__notes__", ()))
        if isinstance(error, ModuleNotFoundError) and error.name and not (self._changed[last] or installs):
            yield f"install {error.name} for the Python of the tasks, or name another Python with python=[...]"


_SAMPLE = 8
"""How many finished items are looked at, at most, to say how long items take."""


def _add(error: BaseException, note: str) -> None:
    if note not in getattr(error, "__notes__", ()):
        add_note(error, note)


def _is_of_import(error: BaseException) -> bool:
    """Return whether an item failed because of an import, also of its function or in reading its result."""
    names_module = isinstance(error, (NodeStartError, AttributeError)) and _MODULE.search(str(error)) is not None
    return names_module or isinstance(error, ImportError) or isinstance(error.__cause__, ImportError)
