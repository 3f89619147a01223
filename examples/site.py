"""Set the options of a site: account, partition, mail, modules, a virtual environment.

Requires slurmlaunch: in a clone of it, pip install .

By hand they stand at the top of every script::

    #!/bin/bash
    #SBATCH --account=project_42
    #SBATCH --partition=small
    #SBATCH --constraint=rome
    #SBATCH --mail-type=END,FAIL
    #SBATCH -M mahti
    module load python/3.11
    source venv/bin/activate
    python where.py

With slurmlaunch each is an option of the executor by its long name. This example
takes them from its command line, where a comma makes a list::

    python examples/site.py account=project_42 partition=small mail_type=END,FAIL clusters=mahti
    python examples/site.py modules=python/3.11 python=python3 setup="source venv/bin/activate"
"""

from __future__ import annotations

import os
import sys

try:
    from slurmlaunch import Executor
except ModuleNotFoundError as error:
    sys.exit(f"{error}. Requires slurmlaunch: in a clone of it, pip install .")


def where() -> dict[str, str | None]:
    """Return account, partition, QOS, modules and Python of this job."""
    slurm = {name.lower(): os.environ.get(f"SLURM_JOB_{name}") for name in ("ACCOUNT", "PARTITION", "QOS")}
    return {**slurm, "modules": os.environ.get("LOADEDMODULES"), "python": sys.executable}


def main() -> None:
    """Run with the options of the command line."""
    words = dict(argument.split("=", 1) for argument in sys.argv[1:])
    options = {name: value if name == "setup" else value.split(",") for name, value in words.items()}
    executor = Executor(**options)

    future = executor.submit(where)

    print(f"job {future.job_id}")
    for name, value in future.result().items():
        print(f"{name + ':':<11}{value or '-'}")


if __name__ == "__main__":
    main()
