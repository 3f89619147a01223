"""Short texts for people: names of functions, arguments in one line, times, durations, rates, sizes.

Errors, tables and the progress display use them. Nothing of a run is known here.
"""

from __future__ import annotations

import functools
import reprlib
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_LONGEST_VALUE, _MOST_VALUES = 100, 8


class _Short(reprlib.Repr):
    """Short representations of arguments, in one line."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = _LONGEST_VALUE
        self.maxlevel = 3

    def repr(self, x: object) -> str:
        try:
            return " ".join(super().repr(x).split())
        except Exception:  # noqa: BLE001  (a __repr__ of the user's may raise anything)
            return object.__repr__(x)


_SHORT = _Short()


def shown(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """Return arguments as they are written in a call, each of them shortened; never raises."""
    short = _SHORT.repr
    texts = [*map(short, args[:_MOST_VALUES]), *(f"{name}={short(kwargs[name])}" for name in [*kwargs][:_MOST_VALUES])]
    return texts if len(texts) == len(args) + len(kwargs) else [*texts, "..."]


def duration(seconds: float) -> str:
    """Return a number of seconds in words: ``3 min 20 s``."""
    hours, minutes = divmod(int(seconds) // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {int(seconds) % 60} s" if minutes else f"{seconds:.{0 if seconds >= 1 else 2}f} s"


def time_of(seconds: float) -> str:
    """Return a time, in seconds since the epoch: with its date, unless it was today."""
    then, now = time.localtime(seconds), time.localtime()
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%Y-%m-%d %H:%M", then)


def pace(rate: float, left: int) -> str:
    """Return a rate, in items a second, and the time that is left; nothing while they are unknown."""
    if not rate or not left:
        return ""
    per, unit = next((pair for pair in ((rate, "s"), (rate * 60, "min")) if pair[0] >= 1), (rate * 3600, "h"))
    return f"{per:.1f}/{unit}, {duration(left / rate)} left"


def readable(size: float) -> str:
    """Return a number of bytes."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:  # noqa: PLR2004
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def full_name_of(function: Callable[..., Any]) -> str:
    """Return module and name of a function, or of the function that a partial wraps."""
    while isinstance(function, functools.partial):
        function = function.func
    return f"{getattr(function, '__module__', '?')}.{name_of(function)}"


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function, or of the function that a partial wraps."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", None) or type(function).__qualname__
