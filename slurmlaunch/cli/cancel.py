"""``slurmlaunch cancel``: items of a run, or all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurmlaunch.cli.exit_status import OK
from slurmlaunch.cli.parsers import ITEMS, RunParser, chosen, find
from slurmlaunch.cli.printing import counted, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION = """\
Cancel the items of a run that have not ended, or some of them. Slurm ends the
tasks that have nothing left to do; items that have ended keep their results.
"""
_EXAMPLES = """\
examples:
  slurmlaunch cancel fit
  slurmlaunch cancel fit 3-9
  slurmlaunch cancel --newest

The exit status is 0, also if all items had ended, 3 if there is no such run or
item, and 5 if Slurm could not be told; the items are cancelled all the same.
"""


def main(arguments: Sequence[str]) -> int:
    """Cancel the items; return 0."""
    parser = RunParser("cancel", _DESCRIPTION, _EXAMPLES, acts=True, items=ITEMS)
    parser.add_json()
    given = parser.read(arguments)
    futures = find(given)
    some = chosen(given, futures)
    before = some.counts()
    some.cancel()
    counts = some.counts()
    number = counts["cancelled"] - before["cancelled"]
    if given.json:
        print_json({"folder": str(futures.folder), "cancelled": number, "counts": futures.counts()})
    else:
        what = f"{counted(number, 'item')} cancelled" if number else "nothing to cancel"
        print(f"{what}; {futures.status().summary()}")
    return OK
