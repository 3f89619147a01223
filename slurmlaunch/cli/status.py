"""``slurmlaunch status``: how many items of a run are where, what its tasks do, and why some wait."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

from slurmlaunch.cli.exit_status import OK, of_counts
from slurmlaunch.cli.parsers import RunParser, find, look
from slurmlaunch.cli.printing import coloured, print_json, print_line

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from slurmlaunch.client.failures import Cause, FailedItem
    from slurmlaunch.client.futures import FutureArray
    from slurmlaunch.client.status import Status

_DESCRIPTION = """\
Show how many items of a run are done, failed, running or pending, the states of
its tasks in Slurm's words, why some wait, and the first failures.
"""
_EXAMPLES = """\
examples:
  slurmlaunch status
  slurmlaunch status fit --watch
  slurmlaunch status 4711 --failures
  slurmlaunch status --json | jq .counts.failed

The exit status is 0, and 3 if there is no such run; with --watch that of
slurmlaunch wait.
"""
_EVERY = 2.0


def main(arguments: Sequence[str]) -> int:
    """Print the status, once or until all items have ended; return the exit status."""
    parser = RunParser("status", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("--watch", action="store_true", help="show it again as it changes, until all items have ended")
    parser.add_argument("--failures", action="store_true", help="show all failures, by cause")
    parser.add_json()
    given = parser.read(arguments)
    if given.watch:
        return _watch(find(given), given)
    futures = look(given)
    state, status = futures.summary().state, futures.status()
    if given.json:
        print_json(_values(futures, status, state, given))
    else:
        _print(state, _lines(futures, status, state, given))
    return OK


def _watch(futures: FutureArray[Any], given: argparse.Namespace) -> int:
    """Show the status as it changes: in the same place of a terminal, otherwise one below the other."""
    shown: list[str] = []
    known = None
    while True:
        over, status = futures.done(), futures.status()
        if status != known:
            if given.json:
                print_line(_values(futures, status, status.state, given))
            else:
                shown = _print_again(shown, status.state, _lines(futures, status, status.state, given))
        if over:
            return of_counts(status.counts)
        known = status
        futures.wait(_EVERY, progress=False)


def _print_again(shown: list[str], state: str, lines: list[str]) -> list[str]:
    """Print lines, on a terminal in place of those that are *shown*; return what was printed."""
    if sys.stdout.isatty():
        width, height = shutil.get_terminal_size()
        if shown:  # the terminal may have become narrower, and then has wrapped them
            rows = sum(max(1, -(-len(line) // width)) for line in shown)
            sys.stdout.write(f"\033[{rows}F\033[J")
        lines = [line[: width - 1] for line in lines[: height - 1]]
    _print(state, lines)
    sys.stdout.flush()
    return lines


def _print(state: str, lines: list[str]) -> None:
    print(coloured(state) + lines[0][len(state) :], *lines[1:], sep="\n")


def _lines(futures: FutureArray[Any], status: Status, state: str, given: argparse.Namespace) -> list[str]:
    failures = futures.failures() if given.failures else None
    return f"{state}  {status}".splitlines() + (str(failures).splitlines() if failures else [])


def _values(futures: FutureArray[Any], status: Status, state: str, given: argparse.Namespace) -> dict[str, Any]:
    causes = {"causes": [_as_dict(*each) for each in futures.failures().groups()]} if given.failures else {}
    return {**status.to_dict(), "state": state, **causes}


def _as_dict(cause: Cause, items: Sequence[FailedItem]) -> dict[str, Any]:
    return {
        "error": cause.text,
        "type": cause.kind,
        "where": cause.where,
        "items": [each.index for each in items],
        "log": str(items[0].log),
    }
