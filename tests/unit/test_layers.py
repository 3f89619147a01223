"""Imports go down only: the layout of the package is its architecture, and this is where it is enforced.

Files are read, not imported, so that imports inside functions and under ``TYPE_CHECKING`` count as well.
"""

from __future__ import annotations

import ast
import graphlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PACKAGE = "slurmlaunch"

# Each layer, and the layers directly below it; it may import these, all layers below them, and itself.
STANDS_ON = {
    "errors": (),
    "unpickling": ("errors",),
    "byvalue": ("unpickling",),
    "outcome": ("errors", "byvalue"),
    "caps": ("outcome",),
    "taskpool": ("caps",),
    "context": ("taskpool",),
    "messages": (),
    "debugger": ("outcome", "messages"),
    "command": ("context",),
    "runfolder": ("context", "debugger"),
    "backends": ("runfolder",),
    "node": ("runfolder",),
    "client": ("backends",),
    "integrations": ("client",),
    "cli": ("client", "command"),
    "__main__": ("cli",),
}

# Functions that import the module in their first argument.
IMPORTERS = {"import_module", "__import__"}


def below(layer: str) -> set[str]:
    """Return the layer and all layers below it."""
    return {layer}.union(*(below(lower) for lower in STANDS_ON[layer]))


def layer_of(module: str) -> str:
    """Return the name under the package that ``module`` belongs to, or the package's own name for its top."""
    _, _, inside = module.partition(".")
    return inside.split(".")[0] or PACKAGE


def absolute_name(node: ast.ImportFrom, package: str) -> str:
    """Return the module between ``from`` and ``import``, its leading dots resolved in ``package``."""
    return importlib.util.resolve_name("." * node.level + (node.module or ""), package)


def is_importer(function: ast.expr) -> bool:
    """Return whether a called function is one of IMPORTERS, with or without its module."""
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
    return name in IMPORTERS


def targets(node: ast.AST, package: str) -> Iterator[str]:
    """Yield the modules that one syntax node imports."""
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(names=names):
            origin = absolute_name(node, package)
            # From the top come layers, and names that the top has of its own or hands on: those are the top's.
            inside = origin == PACKAGE
            for alias in names:
                yield f"{origin}.{alias.name}" if inside and alias.name in STANDS_ON else origin
        case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]) if is_importer(function):
            yield importlib.util.resolve_name(name, package)


