"""Run a shell command per file: here, see how well every module of Python's standard library compresses.

By hand::

    #!/bin/bash
    #SBATCH --time=00:10:00
    #SBATCH --array=1-200%16
    file=$(sed -n "${SLURM_ARRAY_TASK_ID}p" files.txt)
    gzip -c "$file" | wc -c > "sizes/$SLURM_ARRAY_TASK_ID.txt"

Here it is one line of a shell, which prints what the commands print, in the order of the files::

    slurmlaunch map --time=00:10:00 --tasks 16 'gzip -c {} | wc -c' /usr/lib/python3/*.py

or, where one goes on with the output, the line with ``map_array``.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

from slurmlaunch import Command, Executor


def main() -> None:
    """Compress all modules, and print those that it helps most."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    executor = Executor(time="00:10:00")

    results = executor.map_array(Command("gzip -c {} | wc -c"), files, tasks=16).results()

    factors = {file.name: file.stat().st_size / int(done.stdout) for file, done in zip(files, results, strict=True)}
    for name in sorted(factors, key=lambda name: factors[name], reverse=True)[:5]:
        print(f"{name:<20}{factors[name]:5.1f}")


if __name__ == "__main__":
    main()
