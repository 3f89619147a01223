"""The ``__main__`` of a task: the user's module, made anew, in the processes that run items and in their children.

Workers and ranks install it before they load the function. It begins empty, and the definitions of the client's
``__main__`` arrive in it as they are unpickled (`unpickling`). Nothing of the node's is in it, and no process runs the
user's script: it may have no ``if __name__ == "__main__"``, and would submit the run again.

A child of a pool that is not forked gets it from the data by which its parent prepares it: multiprocessing, loky and
their kin pickle the search path, and the name in ``__main__``'s spec. Both are strings here that take along where the
function is (`_Carrier`). The child makes its ``__main__`` before anything else is unpickled, imports the user's modules
as its parent does (`finder`), and loads the definitions when it needs one. mpi4py runs the module that the spec names,
which is `mpi4py_main`.

No process of a task imports from the folder in which it starts, unless the client does. Its children learn this from
Python's option ``-P``, which multiprocessing and mpi4py hand on. loky does not, so it gets it here.
"""

from __future__ import annotations

import builtins
import functools
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from slurmlaunch import unpickling
from slurmlaunch.node import finder
from slurmlaunch.runfolder.function import load_function
from slurmlaunch.runfolder.layout import Manifest, RunFolder
from slurmlaunch.unpickling import MAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from slurmlaunch.runfolder.files import Location

_FOR_CHILDREN = "slurmlaunch.node.mpi4py_main"
_IN_CHILDREN = "__mp_main__"
"""The second name of ``__main__`` in a child of multiprocessing."""

_ATTRIBUTES = ("__file__", "__package__")
_SPAWNERS = ("multiprocessing.context", "multiprocess.context", "billiard.context")
_MPI4PY = "mpi4py.futures"
_LOKY = "popen_loky_posix"


class _Carrier(str):
    """A string that brings ``__main__`` to a child that is prepared with it; any other reader gets a plain one."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        prepared = [sys.modules[name].get_spawning_popen() for name in _SPAWNERS if name in sys.modules]
        prepares = any(prepared)
        if _main is None or not (prepares or _MPI4PY in sys.modules):
            return str, (str(self),)
        for popen in filter(None, prepared):
            _hand_on_safe_path(popen)
        function = _main.function
        main = (str(function.root), function.inside, _main.attributes, _main.later())
        return _arrive, (str(self), main, finder.installed(), prepares)


def _hand_on_safe_path(popen: object) -> None:
    """Let loky, if it starts this child, start it with this process's ``-P``."""
    package, _, module = type(popen).__module__.rpartition(".")
    if module != _LOKY or not sys.flags.safe_path:
        return
    import importlib

    starter = importlib.import_module(f"{package}.fork_exec")
    start = starter.fork_exec
    if not isinstance(start, functools.partial):
        starter.fork_exec = functools.partial(_start_safely, start)  # type: ignore[attr-defined]


def _start_safely(start: Callable[..., Any], command: list[str], *arguments: Any, **keywords: Any) -> Any:
    program, *rest = command
    return start([program, "-P", *rest], *arguments, **keywords)


class _MainModule(ModuleType):
    # Here, so that the user's functions do not find it among their globals. Its class takes milliseconds to import.
    __spec__ = type(__spec__)(_Carrier(_FOR_CHILDREN), None)

    def __init__(self) -> None:
        super().__init__(MAIN)
        del self.__dict__["__spec__"]
        self.__dict__["__builtins__"] = builtins

    def __getattr__(self, name: str) -> Any:
        """Return a definition that a child has not loaded yet."""
        if _main is not None and not name.startswith("__"):
            _main.load()
            if name in vars(self):
                return vars(self)[name]
        raise AttributeError(f"module {MAIN!r} has no attribute {name!r}")


class _Main:
    """The ``__main__`` of this process, and what its children get of it."""

    def __init__(self, function: Location, later: bytes | None = None) -> None:
        """Make it; *later* are definitions that a child is to load after those of the function."""
        self.function, self._later = function, later
        self.module = _MainModule()
        self._with_function: Mapping[str, Any] = {}
        self._replaced = sys.modules[MAIN]  # its code still runs

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the user's module that definitions do not bring along."""
        return {name: vars(self.module).get(name) for name in _ATTRIBUTES}

    def install(self) -> None:
        """Let this be the process's ``__main__``."""
        sys.modules[MAIN] = sys.modules[_IN_CHILDREN] = self.module

    def load(self) -> None:
        """Load the definitions, if this is a child that has not."""
        later, self._later = self._later, None
        if later is not None:
            load_function(self.function)
            self.has_loaded_function()
            pickle.loads(later)

    def has_loaded_function(self) -> None:
        """Note what the function brought: children find it in the run folder."""
        self._with_function = dict(vars(self.module))

    def later(self) -> bytes:
        """Return the pickled definitions that came after the function, with items or by an assignment."""
        if self._later is not None:
            return self._later
        new = [value for name, value in vars(self.module).items() if value is not self._with_function.get(name)]
        definitions = [each for each in new if hasattr(each, "__qualname__") and _module_of(each) == MAIN]
        if not definitions:
            return _NOTHING
        from slurmlaunch import byvalue

        try:
            return byvalue.dumps(definitions)
        except Exception:  # noqa: BLE001  (one refers to what cannot be pickled: the others arrive)
            return byvalue.dumps([each for each in definitions if _pickles(each)])


_NOTHING = pickle.dumps(None)

_main: _Main | None = None


def _module_of(definition: object) -> object:
    return getattr(definition, "__module__", None)


def _pickles(definition: object) -> bool:
    from slurmlaunch import byvalue

    try:
        byvalue.dumps(definition)
    except Exception:  # noqa: BLE001  (a __reduce__ may raise anything)
        return False
    return True


def _take(main: _Main) -> _Main:
    global _main  # noqa: PLW0603  (a process has one __main__)
    _main = main
    unpickling.take_main(main.module)
    return main


def install(function: Location) -> None:
    """Make the ``__main__`` of a process that runs items; call it before the function is loaded from this file."""
    _take(_Main(function)).install()


def function_is_loaded() -> None:
    """Note that the function is loaded, and its search path taken: from now on children can be prepared."""
    if _main is not None:
        _main.has_loaded_function()
    if sys.path:
        sys.path[-1] = _Carrier(sys.path[-1])  # the last: programs insert and remove at the front


def _arrive(
    text: str,
    main: tuple[str, str, dict[str, Any], bytes],
    modules: tuple[str, float] | None,
    prepares: bool,  # noqa: FBT001
) -> str:
    """Prepare a child as its preparation data is unpickled; return the string that brought ``__main__``.

    mpi4py installs a ``__main__`` of its own, in which `mpi4py_main` looks this one's definitions up.
    """
    run_folder, function, attributes, later = main
    found = RunFolder(Path(run_folder))
    Manifest.read_in_task(found)
    folder = found.root
    if modules is not None:
        finder.install(finder.read_modules(folder / modules[0]), modules[1])
    if _main is None:
        made = _take(_Main(folder / function, later))
        vars(made.module).update(attributes)
        if prepares:
            made.install()
    return _Carrier(text)


def look_up(name: str) -> Any:
    """Return a definition of this process's ``__main__``."""
    if _main is None:
        raise AttributeError(name)
    return getattr(_main.module, name)
