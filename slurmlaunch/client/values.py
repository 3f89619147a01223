"""Reading the values of options: each function takes an option's name and its value.

All of them raise `OptionError`, which names the option, for a value that cannot be.
"""

from __future__ import annotations

import operator
import os
from datetime import timedelta

from slurmlaunch.errors import OptionError

_BREAKS = {"\n": "a line break", "\r": "a carriage return", "\0": "a NUL character"}
_MINUTE = 60
_DAY = 24 * 60 * _MINUTE


def refused(option: str, reason: str) -> OptionError:
    """Return the error that says what is wrong with an option's value."""
    return OptionError(f"{option}: {reason}", option=option)


def as_count(option: str, value: object, *, least: int = 1) -> int:
    """Read a whole number of at least *least*, a NumPy integer or a numeral included."""
    if isinstance(value, str) and value.isascii() and value.strip().isdigit():
        number = int(value)
    else:
        number = _whole(option, value)
    if number < least:
        raise refused(option, f"must be at least {least}, not {number}")
    return number


def _whole(option: str, value: object) -> int:
    # True is an integer to Python, and never what the user means by a count.
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise refused(option, f"must be a whole number, not {value!r}")


def as_line(option: str, value: object) -> str:
    """Read a text, number or path that is to stand on one line."""
    if isinstance(value, dict):
        raise refused(option, "a dict has no meaning here: write the value as sbatch does")
    text = plain_text(option, value)
    if not text:
        raise refused(option, "is empty: leave it out, or give None")
    return one_line(option, text)


def plain_text(option: str, value: object) -> str:
    """Read a text, number or path, whatever characters it holds."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(float(value))  # a NumPy float would bring its type's name along
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if not isinstance(value, bool):
        try:
            return str(operator.index(value))  # type: ignore[arg-type]
        except TypeError:
            pass
    raise refused(option, f"must be text or a number, not {value!r}")


def one_line(option: str, text: str) -> str:
    """Return the text itself where it holds no line break and no NUL."""
    for character, word in _BREAKS.items():
        if character in text:
            raise refused(option, f"holds {word}: {text!r}")
    return text


def as_time(option: str, value: object) -> str:
    """Read a duration: a `timedelta`, whole minutes, or sbatch's own text for one."""
    if isinstance(value, timedelta):
        return _duration(option, value)
    if isinstance(value, float):
        # sbatch reads "0.5" as 0, and 0 as no limit at all.
        raise refused(option, f"minutes are whole: give datetime.timedelta(minutes={value!r})")
    return as_line(option, value)


def _duration(option: str, value: timedelta) -> str:
    seconds = -(-value // timedelta(seconds=1))  # up, or a short limit would become none
    if seconds < 1:
        raise refused(option, f"must be longer than nothing, not {value}")
    days, rest = divmod(seconds, _DAY)
    minutes, second = divmod(rest, _MINUTE)
    hour, minute = divmod(minutes, 60)
    return f"{days}-{hour:02}:{minute:02}:{second:02}"


def as_words(option: str, value: object) -> tuple[str, ...]:
    """Read a list of texts; one text or path stands for a list of one."""
    words = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(as_line(option, word) for word in words)
