"""Imports the user's modules as they were at the submission, in every process of a task that runs user code.

Workers and ranks install it before they load the function; children of multiprocessing, loky and their kin get it with
the ``__main__`` of the task (`main_module`). One finder comes before those of Python and answers for the modules whose
source the run folder has. Everything else is left to the finders behind it: modules that were not imported at
the submission, extension modules and namespace packages. If the files of those are gone, a second finder comes after
Python's, and still knows the modules that only the client could find.

Modules keep their ``__file__`` and ``__path__``, so that data files beside them are found as before.
"""

from __future__ import annotations

import io
import linecache
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import cache_from_source, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from slurmlaunch.errors import NodeStartError, RunFolderError, UnsafeRunFolder
from slurmlaunch.node import system
from slurmlaunch.runfolder.layout import MODULES
from slurmlaunch.runfolder.modules import ModulesReader
from slurmlaunch.runfolder.storage import Patience, named, status_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from _typeshed import ReadableBuffer

    from slurmlaunch.runfolder.files import Location
    from slurmlaunch.runfolder.layout import Manifest, RunFolder
    from slurmlaunch.runfolder.modules import Module


def modules_of(folder: RunFolder, manifest: Manifest) -> ModulesReader | None:
    """Open the modules of a run, as the manifest of a round says; None if it has none; raises as `read_modules`."""
    path = manifest.source(folder, MODULES)
    return None if path is None else read_modules(path, manifest.sha256.get(MODULES, ""))


def read_modules(path: Location, sha256: str = "") -> ModulesReader:
    """Open a file of modules.

    Raises:
        NodeStartError: they cannot be read.
        StorageFailure: the storage fails for too long.
    """
    try:
        return Patience().run(lambda: ModulesReader(path, sha256))
    except (OSError, RunFolderError, UnsafeRunFolder) as error:
        if status_of(error) is not None:
            raise named(error) from error
        raise NodeStartError(f"the modules of the run cannot be read: {error}") from error


_installed: tuple[ModulesReader, float] | None = None


def installed() -> tuple[str, float] | None:
    """Return what children of this process need to `install` the same: the file of the modules, and their time."""
    return None if _installed is None else (_installed[0].path.inside, _installed[1])


def install(modules: ModulesReader | None, created: float) -> None:
    """Import these modules from now on, rather than their files; *created* is the time of the submission."""
    global _installed  # noqa: PLW0603  (a process imports the modules of one run)
    if modules is None or _installed is not None:
        return
    _installed = modules, created
    sys.meta_path.insert(0, _StoredModules(modules, created))
    sys.meta_path.append(_OtherModules(modules))


class _StoredModules:
    """Finds the modules whose source is stored, and watches the others of their packages."""

    def __init__(self, modules: ModulesReader, created: float) -> None:
        self._modules, self._created = modules, created

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a stored module; or of one that Python finds, and that may have changed since."""
        module = self._modules.find(fullname)
        if module is not None and module.is_stored:
            loader = _StoredLoader(self._modules, module)
            return spec_from_file_location(
                fullname, module.file, loader=loader, submodule_search_locations=_list_or_none(module.search)
            )
        parent = self._modules.find(fullname.rpartition(".")[0])
        if (module is None or not module.is_extension) and (parent is None or not parent.is_stored):
            return None
        spec = _find_behind(fullname, path, target)
        if spec is not None and spec.has_location and spec.origin is not None:
            self._compare(module, spec.origin)
        return spec

    def _compare(self, module: Module | None, file: str) -> None:
        try:
            status = Path(file).stat()
        except OSError:
            return
        if module is None:
            changed = status.st_mtime > self._created
        else:
            changed = (status.st_mtime_ns, status.st_size) != (module.mtime, module.size)
        if changed:
            why = "an extension module" if module else "the run has no copy of it"
            system.log(f"slurmlaunch: {file} changed after the submission, and is used as it is now: {why}")


def _find_behind(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
    """Return what the other finders say of a module."""
    for finder in sys.meta_path:
        if not isinstance(finder, _StoredModules) and (find := getattr(finder, "find_spec", None)) is not None:
            spec: ModuleSpec | None = find(name, path, target)
            if spec is not None:
                return spec
    return None


class _OtherModules:
    """Finds namespace packages and extension modules as they were where the other finders do not."""

    def __init__(self, modules: ModulesReader) -> None:
        self._modules = modules

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a namespace package or of an extension module.

        Raises:
            ImportError: the file of the extension module is gone.
        """
        del path, target
        module = self._modules.find(fullname)
        if module is None or module.is_stored:
            return None
        if module.file is None:
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = list(module.search or ())
            return spec
        if not Path(module.file).exists():
            message = f"{fullname} is an extension module, and its file of the submission is gone: {module.file}"
            raise ImportError(message, name=fullname, path=module.file)
        return spec_from_file_location(fullname, module.file, submodule_search_locations=_list_or_none(module.search))


def _list_or_none(search: Sequence[str] | None) -> list[str] | None:
    return None if search is None else list(search)


class _StoredLoader(SourceFileLoader):
    """Loads a stored module: it gets source and compiled code from the run folder, and data files from the disk."""

    def __init__(self, modules: ModulesReader, module: Module) -> None:
        super().__init__(module.name, module.file or "")
        self._modules, self._module = modules, module

    def get_data(self, path: str) -> bytes:
        """Return the content of a file; the module's as it was."""
        if path == self.path:
            return self._modules.source(self._module)
        if path == self._cached():
            return self._compiled()
        return super().get_data(path)

    def _cached(self) -> str | None:
        try:
            return cache_from_source(self.path)
        except NotImplementedError:  # a Python without such files
            return None

    def _compiled(self) -> bytes:
        if self._modules.optimize != sys.flags.optimize or not self._module.code:
            raise FileNotFoundError
        return self._modules.code(self._module)

    def path_stats(self, path: str) -> Mapping[str, Any]:
        """Return time and size of the module's file as they were."""
        del path
        return {"mtime": self._module.mtime // 10**9, "size": self._module.size}

    def set_data(self, path: str, data: ReadableBuffer, *, _mode: int = 0o666) -> None:
        """Write nothing: the files beside the module may be of another version."""

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module; tracebacks and `inspect` show its source as it was."""
        lines: Any = _Lines(self)  # it need not be a list
        linecache.cache[self.path] = (self._module.size, None, lines, self.path)
        super().exec_module(module)

    def get_resource_reader(self, name: str | None = None) -> Any:
        """Return the reader of the package's data files that the finders of the disk give, if they find it."""
        spec = _find_behind(self._module.name, _path_of_parent(self._module.name))
        reader = getattr(spec and spec.loader, "get_resource_reader", None)
        return super().get_resource_reader(name) if reader is None else reader(name)


def _path_of_parent(name: str) -> Sequence[str] | None:
    parent = sys.modules.get(name.rpartition(".")[0])
    return getattr(parent, "__path__", None)


class _Lines(Sequence[str]):
    """The lines of a stored module, read when they are asked for: `linecache` keeps them."""

    def __init__(self, loader: _StoredLoader) -> None:
        self._loader = loader
        self._read: list[str] | None = None

    def _lines(self) -> list[str]:
        if self._read is None:
            try:
                self._read = io.StringIO(self._loader.get_source(self._loader.name)).readlines()
            except (ImportError, OSError, RunFolderError):  # a traceback without lines is better than none
                self._read = []
        return self._read

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._lines()[index]

    def __len__(self) -> int:
        return len(self._lines())
