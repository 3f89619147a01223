"""The log of this task: the file that standard error goes to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_SHOWN_LINES = 12
_SHOWN_BYTES = 4096
_STDERR = 2
_AGAIN = f"/proc/self/fd/{_STDERR}"
"""The same file once more, to be read; also where its own path is not there, as in a container."""


class Log:
    """What is written to the log from now on, by this process and by what it starts."""

    def __init__(self) -> None:
        self._begin = _size()

    def tail(self) -> str:
        """Return the last lines; nothing where standard error is no file, or cannot be read."""
        size = _size()
        begin = max(self._begin, size - _SHOWN_BYTES)
        if size <= begin:
            return ""
        try:
            with Path(_AGAIN).open("rb") as file:
                file.seek(begin)
                lines = file.read(size - begin).decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-_SHOWN_LINES:]).rstrip()


def _size() -> int:
    """Return how long the log is; 0 where standard error is no file."""
    told = os.fstat(_STDERR)
    return told.st_size if stat.S_ISREG(told.st_mode) else 0
