"""Which files are installed, by their paths: Python's own, and those of distributions. All others are the user's own.

The client stores the user's own modules and names their lines in errors, and containers see their folders. Nothing
here looks at a file.
"""

from __future__ import annotations

import functools
import re

_SITE = re.compile(r"(.*/(?:site|dist)-packages)(?:/|$)")
_STANDARD_LIBRARY = re.compile(r"/lib(64)?/python\d[\d.]*t?(/|$)|/python\d+t?\.zip$")


@functools.lru_cache(maxsize=1 << 12)
def site_of(path: str) -> str | None:
    """Return the ``site-packages`` or ``dist-packages`` folder that a path is in, or that it is."""
    found = _SITE.match(path)
    return found and found[1]


def is_installed(path: str) -> bool:
    """Whether a file, or a folder of the search path, is of some machine's Python or of a distribution."""
    return site_of(path) is not None or _STANDARD_LIBRARY.search(path) is not None
