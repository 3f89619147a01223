"""Run a shell command per file: here, compress every module of Python's standard library.

Requires slurmlaunch: in a clone of it, pip install .

By hand::

    #!/bin/bash
    #SBATCH --time=00:10:00
    #SBATCH --array=1-200%16
    file=$(sed -n "${SLURM_ARRAY_TASK_ID}p" files.txt)
    gzip -c "$file" | wc -c > "sizes/$SLURM_ARRAY_TASK_ID.txt"

With slurmlaunch it is one line of a shell, which prints the output of the commands in the order of the files::

    slurmlaunch map --time=00:10:00 --tasks 16 'gzip -c {} | wc -c' /usr/lib/python3/*.py

or, if Python is to use the output, the line with ``map_array``.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

try:
    from slurmlaunch import Command, Executor
except ModuleNotFoundError as error:
    sys.exit(f"{error}. Requires slurmlaunch: in a clone of it, pip install .")


def main() -> None:
    """Compress all modules, and print the five that shrink most."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    executor = Executor(time="00:10:00")

    results = executor.map_array(Command("gzip -c {} | wc -c"), files, tasks=16).results()

    factors = {file.name: file.stat().st_size / int(done.stdout) for file, done in zip(files, results, strict=True)}
    for name in sorted(factors, key=lambda name: factors[name], reverse=True)[:5]:
        print(f"{name:<20}{factors[name]:5.1f}")


if __name__ == "__main__":
    main()
