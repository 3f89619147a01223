"""``__main__`` in a task is the user's module, made anew, also in the children of every pool that an item opens.

Each script here has no ``if __name__ == "__main__"``: a child that ran it would submit the run again.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

from slurmlaunch.node.main_module import _Carrier
from tests.support import scripts

if TYPE_CHECKING:
    from pathlib import Path

DEFINITIONS = """
    import dataclasses, enum, functools, multiprocessing, os, sys
    from concurrent.futures import ProcessPoolExecutor
    from slurmlaunch import Executor, task_pool

    class Status(enum.Enum):  # these names are also the node's
        OK = 1

    @dataclasses.dataclass
    class Path:
        number: int

    class Manifest:
        def __init__(self, number):
            self.number = number

    @functools.lru_cache
    def table(number):
        return 10 * number

    offset = 7

    def make(given):
        return Path(given.number + offset), Status.OK, table(given.number)

    def calls(pool, function):
        return list(pool.map(function, [Manifest(number) for number in range(3)]))

    runs = sys.argv[1]
    expected = [(Path(number + 7), Status.OK, 10 * number) for number in range(3)]

    def check(work, *items, cluster="local", **options):
        found = Executor(runs, cluster=cluster, **options).map_array(work, *items).results(timeout=60)
        assert found == [expected] * len(found), found
        assert all(type(path) is Path for calls in found for path, _, _ in calls)
        assert len(os.listdir(runs)) == 1
        print("as expected")
"""

POOLS = """
    def work(kind, function):
        if kind == "loky":
            from joblib.externals.loky import ProcessPoolExecutor as Loky
            pool = Loky(2)
        elif kind == "task_pool":
            pool = task_pool(2)
        else:
            pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(kind))
        with pool:
            return calls(pool, function)

    kinds = ["fork", "spawn", "forkserver", "loky", "task_pool"]
"""


def run(tmp_path: Path, text: str) -> None:
    """Run a script with these definitions, which checks its results itself."""
    assert scripts.run(tmp_path, DEFINITIONS + text, tmp_path / "runs") == "as expected\n"


@pytest.mark.parametrize("function", ["make", "lambda: make"], ids=["by the function", "by the items"])
def test_pools_in_an_item(tmp_path: Path, function: str) -> None:
    """Children of any start method find what the function brings, and what only the items do."""
    given = "work, kinds, [make] * 5" if function == "make" else "Call(), kinds, [make] * 5"
    alone = """
    class Call:
        def __call__(self, kind, function):
            return work_of(kind)(kind, function)

    def work_of(kind):
        return work
    """
    run(tmp_path, POOLS + alone + f"\n    check({given})\n")


def test_pools_in_an_inline_item(tmp_path: Path) -> None:
    """An inline item may fork a pool, too, for the script's functions."""
    run(tmp_path, POOLS + '\n    check(work, ["fork", "task_pool"], [make] * 2, cluster="inline")\n')


@pytest.mark.slow
def test_a_pool_of_mpi(tmp_path: Path) -> None:
    """The processes that mpi4py starts find the script's definitions, and do not run the script."""
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip("needs mpi4py")
    run(
        tmp_path,
        """
    def work(count):
        from mpi4py.futures import MPIPoolExecutor
        with MPIPoolExecutor(count) as pool:
            return calls(pool, make)

    check(work, [1])
    """,
    )


def test_nothing_else_is_in_it(tmp_path: Path) -> None:
    """It has the user's definitions alone, the name of the script, and nothing for multiprocessing to run."""
    text = """
    import sys
    from slurmlaunch import Executor

    count = 1

    def work(number):
        global count
        import __main__
        from multiprocessing.spawn import get_preparation_data
        count += 1
        assert __main__.work is work and __main__.count == count
        prepared = get_preparation_data("child")
        assert "init_main_from_path" not in prepared
        return __main__.__file__, __file__, sorted(name for name in vars(__main__) if not name.startswith("__"))

    print(*Executor(sys.argv[1], cluster="local").submit(work, 1).result(timeout=60), sep="|")
    """
    script, same, names = scripts.run(tmp_path, text, tmp_path / "runs").strip().split("|")

    assert script == same == str(tmp_path / "script.py")
    assert names == "['count', 'work']"


def test_a_carrier_is_plain_for_other_readers() -> None:
    """A search path that is sent anywhere but to a child process is one of plain strings."""
    assert _Carrier("/a").__reduce_ex__(5) == (str, ("/a",))
