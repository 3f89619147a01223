"""The folder that holds the run folders, as the user names it or by default.

The executor makes its runs there; the list of runs, `attach` and `clean` look for them there.
`slurmlaunch.runfolder.runs_folder` makes the folder.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from pathlib import Path

from slurmlaunch.client.configuration import FOLDER_VARIABLE, path_of, settings_for
from slurmlaunch.messages import say
from slurmlaunch.runfolder.changes import is_on_network
from slurmlaunch.runfolder.runs_folder import DEFAULT_NAME


def folder_of_runs(folder: object = None) -> Path:
    """Return the absolute path of a folder that the user names; None is the default one.

    Raises:
        OptionError: it is no path, or a configuration file is wrong.
        SchedulerError: the configuration has values for a cluster, and Slurm does not say which this is.
    """
    return path_of(folder or settings_for().used["folder"].value)


_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # noqa: S108  (nothing is written there)
_SHARED = ("SCRATCH", "WORK", "PROJECT", "HOME")
"""Variables that sites set to folders which the nodes share, the best for many results first."""

_LITTLE = 1 << 30
"""Bytes below which a file system is nearly full."""


@functools.cache
def warn_of_place(folder: Path, cluster: str) -> None:
    """Print, once for a folder that nobody chose, that it is a bad place for runs, and a better one."""
    try:
        problem = _problem_of(folder, cluster)
    except OSError:  # the run folder is made next, and if that fails, the error says more
        return
    better = next((place for place in _SHARED if _is_better(os.environ.get(place), cluster)), None)
    if problem and better:
        say(f'{folder} {problem}. A better place: export {FOLDER_VARIABLE}="${better}/{DEFAULT_NAME}"')
    elif problem:
        say(f"{folder} {problem}. Name another folder: Executor(folder=...), or ${FOLDER_VARIABLE}")


def _is_better(place: str | None, cluster: str) -> bool:
    path = Path(place or "")
    with contextlib.suppress(OSError):  # a file system that is away
        return path.is_absolute() and path.is_dir() and not _problem_of(path, cluster)
    return False


def _problem_of(folder: Path, cluster: str) -> str:
    import tempfile  # here, since only a submission asks

    there = next(path for path in (folder, *folder.parents) if path.exists()).resolve()
    if cluster == "slurm" and any(there.is_relative_to(path) for path in (*_TEMPORARY, tempfile.gettempdir())):
        return "is temporary, and each machine has its own: jobs on other nodes do not find it"
    if cluster == "slurm" and not is_on_network(there) and is_on_network(Path.home()):
        return "is on a disk of this machine: jobs on other nodes may not find it"
    if shutil.disk_usage(there).free < _LITTLE:
        return "is on a file system that is nearly full"
    return ""
