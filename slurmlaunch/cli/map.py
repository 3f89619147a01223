"""``slurmlaunch map 'python process.py {}' data_*.nc``: a shell command per item, as one job array.

`main` dispatches to it. It reads arguments and prints results; `Executor.map_array` and `Command` do the work.
The options of `Executor` are flags (`run_options`).
"""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.cli.exit_status import OK, of_counts
from slurmlaunch.cli.outcomes import show_all
from slurmlaunch.cli.parsers import seconds
from slurmlaunch.cli.printing import counted, print_json
from slurmlaunch.cli.run_options import RunOptionParser, run_options
from slurmlaunch.client.executor import Executor
from slurmlaunch.client.submission import leave_quietly
from slurmlaunch.command import Command
from slurmlaunch.errors import OptionError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from slurmlaunch.client.futures import FutureArray

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

The exit status is 0 if every item succeeded, else 1. With --json the output of
the items stays in the run: slurmlaunch results prints it.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb; return 0 if all items succeeded, else 1."""
    parser = new_parser("map", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("--detach", action="store_true", help="print the run folder and do not wait")
    parser.add_argument("--dry-run", action="store_true", help="print the batch script and submit nothing")
    parser.add_argument("--quiet", action="store_true", help="print only the output of the items and failures")
    call = read_call(parser, arguments)
    if call.given.dry_run:
        return print_script(call)
    if call.given.detach and call.executor.cluster != "slurm":
        raise OptionError("--detach: tasks on this machine end with the command that starts them; Slurm's continue")
    if not call.items:
        print("slurmlaunch: there are no items", file=sys.stderr)
        return OK
    return _run(call)


def _run(call: Call) -> int:
    items, given = call.items, call.given
    futures = call.executor.map_array(call.command, items, tasks=given.tasks, chunksize=given.chunksize)
    leave_quietly(futures.folder)  # said below, in words for a shell
    if not (given.quiet or given.detach or given.json):
        jobs = ", ".join(futures.job_ids)
        print(f"slurmlaunch: {counted(len(items), 'item')}, job {jobs}; {futures.folder}", file=sys.stderr)
    if given.detach:
        print_json(futures.status().to_dict()) if given.json else print(futures.folder)
        _say_how_to_come_back(futures)
        return OK
    try:
        if not given.json:
            return show_all(futures, items)
        futures.wait()
    except (KeyboardInterrupt, BrokenPipeError):
        if call.executor.cluster == "slurm":
            _say_how_to_come_back(futures)
        else:  # local tasks end with this process
            futures.cancel()
        raise
    status = futures.status()
    print_json(status.to_dict())
    return of_counts(status.counts)


def _say_how_to_come_back(futures: FutureArray[Any]) -> None:
    name = shlex.quote(str(futures.folder))
    jobs = f"job {', '.join(futures.job_ids)} goes on"
    if not futures.job_ids:
        jobs = "the queue has no room for a job yet, and slurmlaunch wait submits it when it has"
    lines = [f"slurmlaunch {verb} {name}" for verb in ("wait", "results", "cancel")]
    start = "\n" if sys.stderr.isatty() else ""  # the terminal may show ^C
    print(f"{start}slurmlaunch: {jobs}; to come back to it, or end it:", *lines, sep="\n    ", file=sys.stderr)


class Call(NamedTuple):
    """What a command line asks to run."""

    given: argparse.Namespace
    command: Command
    items: list[str]
    executor: Executor


def read_call(parser: RunOptionParser, arguments: Sequence[str]) -> Call:
    """Read the command line, and check everything in it; exits where it is wrong."""
    given, words = parser.parse(arguments)
    if not words:
        parser.error(f"give a command, as in: {parser.prog} 'python process.py {{}}' data_*.nc")
    items = _items(parser, words[1:], given)
    executor = Executor(given.folder, cluster=given.cluster, profile=given.profile, **run_options(given))
    try:
        # Inline, the log is this terminal, where the results are printed.
        command = Command(words[0], timeout=given.timeout, log=executor.cluster != "inline")
        command.fill("")  # a placeholder without an argument is an error before anything is submitted
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    return Call(given, command, items, executor)


def print_script(call: Call) -> int:
    """Print the batch script of a call, and return 0."""
    script = call.executor.script(call.command, call.items, tasks=call.given.tasks, chunksize=call.given.chunksize)
    if call.given.json:
        print_json({"cluster": call.executor.cluster, "items": len(call.items), "script": script})
    else:
        print(script)
    return OK


def new_parser(verb: str, description: str, examples: str) -> RunOptionParser:
    """Return the parser of a verb that takes a command and items."""
    parser = RunOptionParser(verb, "[OPTION...] [--] COMMAND [--] [ITEM...]", description, examples)
    parser.add_argument("--file", metavar="FILE", help="read the items from a file, one a line; - is standard input")
    parser.add_argument("-0", "--null", action="store_true", help="each item ends with a NUL instead of a line break")
    parser.add_argument("--tasks", type=int, metavar="N", help="cut the items into N tasks")
    parser.add_argument("--chunksize", type=int, metavar="N", help="give each task N items; by default one per process")
    parser.add_argument("--timeout", type=seconds, metavar="TIME", help="kill the command of an item after so long")
    parser.add_json()
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
