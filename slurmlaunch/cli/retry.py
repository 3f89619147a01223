"""``slurmlaunch retry``: the items of a run that failed or are missing, again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurmlaunch.backends.base import OF_THE_CLIENT
from slurmlaunch.cli.exit_status import OK, of_counts
from slurmlaunch.cli.parsers import ITEMS, RunParser, chosen, find
from slurmlaunch.cli.printing import print_json
from slurmlaunch.cli.run_options import add_changes, run_options

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION = """\
Run the items again that failed, were cancelled or are missing, or those of them
that are among ITEMS. Results that are there stay. Options such as --mem=8G
replace those of the run.
"""
_EXAMPLES = """\
examples:
  slurmlaunch retry fit
  slurmlaunch retry fit failed --mem 8G --time 02:00:00
  slurmlaunch retry --newest 3-9 --code submitted

The exit status is 0 once Slurm has accepted the job. Tasks on this machine end
with this command, which waits for them and ends like slurmlaunch wait.
"""


_CODE = (
    "current: the files of your modules as they are now; submitted: as they were. The "
    "function itself, if it is of a script or notebook, is that of the submission"
)


def main(arguments: Sequence[str]) -> int:
    """Submit the retry; return the exit status."""
    parser = RunParser("retry", _DESCRIPTION, _EXAMPLES, acts=True, items=ITEMS)
    parser.add_argument("--code", dest="which", choices=("current", "submitted"), default="current", help=_CODE)
    parser.add_json()
    add_changes(parser)
    given = parser.read(arguments)
    futures = find(given)
    before = futures.job_ids
    again = chosen(given, futures).retry(code=given.which, **run_options(given))
    jobs = [each for each in again.job_ids if each not in before]
    ours = again.status().cluster in OF_THE_CLIENT
    if ours:
        again.wait()
    status = again.status()
    if given.json:
        print_json({"folder": status.folder, "job_ids": jobs, "counts": status.counts})
    else:
        what = f"job {', '.join(jobs)}" if jobs else "nothing to run again"
        print(f"{what}; {status.summary()}")
    return of_counts(status.counts) if ours else OK
