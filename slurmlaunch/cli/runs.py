"""``slurmlaunch runs``: the runs below a folder, as `slurmlaunch.runs` lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurmlaunch.cli.exit_status import OK
from slurmlaunch.cli.parsers import RUNS_FOLDER, VerbParser, positive
from slurmlaunch.cli.printing import print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION = """\
List the runs in a folder, the newest first: the state of each, its items, its
size on disk, and whether its code has changed since.

The state is one of: running; done; failed (some items raised an error);
cancelled; never submitted; gone (items are open, and no job is left); unknown
(Slurm does not answer); damaged.
"""
_EXAMPLES = """\
examples:
  slurmlaunch runs
  slurmlaunch runs --folder /scratch/me/slurmlaunch-runs -n 5
  slurmlaunch runs --json | jq -r '.runs[] | select(.state == "failed") | .name'
"""
_SHOWN = 20
_SPARE = ("code", "function", "cluster", "size", "submitted", "name")  # a run folder's name begins with the time


def main(arguments: Sequence[str]) -> int:
    """Print the list; return 0."""
    parser = VerbParser("runs", "[OPTION...]", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("--folder", metavar="FOLDER", help=RUNS_FOLDER)
    parser.add_argument(
        "-n", "--number", metavar="N", type=positive, help=f"the newest N; by default {_SHOWN}, with --json all"
    )
    parser.add_json()
    given = parser.read(arguments)
    from slurmlaunch.client.runs import runs

    found = runs(given.folder)
    number = given.number or (len(found) if given.json else _SHOWN)
    if given.json:
        print_json(found[:number].to_dict())
        return OK
    if not found:
        print(f"no runs in {found.folder}")
        return OK
    print_table(found[:number].table(), _SPARE)
    more = f", {len(found) - number} more: slurmlaunch runs -n {len(found)}" if len(found) > number else ""
    print(f"in {found.folder}{more}")
    return OK
