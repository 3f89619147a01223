"""``slurmlaunch map 'python process.py {}' data_*.nc``: a shell command per item, as one job array.

`main` dispatches to it. It reads arguments and prints results; `Executor.map_array` and `Command` do the work.
The options of `Executor` are flags (`run_options`).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from slurmlaunch.cli.exit_status import OK
from slurmlaunch.cli.outcomes import show_all
from slurmlaunch.cli.run_options import RunOptionParser, run_options
from slurmlaunch.client.executor import Executor
from slurmlaunch.command import Command
from slurmlaunch.errors import OptionError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_DESCRIPTION = """\
Run a shell command on each item, as one job array, and print the output in the
order of the items.

In the command {} stands for the item, quoted; {.} is the item without
extension, {/} without folder, {//} its folder, {/.} its bare name, {{}} is {}
itself. Without any of these the item comes last. Items are words of the command
line, or lines of a file, or of standard input for a single -. All options come
before the command; -- may stand before the command or before the items, if
these begin with a dash.
"""
_EXAMPLES = """\
examples:
  slurmlaunch map 'python process.py {}' data_*.nc
  slurmlaunch map --time=00:10:00 -p small --tasks 16 'convert {} {.}.png' *.tif
  find . -name '*.log' -print0 | slurmlaunch map -0 'gzip {}' -
  slurmlaunch map --container tools.sif 'fold {}' -- *.fasta

The exit status is 0 if every item succeeded, else 1.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb; return 0 if all items succeeded, else 1."""
    parser = new_parser("map", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("--detach", action="store_true", help="print the run folder and do not wait")
    parser.add_argument("--dry-run", action="store_true", help="print the batch script and submit nothing")
    parser.add_argument("--quiet", action="store_true", help="print only the output of the items and failures")
    return run(parser, arguments)


def run(parser: RunOptionParser, arguments: Sequence[str], *, dry: bool = False) -> int:
    """Do what the command line says; *dry* prints the script and submits nothing, as ``--dry-run`` does."""
    given, words = parser.parse(arguments)
    if not words:
        parser.error(f"give a command, as in: {parser.prog} 'python process.py {{}}' data_*.nc")
    try:
        command = Command(words[0], timeout=given.timeout)
        command.fill("")  # a placeholder without an argument is an error before anything is submitted
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    items = _items(parser, words[1:], given)
    executor = Executor(given.folder, cluster=given.cluster, profile=given.profile, **run_options(given))
    if dry or given.dry_run:
        print(executor.script(command, items, tasks=given.tasks, chunksize=given.chunksize))
        return OK
    if given.detach and executor.cluster != "slurm":
        raise OptionError("--detach: tasks on this machine end with the command that starts them; Slurm's continue")
    if not items:
        print("slurmlaunch: there are no items", file=sys.stderr)
        return OK
    futures = executor.map_array(command, items, tasks=given.tasks, chunksize=given.chunksize)
    if given.detach:
        print(futures.folder)
        return OK
    if not given.quiet:
        jobs = ", ".join(futures.job_ids)
        print(f"slurmlaunch: {len(items)} items, job {jobs}; {futures.folder}", file=sys.stderr)
    try:
        return show_all(futures, items)
    except (KeyboardInterrupt, BrokenPipeError):
        # Jobs on Slurm continue, and the message above names their folder; local tasks end with this process.
        if executor.cluster != "slurm":
            futures.cancel()
        raise


def new_parser(verb: str, description: str, examples: str) -> RunOptionParser:
    """Return the parser of a verb that takes a command and items."""
    parser = RunOptionParser(verb, "[OPTION...] [--] COMMAND [--] [ITEM...]", description, examples)
    parser.add_argument("--file", metavar="FILE", help="read the items from a file, one a line; - is standard input")
    parser.add_argument("-0", "--null", action="store_true", help="each item ends with a NUL instead of a line break")
    parser.add_argument("--tasks", type=int, metavar="N", help="cut the items into N tasks")
    parser.add_argument("--chunksize", type=int, metavar="N", help="give each task N items; by default one per process")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="kill the command of an item after so long")
    parser.add_run_options()
    return parser


def _items(parser: RunOptionParser, words: list[str], given: argparse.Namespace) -> list[str]:
    """Return the items: the words themselves, or the lines of a file."""
    source = given.file
    if words == ["-"] and source is None:
        words, source = [], "-"
    if source is None:
        if not words:
            parser.error("there are no items: write them after the command, or - to read them from standard input")
        return words
    if words:
        parser.error("give the items either after the command or with --file")
    # Decoded like file names, which may contain any bytes.
    with open(sys.stdin.fileno() if source == "-" else source, "rb", closefd=source != "-") as file:
        items = os.fsdecode(file.read()).split("\0" if given.null else "\n")
    return items if items[-1] else items[:-1]
