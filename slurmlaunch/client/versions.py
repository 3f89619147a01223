"""What identifies the code of a run besides the user's modules: git commits, and installed distributions.

The executor and retries record it with the modules (`code`). It only reads: repositories by ``git status``, and
``site-packages`` folders by the names in them.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.backends.installed import site_of
from slurmlaunch.client.own_modules import attributes_of, search_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PATIENCE = 1.0
"""Seconds for git to answer, which may take long for a large repository on a network file system."""


class Commit(NamedTuple):
    """The commit of a repository that is checked out."""

    commit: str
    dirty: bool  # whether a file that git knows differs from it


_last: tuple[object, dict[str, Commit]] = (None, {})
"""The last answer, and what it was the answer to."""


def commits(folders: Iterable[str], state: object) -> dict[str, Commit]:
    """Return the commit of each repository that has one of these folders, by its own folder.

    Git is asked again if *state*, which describes their files, or something in a repository has changed. A repository
    of which it knows nothing, or does not answer in time, is left out.
    """
    global _last  # noqa: PLW0603  (see there)
    roots = {root for folder in folders if (root := _root_of(folder)) is not None}
    key = {root: _changes_of(root) for root in roots}, state
    if _last[0] != key:
        _last = key, _ask_git(roots)
    return _last[1]


def _changes_of(root: str) -> list[int]:
    """Return the times of the files that git changes with each commit, checkout and stage."""
    folder = Path(root, ".git")
    with suppress(OSError):
        if folder.is_file():  # of a worktree
            folder = Path(root, folder.read_text(encoding="utf-8").partition(":")[2].strip())
    times = []
    for name in ("HEAD", "index", "logs/HEAD"):
        with suppress(OSError):
            times.append((folder / name).stat().st_mtime_ns)
    return times


def _ask_git(roots: Iterable[str]) -> dict[str, Commit]:
    found = {}
    for root, started in [(root, _start_git(root)) for root in sorted(roots)]:
        if started is not None and (commit := _answer(started)) is not None:
            found[root] = commit
    return found


@functools.lru_cache(maxsize=1 << 14)
def _root_of(folder: str) -> str | None:
    """Return the folder of the repository that a folder is in."""
    if os.path.exists(f"{folder}/.git"):  # noqa: PTH110
        return folder
    parent = os.path.dirname(folder)  # noqa: PTH120
    return None if parent == folder else _root_of(parent)


def _start_git(root: str) -> subprocess.Popen[str] | None:
    # Without safe.directory git leaves alone what another user owns, as it may say which programs git is to run.
    settings = ("-c", "core.fsmonitor=false", "-c", "safe.directory=")
    command = ["git", "-C", root, "--no-optional-locks", *settings, "status"]
    command += ["--porcelain=v2", "--branch", "--untracked-files=no"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, errors="replace",
        )  # fmt: skip
    except OSError:  # git is not installed
        return None


def _answer(started: subprocess.Popen[str]) -> Commit | None:
    with started:
        try:
            text, _ = started.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            started.kill()
            return None
    lines = text.splitlines()
    names = [line.split()[-1] for line in lines if line.startswith("# branch.oid ")]
    if started.returncode or not names or names[0] == "(initial)":
        return None
    return Commit(names[0], any(not line.startswith("#") for line in lines))


# Installed distributions.


class Distribution(NamedTuple):
    """An installed distribution."""

    version: str
    location: str  # the folder in which it is installed


def distributions() -> dict[str, Distribution]:
    """Return the installed distributions of which this process has imported something, by name."""
    return dict(_distributions(frozenset(_imported())))


def _imported() -> Iterator[tuple[str, str | None]]:
    """Yield the top-level modules that are imported, each with the ``site-packages`` that it is in."""
    for name, module in sys.modules.copy().items():
        if "." not in name and name not in sys.stdlib_module_names:
            attributes = attributes_of(module)
            file = attributes.get("__file__")
            yield name, site_of(file if isinstance(file, str) else next(iter(search_of(attributes) or ()), ""))


def version_of(name: str, folder: str) -> str | None:
    """Return the version of a distribution in a folder, or else where this process would import it from."""
    found = (_site(each, _changed(each)).version_of(name) for each in (folder, *sys.path))
    return next((version for version in found if version is not None), None)


def _changed(folder: str) -> int:
    with suppress(OSError):
        return os.stat(folder).st_mtime_ns  # noqa: PTH116
    return 0


@functools.lru_cache(maxsize=1)
def _distributions(imported: frozenset[tuple[str, str | None]]) -> tuple[tuple[str, Distribution], ...]:
    sites = {site for _, site in imported if site is not None}
    found: dict[str, Distribution] = {}
    for site in sites | {entry for entry in sys.path if site_of(entry) == entry}:
        known = _Site(site)
        for name, place in imported:
            # An editable install has its modules elsewhere.
            for title, version in known.of(name, anywhere=place == site) if place in (site, None) else ():
                found.setdefault(title, Distribution(version, site))
    return tuple(sorted(found.items()))


class _Site:
    """The distributions that are installed in a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._by_name: dict[str, tuple[str, str, Path]] = {}
        self._by_module: dict[str, list[tuple[str, str]]] | None = None
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                stem, dot, ending = entry.name.rpartition(".")
                name, _, version = stem.partition("-")
                if dot and ending in {"dist-info", "egg-info"}:
                    self._by_name[_normalized(name)] = name, version.partition("-")[0], Path(entry.path)

    def version_of(self, name: str) -> str | None:
        """Return the version of a distribution, by its own name."""
        known = self._by_name.get(_normalized(name))
        return known and known[1]

    def of(self, module: str, *, anywhere: bool) -> list[tuple[str, str]]:
        """Return name and version of the distributions with a top-level module; *anywhere*: also of another name."""
        known = self._by_name.get(_normalized(module))
        if known is not None:
            return [known[:2]]
        if not anywhere:
            return []
        if self._by_module is None:
            self._by_module = {}
            for name, version, folder in self._by_name.values():
                for top in _modules_of(folder):
                    self._by_module.setdefault(top, []).append((name, version))
        return self._by_module.get(module, [])


@functools.lru_cache(maxsize=64)
def _site(folder: str, changed: int) -> _Site:
    """Return the distributions in a folder as they are at a time of its last change."""
    del changed
    return _Site(folder)


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _modules_of(folder: Path) -> set[str]:
    """Return the top-level modules of a distribution."""
    with suppress(OSError):
        return set((folder / "top_level.txt").read_text(encoding="utf-8", errors="replace").split())
    with suppress(OSError):
        record = (folder / "RECORD").read_text(encoding="utf-8", errors="replace")
        return set(_TOP.findall(record))
    return set()


_TOP = re.compile(r"^(\w+)(?:/|\.py,|\.\w+\.so,)", re.MULTILINE)
