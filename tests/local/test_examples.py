"""The examples run as their readers would run them, and give the described results."""

from __future__ import annotations

import ast
import gzip
import importlib.util
import math
import os
import platform
import re
import subprocess
import sys
import sysconfig
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbclient
import nbformat
import pytest

from slurmlaunch import Executor, caps
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.cluster import Cluster

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


pytestmark = pytest.mark.slow  # their calls are tested elsewhere, on each Python


@pytest.fixture(params=["local", pytest.param("slurm", marks=pytest.mark.slurm)])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Choose the backend with a variable, as a user does who changes no line of an example."""
    name: str = request.param
    if name == "slurm":
        request.getfixturevalue("cluster")
    for variable in caps.VARIABLES:
        monkeypatch.delenv(variable, raising=False)  # the user's settings are left alone, and these tests read ours
    monkeypatch.setenv("SLURMLAUNCH_CLUSTER", name)
    return name


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs Python in a folder of its own, and returns its output."""

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, encoding="utf-8", check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


# The scripts.


def check_postprocess(printed: str, where: str) -> None:
    """Read a package's row of the table, and count again."""
    lines = printed.splitlines()
    assert lines[0].endswith(f"on {where}")
    rows = {words[0]: [int(word) for word in words[1:]] for line in lines[3:-2] if (words := line.split())}
    smallest = min(rows, key=lambda package: rows[package][0])
    files = (Path(sysconfig.get_path("stdlib")) / smallest).rglob("*.py")
    counts = [each for file in files if "site-packages" not in file.parts and (each := count(file))]

    assert rows[smallest] == [len(counts), *map(sum, zip(*counts, strict=True))]
    failed = int(lines[-1].split()[0])
    assert int(lines[0].split()[0]) == rows["all"][0] + failed


def count(file: Path) -> tuple[int, int] | None:
    """Count lines and functions of a source file; None if it does not parse."""
    source = file.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own escape sequences are not at issue
            nodes = ast.walk(ast.parse(source))
    except SyntaxError:
        return None
    return source.count(b"\n"), sum(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in nodes)


def check_monte_carlo_pi(printed: str, where: str) -> None:
    """Compare the estimate with π: a random one of so many darts is off by 0.0008; a seed fixes it."""
    estimate, darts = re.fullmatch(r"pi is about ([\d.]+), from (\d+) darts; off by [\d.]+\n", printed).groups()  # type: ignore[union-attr]

    assert float(estimate) == pytest.approx(math.pi, abs=0.003)
    assert int(darts) == 4_000_000


def check_matrix_product(printed: str, where: str) -> None:
    """Read each task's grant: the two CPUs that it requested, and as many threads."""
    heading, *rows = [line.split() for line in printed.splitlines()]

    assert heading == ["size", "GFLOP/s", "CPUs", "threads"]
    assert [row[0] for row in rows] == ["400", "800", "1200", "1600"]
    assert all(float(row[1]) > 0 for row in rows)
    granted = str(2 if where == "slurm" else min(2, usable_cpus()))
    # A library does not start more threads than the machine has CPUs, for any grant.
    assert [row[2:] for row in rows] == [[granted, str(min(2, usable_cpus()))]] * 4


def check_fibonacci(printed: str, where: str) -> None:
    """Compute the number the other way."""
    number, following = 0, 1
    for _ in range(27):
        number, following = following, number + following

    assert printed.splitlines()[-1] == f"fibonacci(27) = {number}"


def check_process_pool(printed: str, where: str) -> None:
    """Sieve for the primes, and see that the pool was as large as the task."""
    is_prime = bytearray([0, 0]) + bytearray([1]) * 199_998
    for number in range(2, math.isqrt(200_000) + 1):
        if is_prime[number]:
            is_prime[number * number :: number] = bytes(len(range(number * number, 200_000, number)))
    processes = 4 if where == "slurm" else min(4, usable_cpus())

    assert printed == f"{sum(is_prime)} primes below 200000, counted by {processes} processes of one job\n"


def check_shell_command(printed: str, where: str) -> None:
    """Compress the modules that are named by the library's own means, which come close."""
    rows = [line.split() for line in printed.splitlines()]
    for name, factor in rows:
        source = (Path(sysconfig.get_path("stdlib")) / name).read_bytes()
        assert float(factor) == pytest.approx(len(source) / len(gzip.compress(source, 6)), rel=0.05)

    assert len(rows) == 5
    assert rows == sorted(rows, key=lambda row: float(row[1]), reverse=True)


def check_from_submitit(printed: str, where: str) -> None:
    """Compute the areas; each job is the one that its task reports, and the failure is submitit's own."""
    assert printed.splitlines() == [
        "[10, 40, 90] True",
        "1 3 FailedJobError",
        "ValueError: invalid literal for int() with base 10: 'three'",
    ]


