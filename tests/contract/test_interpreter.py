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
        from joblib.externals.loky import ProcessPoolExecutor as Loky
        with Loky(1) as pool:
            there += [spec.origin for spec in pool.map(importlib.import_module("importlib.util").find_spec, names)]
        return [path for path in here + there if path.startswith(os.getcwd())], os.environ.get("PYTHONSAFEPATH")

    executor = Executor("../runs", cluster=sys.argv[1])
    found = executor.map_array(names, range(2)).results(timeout=90)
    ranks = executor.options(ntasks=2).submit(names, 0)
    print(found, ranks.result(timeout=90))
"""


@pytest.mark.anywhere  # tests of two users have such a file on Slurm
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


SETTINGS = """
    import logging, sys
    from slurmlaunch import Executor

    logging.basicConfig(level=logging.INFO)
    sys.setrecursionlimit(20_000)

    def deep(calls):
        return 0 if calls == 0 else 1 + deep(calls - 1)

    def seen(_):
        import logging, multiprocessing, sys, warnings
        try:
            warnings.warn("mind the gap", UserWarning)
            warned = "as usual"
        except UserWarning:
            warned = "as an error"
        logging.getLogger("mine").info("said by an item")
        flags = sys.flags.optimize, sys.flags.bytes_warning, sys.flags.no_user_site, sys.flags.utf8_mode
        limits = sys.get_int_max_str_digits(), sys.getrecursionlimit(), deep(15_000)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            there = pool.apply(eval, ("(__import__('sys').flags.optimize, __import__('sys').warnoptions)",))
        return flags, limits, sorted(sys._xoptions), sys.warnoptions, logging.getLogger().level, warned, there

    if __name__ == "__main__":  # as this script opens a pool of its own
        executor = Executor("runs", cluster=sys.argv[1])
        array = executor.map_array(seen, range(2), tasks=1)
        ranks = executor.options(ntasks=2).submit(seen, 0)
        here = seen(0)
        print(here, array.results(timeout=90) == [here, here], ranks.result(timeout=90) == here)
        print(repr(array.logs(0)))
"""


@elsewhere
def test_the_clients_settings_are_the_tasks(backend: str, tmp_path: Path) -> None:
    """Options of the client's Python, its recursion limit and its log level hold in items, in ranks and in children."""
    options = ["-OO", "-b", "-s", "-Xutf8", "-Xint_max_str_digits=5000", "-Xfaulthandler", "-Werror::UserWarning"]

    said = scripts.run(tmp_path, SETTINGS, backend, options=options).splitlines()

    flags = f"((2, 1, 1, 1), (5000, 20000, 15000), {['faulthandler', 'int_max_str_digits', 'utf8']}, "
    assert said[0].startswith(flags)
    assert said[0].endswith("True True")
    assert "20, 'as an error', (2, [" in said[0]
    assert said[1].count("INFO:mine:said by an item") == 2


@pytest.mark.anywhere
@elsewhere
def test_some_settings_stay(backend: str, tmp_path: Path) -> None:
    """An isolated client has tasks that are not, and a level of a logger without a handler stays where it is."""
    said = scripts.run(
        tmp_path,
        """
        import logging, sys
        from slurmlaunch import Executor

        def seen():
            import logging, sys
            flags = sys.flags.isolated, sys.flags.ignore_environment, sys._xoptions
            before = logging.getLogger().level
            logging.basicConfig(format="here: %(message)s")
            logging.error("formatted")
            return flags, before

        logging.getLogger().setLevel(logging.DEBUG)
        future = Executor("runs", cluster=sys.argv[1]).submit(seen)
        print(future.result(timeout=90), future.stderr())
        """,
        backend,
        options=["-I", "-Xfrozen_modules=off", "-Xtracemalloc=2"],
    )

    assert said == "((0, 0, {}), 30) here: formatted\n\n"
