"""The code of the user's own modules at a submission: what is stored of it, which code it was, and what changed since.

The files of the modules are read at the call, not the objects in memory; a warning says so if the submitted function
differs. The executor takes a `Snapshot` for each run. `own_modules` says which modules are the user's. The format of
the file is `runfolder.modules`'s, and `node.finder` imports from it in the tasks. `versions` finds what else identifies
the code: git commits and installed distributions.
"""

from __future__ import annotations

import functools
import marshal
import os
import sys
import types
import warnings
from contextlib import closing, suppress
from datetime import datetime
from importlib.util import MAGIC_NUMBER, cache_from_source
from operator import attrgetter
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.client.own_modules import Found, chosen, own_modules
from slurmlaunch.client.versions import Commit, Distribution, commits, distributions, version_of
from slurmlaunch.client.wording import time_of
from slurmlaunch.errors import OptionError, RunFolderError, UnsafeRunFolder
from slurmlaunch.messages import warn
from slurmlaunch.runfolder.files import link_or_copy
from slurmlaunch.runfolder.layout import MODULES
from slurmlaunch.runfolder.modules import DELETED, Module, ModulesReader, Source, changes_between, write_modules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from slurmlaunch.runfolder.files import Location
    from slurmlaunch.runfolder.layout import Manifest, RunFolder

__all__ = ["Code"]

MOST_SOURCE = 32 << 20
"""The most bytes of source that the modules of a run may have together."""

_SHOWN = 3


class ModuleChanged(UserWarning):
    """The submitted function was imported from a file that has changed since; the tasks run the file."""


class Code(NamedTuple):
    """The code that tasks run.

    Attributes:
        function: module and qualified name of the function.
        recorded: the time at which the function was submitted, or its modules were read again by a retry.
        modules: the SHA-256 of the source of each of the user's modules that is stored with the run, by name.
        live: the user's modules that are not: tasks import their files as they are then.
        commits: by the folder of each repository with user's code, the commit and whether a file differed from it.
        distributions: version and location of the installed distributions that had been imported, by name.
    """

    function: str
    recorded: datetime
    modules: dict[str, str]
    live: list[str]
    commits: dict[str, Commit]
    distributions: dict[str, Distribution]

    def __repr__(self) -> str:
        # All modules and distributions would fill a screen, once for each of an item's `attempts`.
        counts = (f"{len(getattr(self, name))} {name}" for name in ("modules", "live", "commits", "distributions"))
        return f"<Code of {self.function}, recorded {self.recorded:%Y-%m-%d %H:%M:%S}: {', '.join(counts)}>"

    @classmethod
    def read(cls, folder: RunFolder, manifest: Manifest) -> Code:
        """Read it from a run folder.

        Raises:
            OSError: the modules cannot be read.
            RunFolderError: they are damaged.
            UnsafeRunFolder: they are not safe to read.
        """
        path, code = manifest.source(folder, MODULES), manifest.code
        modules = {}
        if path is not None:
            with closing(ModulesReader(path)) as reader:
                modules = reader.hashes()
        places = code.get("distributions", {})
        installed = {name: Distribution(v, place) for place, found in places.items() for name, v in found.items()}
        known = {folder: Commit(*each) for folder, each in code.get("commits", {}).items()}
        recorded = datetime.fromtimestamp(manifest.created).astimezone()
        return cls(manifest.function, recorded, modules, code.get("live", []), known, installed)


# The content of the modules.


_PYC_HEAD = 16
_PYC_TIME = 8  # where, in that head, the time of the source begins

_Stamp = tuple[int, int, int, int]
"""What tells that a file has changed: the times of its content and of its status, its size, its inode."""

_SIZE = 2


_stamp_of: Callable[[os.stat_result], _Stamp] = attrgetter("st_mtime_ns", "st_ctime_ns", "st_size", "st_ino")


def _stamp(file: str | None) -> _Stamp | None:
    try:
        # Not Path.stat, nor suppress: thousands of modules cost milliseconds.
        return None if file is None else _stamp_of(os.stat(file))  # noqa: PTH116
    except OSError:
        return None


class _Read(NamedTuple):
    """A module's file as it was read, and whether a process imports other code than it has imported before."""

    stamp: _Stamp
    source: Source
    is_edited: bool


