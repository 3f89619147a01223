"""Neighbours: packages that run on slurmlaunch, or that slurmlaunch runs; one file or folder each.

None of these packages is needed to import slurmlaunch: a feature imports its package when it is used, and
raises `slurmlaunch.MissingPackage` if that is not installed. Nothing below knows this layer.
"""

from __future__ import annotations


def register_joblib() -> None:
    """Register the backend ``"slurmlaunch"`` with joblib, as joblib's other external backends do.

    Afterwards ``joblib.parallel_config(backend="slurmlaunch", executor=ex)`` works in this process;
    `slurmlaunch.Executor.joblib_backend` works without it.

    Raises:
        MissingPackage: joblib is not installed.
    """
    from slurmlaunch.integrations.joblib import SlurmlaunchBackend, register_parallel_backend

    register_parallel_backend("slurmlaunch", SlurmlaunchBackend)