def check_array_of_pools(printed: str, where: str) -> None:
    """Read where each walk was done: four to a task, by processes of two CPUs."""
    heading, *rows = [line.split() for line in printed.splitlines()]
    cpus = 2 if where == "slurm" else min(2, usable_cpus())

    assert heading == ["seed", "distance", "task", "process", "CPUs", "threads"]
    assert [[row[0], row[2], *row[4:]] for row in rows] == [
        [str(seed), str(seed // 4), str(cpus), str(cpus)] for seed in range(16)
    ]


def check_container(printed: str, where: str) -> None:
    """Without an image it is this machine that is described."""
    system = platform.freedesktop_os_release()["PRETTY_NAME"]

    assert printed == f"system: {system}\nPython: {platform.python_version()} of {sys.prefix}\n"


def check_site(printed: str, where: str) -> None:
    """Without options the cluster's default is shown."""
    job, *rows = printed.splitlines()

    assert job.startswith("job ")
    found = dict(row.split(maxsplit=1) for row in rows)
    assert list(found) == ["account:", "partition:", "qos:", "modules:", "python:"]
    assert (found["partition:"], found["python:"]) == ("debug" if where == "slurm" else "-", sys.executable)


def check_grid_search(printed: str, where: str) -> None:
    """Search again, with two processes of joblib's own."""
    # Here, since this import takes a second of each process that collects tests.
    from sklearn.datasets import load_iris
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    flowers, species = load_iris(return_X_y=True)
    search = GridSearchCV(SVC(), {"C": [0.1, 1, 10], "gamma": [0.01, 0.1, 1]}, cv=3, n_jobs=2)
    search.fit(flowers, species)

    assert printed == f"{search.best_params_} is right about {search.best_score_:.1%} of the flowers\n"


def check_dask_cluster(printed: str, where: str) -> None:
    """Count the digits."""
    assert printed == f"40! has {len(str(math.factorial(40)))} digits, and they are right\n"


def check_ray_cluster(printed: str, where: str) -> None:
    """Add up, and see that both nodes were there."""
    total = sum(number**2 for number in range(40))
    assert printed == f"the first 40 squares add up to {total}, computed by a cluster of 2 nodes\n"


def check_mpi_integral(printed: str, where: str) -> None:
    """Compare the integral with π, and check each rank's share."""
    assert printed == f"pi is about {math.pi:.10f}, from 4 ranks with {[250_000] * 4} steps\n"


def check_torch_all_reduce(printed: str, where: str) -> None:
    """See that each rank has the sum of all."""
    assert printed == f"4 ranks computed the sums {[10.0] * 4}\n"


def check_lightning_training(printed: str, where: str) -> None:
    """See that both ranks trained to the end."""
    assert printed == "2 ranks found the slope 3.00\n"


@pytest.mark.long
@pytest.mark.slurm
@pytest.mark.skipif(find_spec("lightning") is None, reason="needs lightning, which is large: pip install lightning")
def test_lightning_goes_on(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that is requeued goes on from the last epoch that it saved, on both ranks."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("lightning_training")
    executor = Executor(tmp_path / "runs", cluster="slurm", ntasks=2, nodes=1, time=10)
    future = executor.submit(example.Training(tmp_path, seconds=0.1), 20)
    wait_until((tmp_path / "last.ckpt").exists)
    future.requeue()

    (first, slope), other = future.ranks(3 * PATIENCE)
    assert (0 < first < 20, other) == (True, (first, slope))


@pytest.mark.slurm
def test_allocation(cluster: Cluster, tmp_path: Path) -> None:
    """The script that wants an allocation prints the right values in one, and uses both of its nodes."""
    command = ["salloc", "--quiet", "--nodes=2", "--ntasks=16", sys.executable, str(EXAMPLES / "allocation.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)

    assert (done.returncode, done.stderr) == (0, "")
    walks, n1, n2 = re.fullmatch(
        r"(\d+) walks, on average [\d.]+ steps far; on {'n1': (\d+), 'n2': (\d+)}\n", done.stdout
    ).groups()  # type: ignore[union-attr]
    assert (int(walks), int(n1) + int(n2)) == (40, 40)


SCRIPTS: dict[str, Callable[[str, str], None]] = {
    "array_of_pools.py": check_array_of_pools,
    "container.py": check_container,
    "dask_cluster.py": check_dask_cluster,
    "fibonacci.py": check_fibonacci,
    "from_submitit.py": check_from_submitit,
    "lightning_training.py": check_lightning_training,
    "grid_search.py": check_grid_search,
    "matrix_product.py": check_matrix_product,
    "monte_carlo_pi.py": check_monte_carlo_pi,
    "mpi_integral.py": check_mpi_integral,
    "postprocess.py": check_postprocess,
    "process_pool.py": check_process_pool,
    "ray_cluster.py": check_ray_cluster,
    "shell_command.py": check_shell_command,
    "site.py": check_site,
    "torch_all_reduce.py": check_torch_all_reduce,
}
ELSEWHERE = {"allocation.py", "gpus.py"}
"""Examples that need another place, and have tests of their own."""

MARKS = {
    "ray_cluster.py": [
        pytest.mark.long,
        pytest.mark.skipif(find_spec("ray") is None, reason="needs ray, which is large: pip install ray"),
        pytest.mark.skipif(caps.usable_cpus() < 2, reason="its two nodes need two CPUs"),
    ],
    "postprocess.py": [pytest.mark.long],  # the whole standard library
    "torch_all_reduce.py": [pytest.mark.long],
    "lightning_training.py": [pytest.mark.long],
}
# Examples whose requirements are too large to install for a test.
NEEDS = {"torch_all_reduce.py": "torch", "lightning_training.py": "lightning"}


@pytest.mark.anywhere
@pytest.mark.parametrize("script", [pytest.param(name, marks=MARKS.get(name, [])) for name in SCRIPTS])
def test_script(script: str, where: str, run_python: Callable[..., str]) -> None:
    """A script prints the right values, and nothing to standard error."""
    if script in NEEDS and importlib.util.find_spec(NEEDS[script]) is None:
        pytest.skip(f"needs {NEEDS[script]}")
    SCRIPTS[script](run_python(str(EXAMPLES / script)), where)


# The notebook.


def check_main_job(shown: dict[str, str], where: str) -> None:
    """Check the output of each cell."""
    counts = {"pending": 0, "running": 0, "done": 0, "failed": 0, "cancelled": 0}
    words = list(range(8))

    assert f"cluster='{where}'" in shown["executor"]
    assert shown["array-results"] == str(words)
    completed = [line.split()[1:] for line in shown["future-completed"].splitlines()]
    assert sorted(completed) == [[f"texts/{number}.txt", str(number)] for number in words]
    assert shown["future-log"] == repr("reading texts/3.txt\n")
    assert shown["submit"] == "10"
    assert shown["failure-call"] == str({**counts, "done": 8, "failed": 1})
    assert "here:  [Errno 2] No such file or directory: 'texts/late.txt'" in shown["failure-traceback"]
    assert "in count_words" in shown["failure-traceback"]
    assert shown["retry"] == str([*words, 4])
    assert shown["attach"] == shown["retry"]
    assert shown["throttle-change"] == str({**counts, "done": 6})
    assert ("#SBATCH --array=0-7%2" in shown["script"]) == (where == "slurm")


NOTEBOOKS: dict[str, Callable[[dict[str, str], str], None]] = {"main_job.ipynb": check_main_job}


def read_notebook(name: str) -> Any:
    """Read an example that is a notebook."""
    return nbformat.read(EXAMPLES / name, as_version=4)  # type: ignore[no-untyped-call]


def text_of(output: Any) -> str:
    """Return the text of a cell's output."""
    return output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"]  # type: ignore[no-any-return]


@pytest.mark.anywhere
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook(name: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook that runs from its first cell to its last shows the output that its text describes."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = read_notebook(name)

    nbclient.NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()

    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    NOTEBOOKS[name]({cell.id: "".join(map(text_of, cell.outputs)).rstrip("\n") for cell in cells}, where)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_hold_no_outputs(name: str) -> None:
    """A notebook is stored as it is before it was run."""
    cells = [cell for cell in read_notebook(name).cells if cell.cell_type == "code"]

    assert [([], None)] * len(cells) == [(cell.outputs, cell.execution_count) for cell in cells]


# All examples.


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_requirements(script: str) -> None:
    """An example whose package is missing prints the sentence about requirements from its docstring."""
    source = (EXAMPLES / script).read_text(encoding="utf-8")
    (stated,) = [line for line in ast.get_docstring(ast.parse(source)).splitlines() if line.startswith("Requires ")]  # type: ignore[union-attr]

    # Without the environment's packages, as in a Python that has none of them.
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(EXAMPLES / script)], capture_output=True, encoding="utf-8", check=False
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"No module named '\w+'\. {re.escape(stated)}\n", done.stderr)


def test_every_example_is_tested() -> None:
    """Each example has a test, and each test an example."""
    found = {path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".ipynb"}}

    assert found == {*SCRIPTS, *NOTEBOOKS, *ELSEWHERE}


def test_every_example_is_listed() -> None:
    """The list of examples names each, and no other."""
    listed = re.findall(r"^- \[`(.+?)`\]\(\1\): ", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE)

    assert sorted(listed) == sorted([*SCRIPTS, *NOTEBOOKS, *ELSEWHERE])


def usable_cpus() -> int:
    """Return how many CPUs this process may run on."""
    return len(os.sched_getaffinity(0))
