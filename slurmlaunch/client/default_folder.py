"""The folder that holds the run folders, as the user names it or by default.

The executor makes its runs there; the list of runs, `attach` and `clean` look for them there. How the folder is made is
the matter of `slurmlaunch.runfolder.runs_folder`.
"""

from __future__ import annotations

import os
from pathlib import Path

from slurmlaunch.errors import OptionError
from slurmlaunch.runfolder.runs_folder import DEFAULT_NAME

FOLDER_VARIABLE = "SLURMLAUNCH_FOLDER"

OF_YOURS = f"give a folder that you may write to, as Executor(folder=...), or by ${FOLDER_VARIABLE}"


def folder_of_runs(folder: object = None) -> Path:
    """Return the absolute path of a folder that the user names; None is the default one.

    Raises:
        OptionError: it is no path.
    """
    given = folder or os.environ.get(FOLDER_VARIABLE) or DEFAULT_NAME
    try:
        path = Path(given).expanduser().absolute()  # type: ignore[arg-type]  # else a TypeError
        if "\0" not in str(path):
            return path
        reason = f"{given!r} holds a NUL character: it is the folder for the run folders; {OF_YOURS}"
    except TypeError:
        reason = f"{given!r} is no path: it is the folder for the run folders, and the function goes into the call"
    except RuntimeError:  # of expanduser
        reason = f"{given!r} begins with a user that does not exist: it is the folder for the run folders; {OF_YOURS}"
    raise OptionError(f"folder: {reason}", option="folder")
