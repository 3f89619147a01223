"""The options that say how a run runs, as a command line has them: sbatch's by their own names, and ours."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, Any, NoReturn

from slurmlaunch.client.sbatch_options import FLAGS, NAMES, OPTIONAL, SHORT, unknown_option
from slurmlaunch.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

_OURS = {
    "throttle": ("N", "let at most N tasks run at once"),
    "processes": ("N", "run N items side by side in a task"),
    "threads": ("N", "let each of them use N CPUs"),
    "name": ("NAME", "call the run so"),
    "retries": ("N", "run again up to N times what was ended from outside"),
    "max_mem": ("SIZE", "let the memory of a retry grow to so much"),
    "max_time": ("TIME", "let the time limit of a retry grow to so much"),
}
_REPEATED = {
    "modules": ("--module", "NAME", "load a module first; may be repeated"),
    "setup": ("--setup", "LINE", "run a shell line first; may be repeated"),
    "env": ("--env", "NAME=VALUE", "set a variable for the tasks; may be repeated"),
    "sbatch": ("--sbatch", "FLAG", "pass a flag to sbatch unread, as --sbatch=--flag=value; may be repeated"),
}
_SHORT_OF = {name: f"-{letter}" for letter, name in SHORT.items() if name in NAMES}


class RunOptionParser(argparse.ArgumentParser):
    """A parser for options, and then words that it leaves alone: what follows the first word is no option of ours.

    That is how ``sbatch`` and ``xargs`` read their command lines.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(allow_abbrev=False, **given)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, without all of the usage."""
        self.exit(2, f"{self.prog}: error: {message}\nTry {self.prog} --help.\n")

    def add_run_options(self) -> None:
        """Take all that `slurmlaunch.Executor` takes."""
        ours = self.add_argument_group("how it runs")
        for name, (metavar, what) in _OURS.items():
            ours.add_argument(_flag(name), metavar=metavar, help=what)
        for destination, (flag, metavar, what) in _REPEATED.items():
            ours.add_argument(flag, dest=destination, metavar=metavar, action="append", help=what)
        ours.add_argument("--python", metavar="WORDS", type=shlex.split, help="how to start Python on the node")
        sbatch = self.add_argument_group(
            "what Slurm is asked for",
            "Every option of sbatch by its own name, such as -p small --time=00:10:00 --cpus-per-task 4 --mem=2G. "
            "What is a matter of slurmlaunch's own (--array, --output, ...) is refused, and says what to do instead.",
        )
        for name in sorted(NAMES):
            sbatch.add_argument(*_flags(name), dest=name, help=argparse.SUPPRESS, **_arity(name))

    def parse(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Read the options; return them, and the words after them."""
        end = self._first_word(arguments)
        given, unknown = self.parse_known_args(arguments[:end])
        if unknown:
            self.error(_refusal(unknown[0], self._ours()))
        words = list(arguments[end:])
        return given, words[1:] if words[:1] == ["--"] else words

    def _first_word(self, arguments: Sequence[str]) -> int:
        """Return where the options end."""
        with_value = {flag for action in self._actions for flag in action.option_strings if action.nargs is None}
        position = 0
        while position < len(arguments):
            word = arguments[position]
            if not word.startswith("-") or word in {"-", "--"}:
                break
            position += 2 if word in with_value else 1
        return min(position, len(arguments))

    def _ours(self) -> list[str]:
        return [action.dest for action in self._actions if action.dest not in NAMES]


def run_options(given: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `slurmlaunch.Executor` for what was given.

    Raises:
        OptionError: a variable has no value.
    """
    names = [*NAMES, *_OURS, *_REPEATED, "python"]
    options = {name: value for name in names if (value := getattr(given, name)) is not None and value is not False}
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
    # As for sbatch, the value of such an option follows "=": the next word is never its own.
    return {"nargs": "?", "const": True} if name in OPTIONAL else {}


def _refusal(word: str, ours: Sequence[str]) -> str:
    """Return what is wrong with an option that is none, in the words of a command line."""
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
