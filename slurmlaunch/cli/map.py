"""``slurmlaunch map 'python process.py {}' data_*.nc``: a shell command per item, as one job array.

`main` dispatches to it. It reads arguments and prints results; `Executor.map_array` and `Command` do the work.
The options of `Executor` are flags: sbatch's by their own names, and ours from their table.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, NoReturn

from slurmlaunch.backends.container import Container
from slurmlaunch.backends.slurm.commands import SHORT
from slurmlaunch.cli.flag_errors import flag_of, in_flags
from slurmlaunch.client.executor import Executor
from slurmlaunch.client.options import CLUSTERS, OURS
from slurmlaunch.client.sbatch_options import FLAGS, NAMES, OPTIONAL, unknown_option
from slurmlaunch.command import Command
from slurmlaunch.errors import OptionError, SlurmlaunchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurmlaunch.client.futures import Future, FutureArray

_DESCRIPTION = """\
Run a shell command on each item, as one job array, and print the output in the
order of the items.

In the command {} stands for the item, quoted; {.} is the item without extension,
{/} without folder, {//} its folder, {/.} its bare name, {{}} is {} itself. Without
any of these the item comes last. Items are words of the command line, or lines of
a file, or of standard input for a single -. All options come before the command;
-- may stand before the command or before the items, if these begin with a dash.
"""
_EXAMPLES = """\
examples:
  slurmlaunch map 'python process.py {}' data_*.nc
  slurmlaunch map --time=00:10:00 -p small --tasks 16 'convert {} {.}.png' *.tif
  find . -name '*.log' -print0 | slurmlaunch map -0 'gzip {}' -
  slurmlaunch map --container tools.sif 'fold {}' -- *.fasta

The exit status is 0 if every item succeeded, else 1.
"""

_SBATCH_OPTIONS = """\
Every option of sbatch by its own name, such as -p small --time=00:10:00
--cpus-per-task 4 --mem=2G. Those that slurmlaunch sets itself (--array,
--output, ...) are refused, with the option to use instead.
--sbatch=--flag=value passes a flag on unchecked."""

_OF_A_CONTAINER = (
    ("--container-bind", "FOLDER[:TARGET[:ro]]", "a folder to show in the container; may be repeated"),
    ("--container-runtime", "NAME", "apptainer, singularity, podman or charliecloud; by default one of the first two"),
    ("--container-flag", "FLAG", "a further flag of the runtime; may be repeated"),
)

_SHOWN_FAILURES = 10
_SHOWN_LINES = 5


def main(arguments: Sequence[str]) -> int:
    """Run the subcommand; return 0 if all items succeeded, else 1."""
    parser = _parser()
    given, words = parser.parse(arguments)
    if not words:
        parser.error("give a command, as in: slurmlaunch map 'python process.py {}' data_*.nc")
    try:
        command = Command(words[0], timeout=given.timeout)
        command.fill("")  # a placeholder without an argument is an error before anything is submitted
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    items = _items(parser, words[1:], given)
    executor = Executor(given.folder, cluster=given.cluster, profile=given.profile, **run_options(given))
    if given.dry_run:
        print(executor.script(command, items, tasks=given.tasks, chunksize=given.chunksize))
        return 0
    if given.detach and executor.cluster != "slurm":
        raise OptionError("--detach: tasks on this machine end with the command that starts them; Slurm's continue")
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
        usage="slurmlaunch map [OPTION...] [--] COMMAND [--] [ITEM...]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--file", metavar="FILE", help="read the items from a file, one a line; - is standard input")
    parser.add_argument("-0", "--null", action="store_true", help="each item ends with a NUL instead of a line break")
    parser.add_argument("--tasks", type=int, metavar="N", help="cut the items into N tasks")
    parser.add_argument("--chunksize", type=int, metavar="N", help="give each task N items; by default one per process")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="kill the command of an item after so long")
    parser.add_argument("--cluster", choices=CLUSTERS, help="where to run; by default on Slurm if sbatch is on PATH")
    parser.add_argument("--folder", metavar="FOLDER", help="the folder for run folders")
    parser.add_argument("--profile", metavar="NAME", help="the options of a profile (see slurmlaunch config)")
    parser.add_argument("--detach", action="store_true", help="print the run folder and do not wait")
    parser.add_argument("--dry-run", action="store_true", help="print the batch script and submit nothing")
    parser.add_argument("--quiet", action="store_true", help="print only the output of the items and failures")
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


def _follow(futures: FutureArray[subprocess.CompletedProcess[str]], items: list[str]) -> int:
    """Print the items' output in order as it arrives, then the failures; return the exit status."""
    failed = {index: reason for index in range(len(items)) if (reason := _show(futures[index]))}
    if failed:
        print(f"slurmlaunch: {len(failed)} of {len(items)} items failed:", file=sys.stderr)
    for index, reason in list(failed.items())[:_SHOWN_FAILURES]:
        print(f"  item {index} ({items[index]}): " + "\n      ".join(reason), file=sys.stderr)
    if len(failed) > _SHOWN_FAILURES:
        print(f"  and {len(failed) - _SHOWN_FAILURES} more", file=sys.stderr)
    return 1 if failed else 0


def _show(future: Future[subprocess.CompletedProcess[str]]) -> list[str]:
    """Wait for an item and print its output; if it failed, return why, and the end of its standard error."""
    try:
        error = future.exception()
    except CancelledError:  # by another client
        return ["it was cancelled"]
    if error is None:
        done = future.result()
        _print(done.stdout, done.stderr)
        return []
    if not isinstance(error, subprocess.CalledProcessError):
        return [(in_flags(error) if isinstance(error, SlurmlaunchError) else str(error)) or type(error).__name__]
    _print(error.stdout, error.stderr)
    reason = f"exit status {error.returncode}" if error.returncode > 0 else f"signal {-error.returncode}"
    return [reason, *error.stderr.rstrip().splitlines()[-_SHOWN_LINES:]]


def _print(out: str, err: str) -> None:
    # In UTF-8, as the output was read, whatever the terminal's locale.
    for stream, text in ((sys.stdout, out), (sys.stderr, err)):
        stream.flush()
        stream.buffer.write(text.encode())
        stream.buffer.flush()


# Options as flags.


class RunOptionParser(argparse.ArgumentParser):
    """A parser that, like that of ``sbatch`` and ``xargs``, reads no option after the first word."""

    def error(self, message: str) -> NoReturn:
        """Print the error without the usage, and exit."""
        self.exit(2, f"{self.prog}: error: {message}\nTry {self.prog} --help.\n")

    def add_run_options(self) -> None:
        """Add the options of `slurmlaunch.Executor`."""
        ours = self.add_argument_group("how it runs")
        for name, option in OURS.items():
            if option.flag:
                flag, metavar, *repeatable = option.flag.split()
                what = option.help[0].lower() + option.help[1:].rstrip(".").replace("%", "%%")
                what += "; may be repeated" if repeatable else ""
                kind: dict[str, Any] = {"action": "append"} if repeatable else {}
                if metavar == "WORDS":
                    kind["type"] = shlex.split
                ours.add_argument(flag, dest=name, metavar=metavar, help=what, **kind)
        container = self.add_argument_group("in a container")
        for flag, metavar, what in _OF_A_CONTAINER:
            many: dict[str, Any] = {"action": "append", "default": []} if "repeated" in what else {}
            container.add_argument(flag, metavar=metavar, help=what, **many)
        sbatch = self.add_argument_group("options of sbatch", _SBATCH_OPTIONS)
        short = {name: f"-{letter}" for letter, name in SHORT.items() if name in NAMES}
        for name in sorted(NAMES):
            flags = [short[name], flag_of(name)] if name in short else [flag_of(name)]
            # As for sbatch, the value of an optional one follows "=": the next word is never its value.
            optional: dict[str, Any] = {"nargs": "?", "const": True} if name in OPTIONAL else {}
            arity = {"action": "store_true"} if name in FLAGS else optional
            sbatch.add_argument(*flags, dest=name, help=argparse.SUPPRESS, **arity)

    def parse(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Read the options; return them, and the words after them: the first ``--`` among two is none."""
        end = self._first_word(arguments)
        given, unknown = self.parse_known_args(arguments[:end])
        if unknown:
            self.error(_refusal(unknown[0], [action.dest for action in self._actions if action.dest not in NAMES]))
        words = list(arguments[end:])
        if "--" in words[:2]:
            words.remove("--")
        return given, words

    def _first_word(self, arguments: Sequence[str]) -> int:
        """Return the number of arguments that are options or their values."""
        with_value = {flag for action in self._actions for flag in action.option_strings if action.nargs is None}
        position = 0
        while position < len(arguments):
            word = arguments[position]
            if not word.startswith("-") or word in {"-", "--"}:
                break
            position += 2 if word in with_value else 1
        return min(position, len(arguments))


def run_options(given: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `Executor` for the parsed options."""
    values = {name: getattr(given, name, None) for name in (*NAMES, *OURS)}
    options = {name: value for name, value in values.items() if value is not None and value is not False}
    for text in options.get("env", ()):
        if "=" not in text:
            raise OptionError(f"--env {text}: write --env {text}=VALUE", option="env")
    if "env" in options:
        options["env"] = dict(text.split("=", 1) for text in options["env"])
    if "container" in options:
        how = {"runtime": given.container_runtime, "flags": given.container_flag}
        options["container"] = Container(options["container"], given.container_bind, **how)
    elif given.container_bind or given.container_runtime or given.container_flag:
        raise OptionError("--container-bind, --container-runtime and --container-flag need --container IMAGE")
    return options


def _refusal(word: str, ours: Sequence[str]) -> str:
    """Return the error for an unknown option, in the words of a command line."""
    flag = word.partition("=")[0]
    if not flag.startswith("-"):
        return f"{word!r} is no option, and the command comes after the options"
    error = unknown_option(flag.lstrip("-"), ours)
    if "cannot be set" in str(error):
        return in_flags(str(error).replace(error.option, flag, 1))
    meant = f"; did you mean {' or '.join(map(flag_of, error.suggestions))}?" if error.suggestions else "."
    return (
        f"{flag} is an option neither of sbatch nor of slurmlaunch{meant} "
        f"A flag of a plugin or of a newer Slurm goes as --sbatch={word}"
    )
