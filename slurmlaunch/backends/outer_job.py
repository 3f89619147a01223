"""The variables of a process that describe the job, the task or the step that it is in.

A job that is submitted from inside another job (or from ``salloc``) must not inherit them: a leaked
``SLURM_ARRAY_TASK_ID`` would run the wrong slice, a leaked binding would run it on the wrong CPUs. Nor does a record of
an environment have them. The backends and the client use this; what else is in an environment is not known here.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from slurmlaunch.caps import GPU_VARIABLES, without_ours

if TYPE_CHECKING:
    from collections.abc import Mapping

# How a client finds its cluster and prints, and how sites name Slurm's own folders: Slurm never
# sets these for a job. All other SLURM_ variables describe one.
_CLIENT = frozenset({
    "SLURM_BITSTR_LEN", "SLURM_CLUSTERS", "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_DEBUG_FLAGS", "SLURM_DIR",
    "SLURM_HOME", "SLURM_JWT", "SLURM_MPI_TYPE", "SLURM_PATH", "SLURM_PREFIX", "SLURM_ROOT", "SLURM_TIME_FORMAT",
    "SLURM_VERSION",
})  # fmt: skip
_OF_A_JOB = re.compile(
    r"_?SLURM_.*|SLURMD_.*|SLURMSTEPD_.*|SRUN_.*|PMI.*|MPI_LOCAL.*|OMPI_COMM_WORLD_.*|SBATCH_.*_BIND(_.*)?"
)
_INSIDE_A_JOB = ("SLURM_JOB_ID", "SLURM_JOBID")


def outside_jobs(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a process without those that describe the job or task that it is in."""
    dropped = set(GPU_VARIABLES) if any(name in environ for name in _INSIDE_A_JOB) else set()
    return {
        name: value
        for name, value in without_ours(environ).items()
        if name not in dropped and (name in _CLIENT or not _OF_A_JOB.fullmatch(name))
    }


def inside_job(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables given, and those that describe the job that this process is in, if any."""
    here = without_ours(os.environ)
    of_the_job = here.keys() - outside_jobs(here).keys()
    return {**outside_jobs(environ), **{name: here[name] for name in of_the_job}}