def _read(file: str, *, may_compile: bool = True) -> _Read | None:
    """Read a module; None if its file is gone."""
    try:
        with open(file, "rb", buffering=0) as opened:  # noqa: PTH123
            stamp, text = _stamp_of(os.fstat(opened.fileno())), opened.read()
    except OSError:
        return None
    pyc, other = _valid_pyc(file, stamp), b""
    if not pyc:
        other = _replaceable_pyc(file)
        pyc = _compiled(file, stamp, text) if may_compile or other else b""
    is_edited = bool(pyc and other) and marshal.loads(other[_PYC_HEAD:]) != marshal.loads(pyc[_PYC_HEAD:])  # noqa: S302
    import hashlib  # here, since a look at recorded code needs none

    return _Read(stamp, Source(text, pyc, hashlib.sha256(text).hexdigest()), is_edited)


def _replaceable_pyc(file: str) -> bytes:
    """Return a ``.pyc`` file that an import replaces if it is not of its source; nothing if there is none, or it stays.

    So where it is not of the source, no process has imported this source.
    """
    with suppress(OSError, NotImplementedError, EOFError, ValueError, TypeError):
        folder = os.path.dirname(cache_from_source(file))  # noqa: PTH120
        if not sys.dont_write_bytecode and os.access(folder, os.W_OK):
            with open(cache_from_source(file), "rb", buffering=0) as opened:  # noqa: PTH123
                content = opened.read()
            marshal.loads(content[_PYC_HEAD:])  # noqa: S302  (a damaged one is none)
            # One with a hash of the source may stay as it is.
            return content if content.startswith(_pyc_head((0, 0, 0, 0))[:_PYC_TIME]) else b""
    return b""


