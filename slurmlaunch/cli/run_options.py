"""The options of an executor as flags: sbatch's by their own names, and ours from their table.

The verbs that submit use it: `map`, `script` and `doctor`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING, Any

from slurmlaunch.backends.container import Container
from slurmlaunch.backends.sbatch_tables import SHORT
from slurmlaunch.cli.flag_errors import flag_of, in_flags
from slurmlaunch.cli.parsers import RUNS_FOLDER, VerbParser
from slurmlaunch.client.options import CLUSTERS, OURS
from slurmlaunch.client.sbatch_options import FLAGS, NAMES, OPTIONAL, unknown_option
from slurmlaunch.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

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


class RunOptionParser(VerbParser):
    """A parser that, like that of ``sbatch`` and ``xargs``, reads no option after the first word."""

    def add_run_options(self) -> None:
        """Add the folder, the cluster, the profile and the options of `slurmlaunch.Executor`."""
        self.add_argument("--cluster", choices=CLUSTERS, help="where to run; by default on Slurm if sbatch is on PATH")
        self.add_argument("--folder", metavar="FOLDER", help=RUNS_FOLDER)
        self.add_argument("--profile", metavar="NAME", help="the options of a profile (see slurmlaunch config)")
        add_changes(self)

    def parse(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Read the options; return them, and the words after them: the first ``--`` among two is none."""
        end = self._first_word(arguments)
        given, unknown = self.parse_known_args(arguments[:end])
        if unknown:
            self.error(_refusal(unknown[0], [action.dest for action in self._actions if action.dest not in NAMES]))
        words = list(arguments[end:])
        if "--" in words[:2]:
            words.remove("--")
        elif not getattr(given, "quiet", False):
            self._warn_of_options_in(words[1:])
        return given, words

    def _warn_of_options_in(self, items: Sequence[str]) -> None:
        flags = {flag for action in self._actions for flag in action.option_strings if flag.startswith("--")}
        late = [word for word in items if word.partition("=")[0] in flags]
        if late:
            what = f"{late[0]} comes after the command, and is an item: options come before it"
            print(f"slurmlaunch: {what}; -- before the items says that it is meant", file=sys.stderr)

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


def add_changes(parser: argparse.ArgumentParser) -> None:
    """Add the options of an executor that a retry may change, too."""
    ours = parser.add_argument_group("how it runs")
    for name, option in OURS.items():
        if option.flag:
            flag, metavar, *repeatable = option.flag.split()
            what = option.help[0].lower() + option.help[1:].rstrip(".").replace("%", "%%")
            what += "; may be repeated" if repeatable else ""
            kind: dict[str, Any] = {"action": "append"} if repeatable else {}
            if metavar == "WORDS":
                kind["type"] = shlex.split
            ours.add_argument(flag, dest=name, metavar=metavar, help=what, **kind)
    container = parser.add_argument_group("in a container")
    for flag, metavar, what in _OF_A_CONTAINER:
        many: dict[str, Any] = {"action": "append", "default": []} if "repeated" in what else {}
        container.add_argument(flag, metavar=metavar, help=what, **many)
    sbatch = parser.add_argument_group("options of sbatch", _SBATCH_OPTIONS)
    short = {name: f"-{letter}" for letter, name in SHORT.items() if name in NAMES}
    for name in sorted(NAMES):
        flags = [short[name], flag_of(name)] if name in short else [flag_of(name)]
        # As for sbatch, the value of an optional one follows "=": the next word is never its value.
        optional: dict[str, Any] = {"nargs": "?", "const": True} if name in OPTIONAL else {}
        arity = {"action": "store_true"} if name in FLAGS else optional
        sbatch.add_argument(*flags, dest=name, help=argparse.SUPPRESS, **arity)


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
