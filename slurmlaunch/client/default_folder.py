"""The folder that holds the run folders, as the user names it or by default.

The executor makes its runs there; the list of runs, `attach` and `clean` look for them there. How the folder is made is
the matter of `slurmlaunch.runfolder.runs_folder`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurmlaunch.client.configuration import path_of, settings_for

if TYPE_CHECKING:
    from pathlib import Path


def folder_of_runs(folder: object = None) -> Path:
    """Return the absolute path of a folder that the user names; None is the default one.

    Raises:
        OptionError: it is no path, or a configuration file is wrong.
        SchedulerError: the configuration has values for a cluster, and Slurm does not say which this is.
    """
    return path_of(folder or settings_for().used["folder"].value)
