"""Starts a program with another umask and other soft limits than this process has.

The backends put `words` before the command of a program, which this file then is: a Python of its own sets both, and
becomes the program. A thread cannot do it for its child, since umask and limits belong to the whole process. Run as a
script, this file sees nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOT_STARTED = 127


def words(umask: int | None, limits: Mapping[str, int]) -> tuple[str, ...]:
    """Return the words before a command that start it with this umask and these soft limits, by their names.

    None if there is nothing to set.
    """
    if umask is None and not limits:
        return ()
    # Isolated and without site: neither the variables of the program nor the folder of this file concern this Python.
    return (sys.executable, "-I", "-S", __file__, json.dumps({"umask": umask, "limits": dict(limits)}))


def main(settings: str, *command: str) -> int:
    """Become the command; return an exit status if that fails."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and the command would too
        signal.signal(number, signal.SIG_DFL)
    given = json.loads(settings)
    if given["umask"] is not None:
        os.umask(given["umask"])
    for name, soft in given["limits"].items():
        limit = getattr(resource, name)
        resource.setrlimit(limit, (soft, resource.getrlimit(limit)[1]))
    try:
        os.execvp(command[0], command)  # noqa: S606  (no shell is wanted)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
    return _NOT_STARTED


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
