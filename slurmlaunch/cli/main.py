"""``slurmlaunch COMMAND ...``: runs a subcommand, and turns its errors into messages and exit statuses.

A subcommand is a module with a function ``main(arguments) -> exit status``; only the one that runs is imported.
This file knows their names and nothing of their work.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from importlib import import_module, metadata
from typing import TYPE_CHECKING

from slurmlaunch.errors import SlurmlaunchError

if TYPE_CHECKING:
    from collections.abc import Sequence

SUBCOMMANDS = {
    "map": "run a shell command on each of many items, as one job array",
    "debug": "run one item here, with a debugger where it raises",
    "doctor": "check the folder, Slurm and a node, with one small job",
    "config": "show the defaults and profiles of the configuration files",
}

USAGE_STATUS = 2
_SIGNALLED = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Args:
        arguments: those after the program's name; by default those of this process.

    Returns:
        The subcommand's status; 2 for wrong usage or a failed submission, 130 for Ctrl-C.
    """
    parser, words = _parser(), list(sys.argv[1:] if arguments is None else arguments)
    # The subcommand's own, "--" included, which argparse would take out.
    own = next((place for place, word in enumerate(words) if not word.startswith("-")), len(words)) + 1
    given = parser.parse_args(words[:own])
    if given.version:
        print(f"slurmlaunch {metadata.version('slurmlaunch')}")
        return 0
    if given.subcommand is None:
        parser.print_help(sys.stderr)
        return USAGE_STATUS
    from slurmlaunch.cli.flag_errors import in_flags  # here, since --version and --help need nothing of the package

    warnings.formatwarning = lambda message, *_, **__: f"slurmlaunch: {in_flags(message)}\n"
    subcommand = import_module(f"slurmlaunch.cli.{given.subcommand}")
    try:
        status: int = subcommand.main(words[own:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _SIGNALLED + signal.SIGINT
    except BrokenPipeError:  # the reader of the output, such as head(1), has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGNALLED + signal.SIGPIPE
    except (SlurmlaunchError, OSError) as error:
        print(f"slurmlaunch: error: {in_flags(error)}", file=sys.stderr)
        return USAGE_STATUS
    return status


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<8}{what}" for name, what in SUBCOMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="slurmlaunch",
        usage="slurmlaunch COMMAND ...",
        description="Launch work on Slurm, or on this machine.",
        epilog=f"commands:\n{listed}\n\nslurmlaunch COMMAND --help shows more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("subcommand", metavar="COMMAND", nargs="?", choices=SUBCOMMANDS, help=argparse.SUPPRESS)
    return parser
