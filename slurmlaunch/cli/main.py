"""``slurmlaunch COMMAND ...``: runs a verb, and turns its errors into messages and exit statuses.

A verb is a module with a function ``main(arguments) -> exit status``; only the one that runs is imported.
This file knows their names and nothing of their work.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING

from slurmlaunch.cli.exit_status import INTERRUPTED, OK, READER_ENDED, USAGE, VerbError, status_of
from slurmlaunch.cli.parsers import VerbParser, did_you_mean
from slurmlaunch.errors import SlurmlaunchError

if TYPE_CHECKING:
    from collections.abc import Sequence

VERBS = {
    "map": "run a shell command on each of many items, as one job array",
    "script": "print the batch script that map would submit",
    "runs": "list the runs in a folder",
    "status": "show how many items of a run are done, and why some wait",
    "logs": "print what items wrote",
    "results": "print the results of a run, as text, JSON or CSV",
    "wait": "wait until all items of a run have ended",
    "cancel": "cancel a run, or some of its items",
    "retry": "run items again that failed or are missing",
    "debug": "run one item here, with a debugger where it raises",
    "clean": "remove a run, or old runs",
    "doctor": "check the folder, Slurm and a node, with one small job",
    "config": "show the defaults and profiles of the configuration files",
}
"""What each does, by the name of its module in this package, which is imported only if it runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Args:
        arguments: those after the program's name; by default those of this process.

    Returns:
        The verb's exit status; see `slurmlaunch.cli.exit_status`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    # Those of the verb, "--" included, which argparse would take out.
    own = next((place for place, word in enumerate(words) if not word.startswith("-")), len(words)) + 1
    parser = _parser()
    given = _read(parser, words[:own])
    if given.version:
        from importlib import metadata

        print(f"slurmlaunch {metadata.version('slurmlaunch')}")
        return OK
    if given.verb is None:
        parser.print_help(sys.stderr)
        return USAGE
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # output of items is printed as it was, whatever the locale is
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"slurmlaunch: {_in_flags(message)}\n"
    try:
        status: int = import_module(f"slurmlaunch.cli.{given.verb}").main(words[own:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        if sys.stderr.isatty():  # which shows ^C
            print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output, such as head(1), has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_ENDED
    except (SlurmlaunchError, OSError, VerbError) as error:
        print(f"slurmlaunch: error: {_in_flags(error)}", file=sys.stderr)
        return status_of(error)
    return status


def _in_flags(error: object) -> str:
    from slurmlaunch.cli.flag_errors import in_flags  # here, since most commands make no error, and --help is quick

    return in_flags(error)


def _read(parser: VerbParser, words: Sequence[str]) -> argparse.Namespace:
    given, unknown = parser.parse_known_args(words)
    if unknown and given.verb:
        parser.error(f"{unknown[0]} comes after the command: slurmlaunch {given.verb} {unknown[0]}")
    if given.verb is not None and given.verb not in VERBS:
        parser.error(f"there is no command {given.verb!r}{did_you_mean(given.verb, VERBS)}")
    return parser.refusing_unknown(given, unknown)


def _parser() -> VerbParser:
    listed = "\n".join(f"  {name:<9}{what}" for name, what in VERBS.items())
    about = "Launch work on Slurm, or on this machine."
    parser = VerbParser("", "COMMAND ...", about, f"commands:\n{listed}\n\nslurmlaunch COMMAND --help shows more.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("verb", metavar="COMMAND", nargs="?", help=argparse.SUPPRESS)
    return parser
