"""Post-process many files: every source file of Python's own standard library.

Requires slurmlaunch: in a clone of it, pip install .

By hand this is a list of files, an array as long as the list, an output file per
task, and a second script that collects them::

    #!/bin/bash
    #SBATCH --time=00:10:00
    #SBATCH --array=1-1500%16
    file=$(sed -n "${SLURM_ARRAY_TASK_ID}p" files.txt)
    python count.py "$file" > "counts/$SLURM_ARRAY_TASK_ID.txt"

With slurmlaunch it is the line with ``map_array``.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
import time
from collections import defaultdict
from pathlib import Path

try:
    from slurmlaunch import Executor
except ModuleNotFoundError as error:
    sys.exit(f"{error}. Requires slurmlaunch: in a clone of it, pip install .")

LIBRARY = Path(sysconfig.get_path("stdlib"))
FOREIGN = {"site-packages", "dist-packages"}
SHOWN = 8


def process(file: Path) -> tuple[int, int]:
    """Count the lines and the functions of a source file."""
    source = file.read_bytes()
    nodes = ast.walk(ast.parse(source))
    return source.count(b"\n"), sum(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in nodes)


def main() -> None:
    """Process all files, and print a table."""
    files = sorted(file for file in LIBRARY.rglob("*.py") if not FOREIGN.intersection(file.parts))
    executor = Executor(time="00:10:00")
    print(f"{len(files)} files of {LIBRARY}, on {executor.cluster}")

    start = time.monotonic()
    futures = executor.map_array(process, files, tasks=16)
    futures.wait()
    seconds = time.monotonic() - start

    packages: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for file, future in zip(files, futures, strict=True):
        if not future.exception():
            packages[file.relative_to(LIBRARY).parts[0]].append(future.result())

    print(f"\n{'package':<16}{'files':>8}{'lines':>10}{'functions':>11}")
    largest = sorted(packages, key=lambda package: len(packages[package]), reverse=True)
    for package in largest[:SHOWN]:
        print_row(package, packages[package])
    print_row("all", [counts for package in packages.values() for counts in package])

    # Some files of the library's own tests do not parse, on purpose: these items fail, and no other.
    print(f"\n{futures.counts()['failed']} files do not parse; all took {seconds:.1f} s")


def print_row(name: str, counts: list[tuple[int, int]]) -> None:
    """Print the sums of a package's files."""
    lines, functions = map(sum, zip(*counts, strict=True))
    print(f"{name:<16}{len(counts):>8}{lines:>10}{functions:>11}")


if __name__ == "__main__":
    main()
