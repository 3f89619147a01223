"""Run code that is written for submitit, with another cluster name and another prefix of the parameters.

Requires slurmlaunch and submitit: in a clone of slurmlaunch, pip install '.[submitit]'

Before::

    executor = submitit.AutoExecutor(folder="log_test")
    executor.update_parameters(timeout_min=10, slurm_array_parallelism=4)

Everything else stays the same: jobs and job arrays, batches of different calls,
submitit's errors, checkpoints, and ``JobEnvironment``.
"""

from __future__ import annotations

import sys

try:
    import submitit

    import slurmlaunch  # noqa: F401  (submitit finds it as a plugin)
except ModuleNotFoundError as error:
    sys.exit(f"{error}. Requires slurmlaunch and submitit: in a clone of slurmlaunch, pip install '.[submitit]'")


def area(width: int, height: int) -> tuple[int, str]:
    """Return the area, and the id of the job."""
    environment = submitit.JobEnvironment()
    print(f"{width} x {height} in {environment.job_id}")
    return width * height, environment.job_id


def main() -> None:
    """Run an array, a batch, and a job that fails."""
    executor = submitit.AutoExecutor(folder="log_test", cluster="slurmlaunch")
    executor.update_parameters(timeout_min=10, slurmlaunch_array_parallelism=4)

    jobs = executor.map_array(area, [1, 2, 3], [10, 20, 30])
    areas = [job.result() for job in jobs]
    print([number for number, _ in areas], [job.job_id for job in jobs] == [job_id for _, job_id in areas])

    with executor.batch():
        smallest = executor.submit(min, [3, 1, 2])
        largest = executor.submit(max, [3, 1, 2])
        wrong = executor.submit(int, "three")
    print(smallest.result(), largest.result(), type(wrong.exception()).__name__)
    print((wrong.stderr() or "").splitlines()[-1])


if __name__ == "__main__":
    main()
