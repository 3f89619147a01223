"""The code of the user's modules: tasks run it as it was at the submission, whatever becomes of the files since."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import types
import zipapp
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import Executor, OptionError
from slurmlaunch.client import code
from slurmlaunch.client.code import ModuleChanged
from tests.support.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import ExecutorFactory
    from tests.support.waiting import Gate

    Change = Callable[[Project], None]

PACKAGE = {
    "pack/__init__.py": "from .parts import part\n",
    "pack/parts.py": "part = 'old part'\n",
    "pack/late.py": "late = 'old late'\n",
    "pack/other.py": "other = 'old other'\n",
    "pack/data.txt": "data",
    "pack/work.py": """
import dataclasses, importlib.resources, inspect, pkgutil
from . import part

@dataclasses.dataclass
class Row:
    number: int
    word: str = "old"

def work(gate, row):
    if not row.number:
        gate.enter()
    from .late import late
    data = importlib.resources.files("pack").joinpath("data.txt").read_text()
    return Row(row.number), part, late, data, pkgutil.get_data("pack", "data.txt"), inspect.getsource(work)

def fail(gate, row):
    if not row.number:
        gate.enter()
        return
    raise ValueError(row)  # the old line

def other(gate, row):
    if not row.number:
        gate.enter()
        return
    from .other import other
    return other
""",
}


@pytest.fixture
def backend() -> str:
    """Run on the local backend alone."""
    return "local"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """Return a folder of the search path."""
    monkeypatch.syspath_prepend(tmp_path / "project")
    project = Project(tmp_path / "project")
    yield project
    project.forget()


@pytest.fixture(params=[Project.edit, Project.delete])
def change(request: pytest.FixtureRequest) -> Change:
    """Do the test with the files edited while a task waits, and again with them deleted."""
    found: Change = request.param
    return found


def run_across(executor: Executor, gate: Gate, function: Any, project: Project, change: Change) -> Any:
    """Run two tasks, the second of which starts after the change."""
    row = sys.modules[function.__module__].__dict__.get("Row", types.SimpleNamespace)
    array = executor.map_array(function, [gate] * 2, [row(number=0), row(number=1)], tasks=2, throttle=1)
    gate.await_arrival(0)
    change(project)
    gate.open()
    return array


def test_package(executor: Executor, gate: Gate, project: Project, change: Change) -> None:
    """Late and relative imports, data files, source and classes are as they were, also for a task that starts later."""
    project.write(PACKAGE)
    module = project.load("pack.late", "pack.work")
    source = module.__loader__.get_source("pack.work")

    results = run_across(executor, gate, module.work, project, change).results(60)

    assert [module.Row(0), module.Row(1)] == [result[0] for result in results]
    assert {module.Row} == {type(result[0]) for result in results}
    assert [("old part", "old late", "data", b"data")] * 2 == [result[1:5] for result in results]
    assert all(result[5] in source for result in results)


def test_traceback(executor: Executor, gate: Gate, project: Project, change: Change) -> None:
    """A traceback shows the line that ran."""
    project.write(PACKAGE)
    module = project.load("pack.late", "pack.work")

    array = run_across(executor, gate, module.fail, project, change)

    assert "raise ValueError(row)  # the old line" in str(array[1].exception(60).__cause__)


def test_module_that_was_not_imported(executor: Executor, gate: Gate, project: Project) -> None:
    """A module of a stored package that was not imported at the submission is the file's, and the log says so."""
    project.write(PACKAGE)
    module = project.load("pack.work")

    array = run_across(executor, gate, module.other, project, Project.edit)

    assert [None, "new other"] == array.results(60)
    log = (array.folder / "logs" / "0-0-1.err").read_text()
    assert f"{project.folder / 'pack' / 'other.py'} changed after the submission" in log


