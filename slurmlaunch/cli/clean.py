"""``slurmlaunch clean``: removes one run, or those that are old."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from slurmlaunch.cli.exit_status import OK
from slurmlaunch.cli.parsers import RunParser, find
from slurmlaunch.cli.printing import print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION = """\
Remove a run folder with everything in it, or those of all runs in a folder that
nobody has written to for long. A run that Slurm lists a job of, or that another
process uses, stays; of old runs also those with items that have no result.
"""
_EXAMPLES = """\
examples:
  slurmlaunch clean fit
  slurmlaunch clean --older-than 30d --dry-run
  slurmlaunch clean --older-than 30d --failed
"""


def main(arguments: Sequence[str]) -> int:
    """Remove the runs; return 0."""
    parser = RunParser("clean", _DESCRIPTION, _EXAMPLES, acts=True)
    parser.add_argument(
        "--older-than", metavar="TIME", help="the runs that were last written to so long ago (30d), in place of RUN"
    )
    parser.instead = "older_than"
    parser.add_argument("--failed", action="store_true", help="of those, also runs with items that have no result")
    parser.add_argument("--dry-run", action="store_true", help="of those, print which, and remove nothing")
    parser.add_json()
    given = parser.read(arguments)
    one = given.older_than is None
    if not one and given.older_than.isdecimal() and int(given.older_than):  # which sbatch takes for minutes
        parser.error(f"--older-than {given.older_than}: write the unit, as in {given.older_than}d")
    if one and (given.failed or given.dry_run):
        parser.error("--failed and --dry-run go with --older-than")
    from slurmlaunch.cli.flag_errors import in_flags
    from slurmlaunch.client.cleaning import remove_old, seconds_of

    if one:
        cleaned = find(given).remove()
    else:
        how = {"keep_failed": not given.failed, "dry_run": given.dry_run}
        cleaned = remove_old(given.folder, seconds_of(given.older_than), **how)
        print(f"slurmlaunch: {in_flags(cleaned)}", file=sys.stderr)
    if given.json:
        print_json(cleaned.to_dict())
    elif given.dry_run:
        print("".join(f"{path}\n" for path in cleaned.removed), end="")
    return OK
