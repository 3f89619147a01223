"""The settings of a Python process that its tasks take over, as multiprocessing's children do.

The client records its own in the manifest. Tasks start with the options of the command line, and take over the rest
before they load the function, once everything that the node needs is imported. Settings that the client has from its
environment travel there. This module knows no run folder and no task.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, NamedTuple

_LETTERS = {"optimize": "O", "bytes_warning": "b", "dont_write_bytecode": "B", "no_user_site": "s"}
"""The options of one letter, by their names in `sys.flags`. Not among them: -I and -E, since modules and set-up
lines describe the environment of a task by variables."""

_X = ("dev", "utf8", "int_max_str_digits", "no_debug_ranges", "faulthandler")
"""The -X options. Not among them: those that only observe the interpreter, such as importtime and tracemalloc."""

_VARIABLES = {"O": "PYTHONOPTIMIZE", "B": "PYTHONDONTWRITEBYTECODE", "s": "PYTHONNOUSERSITE"}


class Interpreter(NamedTuple):
    """The settings of one process.

    Attributes:
        options: the options of its command line that tasks start with.
        warnings: the values of -W.
        recursion_limit: how deep calls may be nested; None leaves Python's default.
        int_max_str_digits: how many digits an integer may have as text; None leaves Python's default.
        log_level: the level of the root logger if that has handlers, as after `logging.basicConfig`.
    """

    options: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    recursion_limit: int | None = None
    int_max_str_digits: int | None = None
    log_level: int | None = None

    @classmethod
    def current(cls) -> Interpreter:
        """Return the settings of this process."""
        return cls(_options(), tuple(sys.warnoptions), sys.getrecursionlimit(), sys.get_int_max_str_digits(), _level())

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Interpreter:
        """Read the settings from a manifest."""
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**{name: known[name] for name in cls._fields if name in known})

    def to_json(self) -> dict[str, Any]:
        """Return the settings as stored in a manifest."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self._asdict().items()}

    def take_over(self) -> None:
        """Change the settings of this process; the command line has set `options` already."""
        if self.recursion_limit is not None:
            with suppress(RecursionError):  # the calls that led here are nested deeper
                sys.setrecursionlimit(self.recursion_limit)
        if self.int_max_str_digits is not None:
            sys.set_int_max_str_digits(self.int_max_str_digits)
        if self.warnings != tuple(sys.warnoptions):
            import warnings  # late, as logging below: most runs need neither

            sys.warnoptions[:] = self.warnings  # children of this process have them from here
            warnings._processoptions(self.warnings)  # type: ignore[attr-defined]  # noqa: SLF001  (as Python itself does)
        if self.log_level is not None:
            _log_from(self.log_level)


def _options() -> tuple[str, ...]:
    letters = [
        "-" + letter * count
        for flag, letter in _LETTERS.items()
        if (count := int(getattr(sys.flags, flag))) and not os.environ.get(_VARIABLES.get(letter, ""))
    ]
    given = [(name, sys._xoptions[name]) for name in _X if name in sys._xoptions]  # noqa: SLF001  (documented)
    return (*letters, *(f"-X{name}" if value is True else f"-X{name}={value}" for name, value in given))


def _level() -> int | None:
    logging = sys.modules.get("logging")
    root = logging.getLogger() if logging else None
    return root.level if root and root.handlers else None


def _log_from(level: int) -> None:
    """Let the root logger write from this level on, without a handler: `logging.basicConfig` still works in an item."""
    import logging

    logging.getLogger().setLevel(level)
    if logging.lastResort is not None:
        logging.lastResort.setLevel(level)
        logging.lastResort.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
