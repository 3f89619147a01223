"""Run one serial job.

Requires slurmlaunch: in a clone of it, pip install .

By hand::

    #!/bin/bash
    #SBATCH --time=00:05:00
    #SBATCH --mem=500M
    python fibonacci.py 27 > fibonacci.out

then ``squeue`` until it is done, and ``cat fibonacci.out``. With slurmlaunch it is
``submit``, and the result is a number instead of text.
"""

from __future__ import annotations

import sys

try:
    from slurmlaunch import Executor
except ModuleNotFoundError as error:
    sys.exit(f"{error}. Requires slurmlaunch: in a clone of it, pip install .")


def fibonacci(n: int) -> int:
    """Return the n-th Fibonacci number, the slow way."""
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)  # noqa: PLR2004  (the definition's own 2)


def main() -> None:
    """Compute one of them as a job."""
    executor = Executor(time="00:05:00", mem="500M")

    future = executor.submit(fibonacci, n=27)

    print(f"job {future.job_id} is submitted")
    print(f"fibonacci(27) = {future.result()}")


if __name__ == "__main__":
    main()
