"""Run code that is written for submitit: one word is changed, the cluster's name, and the prefix of its parameters.

Before::

    executor = submitit.AutoExecutor(folder="log_test")
    executor.update_parameters(timeout_min=10, slurm_array_parallelism=4)

The rest stays as it is: jobs and job arrays, batches of different calls, submitit's
errors, checkpoints, and what a task learns of itself.
"""

from __future__ import annotations

import submitit


def area(width: int, height: int) -> tuple[int, str]:
    """Multiply; say where."""
    environment = submitit.JobEnvironment()
    print(f"{width} x {height} in {environment.job_id}")
    return width * height, environment.job_id


def main() -> None:
    """Run an array, a batch, and a job that fails."""
    executor = submitit.AutoExecutor(folder="log_test", cluster="slurmlaunch")
    executor.update_parameters(timeout_min=10, slurmlaunch_array_parallelism=4)

    jobs = executor.map_array(area, [1, 2, 3], [10, 20, 30])
    areas = [job.result() for job in jobs]
    print([number for number, _ in areas], all(job.job_id == told for job, (_, told) in zip(jobs, areas, strict=True)))

    with executor.batch():
        smallest = executor.submit(min, [3, 1, 2])
        largest = executor.submit(max, [3, 1, 2])
        wrong = executor.submit(int, "three")
    print(smallest.result(), largest.result(), type(wrong.exception()).__name__)
    print((wrong.stderr() or "").splitlines()[-1])


if __name__ == "__main__":
    main()
