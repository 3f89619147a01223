"""``slurmlaunch map 'python process.py {}' data_*.nc``: a shell command per item, as one job array.

`main` dispatches to it. It reads arguments and prints results; `Executor.map_array` and `Command` do the work.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.cli.options import RunOptionParser, run_options
from slurmlaunch.client.executor import Executor
from slurmlaunch.client.options import CLUSTERS
from slurmlaunch.command import Command
from slurmlaunch.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurmlaunch.client.futures import FutureArray

_DESCRIPTION = """\
Run a shell command on each item, as one job array, and print the output in the
order of the items.

In the command {} stands for the item, quoted; {.} is the item without extension,
{/} without folder, {//} its folder, {/.} its bare name, {{}} is {} itself. Without
any of these the item comes last. Items are words of the command line, or lines of
a file, or of standard input for a single -.
"""
_EXAMPLES = """\
examples:
  slurmlaunch map 'python process.py {}' data_*.nc
  slurmlaunch map --time=00:10:00 -p small --tasks 16 'convert {} {.}.png' *.tif
  find . -name '*.log' -print0 | slurmlaunch map -0 'gzip {}' -

The exit status is 0 if every item succeeded, else 1.
"""

_SHOWN_FAILURES = 10
_SHOWN_LINES = 5


def main(arguments: Sequence[str]) -> int:
    """Run the subcommand; return 0 if all items succeeded, else 1."""
    parser = _parser()
    given, words = parser.parse(arguments)
    if not words:
        parser.error("give a command, as in: slurmlaunch map 'python process.py {}' data_*.nc")
    command = _command(parser, words[0], given.timeout)
    items = _items(parser, words[1:], given)
    executor = Executor(given.folder, cluster=given.cluster, **run_options(given))
    if given.dry_run:
        print(executor.script(command, items, tasks=given.tasks, chunksize=given.chunksize))
        return 0
    if given.detach and executor.cluster != "slurm":
        raise OptionError(
            "--detach: tasks on this machine end with the command that started them; only Slurm's continue"
        )
    if not items:
        print("slurmlaunch: there are no items", file=sys.stderr)
        return 0
    futures = executor.map_array(command, items, tasks=given.tasks, chunksize=given.chunksize)
    if given.detach:
        print(futures.folder)
        return 0
    if not given.quiet:
        jobs = ", ".join(futures.job_ids)
        print(f"slurmlaunch: {len(items)} items, job {jobs}; {futures.folder}", file=sys.stderr)
    try:
        return _follow(futures, items)
    except (KeyboardInterrupt, BrokenPipeError):
        # Jobs on Slurm continue, and the message above names their folder; local tasks end with this process.
        if executor.cluster != "slurm":
            futures.cancel()
        raise


def _parser() -> RunOptionParser:
    parser = RunOptionParser(
        prog="slurmlaunch map",
        usage="slurmlaunch map [OPTION...] COMMAND [ITEM...]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--file", metavar="FILE", help="read the items from a file, one a line; - is standard input")
    parser.add_argument("-0", "--null", action="store_true", help="each item ends with a NUL instead of a line break")
    parser.add_argument("--tasks", type=int, metavar="N", help="cut the items into N tasks")
    parser.add_argument("--chunksize", type=int, metavar="N", help="give each task N items; by default one per process")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="kill the command of an item after so long")
    parser.add_argument("--cluster", choices=CLUSTERS, help="where to run; by default on Slurm if sbatch is on PATH")
    parser.add_argument("--folder", metavar="FOLDER", help="the folder for run folders")
    parser.add_argument("--detach", action="store_true", help="print the run folder and do not wait")
    parser.add_argument("--dry-run", action="store_true", help="print the batch script and submit nothing")
    parser.add_argument("--quiet", action="store_true", help="print only the output of the items and failures")
    parser.add_run_options()
    return parser


def _command(parser: RunOptionParser, text: str, timeout: float | None) -> Command:
    try:
        command = Command(text, timeout=timeout)
        command.fill("")  # a placeholder without an argument is an error before anything is submitted
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    return command


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
    return _read(source, "\0" if given.null else "\n")


def _read(source: str, separator: str) -> list[str]:
    # Decoded like file names, which may contain any bytes.
    descriptor: str | int = sys.stdin.fileno() if source == "-" else source
    with open(descriptor, "rb", closefd=source != "-") as file:
        items = os.fsdecode(file.read()).split(separator)
    return items[:-1] if not items[-1] else items


class _Failed(NamedTuple):
    """An item that failed, with the reason and the last lines of its standard error."""

    number: int
    item: str
    reason: str
    last_lines: list[str]


def _follow(futures: FutureArray[subprocess.CompletedProcess[str]], items: list[str]) -> int:
    """Print the items' output in order as it arrives, then the failures; return the exit status."""
    failed = [failure for index, item in enumerate(items) if (failure := _show(futures, index, item))]
    if failed:
        _summarize(failed, len(items))
    return 1 if failed else 0


def _show(futures: FutureArray[subprocess.CompletedProcess[str]], index: int, item: str) -> _Failed | None:
    """Wait for an item and print its output; return its failure, if any."""
    try:
        error = futures[index].exception()
    except CancelledError:  # by another client
        return _Failed(index, item, "it was cancelled", [])
    if error is None:
        done = futures[index].result()
        _print(done.stdout, done.stderr)
        return None
    if isinstance(error, subprocess.CalledProcessError):
        _print(error.stdout, error.stderr)
        reason = f"exit status {error.returncode}" if error.returncode > 0 else f"signal {-error.returncode}"
        return _Failed(index, item, reason, error.stderr.rstrip().splitlines()[-_SHOWN_LINES:])
    return _Failed(index, item, str(error) or type(error).__name__, [])


def _print(out: str, err: str) -> None:
    # In UTF-8, as the output was read, whatever the terminal's locale.
    for stream, text in ((sys.stdout, out), (sys.stderr, err)):
        stream.flush()
        stream.buffer.write(text.encode())
        stream.buffer.flush()


def _summarize(failed: list[_Failed], total: int) -> None:
    print(f"slurmlaunch: {len(failed)} of {total} items failed:", file=sys.stderr)
    for each in failed[:_SHOWN_FAILURES]:
        print(f"  item {each.number} ({each.item}): {each.reason}", file=sys.stderr)
        for line in each.last_lines:
            print(f"      {line}", file=sys.stderr)
    if len(failed) > _SHOWN_FAILURES:
        print(f"  and {len(failed) - _SHOWN_FAILURES} more", file=sys.stderr)
