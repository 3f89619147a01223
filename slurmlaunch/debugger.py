"""Opens a debugger where an item raised: pdb, or the one of ``PYTHONBREAKPOINT``.

`slurmlaunch.client.debug` calls it in the user's process, and `slurmlaunch.node.debug` in one of its own. Runs, items
and tasks are unknown here.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch.messages import say, warn
from slurmlaunch.outcome import users_frames

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


def open_debugger(error: BaseException) -> bool:
    """Show the traceback of an error, and open the debugger in the frame that raised it; a notebook has ``%debug``.

    Returns:
        False if nothing was shown: ``PYTHONBREAKPOINT`` is 0, or this is a notebook.
    """
    chosen = os.environ.get("PYTHONBREAKPOINT", "")
    if chosen == "0":
        return False
    if _in_notebook():
        say("%debug in the next cell opens the debugger where the item raised")
        return False
    post_mortem = _post_mortem_of(chosen)
    frames = users_frames(error) or error.__traceback__
    traceback.print_exception(type(error), error, frames)
    post_mortem(frames)
    return True


def _post_mortem_of(chosen: str) -> Callable[[TracebackType | None], object]:
    """Return what opens the debugger that ``PYTHONBREAKPOINT`` names, or pdb if that is none."""
    try:
        module = import_module(chosen.rpartition(".")[0] or "pdb")
    except ImportError as error:  # as breakpoint() does
        warn(f"PYTHONBREAKPOINT={chosen} cannot be imported, and pdb is used: {error}", RuntimeWarning)
        return _pdb
    found: Callable[[TracebackType | None], object] = getattr(module, "post_mortem", _pdb)
    return _pdb if module.__name__ == "pdb" else found


def _pdb(frames: TracebackType | None) -> None:
    """Open pdb as its ``post_mortem`` does, but without the commands of a ``.pdbrc`` in the working directory.

    That is the run's, and another user may have put the file there.
    """
    from pdb import Pdb

    debugger = Pdb(readrc=False)
    with contextlib.suppress(OSError):
        debugger.rcLines += Path("~/.pdbrc").expanduser().read_text(encoding="utf-8").splitlines()
    debugger.reset()
    debugger.interaction(None, frames)


def _in_notebook() -> bool:
    interactive = sys.modules.get("IPython")
    return interactive is not None and getattr(interactive.get_ipython(), "kernel", None) is not None
