"""Times and amounts of memory, as sbatch reads them."""

from __future__ import annotations

import math
import re

_MEMORY = re.compile(r"(?P<number>\d+)(?P<unit>[KMGT]?)B?", re.IGNORECASE)
_POWER = {"K": 1, "": 2, "M": 2, "G": 3, "T": 4}

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})")
_UNITS = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}
_UNITS_AFTER_DAYS = (3600, 60, 1)
_NO_TIME_LIMIT = ("UNLIMITED", "INFINITE")


def parse_time(text: str) -> float:
    """Return the seconds of a time in one of sbatch's formats.

    Unlike Slurm, which rounds up to minutes, a laptop has seconds.
    """
    if text.upper() in _NO_TIME_LIMIT:
        return math.inf
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError(text)
    fields = found["clock"].split(":")
    units = _UNITS_AFTER_DAYS if found["days"] else _UNITS[len(fields)]
    seconds = sum(int(value) * unit for value, unit in zip(fields, units, strict=False))
    # A limit of zero is none, in Slurm's words.
    return int(found["days"] or 0) * 86400 + seconds or math.inf


def parse_memory(text: str) -> float:
    """Return the bytes of an amount of memory as sbatch reads it: in megabytes by default."""
    found = _MEMORY.fullmatch(text)
    if not found:
        raise ValueError(text)
    # `--mem=0` asks for all there is.
    return int(found["number"]) * 1024 ** _POWER[found["unit"].upper()] or math.inf
