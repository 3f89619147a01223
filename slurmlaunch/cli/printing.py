"""How the verbs print: JSON, tables, and colours where a terminal shows them.

It knows nothing of runs.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_COLOURS = {"done": 32, "running": 34, "failed": 31, "damaged": 31, "cancelled": 33, "gone": 33, "pending": 2}


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2))


def print_line(value: Any) -> None:
    """Print a value as JSON in one line, at once."""
    print(json.dumps(value), flush=True)


def print_table(rows: Sequence[Sequence[str]], spare: Iterable[str] = ()) -> None:
    """Print a head and rows in aligned columns; words such as ``failed`` in the first are coloured on a terminal.

    Args:
        rows: the first one has the names of the columns.
        spare: the columns that are left out, one after another, until the others fit into the terminal.
    """
    columns = {column[0]: column for column in zip(*rows, strict=True)}
    for name in spare if sys.stdout.isatty() else ():
        if sum(max(map(len, column)) + 2 for column in columns.values()) - 2 <= shutil.get_terminal_size().columns:
            break
        del columns[name]
    widths = [max(map(len, column)) for column in columns.values()]
    for first, *others in zip(*columns.values(), strict=True):
        line = "  ".join(map(str.ljust, [first, *others], widths)).rstrip()
        print(coloured(first) + line[len(first) :])


def coloured(word: str) -> str:
    """Return a word in the colour of its state, if standard output is a terminal and ``NO_COLOR`` is not set."""
    colour = _COLOURS.get(word)
    if colour is None or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return word
    return f"\033[{colour}m{word}\033[0m"


def counted(number: int, what: str) -> str:
    """Return a number of things in words: ``1 item``, ``2 items``."""
    return f"{number} {what}{'s' * (number != 1)}"


def print_text(text: str) -> None:
    """Print text that others wrote; a last line without an end gets one."""
    sys.stdout.write(text if text.endswith("\n") or not text else f"{text}\n")
