"""The items of a run that failed, for a person: each with its arguments, its error and its log; in print by cause.

`FutureArray.failures` returns them, and `Status` shows the first ones. Errors and arguments are read when they are
asked for.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.backends.installed import is_installed
from slurmlaunch.client import html
from slurmlaunch.client.wording import shown
from slurmlaunch.errors import ItemError
from slurmlaunch.outcome import Failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from slurmlaunch.client.run import Run

__all__ = ["FailedItem", "Failures"]

_FRAME = re.compile(r'^[ |+]*File "(.+)", line (\d+)', re.MULTILINE)
_FIRST = 3
_CELL = re.compile(r"<ipython-input|ipykernel_\d+")


class Cause(NamedTuple):
    """Why an item failed: items with equal *error* and *where* failed alike, whatever their *text* says."""

    kind: str  # the class of the error
    where: str  # such as ``process.py:12``; empty if the user's code did not raise it
    text: str  # the error, shortened, as ``KeyError('v')``

    def __str__(self) -> str:
        return f"{self.text} at {self.where}" if self.where else self.text


class FailedItem:
    """An item that failed.

    Attributes:
        index: its index in the run.
    """

    def __init__(self, run: Run, index: int) -> None:
        self._run, self.index = run, index

    @cached_property
    def error(self) -> BaseException:
        """The exception that the item's future raises."""
        failure = self._run.outcome(self.index)
        assert isinstance(failure, Failure)  # noqa: S101  (it has settled so, and stays so)
        return failure.error

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments, as `slurmlaunch.Future.args`."""
        return self._run.explanations.arguments.of(self.index).args

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments, as `slurmlaunch.Future.kwargs`."""
        return self._run.explanations.arguments.of(self.index).kwargs

    @property
    def log(self) -> Path:
        """The path of the log of its task."""
        return Path(self._run.tasks.log(self._run.tasks.task_of(self.index), "err"))

    @cached_property
    def _failure(self) -> Failure:
        failure = self._run.reader.outcome(self.index)
        assert isinstance(failure, Failure)  # noqa: S101  (as above)
        return failure

    @property
    def traceback(self) -> str:
        """The traceback of its error in the task, as text; empty if the function did not raise it."""
        return self._failure.traceback

    @cached_property
    def cause(self) -> Cause:
        """Why it failed, in short."""
        error = self._failure.error
        return Cause(type(error).__qualname__, _place_in(self._failure.traceback), _in_short(error))

    @property
    def name(self) -> str:
        """The item with its arguments, in short: ``item 13 (csvs/s013.csv)``."""
        return f"item {self.index} ({self._run.explanations.arguments.text_of(self.index)})"

    @property
    def text(self) -> str:
        """The item, its arguments and its error in one line."""
        return f"{self.name}: {self.cause}"

    def __repr__(self) -> str:
        return f"<{self.text}>"


class Failures(list[FailedItem]):
    """The items that failed, in order; ``str()`` tells them by cause."""

    def groups(self) -> list[tuple[Cause, list[FailedItem]]]:
        """Return the items by cause, the most frequent cause first; the cause is that of the first item."""
        found: dict[tuple[str, str], list[FailedItem]] = {}
        for each in self:
            found.setdefault((each.cause.kind, each.cause.where or each.cause.text), []).append(each)
        return [(items[0].cause, items) for items in sorted(found.values(), key=len, reverse=True)]

    def __str__(self) -> str:
        return "\n".join(self._lines()) or "no item has failed"

    __repr__ = __str__

    def _lines(self) -> Iterable[str]:
        for cause, items in self.groups():
            several = len(items) > 1
            yield f"{len(items)} item{'s' * several}: {cause}, {'e.g. ' * several}{items[0].name}"
            yield f"    log: {items[0].log}"

    def _repr_html_(self) -> str:
        rows = [map(html.text, (len(items), cause, items[0].name, items[0].log)) for cause, items in self.groups()]
        return html.box([html.table(("items", "error", "such as", "log"), rows) if rows else html.row(str(self))])


def first_failures(run: Run, items: Sequence[int]) -> tuple[str, ...]:
    """Return the first failures among some items in words; each is read once."""
    first = run.ledger.first_failed(items, _FIRST)
    for item in first:
        if item not in run.failures:
            run.failures[item] = FailedItem(run, item).text
    return tuple(run.failures[item] for item in first)


def _in_short(error: BaseException) -> str:
    if isinstance(error, ItemError):
        return f"{type(error).__name__}: {error.what.partition(chr(10))[0]}"
    if isinstance(error, CalledProcessError):  # whose repr() holds the whole command and its output
        how = f"exit status {error.returncode}" if error.returncode > 0 else f"signal {-error.returncode}"
        last = error.stderr.rstrip().rpartition("\n")[2] if isinstance(error.stderr, str) else ""
        return f"{how}: {last}" if last else how
    return shown([error], {})[0]


def _place_in(traceback: str) -> str:
    """Return the file and line of the user's code that raised, from a traceback's text."""
    frames = _FRAME.findall(traceback)
    own = [frame for frame in frames if not is_installed(frame[0])] or frames
    if not own:
        return ""
    file, line = own[-1]
    return f"line {line} of a notebook's cell" if _CELL.search(file) else f"{Path(file).name}:{line}"
