"""The parsers of the verbs: what their help and their errors look like, and how RUN and ITEMS are read.

Each verb makes one. Nothing of the package is imported before a run is looked for, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import re
from typing import TYPE_CHECKING, Any, NoReturn

from slurmlaunch.cli.exit_status import NOT_FOUND, USAGE, VerbError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from slurmlaunch.client.futures import FutureArray

RUNS_FOLDER = "the folder that holds the run folders; by default as for an Executor"


class VerbParser(argparse.ArgumentParser):
    """The parser of a verb, or (with an empty name) of ``slurmlaunch`` itself; its errors are two lines."""

    def __init__(self, verb: str, usage: str, description: str, examples: str) -> None:
        program = f"slurmlaunch {verb}".rstrip()
        super().__init__(
            prog=program,
            usage=f"{program} {usage}",
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Print the error without the usage, and exit."""
        self.exit(USAGE, f"{self.prog}: error: {message}\nTry {self.prog} --help.\n")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Read the arguments; unlike that of `parse_args`, the error for an unknown option names similar ones."""
        return self.refusing_unknown(*self.parse_known_args(arguments))

    def refusing_unknown(self, given: argparse.Namespace, unknown: Sequence[str]) -> argparse.Namespace:
        """Return what was read, or exit with the error for the first argument that is not known."""
        for word in unknown[:1]:
            flag = word.partition("=")[0]
            flags = [name for action in self._actions for name in action.option_strings]
            known = f"there is no option {flag}{did_you_mean(flag, flags)}"
            self.error(known if flag.startswith("-") else f"{word!r} is too much")
        return given

    def add_json(self) -> None:
        """Add ``--json``."""
        self.add_argument("--json", action="store_true", help="print one JSON object")


_RUN = """
RUN is the name or folder of a run, the beginning of one of these, or a job id"""
ITEMS = "[ITEMS]"
_ITEMS = """
ITEMS are 7, or 3-9 (with 9), or 7,9, or failed."""


class RunParser(VerbParser):
    """The parser of a verb for one run: RUN, ``--newest`` and ``--folder``, and perhaps ITEMS.

    Args:
        verb, description, examples: as for a `VerbParser`.
        acts: the verb changes the run, so that RUN or ``--newest`` must be given.
        items: what may follow it, as the usage says it, such as `ITEMS`.
    """

    def __init__(self, verb: str, description: str, examples: str, *, acts: bool = False, items: str = "") -> None:
        usage = " ".join(filter(None, ("RUN" if acts else "[RUN]", items, "[OPTION...]")))
        about = _RUN + ("." if acts else ";\nby default the newest run.") + _ITEMS * (items == ITEMS)
        super().__init__(verb, usage, description + about, examples)
        self._acts, self._most = acts, 2 if items else 1
        self.instead = ""
        """An option that names what RUN would."""
        self.add_argument("words", nargs="*", help=argparse.SUPPRESS)
        self.add_argument("--newest", action="store_true", help="the newest run, in place of RUN")
        self.add_argument("--folder", metavar="FOLDER", help=RUNS_FOLDER)

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Read the command line; the result has ``run`` (None is the newest) and ``items`` (None: not given)."""
        given = self.refusing_unknown(*self.parse_known_intermixed_args(arguments))
        if "" in given.words:
            self.error("RUN or ITEMS is empty: is a shell variable not set?")
        words: list[str | None] = [None, *given.words] if given.newest else given.words
        instead = self.instead and getattr(given, self.instead) is not None
        if (self._acts or instead) and bool(words) == bool(instead):
            flag = f" or --{self.instead.replace('_', '-')}" if self.instead else ""
            self.error(f"give a run, or --newest{flag}")
        if len(words) > self._most:
            self.error(f"{words[self._most]!r} is too much")
        given.run, given.items, *_ = [*words, None, None]
        given.takes_items = self._most > 1
        return given


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about a word that is not known: those that it may have meant."""
    from difflib import get_close_matches  # here, since only mistakes need it

    if word.startswith("--"):  # the dashes would make short names alike
        names = {flag.removeprefix("--"): flag for flag in known if flag.startswith("--")}
        close = [names[name] for name in get_close_matches(word[2:], names)]
        close += [flag for name, flag in names.items() if name.startswith(word[2:]) or word[2:].startswith(name)]
    else:
        close = get_close_matches(word, list(known))
    near = [*dict.fromkeys(close)][:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def find(given: argparse.Namespace) -> FutureArray[Any]:
    """Return the futures of the run that a `RunParser` has read, and watch it; raises as `slurmlaunch.attach` does."""
    from slurmlaunch.client.futures import attach
    from slurmlaunch.client.submission import leave_quietly

    with _items_in_mind(given):
        futures = attach(given.run, folder=given.folder)
    leave_quietly(futures.folder)
    return futures


def look(given: argparse.Namespace) -> FutureArray[Any]:
    """Return the futures of that run as it is now: nobody watches it, and nothing is written."""
    from slurmlaunch.client.futures import read_run

    with _items_in_mind(given):
        return read_run(given.run, given.folder)


@contextlib.contextmanager
def _items_in_mind(given: argparse.Namespace) -> Iterator[None]:
    """Say how to name items of the newest run, where no run has the name of some."""
    from slurmlaunch.errors import RunFolderError

    try:
        yield
    except RunFolderError as error:
        if given.items is None and given.takes_items and re.fullmatch(r"[\d,-]+|failed", given.run or ""):
            raise VerbError(f"{error}\nFor items of the newest run: --newest {given.run}", NOT_FOUND) from None
        raise


def items_in(text: str, futures: FutureArray[Any]) -> list[int]:
    """Return the items that ITEMS names, in order: ``7``, ``3-9`` (with 9), ``7,9-11``, or ``failed``.

    Raises:
        VerbError: the text names no items, or the run has no such item.
    """
    if text == "failed":
        return [each.index for each in futures.failures()]
    found: set[int] = set()
    for part in text.split(","):
        numbers = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not numbers:
            raise VerbError(f"{text!r} names no items: write 7, 3-9, 7,9 or failed")
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        if last < first:
            raise VerbError(f"{part} names no items: {last} comes before {first}")
        if last >= len(futures):
            text = f"{futures.folder.name} has no item {last}: its items are 0 to {len(futures) - 1}"
            raise VerbError(text, NOT_FOUND)
        found.update(range(first, last + 1))
    return sorted(found)


def chosen(given: argparse.Namespace, futures: FutureArray[Any]) -> FutureArray[Any]:
    """Return the futures of the ITEMS that a `RunParser` has read; all if none are given."""
    return futures if given.items is None else futures.select(items_in(given.items, futures))


def positive(text: str) -> int:
    """Return a number of at least 1, as ``type=`` of an option."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)


_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> float:
    """Return seconds, given as a number or with a unit (``90``, ``5m``), as ``type=`` of an option."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)([smhd]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write seconds (90), or 5m, 2h")
    return float(found[1]) * _SECONDS[found[2]]
