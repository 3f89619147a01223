"""Search for the best parameters of a scikit-learn model with many tasks.

Requires slurmlaunch and scikit-learn: in a clone of slurmlaunch, pip install . scikit-learn

By hand a search has the cores of one node, and reads their number from a
variable::

    #!/bin/bash
    #SBATCH --time=00:10:00
    #SBATCH --cpus-per-task=128
    export OMP_NUM_THREADS=1
    python search.py    # with n_jobs=int(os.environ["SLURM_CPUS_PER_TASK"])

With slurmlaunch, scikit-learn's own code is unchanged: joblib, which it uses for all
parallel work, runs on the executor's backend. All fits of the search are one job array,
and the data is stored once. ``n_jobs`` is the number of processes; without it each fit
is an item.
"""

from __future__ import annotations

import sys

try:
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    import slurmlaunch
except ModuleNotFoundError as error:
    sys.exit(f"{error}. Requires slurmlaunch and scikit-learn: in a clone of slurmlaunch, pip install . scikit-learn")

GRID = {"C": [0.1, 1, 10], "gamma": [0.01, 0.1, 1]}


def main() -> None:
    """Search, and print the best parameters."""
    executor = slurmlaunch.Executor(time="00:10:00")
    flowers, species = load_iris(return_X_y=True)
    search = GridSearchCV(SVC(), GRID, cv=3)

    with joblib.parallel_config(backend=executor.joblib_backend(), n_jobs=2):
        search.fit(flowers, species)

    print(f"{search.best_params_} is right about {search.best_score_:.1%} of the flowers")


if __name__ == "__main__":
    main()