def _pyc_head(stamp: _Stamp) -> bytes:
    time_, _, size, _ = stamp
    numbers = (0, time_ // 10**9, size)
    return MAGIC_NUMBER + b"".join((number & 0xFFFFFFFF).to_bytes(4, "little") for number in numbers)


def _valid_pyc(file: str, stamp: _Stamp) -> bytes:
    """Return the content of the ``.pyc`` file if it is of this source; otherwise nothing.

    Its head has the source's time in whole seconds only. So it counts if it was written after the source, too.
    """
    with suppress(OSError, NotImplementedError), open(cache_from_source(file), "rb", buffering=0) as opened:  # noqa: PTH123
        if os.fstat(opened.fileno()).st_mtime_ns >= stamp[0]:
            content = opened.read()
            return content if content.startswith(_pyc_head(stamp)) else b""
    return b""


_COMPILING_SECONDS = 0.02
"""How long a submission may compile modules that have no ``.pyc`` file. The tasks compile what is left."""


@functools.lru_cache(maxsize=8)  # the submitted function's module is compared with its file first
def _compiled(file: str, stamp: _Stamp, text: bytes) -> bytes:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warned when it imported the module
            return _pyc_head(stamp) + marshal.dumps(compile(text, file, "exec", dont_inherit=True))
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # the import on the node says what is wrong
        return b""


class _Written(NamedTuple):
    """The file that this process wrote last, and the content that it has."""

    found: list[Found]
    stamps: list[_Stamp | None]
    path: Location
    status: os.stat_result
    sha256: str


_written: _Written | None = None


class Snapshot:
    """The user's modules as their files are now."""

    def __init__(
        self,
        excluded: Sequence[str] = (),
        *,
        by_value: Iterable[str] = (),
        live: bool = False,
        earlier: Iterable[Module] = (),
        earlier_live: Iterable[str] = (),
        imported: bool = True,
    ) -> None:
        """Take it, without the modules that are registered with cloudpickle to travel by value.

        Args:
            excluded: modules that are not stored, with their submodules: tasks import their files as they are then.
            by_value: further modules that travel by value, with their submodules.
            live: whether tasks import all files as they are then: nothing is stored.
            earlier: modules that another process had imported.
            earlier_live: the names of those that it had imported, and of which nothing was stored.
            imported: whether it has the modules that this process has imported, which come before the others.

        Raises:
            OptionError: they have too much source.
        """
        import cloudpickle  # here, since a look at recorded code needs none

        found = own_modules() if imported else []
        names = {each.name for each in found}
        found += [Found.of(each) for each in earlier if each.name not in names]
        self._found = chosen(found, [*by_value, *cloudpickle.list_registry_pickle_by_value()], excluded)
        self._earlier_live = [name for name in earlier_live if name not in names]
        self._is_live = live
        self._stamps = [_stamp(each.file) for each in self._found]
        self._edited: list[str] = []  # files that have other code than this process has imported from them
        if not live:
            self._check_size()

    def _check_size(self) -> None:
        pairs = zip(self._found, self._stamps, strict=True)
        sizes = [stamp[_SIZE] for each, stamp in pairs if stamp is not None and each.is_stored]
        total = sum(sizes)
        if total > MOST_SOURCE:
            stored = (each for each, stamp in zip(self._found, self._stamps, strict=True) if stamp and each.is_stored)
            largest = sorted(zip(sizes, stored, strict=True), reverse=True)[:_SHOWN]
            named = ", ".join(f"{each.name} ({_mebibytes(size)}, {each.file})" for size, each in largest)
            message = (
                f"the modules of your own that this process has imported have {_mebibytes(total)} of source, and a run "
                f"stores at most {_mebibytes(MOST_SOURCE)}. The largest: {named}. "
                'Leave modules out with code_exclude=[...], or store none with code="live".'
            )
            raise OptionError(message, option="code_exclude")

    def identity(self) -> dict[str, Any]:
        """Return what identifies the code besides the stored modules, for `Manifest.code`."""
        pairs = zip(self._found, self._stamps, strict=True)
        # Those that are stored come first, because the property costs milliseconds for thousands.
        others = [each for each, stamp in pairs if self._is_live or not (each.is_stored and stamp)]
        live = [each.name for each in others if self._is_live or each.is_stored or each.is_live]
        # Not os.path.dirname, for the same reason.
        folders = {each.file.rpartition("/")[0] for each in self._found if each.file is not None}
        main = getattr(sys.modules.get("__main__"), "__file__", None)
        folders.add(os.path.dirname(os.path.abspath(main)) if main else os.getcwd())  # noqa: PTH100, PTH109, PTH120
        by_place: dict[str, dict[str, str]] = {}
        for name, (version, location) in distributions().items():
            by_place.setdefault(location, {})[name] = version
        live += self._earlier_live
        return {"live": live, "commits": commits(folders, self._stamps), "distributions": by_place}

    def __bool__(self) -> bool:
        """Return whether there is anything to write."""
        return not self._is_live and any(not each.is_live for each in self._found)

    def write(self, path: Location) -> str:
        """Write the modules, or link or copy the last file with the same content; return the SHA-256 of the index.

        Raises:
            OSError: they could not be written.
        """
        return self._reuse(path) or self._write_anew(path)

    def _reuse(self, path: Location) -> str:
        global _written  # noqa: PLW0603  (see there)
        last = _written
        if last is None or (last.found, last.stamps) != (self._found, self._stamps):
            return ""
        status = link_or_copy(last.path, last.status, path)
        if status is None:
            return ""
        _written = last._replace(path=path, status=status)
        return last.sha256

    def _write_anew(self, path: Location) -> str:
        global _written  # noqa: PLW0603  (see there)
        modules: list[tuple[Module, Source | None]] = []
        until = monotonic() + _COMPILING_SECONDS
        for position, each in enumerate(self._found):
            may_compile = monotonic() < until
            read = _read(each.file, may_compile=may_compile) if each.is_stored and each.file is not None else None
            if read is not None:
                self._stamps[position] = read.stamp  # it may have changed just now
                if each.is_plain and read.is_edited:
                    self._edited.append(Path(each.file or "").name)
            stamp = self._stamps[position]
            if not each.is_live and (read is not None or not each.is_stored):
                mtime, _, size, _ = stamp or (0, 0, 0, 0)
                modules.append((Module(each.name, each.file, each.search, mtime, size), read and read.source))
        modules += _parents({module.name for module, _ in modules})
        sha256 = write_modules(path, modules, sys.flags.optimize)
        _written = _Written(self._found, self._stamps, path, path.status(), sha256)
        return sha256

    def warn_of_changes(self, function: Callable[..., Any]) -> None:
        """Warn if the code of a function in memory, or of a module, is not that of its file, or the file is gone.

        Modules are compared when they are written anew, so this comes after `write`.
        """
        functions = list(_functions(function))
        modules = {each.__module__ for each in functions}
        found = {each.name: each for each in self._found if each.name in modules and each.is_plain}
        for each in functions:
            module = found.get(each.__module__)
            if module is not None and module.file is not None and _differs(each, module.file):
                message = f"{Path(module.file).name} changed after this process imported it; the tasks run the file"
                if _stamp(module.file) is None:
                    message = (
                        f"{module.file} was deleted after this process imported it, so the run cannot store it; "
                        f"tasks fail if they do not find the module {module.name} elsewhere"
                    )
                warn(message, ModuleChanged)
                return
        if self._edited:
            named = ", ".join(self._edited[:_SHOWN]) + (" and others" if len(self._edited) > _SHOWN else "")
            warn(f"{named} changed after this process imported it; the tasks run the file", ModuleChanged)


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _parents(names: set[str]) -> Iterator[tuple[Module, None]]:
    """Yield the packages that modules are in, as far as they are missing: a task may find no such package."""
    missing: set[str] = set()
    for name in names:
        parent = name.rpartition(".")[0]
        while parent and parent not in names and parent not in missing:
            missing.add(parent)
            parent = parent.rpartition(".")[0]
    for name in sorted(missing):
        yield Module(name, None, list(getattr(sys.modules.get(name), "__path__", ()))), None


# The submitted function.


def _functions(call: Any) -> Iterator[types.FunctionType]:
    """Yield the functions that a call is made of: itself, what it wraps, or the methods of its class."""
    while isinstance(call, functools.partial):
        call = call.func
    call = getattr(call, "__func__", call)
    if not isinstance(call, types.FunctionType) and not hasattr(call, "__wrapped__"):
        members = vars(call if isinstance(call, type) else type(call)).values()
        yield from (each for each in members if isinstance(each, types.FunctionType))
    while call is not None:
        if isinstance(call, types.FunctionType):
            yield call
        call = vars(call).get("__wrapped__") if hasattr(call, "__dict__") else None


def _differs(function: types.FunctionType, file: str) -> bool:
    """Return whether a function comes from a file that defines it differently now, or that is gone."""
    code = function.__code__
    if code.co_filename != file or "<" in code.co_qualname:
        return False  # made by a program, or inside a function: it travels by value
    return not _is_in_file(code, file, _stamp(file))


@functools.lru_cache(maxsize=64)
def _is_in_file(code: types.CodeType, file: str, stamp: _Stamp | None) -> bool:
    del stamp  # the result is for the file as it was then
    read = _read(file)
    if read is None:
        return False
    pyc = read.source.pyc
    return bool(pyc) and any(code == each for each in _codes(marshal.loads(pyc[_PYC_HEAD:])))  # noqa: S302  (just compiled)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


# What has changed since.

_MOST_SHOWN = 5
_ABBREVIATED = 7


def differences(folder: RunFolder, manifest: Manifest) -> str:
    """Return what has changed since the manifest's code was recorded, or an empty text: on disk, not in memory."""
    return joined([*differences_of_code(folder, manifest), *_of_commits(manifest)])


def differences_of_code(folder: RunFolder, manifest: Manifest) -> list[str]:
    """Return what has changed of what runs: as `differences`, without commits that change no module of the run."""
    return [*_of_modules(folder, manifest), *_of_distributions(manifest)]


def joined(found: list[str]) -> str:
    """Return the first of some changes as one text, and how many more there are."""
    more = [f"{len(found) - _MOST_SHOWN} more"] if len(found) > _MOST_SHOWN else []
    return "; ".join([*found[:_MOST_SHOWN], *more])


def _of_modules(folder: RunFolder, manifest: Manifest) -> Iterator[str]:
    path, when = manifest.source(folder, MODULES), time_of(manifest.created)
    if path is None:
        return
    # A retry is not to fail because it cannot say what changed.
    with suppress(OSError, RunFolderError, UnsafeRunFolder), closing(ModulesReader(path)) as reader:
        for change in changes_between(reader):
            name = Path(change.file).name
            if change.where == DELETED:
                yield f"{name} was deleted since {when}"
            else:
                yield f"{name} changed since {when}" + (f" ({change.where})" if change.where else "")


def _of_distributions(manifest: Manifest) -> Iterator[str]:
    for folder, recorded in manifest.code.get("distributions", {}).items():
        for name, version in recorded.items():
            here = version_of(name, folder)
            if here is None:
                yield f"{name} {version} is not installed here"
            elif here != version:
                yield f"{name} is {here}, and was {version}"


def _of_commits(manifest: Manifest) -> Iterator[str]:
    recorded = manifest.code.get("commits", {})
    now = commits(recorded, time())
    for root, (commit, _) in recorded.items():
        if root in now and now[root].commit != commit:
            here, then = now[root].commit[:_ABBREVIATED], commit[:_ABBREVIATED]
            yield f"{Path(root).name} is at commit {here}, and was at {then}"
