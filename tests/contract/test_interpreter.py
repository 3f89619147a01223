"""The Python of a task: where it finds modules, and the settings that it takes over from the client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import SLURM
from tests.support import scripts

if TYPE_CHECKING:
    from pathlib import Path

elsewhere = pytest.mark.parametrize("backend", ["local", SLURM], indirect=True)

# Modules that every Python imports sooner or later, in a process of the pool, in a rank and in a child of either.
HIDDEN = ("token.py", "types.py", "random.py", "shutil.py", "json/__init__.py", "sitecustomize.py")

FOLDER = """
    import os, sys
    from slurmlaunch import Executor

    def names(_):
        import importlib, multiprocessing, os, traceback
        names = ["token", "types", "random", "shutil", "json"]
        here = [importlib.import_module(name).__file__ for name in names]
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            there = [pool.apply(importlib.import_module("importlib.util").find_spec, (name,)).origin for name in names]
        return [path for path in here + there if path.startswith(os.getcwd())], os.environ.get("PYTHONSAFEPATH")

    executor = Executor("../runs", cluster=sys.argv[1])
    found = executor.map_array(names, range(2)).results(timeout=90)
    ranks = executor.options(ntasks=2).submit(names, 0)
    print(found, ranks.result(timeout=90))
"""


@elsewhere
def test_a_file_in_the_clients_folder_hides_no_module(backend: str, tmp_path: Path) -> None:
    """No process of a task imports from the folder in which the client was started, unless the client does, too."""
    data = tmp_path / "data"
    for name in HIDDEN:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text("raise RuntimeError('this is no module')\n", encoding="utf-8")

    said = scripts.run(tmp_path, FOLDER, backend, cwd=data)

    assert said == "[([], None), ([], None)] ([], None)\n"


@elsewhere
def test_the_clients_own_path_counts(backend: str, tmp_path: Path) -> None:
    """A module beside the script is found in the tasks, also where that is the folder of the client."""
    (tmp_path / "lies_beside.py").write_text("def double(x): return 2 * x\n", encoding="utf-8")

    said = scripts.run(
        tmp_path,
        """
        import sys
        import lies_beside
        from slurmlaunch import Executor

        print(Executor("runs", cluster=sys.argv[1]).map_array(lies_beside.double, range(3)).results(timeout=90))
        """,
        backend,
    )

    assert said == "[0, 2, 4]\n"