def test_namespace_package(
    executor: Executor, gate: Gate, project: Project, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a namespace package, one half may be installed, and the other the user's."""
    project.write(
        {
            "site-packages/space/theirs.py": "theirs = 'installed'\n",
            "space/deep/ours.py": (
                "from space.theirs import theirs\n"
                "def work(gate, row):\n"
                "    if row.number == 0: gate.enter()\n"
                "    return theirs, 'old'\n"
            ),
        }
    )
    monkeypatch.syspath_prepend(project.folder / "site-packages")
    module = project.load("space.deep.ours")

    def change_ours(project: Project) -> None:
        theirs = project.folder / "site-packages/space/theirs.py"
        text = theirs.read_text()
        change(project)
        theirs.write_text(text)
        if change is Project.delete:
            project.folder.joinpath("space/deep").rename(project.folder / "gone")

    assert [("installed", "old")] * 2 == run_across(executor, gate, module.work, project, change_ours).results(60)


@pytest.mark.parametrize("name", ["loaded", "plugins.deep.loaded"])
def test_module_that_only_the_client_finds(executor: Executor, project: Project, name: str) -> None:
    """A module that was loaded from a path is served under its name, in packages that exist on the client alone."""
    project.write(
        {"elsewhere/plug.cfg.py": "class Plug:\n    def __call__(self, x):\n        return x * 3\nplug = Plug()\n"}
    )
    for parent in ("plugins", "plugins.deep") if "." in name else ():
        sys.modules[parent] = types.ModuleType(parent)
    spec = importlib.util.spec_from_file_location(name, project.folder / "elsewhere/plug.cfg.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    try:
        assert [3, 6] == executor.map_array(module.plug, [1, 2]).results(60)
    finally:
        for each in ("plugins", "plugins.deep", name):
            sys.modules.pop(each, None)


POOLS = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

def call(number):
    from late import word  # which the child imports anew
    return word, number

def work(gate, row):
    if not row.number:
        gate.enter()
        return
    from joblib.externals.loky import ProcessPoolExecutor as Loky
    from slurmlaunch import task_pool
    methods = ("fork", "spawn", "forkserver")
    pools = [ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) for method in methods]
    results = []
    for pool in [*pools, Loky(1), task_pool(1)]:
        with pool:
            results += pool.map(call, [1])
    return results
"""


def test_pools_in_an_item(executor: Executor, gate: Gate, project: Project, change: Change) -> None:
    """Children of an item import the stored modules, by whatever method they are started."""
    project.write({"pools.py": POOLS, "late.py": "word = 'old'\n"})
    module = project.load("late", "pools")

    results = run_across(executor, gate, module.work, project, change).results(90)

    assert [("old", 1)] * 5 == results[1]


def test_ranks(make_executor: ExecutorFactory, gate: Gate, project: Project, change: Change) -> None:
    """The ranks of an item import the stored modules."""
    project.write({"ranked.py": "def work(gate, row):\n    row.number or gate.enter()\n    return 'old', row.number\n"})
    module = project.load("ranked")

    array = run_across(make_executor(ntasks=2), gate, module.work, project, change)

    assert [[("old", number)] * 2 for number in range(2)] == [future.ranks(90) for future in array]


SCRIPT = """
import os, pathlib, sys, time
from slurmlaunch import Executor
from {package} import helper

def work(go, item):
    while not os.path.exists(go):
        time.sleep(0.01)
    from {package}.helper import word
    return word, item

if __name__ == "__main__":
    runs, project = map(pathlib.Path, sys.argv[1:])
    go = project / "go"
    fs = Executor(runs, cluster="local").map_array(work, [str(go)] * 2, range(2), tasks=2, throttle=1)
    helper_file = pathlib.Path(helper.__file__)
    if helper_file.exists():
        helper_file.unlink()
    go.touch()
    print(fs.results(60), "helper" in str(fs.code.live))
"""


@pytest.mark.parametrize("how", ["-m", "zipapp", "notebook"])
def test_ways_to_start(tmp_path: Path, how: str) -> None:
    """A script that is run as a module, and a notebook, run stored modules; the modules of a zipapp are in its file."""
    package = "helpers" if how == "notebook" else "pack"
    project = Project(tmp_path / "project")
    project.write({f"{package}/__init__.py": "", f"{package}/helper.py": "word = 'old'\n"})
    start = SCRIPT.format(package=package)
    if how == "-m":
        project.write({"pack/mod.py": start.replace("from pack import helper", "from . import helper")})
        command = ["-m", "pack.mod"]
    elif how == "zipapp":
        project.write({"__main__.py": start})
        zipapp.create_archive(project.folder, tmp_path / "app.pyz")
        command = [str(tmp_path / "app.pyz")]
    else:
        command = ["-c", start]
    run = subprocess.run(
        [sys.executable, *command, tmp_path / "runs", project.folder],
        cwd=project.folder if how != "zipapp" else tmp_path, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip

    assert run.stdout == f"[('old', 0), ('old', 1)] {how == 'zipapp'}\n", run.stderr


class Translating(importlib.machinery.SourceFileLoader):
    """Rewrites the code that it loads, as import hooks do."""

    def get_data(self, path: str) -> bytes:
        """Return other bytes than the file has."""
        return super().get_data(path).replace(b"text", b"code") if path.endswith(".py") else b""


class Redirecting(importlib.machinery.SourceFileLoader):
    """Loads the text as it is, with other data files, as the loaders of editable installs do."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Store no compiled code."""


class Wrapping:
    """Has another loader load the text, as a loader of editable installs does."""

    def __init__(self, *arguments: str) -> None:
        self._loader = importlib.machinery.SourceFileLoader(*arguments)

    def __getattr__(self, name: str) -> Any:
        """Return the other loader's attribute."""
        return getattr(self._loader, name)


@pytest.mark.parametrize(("loader", "stored"), [(Translating, False), (Redirecting, True), (Wrapping, True)])
def test_loaders(
    project: Project,
    loader: Any,
    stored: bool,  # noqa: FBT001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A module is stored if its code is what the file says; one that an import hook rewrites stays live."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a hook's bytecode is not in the file's place
    project.write({"hooked.py": "def work(x):\n    return 'text', x\n"})
    spec = importlib.util.spec_from_file_location("hooked", loader=loader("hooked", str(project.folder / "hooked.py")))
    assert spec is not None
    module = sys.modules["hooked"] = importlib.util.module_from_spec(spec)
    loader("hooked", str(project.folder / "hooked.py")).exec_module(module)

    array = Executor(tmp_path / "runs", cluster="local").map_array(module.work, [1])

    assert [("text", 1)] == array.results(60)
    assert stored == ("hooked" in array.code.modules)
    assert stored != ("hooked" in array.code.live)


def extension() -> Path:
    """Return the file of an extension module of the standard library."""
    for name in ("_heapq", "_queue", "_csv", "_json", "_bisect", "_struct"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None and Path(spec.origin).exists():
            return Path(spec.origin)
    pytest.skip("this Python has no extension modules in files")


def test_changed_extension(executor: Executor, gate: Gate, project: Project) -> None:
    """An extension module stays where it is; the log says if it has changed."""
    file = extension()
    name = file.name.partition(".")[0]
    work = f"def work(gate, row):\n    row.number or gate.enter()\n    from pack import {name} as found\n"
    project.write({"pack/__init__.py": "", "pack/work.py": f"{work}    return found.__file__"})
    ours = project.folder / "pack" / file.name
    shutil.copy(file, ours)
    module = project.load(f"pack.{name}", "pack.work")

    array = run_across(executor, gate, module.work, project, lambda _: os.utime(ours, ns=(1, 1)))

    assert [str(ours)] * 2 == array.results(60)
    assert f"{ours} changed after the submission" in (array.folder / "logs" / "0-0-1.err").read_text()


def test_missing_extension(executor: Executor, project: Project) -> None:
    """An extension module that was loaded from a path is found by its path; if it is gone, the error says so."""
    file = extension()
    project.write({"work.py": "def work(name):\n    return __import__(name).__file__\n"})
    ours = project.folder / file.name.replace(".", "_ours.", 1)
    shutil.copy(file, ours)
    name = file.name.partition(".")[0]
    spec = importlib.util.spec_from_file_location(name, ours)
    assert spec is not None
    before = sys.modules.pop(name, None)
    try:
        sys.modules[f"plug.{name}"] = importlib.util.module_from_spec(spec)
        sys.modules[f"plug.{name}"].__spec__.name = f"plug.{name}"  # type: ignore[union-attr]
        sys.modules["plug"] = types.ModuleType("plug")
        work = project.load("work").work
        found = executor.submit(work, f"plug.{name}")
        assert found.exception(60) is None
        ours.unlink()
        assert f"its file of the submission is gone: {ours}" in str(executor.submit(work, f"plug.{name}").exception(60))
    finally:
        for each in ("plug", f"plug.{name}"):
            sys.modules.pop(each, None)
        if before is not None:
            sys.modules[name] = before


@pytest.mark.parametrize("made", ["Other()", "types.ModuleType(__name__)"])
def test_module_that_replaces_itself(executor: Executor, gate: Gate, project: Project, made: str) -> None:
    """A module that puts an object in its place is stored, too."""
    project.write(
        {
            "replaced.py": "import sys, types\nclass Other: pass\n"
            f"sys.modules[__name__] = {made}\nsys.modules[__name__].word = 'old'\n",
            "process.py": "import replaced\ndef work(gate, item):\n"
            "    if not item:\n        gate.enter()\n    return replaced.word\n",
        }
    )
    work = project.load("process").work

    array = executor.map_array(work, [gate] * 2, [0, 1], tasks=2, throttle=1)
    gate.await_arrival(0)
    project.edit()
    gate.open()

    assert ["old", "old"] == array.results(60)
    assert "replaced" in array.code.modules
    assert f": {len(array.code.modules)} modules, " in repr(array.code)
    del sys.modules["replaced"]  # the project finds no module in it


def test_code_live(make_executor: ExecutorFactory, gate: Gate, project: Project) -> None:
    """By request a task imports the file as it is when it starts, all modules or some."""
    project.write(
        {
            "one.py": "from two import word\ndef work(gate, row):\n    row.number or gate.enter()\n    return word\n",
            "two.py": "word = 'old'",
        }
    )
    module = project.load("one")
    options: list[dict[str, Any]] = [{"code": "live"}, {"code_exclude": ["two"]}, {"by_value": ["two"]}]

    for number, chosen in enumerate(options):
        word = "old" + "!" * number  # another length: Python keeps the bytecode of an edit within the same second
        project.write({"two.py": f"word = {word!r}"})
        array = make_executor(**chosen).map_array(module.work, [gate], [types.SimpleNamespace(number=1)])
        assert [word] == array.results(60)
        assert (number > 0) == ("one" in array.code.modules)
        assert "two" not in array.code.modules
        assert ("two" in array.code.live) == ("by_value" not in chosen)


def test_excluded_module(make_executor: ExecutorFactory, gate: Gate, project: Project) -> None:
    """A module that is excluded is named as live, and the log says why a task runs what its file is now."""
    project.write(PACKAGE)
    module = project.load("pack.other", "pack.work")

    array = run_across(make_executor(code_exclude=["pack.other"]), gate, module.other, project, Project.edit)

    assert [None, "new other"] == array.results(60)
    assert "pack.other" in array.code.live
    log = (array.folder / "logs" / "0-0-1.err").read_text()
    assert "other.py changed after the submission, and is used as it is now: the run has no copy of it" in log


def test_changed_function(executor: Executor, project: Project) -> None:
    """If the function in memory is not the file's, the call says that tasks run the file."""
    project.write({"process.py": "def work(x):\n    return 'old', x\n"})
    module = project.load("process")
    executor.map_array(module.work, [1]).results(60)  # without a warning, which would be an error
    project.edit()

    with pytest.warns(
        ModuleChanged, match=r"^process.py changed after this process imported it; the tasks run the file$"
    ):
        array = executor.map_array(module.work, [1])

    assert [("new", 1)] == array.results(60)


def test_changed_constant(
    executor: Executor, project: Project, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """If another module in memory than the function's is not its file, or only a constant, the call says so, once."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    project.write(
        {"scale.py": "FACTOR = 'old'\n", "process.py": "import scale\ndef work(x):\n    return scale.FACTOR\n"}
    )
    work = project.load("process").work
    assert ["old"] == executor.map_array(work, [1]).results(60)
    assert not [each for each in recwarn if each.category is ModuleChanged]
    project.edit()

    with pytest.warns(
        ModuleChanged, match=r"^scale.py changed after this process imported it; the tasks run the file$"
    ):
        array = executor.map_array(work, [1])
    assert ["new"] == array.results(60)
    assert ["new"] == executor.map_array(work, [1]).results(60)  # without a warning, which would be an error


def test_deleted_before_the_call(executor: Executor, project: Project) -> None:
    """If the file of the submitted function is gone, the call says so, before tasks wait in a queue and fail."""
    project.write({"process.py": "def work(x):\n    return 'old', x\n"})
    module = project.load("process")
    project.delete()

    with pytest.warns(
        ModuleChanged, match=r"process.py was deleted after .* do not find the module process elsewhere$"
    ):
        array = executor.map_array(module.work, [1])

    assert "process" in str(array[0].exception(60))
    assert "process" in array.code.live


def test_reloaded_from_another_file(executor: Executor, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is reloaded from another file is stored from that file, also if it was submitted before."""
    project.write(
        {"process.py": "def work():\n    return 'one'\n", "two/process.py": "def work():\n    return 'two'\n"}
    )
    module = project.load("process")
    assert executor.submit(module.work).result(60) == "one"

    monkeypatch.syspath_prepend(project.folder / "two")
    importlib.reload(module)

    assert executor.submit(module.work).result(60) == "two"


def test_unchanged_modules_are_stored_once(
    executor: Executor, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submission with the same modules links the file of the last; where links fail, it copies it."""
    project.write({"process.py": "def work(x):\n    return 'old', x\n"})
    module = project.load("process")

    def inode() -> int:
        return (executor.map_array(module.work, [1]).folder / "modules").stat().st_ino

    first = inode()
    assert first == inode() == inode()

    project.write({"process.py": "def work(x):\n    return 'old', x\n\n"})
    assert first != inode()

    def fail(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(code, "_read", fail)
    assert 2 == len({inode(), inode()})


def test_cap(executor: Executor, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call with too much source raises, and names the largest modules."""
    monkeypatch.setattr(code, "MOST_SOURCE", 3 << 20)
    project.write({f"large{i}.py": f"# {'x' * (i << 20)}\ndef work(x): return x\n" for i in range(4)})
    module = project.load(*(f"large{i}" for i in range(4)))

    with pytest.raises(OptionError, match=r"6.\d MiB .* large3 \(3.0 MiB, .*\), large2 .*, large1 .*code_exclude"):
        executor.map_array(module.work, [1])
    assert not list(executor.folder.iterdir())
    assert [1] == executor.options(code_exclude=["large2", "large3"]).map_array(module.work, [1]).results(60)
