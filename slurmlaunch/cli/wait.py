"""``slurmlaunch wait``: until all items of a run have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurmlaunch.cli.exit_status import of_counts
from slurmlaunch.cli.parsers import RunParser, find, seconds
from slurmlaunch.cli.printing import print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION = """\
Wait until all items of a run have ended, and print how many succeeded. On a
terminal the progress is shown meanwhile. Ctrl-C ends the waiting, not the run.
"""
_EXAMPLES = """\
examples:
  slurmlaunch wait
  slurmlaunch wait fit --timeout 1h && slurmlaunch results fit --csv > fit.csv

The exit status is 0 if every item succeeded, 1 if some failed or were
cancelled, 3 if there is no such run, and 4 if the time was up.
"""


def main(arguments: Sequence[str]) -> int:
    """Wait; return the exit status."""
    parser = RunParser("wait", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("--timeout", metavar="TIME", type=seconds, help="wait no longer: seconds, or 5m, 2h")
    parser.add_json()
    given = parser.read(arguments)
    futures = find(given)
    futures.wait(given.timeout)
    status = futures.status()
    if given.json:
        print_json(status.to_dict())
    else:
        print(f"{status.name}: {status.summary()}")
    return of_counts(status.counts)
