"""``slurmlaunch doctor``: the checks of `slurmlaunch.doctor`, line by line as they are made.

`main` dispatches to it. Its options are those of an executor, as for ``slurmlaunch map``.
"""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch.cli.exit_status import FAILED, NOT_STARTED, OK
from slurmlaunch.cli.flag_errors import in_flags
from slurmlaunch.cli.printing import print_json
from slurmlaunch.cli.run_options import RunOptionParser, run_options
from slurmlaunch.client.doctor.behaviours import BEHAVIOURS
from slurmlaunch.client.doctor.report import doctor, line_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurmlaunch.client.doctor.findings import Check

_DESCRIPTION = """\
Check what runs need: the folder for run folders, Slurm, your account and
limits, and a node. It submits one small job of 5 minutes at most; --dry
submits none. The page can be pasted into a ticket.

--full also tries what the documentation promises, by about 20 more small jobs
in some minutes, and writes a page for a bug report into the working directory.
Ctrl-C cancels and removes them.
"""
_FULL = "about 20 small jobs, which takes some minutes; Ctrl-C cancels and removes them"
_EXAMPLES = """\
examples:
  slurmlaunch doctor
  slurmlaunch doctor --partition small --account project_42 --folder /scratch/me
  slurmlaunch doctor --dry --json
  slurmlaunch doctor --full --partition small
  slurmlaunch doctor --only requeue --only caps

The exit status is 0 if no check found an error, 1 if one did, 2 for wrong
usage, and 3 if the job had not started after 60 s: it is cancelled then.
"""


def main(arguments: Sequence[str]) -> int:
    """Print the checks; return the exit status."""
    parser = _parser()
    given, words = parser.parse(arguments)
    if words:
        parser.error(f"{words[0]!r} is no option")
    full = given.only or given.full
    if not (given.dry or given.json):
        jobs = _FULL if given.full else "a few small jobs" if full else "one small job; --dry submits none"
        print(f"slurmlaunch: this submits {jobs}", file=sys.stderr)
    report = doctor(
        given.folder,
        cluster=given.cluster,
        profile=given.profile,
        dry=given.dry,
        wait=given.wait,
        full=full,
        imports=given.imports,
        on_check=None if given.json else _print,
        **run_options(given),
    )
    page = str(_write(report.page())) if full and not given.dry else None
    if given.json:
        print_json({**report.to_dict(), "page": page})
    else:
        print("\n".join(filter(None, (report.waiting, report.summary(), f"page: {page}" if page else ""))))
    if report.waiting:
        return NOT_STARTED
    return FAILED if report.errors else OK


def _write(page: str) -> Path:
    """Write a page into a new file of the working directory, and return its path."""
    path = Path.cwd() / f"slurmlaunch-doctor-{dt.datetime.now():%Y-%m-%d-%H%M%S}.md"  # noqa: DTZ005  (the user's day)
    with path.open("x", encoding="utf-8") as file:  # nothing is overwritten, also not through a link of another user's
        file.write(page)
    return path


def _print(check: Check) -> None:
    print(in_flags(line_of(check)), flush=True)


def _parser() -> RunOptionParser:
    parser = RunOptionParser("doctor", "[OPTION...]", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("--dry", action="store_true", help="submit no job")
    parser.add_argument("--wait", action="store_true", help="wait for the job, however long it is pending")
    parser.add_argument("--full", action="store_true", help="try all behaviours, and write a page for a bug report")
    parser.add_argument(
        "--only", metavar="BEHAVIOUR", action="append", choices=list(BEHAVIOURS),
        help="try this behaviour, as --full does, and no other; may be repeated",
    )  # fmt: skip
    parser.add_json()
    parser.add_argument(
        "--import", dest="imports", metavar="MODULE", action="append", default=[],
        help="a module that the node must be able to import; may be repeated",
    )  # fmt: skip
    parser.add_run_options()
    return parser
