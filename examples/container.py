"""Run in a container: the same function, with the Python and the libraries of an image.

By hand each folder that the program needs is bound, and the variables that it
needs are handed in::

    #!/bin/bash
    #SBATCH --time=00:10:00
    export SINGULARITYENV_OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
    singularity run --bind "$PWD,/scratch" "$CONTAINER" python describe.py

and its output is read from a file. Here ``container=`` does it, and the result
comes back. The image needs slurmlaunch and cloudpickle, and the minor version of
the Python that submits: ``pip install slurmlaunch`` where it is built.

    python examples/container.py image.sif
    python examples/container.py image.sif apptainer /scratch /data:/mnt

Without an image it runs as it is, which shows the difference.
"""

from __future__ import annotations

import platform
import sys

from slurmlaunch import Container, Executor


def describe() -> tuple[str, str]:
    """Return what system and what Python this runs in."""
    system = platform.freedesktop_os_release().get("PRETTY_NAME", "a system without a name")
    return system, f"{platform.python_version()} of {sys.prefix}"


def container_named(image: str | None = None, runtime: str | None = None, *binds: str) -> Container | None:
    """Return the container of that image, or None where none is named."""
    return Container(image, runtime=runtime, binds=binds) if image else None


def main() -> None:
    """Describe the inside of the image that is named on the command line."""
    executor = Executor(time="00:10:00", container=container_named(*sys.argv[1:]))

    system, python = executor.submit(describe).result()

    print(f"system: {system}")
    print(f"Python: {python}")


if __name__ == "__main__":
    main()
