"""The options of `slurmlaunch.Executor` as flags: sbatch's by their own names, and ours from their table.

Subcommands that submit use it. It knows flags and the tables of options, and submits nothing itself.
"""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, Any, NoReturn

from slurmlaunch.client.options import OURS
from slurmlaunch.client.sbatch_options import FLAGS, NAMES, OPTIONAL, SHORT, unknown_option
from slurmlaunch.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHORT_OF = {name: f"-{letter}" for letter, name in SHORT.items() if name in NAMES}


class RunOptionParser(argparse.ArgumentParser):
    """A parser for options, and words after them: from the first word on, nothing is read as an option.

    ``sbatch`` and ``xargs`` read their command lines in the same way.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(allow_abbrev=False, **given)

    def error(self, message: str) -> NoReturn:
        """Print the error without the usage, and exit."""
        self.exit(2, f"{self.prog}: error: {message}\nTry {self.prog} --help.\n")

    def add_run_options(self) -> None:
        """Add the options of `slurmlaunch.Executor`."""
        ours = self.add_argument_group("how it runs")
        for name, option in OURS.items():
            if option.flag:
                flag, metavar, *repeated = option.flag.split()
                what = option.help[0].lower() + option.help[1:].rstrip(".").replace("%", "%%")
                what += "; may be repeated" if repeated else ""
                kind: dict[str, Any] = {"action": "append"} if repeated else {}
                if metavar == "WORDS":
                    kind["type"] = shlex.split
                ours.add_argument(flag, dest=name, metavar=metavar, help=what, **kind)
        sbatch = self.add_argument_group(
            "options of sbatch",
            "Every option of sbatch by its own name, such as -p small --time=00:10:00\n"
            "--cpus-per-task 4 --mem=2G. Those that slurmlaunch sets itself (--array, --output,\n"
            "...) are refused, with the option to use instead. --sbatch=--flag=value passes a\n"
            "flag on unchecked.",
        )
        for name in sorted(NAMES):
            sbatch.add_argument(*_flags(name), dest=name, help=argparse.SUPPRESS, **_arity(name))

    def parse(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Read the options; return them, and the words after them."""
        end = self._first_word(arguments)
        given, unknown = self.parse_known_args(arguments[:end])
        if unknown:
            self.error(_refusal(unknown[0], [action.dest for action in self._actions if action.dest not in NAMES]))
        words = list(arguments[end:])
        return given, words[1:] if words[:1] == ["--"] else words

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
    """Return the keyword arguments of `slurmlaunch.Executor` for the parsed options.

    Raises:
        OptionError: a variable has no value.
    """
    values = {name: getattr(given, name, None) for name in (*NAMES, *OURS)}
    options = {name: value for name, value in values.items() if value is not None and value is not False}
    if "env" in options:
        options["env"] = dict(_variable(text) for text in options["env"])
    return options


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise OptionError(f"--env {text}: write --env {text}=VALUE", option="env")
    return name, value


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _flags(name: str) -> list[str]:
    return [_SHORT_OF[name], _flag(name)] if name in _SHORT_OF else [_flag(name)]


def _arity(name: str) -> dict[str, Any]:
    if name in FLAGS:
        return {"action": "store_true"}
    # As for sbatch, the value of such an option follows "=": the next word is never its value.
    return {"nargs": "?", "const": True} if name in OPTIONAL else {}


def _refusal(word: str, ours: Sequence[str]) -> str:
    """Return the error for an unknown option, in the words of a command line."""
    flag = word.partition("=")[0]
    if not flag.startswith("-"):
        return f"{word!r} is no option, and the command comes after the options"
    error = unknown_option(flag.lstrip("-"), ours)
    if "cannot be set" in str(error):
        return str(error).replace(error.option, flag, 1)
    meant = " or ".join(map(_flag, error.suggestions))
    meant = f"; did you mean {meant}?" if meant else "."
    return (
        f"{flag} is an option neither of sbatch nor of slurmlaunch{meant} "
        f"A flag of a plugin or of a newer Slurm goes as --sbatch={word}"
    )
