"""How the verbs print: JSON, tables, and colours where a terminal shows them.

It knows nothing of runs.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_COLOURS = {"done": 32, "running": 34, "failed": 31, "damaged": 31, "cancelled": 33, "gone": 33, "pending": 2}


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2))


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows in aligned columns; words such as ``failed`` in the first column are coloured on a terminal."""
    texts = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for first, *others in texts:
        padded = map(str.ljust, [first, *others], widths)
        line = "  ".join(padded).rstrip()
        print(coloured(first) + line[len(first) :])


def coloured(word: str) -> str:
    """Return a word in the colour of its state, if standard output is a terminal and ``NO_COLOR`` is not set."""
    colour = _COLOURS.get(word)
    if colour is None or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return word
    return f"\033[{colour}m{word}\033[0m"
