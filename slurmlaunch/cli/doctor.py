"""``slurmlaunch doctor``: the checks of `slurmlaunch.doctor`, line by line as they are made.

`main` dispatches to it. Its options are those of an executor, as for ``slurmlaunch map``.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from slurmlaunch.cli.flag_errors import in_flags
from slurmlaunch.cli.map import RunOptionParser, run_options
from slurmlaunch.client.doctor.report import doctor, line_of
from slurmlaunch.client.options import CLUSTERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurmlaunch.client.doctor.findings import Check

_DESCRIPTION = """\
Check what runs need: the folder for run folders, Slurm, your account and
limits, and a node. It submits one small job of 5 minutes at most; --dry
submits none. The page can be pasted into a ticket.
"""
_EXAMPLES = """\
examples:
  slurmlaunch doctor
  slurmlaunch doctor --partition small --account project_42 --folder /scratch/me
  slurmlaunch doctor --dry --json

The exit status is 0 if no check found an error, 1 if one did, 2 for wrong
usage, and 3 if the job had not started after 60 s: it is cancelled then.
"""
_ERRORS, _NOT_STARTED = 1, 3


def main(arguments: Sequence[str]) -> int:
    """Print the checks; return the exit status."""
    parser = _parser()
    given, words = parser.parse(arguments)
    if words:
        parser.error(f"{words[0]!r} is no option")
    if not (given.dry or given.json):
        print("slurmlaunch: this submits one small job; --dry submits none", file=sys.stderr)
    report = doctor(
        given.folder,
        cluster=given.cluster,
        profile=given.profile,
        dry=given.dry,
        wait=given.wait,
        imports=given.imports,
        on_check=None if given.json else _print,
        **run_options(given),
    )
    if given.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print("\n".join(filter(None, (report.waiting, report.summary()))))
    if report.waiting:
        return _NOT_STARTED
    return _ERRORS if report.errors else 0


def _print(check: Check) -> None:
    print(in_flags(line_of(check)), flush=True)


def _parser() -> RunOptionParser:
    parser = RunOptionParser(
        prog="slurmlaunch doctor",
        usage="slurmlaunch doctor [OPTION...]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dry", action="store_true", help="submit no job")
    parser.add_argument("--wait", action="store_true", help="wait for the job, however long it is pending")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--import", dest="imports", metavar="MODULE", action="append", default=[],
        help="a module that the node must be able to import; may be repeated",
    )  # fmt: skip
    parser.add_argument("--cluster", choices=CLUSTERS, help="where to run; by default on Slurm if sbatch is on PATH")
    parser.add_argument("--folder", metavar="FOLDER", help="the folder for run folders")
    parser.add_argument("--profile", metavar="NAME", help="the options of a profile (see slurmlaunch config)")
    parser.add_run_options()
    return parser