def imports(nodes: Iterable[ast.AST], package: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of every module of ours that one of the syntax nodes imports."""
    for node in nodes:
        for target in targets(node, package):
            if target.split(".")[0] == PACKAGE:
                yield getattr(node, "lineno", 0), target


def run_at_once(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the syntax nodes that run when a file is imported: no function bodies, no imports for the type checker."""
    children = ast.iter_child_nodes(node)
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
            return
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            children = iter(node.orelse)
        case _:
            yield node
    for child in children:
        yield from run_at_once(child)


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Return the imports of one file that do not go down."""
    package = module if is_package else module.rpartition(".")[0]
    allowed = below(layer_of(module))
    return [
        f"{module}:{line} imports {target}"
        for line, target in imports(ast.walk(ast.parse(source)), package)
        if layer_of(target) not in allowed
    ]


def package_folder() -> Path:
    """Return the folder of the package under test."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


FOLDER = package_folder()
TOP = FOLDER / "__init__.py"
FILES = sorted(path for path in FOLDER.rglob("*.py") if path != TOP)


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package."""
    parts = path.relative_to(FOLDER.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down_only(path: Path) -> None:
    """No file imports from a layer above its own, not even for a type or inside a function."""
    module = module_name(path)
    assert layer_of(module) in STANDS_ON, f"{module} has no place in the table of layers"
    assert violations(path.read_text(), module, is_package=path.name == "__init__.py") == []


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the way from a module back to itself, if there is one."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        way: list[str] = error.args[1]
        return way
    return []


def modules_imported(path: Path) -> set[str]:
    """Return the files of the package, as modules, that one file imports from."""
    module, is_package = module_name(path), path.name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    names = {module_name(each) for each in FILES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        for target in targets(node, package):
            inside = [f"{target}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            found |= names & {target, *inside}
    return found - {module}


def test_no_import_cycles() -> None:
    """No import cycle exists, not even for types: each module can be read after those below it."""
    assert circle({module_name(path): modules_imported(path) for path in FILES}) == []


def test_a_cycle_is_found() -> None:
    """A way back is shown, however long it is."""
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": {"b"}})[0] in {"b", "c", "d"}


@pytest.mark.skipif(not TOP.exists(), reason="there is no top yet")
def test_the_top_imports_nothing_of_the_package_at_once() -> None:
    """``import slurmlaunch`` runs no import of ours: those of the top are in functions or for the type checker."""
    assert list(imports(run_at_once(ast.parse(TOP.read_text())), PACKAGE)) == []


def test_only_imports_that_run_at_once_count_at_the_top() -> None:
    """Imports in a class body, a ``try`` or the ``else`` of a TYPE_CHECKING run at once, those in a function do not."""
    source = """
if TYPE_CHECKING:
    from .client.executor import Executor
else:
    from . import errors
try:
    from . import caps
finally:
    class Early:
        from . import context

def __getattr__(name):
    from . import client
"""
    found = imports(run_at_once(ast.parse(source)), PACKAGE)
    assert sorted(target for _, target in found) == ["slurmlaunch.caps", "slurmlaunch.context", "slurmlaunch.errors"]


@pytest.mark.parametrize(("one", "other"), [("client", "node"), ("backends", "node"), ("cli", "integrations")])
def test_neighbours_stay_apart(one: str, other: str) -> None:
    """The table itself lets neither of two neighbours import the other, only the modules below both."""
    assert other not in below(one)
    assert one not in below(other)


@pytest.mark.parametrize(
    "source",
    [
        "import slurmlaunch.client.run",
        "from slurmlaunch.client import run",
        "from slurmlaunch.client.run import Run",
        "from slurmlaunch import client",
        "from slurmlaunch import errors, client",
        "from .. import client",
        "from ..client.run import Run",
        "import slurmlaunch",
        "from slurmlaunch import Executor",
        "from .. import Executor",
        "from slurmlaunch import *",
        "from slurmlaunch.utils import helper",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from slurmlaunch.client import run",
        "def late():\n    from slurmlaunch.client import run",
        "class Late:\n    async def late(self):\n        from ..client import run",
        "import importlib\nimportlib.import_module('slurmlaunch.client')",
        "from importlib import import_module\nimport_module('..client', __package__)",
    ],
)
def test_an_upward_import_is_caught(source: str) -> None:
    """Every way to write an import that goes up, or nowhere, is seen."""
    assert len(violations(source, "slurmlaunch.node.pool")) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import os, cloudpickle",
        "import slurmlaunch.errors",
        "from slurmlaunch import caps, errors",
        "from slurmlaunch.runfolder.records import Reader",
        "from . import supervisor",
        "from .supervisor import Supervisor",
        "from .. import errors",
        "from ..outcome import Value",
        "open('slurmlaunch.client')",
    ],
)
def test_a_downward_import_is_left_alone(source: str) -> None:
    """Imports of layers below, of neighbours in the same layer and of other packages are no fault."""
    assert violations(source, "slurmlaunch.node.pool") == []


def test_dots_are_counted_from_the_folder_itself_in_an_init() -> None:
    """In an ``__init__`` one dot is its own folder, elsewhere the folder around the file."""
    assert violations("from .client import run", "slurmlaunch.node", is_package=True) == []
    assert len(violations("from ..client import run", "slurmlaunch.node", is_package=True)) == 1
    assert len(violations("from .client import run", "slurmlaunch.errors")) == 1
