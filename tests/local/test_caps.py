"""Thread caps in a process that loads NumPy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from slurmlaunch import caps

PROGRAM = """
import os
if {first}:
    import numpy, threadpoolctl
from slurmlaunch import caps
caps.apply(1)
import numpy, threadpoolctl
numpy.ones((2, 2)) @ numpy.ones((2, 2))
print(*{{pool["num_threads"] for pool in threadpoolctl.threadpool_info()}}, os.environ["OMP_NUM_THREADS"])
"""


@pytest.mark.parametrize("first", [True, False], ids=["loaded before", "loaded after"])
def test_numpy_is_capped_whenever_it_is_loaded(*, first: bool) -> None:
    """NumPy has the cap's threads, whether it was loaded before the cap was set or is loaded after."""
    env = {name: value for name, value in os.environ.items() if name not in caps.VARIABLES}
    # More than this machine may have, so that the cap is seen on one CPU too.
    before = {"OPENBLAS_NUM_THREADS": "3", caps.OURS: "OPENBLAS_NUM_THREADS"}

    printed = subprocess.check_output([sys.executable, "-c", PROGRAM.format(first=first)], env=env | before, text=True)

    assert printed == "1 1\n"
