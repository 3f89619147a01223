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
    _show(futures, futures.summary().state, given)
    return OK


def _watch(futures: FutureArray[Any], given: argparse.Namespace) -> int:
    """Show the status as it changes: in the same place of a terminal, otherwise one below the other."""
    shown, known = 0, None
    while True:
        over, status = futures.done(), futures.status()
        if status != known:
            if shown and sys.stdout.isatty():
                sys.stdout.write(f"\033[{shown}F\033[J")
            shown = _show(futures, status.state, given)
            sys.stdout.flush()
        if over:
            return of_counts(status.counts)
        known = status
        futures.wait(_EVERY, progress=False)


def _show(futures: FutureArray[Any], state: str, given: argparse.Namespace) -> int:
    """Print the status, with the state in a word; return the number of lines on a terminal."""
    status = futures.status()
    failures = futures.failures() if given.failures else None
    if given.json:
        causes = {} if failures is None else {"causes": [_as_dict(*each) for each in failures.groups()]}
        values = {**status.to_dict(), "state": state, **causes}
        print_line(values) if given.watch else print_json(values)
        return 1
    lines = f"{state}  {status}".splitlines() + (str(failures).splitlines() if failures else [])
    if given.watch and sys.stdout.isatty():  # a line that wraps would take two
        width = shutil.get_terminal_size().columns - 1
        lines = [line[:width] for line in lines]
    print(coloured(state) + lines[0][len(state) :], *lines[1:], sep="\n")
    return len(lines)


def _as_dict(cause: Cause, items: Sequence[FailedItem]) -> dict[str, Any]:
    return {
        "error": cause.text,
        "type": cause.kind,
        "where": cause.where,
        "items": [each.index for each in items],
        "log": str(items[0].log),
    }
