"""Values as JSON or as rows of a table, for programs that are not Python's; for `results`.

It knows no runs, and imports no library that a value may come from.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import subprocess
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any


class NotPlainError(ValueError):
    """A value has no form in JSON; the text names its class."""


def plain(value: Any) -> Any:
    """Return a value as JSON has it: NaN and infinities are null, and what has fields is an object.

    Raises:
        NotPlainError: it contains something else than numbers, text, None, dates, paths, lists, tuples, dicts with text
            or integers as keys, data classes, named tuples, numpy's arrays and numbers, and the results of commands.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    named = _named(value)
    if named is not None:
        return {str(name): plain(each) for name, each in named.items()}
    return list(map(plain, value)) if isinstance(value, (list, tuple)) else plain(_simpler(value))


def _simpler(value: Any) -> Any:
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        return value.tolist()
    raise NotPlainError(f"{type(value).__module__}.{type(value).__qualname__}")


def _named(value: Any) -> dict[Any, Any] | None:
    """Return the parts of a value by name, if they have names."""
    if isinstance(value, subprocess.CompletedProcess):
        return {name: getattr(value, name) for name in ("returncode", "stdout", "stderr")}
    if isinstance(value, dict) and all(isinstance(name, (str, int)) for name in value):
        return value
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return dict(value._asdict())
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    return None


def row(item: int, value: Any) -> dict[str, object]:
    """Return a plain value as the cells of a table, by column: what has no columns of its own is text in JSON."""
    parts: dict[str, Any] = {"value": value}
    if isinstance(value, dict):
        parts = value
    elif isinstance(value, list):
        parts = {str(number): each for number, each in enumerate(value)}
    cells = {f"value.{name}" if name == "item" else name: _cell(each) for name, each in parts.items()}
    return {"item": item, **cells}


def _cell(value: Any) -> object:
    return json.dumps(value) if isinstance(value, (dict, list)) else value
