"""The times of imports: nothing at ``import slurmlaunch``, and next to nothing where a thousand nodes start at once.

A node imports from a file system that all nodes share, so until the user's function is read it has use for the
standard library, for cloudpickle if the pickle refers to it, and for its own side of this package alone.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import cloudpickle
import pytest

import slurmlaunch
from tests.support.tasks import OneRun, rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# The parts of the package that a node may load; the layers among them are checked in test_layers.
NODE_SIDE = {"errors", "outcome", "unpickling", "caps", "context", "runfolder", "node"}

# Modules that cost milliseconds each, or that only some of the package's users need.
HEAVY = {
    "asyncio",
    "concurrent.futures",
    "ctypes",
    "dataclasses",
    "inspect",
    "json",
    "logging",
    "multiprocessing",
    "pathlib",
    "pickle",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
}


class LoadedModules:
    """A function that becomes, as it is unpickled, one that returns the modules loaded at that very moment."""

    def __call__(self) -> list[str]:
        """Act as the function that it is called to make."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[object, ...]:
        """Be read by builtins alone, which import nothing."""
        return eval, ("(lambda names: lambda: names)(list(__import__('sys').modules))",)


def start_python(*arguments: str) -> tuple[int, set[str]]:
    """Run a Python that finds the package; return its exit status and the modules that it imported or tried to."""
    spec = importlib.util.find_spec("slurmlaunch")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    parent = Path(next(iter(spec.submodule_search_locations))).parent
    command = [sys.executable, "-X", "importtime", *arguments]
    environment = os.environ | {"PYTHONPATH": str(parent)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    lines = (line for line in process.stderr.splitlines() if line.startswith("import time:"))
    return process.returncode, {line.rpartition("|")[2].strip() for line in lines}


@functools.cache
def bare_python() -> frozenset[str]:
    """Return the modules that any Python of this environment imports at its start."""
    return frozenset(start_python("-c", "pass")[1])


def foreign_to_a_node(modules: Iterable[str]) -> set[str]:
    """Return those of the modules that a node has no use for before it has read the function."""

    def is_known(module: str) -> bool:
        top, _, inside = module.partition(".")
        if top == "slurmlaunch":
            return inside == "" or inside.split(".")[0] in NODE_SIDE
        if top in sys.stdlib_module_names or top in {"cloudpickle", "__main__", "__mp_main__"}:
            return True
        # Failed attempts are reported too: the standard library's copy asks for Jython's org.python.core.
        return importlib.util.find_spec(top) is None

    return {module for module in set(modules) - bare_python() if not is_known(module)}


def test_importing_the_package_is_lazy() -> None:
    """``import slurmlaunch`` loads one file of the package, and nothing slow."""
    status, modules = start_python("-c", "import slurmlaunch")
    added = modules - bare_python()
    assert status == 0
    assert {module for module in added if module.split(".")[0] not in sys.stdlib_module_names} == {"slurmlaunch"}
    assert added & HEAVY == set()


def test_every_public_name_is_loaded_on_first_use() -> None:
    """Each listed name is loaded on first use; any other is an AttributeError."""
    assert all(hasattr(slurmlaunch, name) for name in slurmlaunch.__all__)
    assert set(slurmlaunch.__all__) <= set(dir(slurmlaunch))
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(slurmlaunch, "no_such_name")  # noqa: B009 - as an attribute it would be an error to the type checker


def test_type_checkers_read_the_modules_of_the_table() -> None:
    """The imports for type checkers are those of the table's modules: no name is known to one side alone."""
    assert slurmlaunch.__file__ is not None
    source = Path(slurmlaunch.__file__).read_text(encoding="utf-8")
    imported = re.findall(r"^    from slurmlaunch\.(\S+) import \*$", source, re.MULTILINE)

    assert imported == list(slurmlaunch._MODULES)  # noqa: SLF001


def test_a_node_without_its_run_folder_has_imported_little(tmp_path: Path) -> None:
    """A node without its run folder reports this by its exit status, before it imports anything foreign."""
    status, modules = start_python("-m", "slurmlaunch.node", str(tmp_path / "absent"), "0")
    assert status not in {0, 1}
    assert foreign_to_a_node(modules) == set()


def test_a_pool_process_has_imported_little_when_it_reads_the_function(tmp_path: Path) -> None:
    """At the moment the function is unpickled, no module is loaded that only the client or the user's code needs."""
    with slurmlaunch.Executor(tmp_path, cluster="local") as executor:
        loaded = executor.submit(LoadedModules()).result(timeout=60)
    assert "slurmlaunch" in loaded
    assert "cloudpickle" not in loaded
    assert foreign_to_a_node(loaded) == set()


def test_a_supervisor_imports_little_from_start_to_end(tmp_path: Path) -> None:
    """A node that is started again on a run that has all its values ends with 0, and never needed anything foreign."""
    with slurmlaunch.Executor(tmp_path, cluster="local") as executor:
        future = executor.submit(LoadedModules())
        future.result(timeout=60)
    status, modules = start_python("-m", "slurmlaunch.node", str(future.run.folder), "0")
    assert status == 0
    assert "slurmlaunch.runfolder" in modules
    assert foreign_to_a_node(modules) == set()


@pytest.mark.parametrize(("function", "imports"), [(abs, 0), (lambda item: item, 1)], ids=["by reference", "by value"])
def test_a_node_imports_cloudpickle_only_for_a_pickle_that_needs_it(
    tmp_path: Path, function: Callable[[int], int], imports: int
) -> None:
    """A function pickled by reference needs no cloudpickle; another makes the node import it once, for all workers."""
    run = OneRun(tmp_path / "run", function, rows(range(20)), processes=2)
    ended = run.run(env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert (ended.status, run.values()) == (0, {item: item for item in range(20)})
    imported = [line.rpartition("|")[2].strip() for line in ended.err.splitlines()]
    assert imported.count("cloudpickle") == imports
    assert "slurmlaunch.node.supervisor" in imported


@pytest.mark.parametrize("zipped", [False, True])
def test_the_version_of_cloudpickle_is_found(tmp_path: Path, *, zipped: bool) -> None:
    """The version is read from cloudpickle's source without importing it; where that is no file, it is imported."""
    folder = Path(str(cloudpickle.__file__)).parent
    found = folder.parent
    if zipped:
        found = Path(shutil.make_archive(str(tmp_path / "cloudpickle"), "zip", folder.parent, folder.name))
    program = """
import sys
from slurmlaunch.node.task import cloudpickle_version
print(cloudpickle_version(), "cloudpickle" in sys.modules)
"""
    path = os.pathsep.join([str(found), str(Path(slurmlaunch.__file__).parents[1])])
    command = [sys.executable, "-S", "-c", program]
    printed = subprocess.check_output(command, env=os.environ | {"PYTHONPATH": path}, text=True)
    assert printed == f"{cloudpickle.__version__} {zipped}\n"
