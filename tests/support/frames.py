"""Which frames of a printed traceback belong to slurmlaunch itself, wherever it is installed."""

from __future__ import annotations

import re
from pathlib import Path

import slurmlaunch

_PACKAGE = Path(slurmlaunch.__file__).parent
_FILES = {str(path.relative_to(_PACKAGE.parent)) for path in _PACKAGE.rglob("*.py")}


def own_frames(traceback: str) -> list[str]:
    """Return the files of the package that a traceback shows, as paths that begin with ``slurmlaunch/``.

    Another copy of the package counts, too: a node may import it from elsewhere than this process. A repository's
    folder of the same name does not: its files are the user's.
    """
    shown = re.findall(r'^\s*File "(.+?)", line \d+', traceback, re.MULTILINE)
    return [file for path in shown for file in _FILES if path.endswith(f"/{file}")]
