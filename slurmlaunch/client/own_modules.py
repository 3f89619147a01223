"""Which of the imported modules are the user's own, and what can be stored of each.

The user's own are all imported modules that are neither Python's nor below a ``site-packages`` folder: those beside
the script, on ``PYTHONPATH``, and of editable installs. `code` stores their files; nothing is read here.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder, SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.backends.installed import site_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec

    from slurmlaunch.runfolder.modules import Module

_MAIN = frozenset({"__main__", "__mp_main__"})
_OURS = __name__.partition(".")[0]


class Found(NamedTuple):
    """One of the user's modules, as this process has imported it."""

    name: str
    file: str | None
    search: tuple[str, ...] | None
    is_stored: bool
    is_plain: bool  # Python itself loaded it from its file, so that its code in memory can be compared with that

    @classmethod
    def of(cls, module: Module) -> Found:
        """Return a module of another run or round."""
        search = None if module.search is None else tuple(module.search)
        return cls(module.name, module.file, search, module.is_stored, is_plain=False)

    @property
    def is_live(self) -> bool:
        """True if tasks import the file as it is then: neither a namespace package nor an extension module."""
        return not self.is_stored and self.file is not None and not self.file.endswith(_EXTENSIONS)


_EXTENSIONS = tuple(EXTENSION_SUFFIXES)


class _Known(NamedTuple):
    """What was found out about a module, and where it came from then: `importlib.reload` may find another file."""

    module: object
    attributes: dict[str, Any]
    spec: object
    file: object
    search: tuple[str, ...] | None
    found: Found | None


_known: dict[str, _Known] = {}
"""Of each module that is or was imported, by its name."""


def own_modules() -> list[Found]:
    """Return the user's modules that are imported."""
    own = []
    for name, module in sys.modules.copy().items():
        known = _known.get(name)
        if known is None or known.module is not module or not _is_as_known(known):
            attributes = attributes_of(module)
            spec, file, search = attributes.get("__spec__"), attributes.get("__file__"), search_of(attributes)
            found = None if module is None else _classify(name, attributes, search)
            known = _known[name] = _Known(module, attributes, spec, file, search, found)
        if known.found is not None:
            own.append(known.found)
    return own


def _is_as_known(known: _Known) -> bool:
    _, attributes, spec, file, search, _ = known
    if attributes.get("__spec__") is not spec or attributes.get("__file__") is not file:
        return False
    return search is None if "__path__" not in attributes else search == search_of(attributes)


def chosen(found: list[Found], by_value: Sequence[str], excluded: Sequence[str]) -> list[Found]:
    """Return the modules that do not travel by value. Those that are excluded stay live."""
    if not (by_value or excluded):
        return found
    kept = [each for each in found if not _is_in(each, by_value)]
    marked = [each._replace(is_stored=False) if _is_in(each, excluded) else each for each in kept]
    return [each for each in marked if each.is_live or not _is_in(each, excluded)]


def _is_in(module: Found, names: Sequence[str]) -> bool:
    """Return whether a module has one of these names, or is a submodule of such a module."""
    return f"{module.name}.".startswith(tuple(f"{name}." for name in names))


def _classify(name: str, attributes: dict[str, Any], search: tuple[str, ...] | None) -> Found | None:
    """Return what to do with a module; None if it is not the user's, or nothing on disk belongs to it."""
    if name in _MAIN or name.partition(".")[0] == _OURS:
        return None
    spec, file = attributes.get("__spec__"), attributes.get("__file__")
    if spec is None and file is None:  # a module may have put something else in its place
        spec = _spec_on_path(name)
        file = None if spec is None else spec.origin
    elif name not in (getattr(spec, "name", None), attributes.get("__name__")):
        return None  # another module under a second name
    if not isinstance(file, str):
        own = search and not all(map(_is_installed, search))
        return Found(name, None, search, is_stored=False, is_plain=False) if own else None
    file = os.path.abspath(file)  # noqa: PTH100  (Path.resolve would follow links, and cost more)
    if _is_installed(file):
        return None
    is_plain = _is_plain(getattr(spec, "loader", None) or attributes.get("__loader__"))
    is_stored = is_plain or (file.endswith(".py") and not _finds(name, file))
    return Found(name, file, search, is_stored, is_plain)


_OF_PYTHON = (f"{os.path.dirname(os.__file__)}/", f"{sys.base_exec_prefix}/{sys.platlibdir}/python")  # noqa: PTH120


def _is_installed(file: str) -> bool:
    """Return whether a file is this Python's own, or of an installed distribution."""
    return site_of(file) is not None or file.startswith(_OF_PYTHON)


_LOADING = ("create_module", "exec_module", "get_code", "get_data", "source_to_code")


def _is_plain(loader: object) -> bool:
    """Return whether a loader executes the text of a file as it is: Python's own, also within that of an install."""
    methods = (getattr(getattr(loader, name, None), "__func__", None) for name in _LOADING)
    return all(found is getattr(SourceFileLoader, name) for found, name in zip(methods, _LOADING, strict=True))


def _finds(name: str, file: str) -> bool:
    """Return whether a module is found on the search path, so that a task finds it, too."""
    spec = _spec_on_path(name)
    with suppress(OSError, ValueError):
        return spec is not None and spec.origin is not None and Path(spec.origin).samefile(file)
    return False


def _spec_on_path(name: str) -> ModuleSpec | None:
    parent = sys.modules.get(name.rpartition(".")[0])
    with suppress(ImportError, OSError, ValueError):
        return PathFinder.find_spec(name, getattr(parent, "__path__", None if parent is None else []))
    return None


# The attributes of modules.


def attributes_of(module: object) -> dict[str, Any]:
    """Return the attributes of what is in `sys.modules`: at any other access it may load itself."""
    try:
        attributes: dict[str, Any] = object.__getattribute__(module, "__dict__")
    except AttributeError:
        return {}
    return attributes


def search_of(attributes: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the search path of a package; None for other modules."""
    search = attributes.get("__path__")
    try:
        return None if search is None else tuple(each for each in search if isinstance(each, str))
    except (KeyError, TypeError):  # the package that this namespace package is in was removed
        return ()
