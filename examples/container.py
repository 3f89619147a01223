"""Run in a container: the same function, with the Python and the libraries of an image.

Requires slurmlaunch: in a clone of it, pip install .
With an image as its argument it also requires a container runtime on the nodes.

By hand each folder and each variable that the program needs is passed to the
runtime::

    #!/bin/bash
    #SBATCH --time=00:10:00
    export SINGULARITYENV_OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
    singularity run --bind "$PWD,/scratch" "$CONTAINER" python describe.py

and the output is read from a file. With slurmlaunch, ``container=`` does this, and the
result is returned. The image needs slurmlaunch, cloudpickle, and the minor version
of the Python that submits.

    python examples/container.py image.sif
    python examples/container.py image.sif apptainer /scratch /data:/mnt

Without an image it runs directly, which shows the difference.
"""

from __future__ import annotations

import platform
import sys

try:
    from slurmlaunch import Container, Executor
except ModuleNotFoundError as error:
    sys.exit(f"{error}. Requires slurmlaunch: in a clone of it, pip install .")


def describe() -> tuple[str, str]:
    """Return the system and the Python that run this function."""
    system = platform.freedesktop_os_release().get("PRETTY_NAME", "a system without a name")
    return system, f"{platform.python_version()} of {sys.prefix}"


def container_named(image: str | None = None, runtime: str | None = None, *binds: str) -> Container | None:
    """Return the container of that image, or None without an image."""
    return Container(image, runtime=runtime, binds=binds) if image else None


def main() -> None:
    """Describe the inside of the image named on the command line."""
    executor = Executor(time="00:10:00", container=container_named(*sys.argv[1:]))

    system, python = executor.submit(describe).result()

    print(f"system: {system}")
    print(f"Python: {python}")


if __name__ == "__main__":
    main()
