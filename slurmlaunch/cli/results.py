"""``slurmlaunch results``: what the items of a run returned, as text, JSON or CSV."""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING, Any

from slurmlaunch.cli.exit_status import VerbError, of_counts
from slurmlaunch.cli.outcomes import show, tell_failures
from slurmlaunch.cli.parsers import ITEMS, RunParser, chosen, look
from slurmlaunch.cli.plain import NotPlainError, plain, row
from slurmlaunch.cli.printing import counted, print_json, print_line
from slurmlaunch.errors import ResultLost, UnpicklableResult

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slurmlaunch.client.failures import FailedItem
    from slurmlaunch.client.futures import Future, FutureArray

_DESCRIPTION = """\
Print what the items of a run returned, in their order, and on standard error
why others failed. It does not wait for items that have not ended.
"""
_EXAMPLES = """\
examples:
  slurmlaunch results
  slurmlaunch results fit --csv > fit.csv
  slurmlaunch results fit --jsonl | jq 'select(.status == "done") | .value'

--jsonl, --json and --csv are for plain values: numbers, text, None, dates,
lists, dicts, data classes, numpy arrays. NaN becomes null.

The exit status is 0 if every item succeeded, 1 if some failed or were
cancelled, 3 if there is no such run or item, and 4 if some have not ended.
"""


_HOW_TO_LOAD = (
    "Use the Python environment of the run (python -m slurmlaunch results), and put the folders of its modules into "
    "PYTHONPATH"
)


def main(arguments: Sequence[str]) -> int:
    """Print the results; return the exit status."""
    parser = RunParser("results", _DESCRIPTION, _EXAMPLES, items=ITEMS)
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--jsonl", action="store_true", help="print a JSON object for each item, in a line")
    forms.add_argument("--csv", action="store_true", help="print a table with a row for each item that has a value")
    forms.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.read(arguments)
    futures = chosen(given, look(given))
    if given.jsonl:
        for each in _as_dicts(futures):
            print_line(each)
    elif given.json:
        print_json({"folder": str(futures.folder), "items": list(_as_dicts(futures))})
    elif given.csv:
        _print_csv(futures)
    else:
        _show(futures)
    return _tell_rest(futures)


def _show(futures: FutureArray[Any]) -> None:
    """Print the values, and then why items failed."""
    names = {each.index: each for each in futures.failures()}
    failed = {}
    for future in futures:
        if future.done():
            _error_of(future)
            if reason := show(future):
                failed[names[future.index].name if future.index in names else f"item {future.index}"] = reason
    tell_failures(failed, len(futures))


def _error_of(future: Future[Any]) -> BaseException | None:
    """Return why an item that has ended has no value, if it has none.

    Raises:
        VerbError: it has one, which this process cannot load.
    """
    error = None if future.cancelled() else future.exception()
    if isinstance(error, (UnpicklableResult, ResultLost)) and future.run.select([future.index]).counts()["done"]:
        raise VerbError(f"item {future.index} of {future.run.folder.name}: {error.what}. {_HOW_TO_LOAD}")
    return error


def _as_dicts(futures: FutureArray[Any]) -> Iterator[dict[str, Any]]:
    failed = {each.index: each for each in futures.failures()}
    for future in futures:
        yield {"item": future.index, **_outcome(future, failed.get(future.index))}


def _outcome(future: Future[Any], failed: FailedItem | None) -> dict[str, Any]:
    if not future.done():
        return {"status": "running" if future.running() else "pending", "value": None, "error": None}
    if future.cancelled():
        return {"status": "cancelled", "value": None, "error": None}
    error = _error_of(future)
    if error is None:
        return {"status": "done", "value": _plain(future), "error": None}
    told = {
        "type": type(error).__qualname__,
        "message": str(error),
        "traceback": failed.traceback if failed else "",
        "log": str(future.log("err")),
    }
    return {"status": "failed", "value": None, "error": told}


def _plain(future: Future[Any]) -> Any:
    try:
        return plain(future.result())
    except NotPlainError as error:
        where = f"slurmlaunch.attach({str(future.run.folder)!r})[{future.index}].result()"
        what = f"item {future.index} returned a {error}, or a value that holds one, which is not plain"
        raise VerbError(f"{what}; in Python: {where}") from None


def _print_csv(futures: FutureArray[Any]) -> None:
    done = (each for each in futures if each.done() and not each.cancelled() and _error_of(each) is None)
    rows = [row(future.index, _plain(future)) for future in done]
    columns = dict.fromkeys(["item", *(name for each in rows for name in each)])
    table = csv.DictWriter(sys.stdout, list(columns), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)


def _tell_rest(futures: FutureArray[Any]) -> int:
    counts = futures.counts()
    left = counts["pending"] + counts["running"]
    if left:
        print(f"slurmlaunch: {left} of {counted(len(futures), 'item')} have not ended", file=sys.stderr)
    return of_counts(counts)
