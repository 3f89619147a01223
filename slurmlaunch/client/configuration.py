"""Defaults and profiles from configuration files: which files count, and which value wins.

`Executor` and ``slurmlaunch config`` use it. The files are the site's, the user's, and the one that
``$SLURMLAUNCH_CONFIG`` names. None is looked for in the working directory or above it: a profile may hold shell lines,
and a folder with data of others must not bring any. A file has tables of options, as an `Executor` takes them::

    [defaults]          always
    [clusters.NAME]     on the Slurm cluster of this name
    [profiles.NAME]     for Executor(profile=NAME)

A call's own value wins, then the profile, ``$SLURMLAUNCH_FOLDER`` and ``$SLURMLAUNCH_CLUSTER``, the cluster's table,
and the defaults; between files the variable's wins, then the user's. Tasks read no configuration: a run folder holds
the values.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import os
import re
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from slurmlaunch.backends.container import Container
from slurmlaunch.client.options import Options, check_cluster
from slurmlaunch.client.sbatch_options import alternatives
from slurmlaunch.client.watcher import current_client
from slurmlaunch.errors import OptionError, SchedulerError, UnknownOption
from slurmlaunch.runfolder.runs_folder import DEFAULT_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SITE = Path("/etc/slurmlaunch/config.toml")
VARIABLE = "SLURMLAUNCH_CONFIG"
DEFAULT = "default"
"""The source of a value that nobody chose."""

FOLDER_VARIABLE, CLUSTER_VARIABLE = "SLURMLAUNCH_FOLDER", "SLURMLAUNCH_CLUSTER"

_DEFAULTS, _CLUSTERS, _PROFILES = "defaults", "clusters", "profiles"
_NO_OPTIONS = frozenset({"folder", "cluster"})
_OF_SLURM = ("slurm", "allocation")
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_Error = TypeVar("_Error", bound=OptionError | UnknownOption)


@dataclass(frozen=True)
class Setting:
    """The value of an option, and its source: a file, a variable, or words for something else."""

    option: str
    value: Any
    source: File | str = "the call"
    table: tuple[str, ...] = ()

    @property
    def line(self) -> int | None:
        """The line in the file, or None."""
        return self.source.line(*self.table, self.option) if isinstance(self.source, File) else None

    @property
    def place(self) -> str:
        """Where the value is from, for a person."""
        if not isinstance(self.source, File):
            return self.source
        return f"{self.source.path}, line {self.line}, [{'.'.join(self.table)}]"


@dataclass(frozen=True)
class File:
    """One configuration file that has been read and checked."""

    path: Path
    text: str
    tables: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> File:
        """Read a file and check every value in it.

        Raises:
            OptionError: the file is not safe, is no TOML, or holds a bad value.
            UnknownOption: it holds a name that is no option.
            OSError: it cannot be read.
        """
        text = _read_safely(path)
        import tomllib  # here, since most users have no such file

        try:
            file = cls(path, text, tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise _error(OptionError, path, None, f"it is no TOML: {error}") from None
        file._check()
        return file

    def layer(self, *table: str) -> dict[str, Setting]:
        """Return the settings of a table; none if the file has no such table."""
        values = functools.reduce(lambda tables, key: tables.get(key, {}), table, self.tables)
        return {option: Setting(option, _value(option, given), self, table) for option, given in values.items()}

    def names(self, kind: str) -> list[str]:
        """Return the names of the profiles, or of the clusters, that have a table."""
        return [*self.tables.get(kind, ())]

    def line(self, *keys: str) -> int:
        """Return the line with which a key is there: the parser of the standard library does not say."""
        import tomllib

        lines = self.text.split("\n")
        for number in range(1, len(lines) + 1):
            with contextlib.suppress(tomllib.TOMLDecodeError, KeyError, TypeError):  # a part of a value, or no such key
                functools.reduce(lambda table, key: table[key], keys, tomllib.loads("\n".join(lines[:number])))
                return number
        return 1

    def _check(self) -> None:
        for kind, named in self.tables.items():
            if kind not in {_DEFAULTS, _CLUSTERS, _PROFILES}:
                known = f"[{_DEFAULTS}], [{_CLUSTERS}.NAME] and [{_PROFILES}.NAME]"
                raise self.error(UnknownOption, (kind,), f"{kind!r} is no table of a configuration: there are {known}")
            self._check_table(kind, named)
            for name in named if kind != _DEFAULTS else ():
                self._check_table(kind, named[name], name)
        for table in ((_DEFAULTS,), *((kind, name) for kind in (_CLUSTERS, _PROFILES) for name in self.names(kind))):
            for setting in self.layer(*table).values():
                self._check_setting(setting)

    def _check_table(self, kind: str, value: object, *name: str) -> None:
        if not isinstance(value, Mapping):
            shown = _DEFAULTS if kind == _DEFAULTS else f"{kind}.NAME"
            raise self.error(OptionError, (kind, *name), f"{'.'.join((kind, *name))} must be a table, as [{shown}]")

    def _check_setting(self, setting: Setting) -> None:
        keys = (*setting.table, setting.option)
        if setting.table[0] == _CLUSTERS and setting.option in {"cluster", "clusters"}:
            reason = f"{setting.option} chooses the cluster: it belongs into [{_DEFAULTS}] or a profile"
            raise self.error(OptionError, keys, reason)
        try:
            _check_value(setting.option, setting.value)
        except (OptionError, UnknownOption) as error:
            raise self.error(type(error), keys, str(error), **vars(error)) from None

    def error(self, kind: type[_Error], keys: tuple[str, ...], text: str, **fields: Any) -> _Error:
        """Return the error for what the file holds at a key."""
        return _error(kind, self.path, self.line(*keys), text, **fields)


def read_files() -> list[File]:
    """Return the configuration files that are there, the one that counts least first.

    Raises:
        OptionError, UnknownOption: a file is not safe, cannot be read, or is wrong; ``$SLURMLAUNCH_CONFIG`` names none.
    """
    return [file for path, needed in places() if (file := _file(path, needed=needed))]


def places() -> Iterator[tuple[Path, bool]]:
    """Yield the paths of the configuration files, and whether there must be one; the one that counts least first."""
    yield SITE, False
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111  (never raises)
    if os.path.isabs(home):  # else it is below the working directory  # noqa: PTH117
        yield Path(home, "slurmlaunch", "config.toml"), False
    if named := os.environ.get(VARIABLE):
        path = Path(named)
        if not path.is_absolute():
            raise OptionError(f"${VARIABLE} is {named!r}: give a path from the root, as {path.absolute()}")
        yield path, True


class Settings(NamedTuple):
    """The settings of an executor by option, ``folder`` and ``cluster`` among them."""

    used: Mapping[str, Setting]
    defaults: Mapping[str, Setting]  # without the values of the call


def settings_for(profile: str | None = None, given: Mapping[str, object] = MappingProxyType({})) -> Settings:
    """Return the settings of an executor.

    Args:
        profile: the name of a profile, or None.
        given: the values of the call; None counts as not given.

    Raises:
        OptionError, UnknownOption: a file is wrong, or no file has this profile.
        SchedulerError: a file has values for a cluster, and Slurm does not say which cluster this is.
    """
    files = read_files()
    own = {option: Setting(option, value) for option, value in given.items() if value is not None}
    lower = [_built_in(), *(file.layer(_DEFAULTS) for file in files)]
    higher = [_variables({"folder": (FOLDER_VARIABLE,), "cluster": (CLUSTER_VARIABLE,)}), *_profile(files, profile)]
    kind = _merged([*lower, *higher, own])["cluster"].value
    if kind == "slurm":  # of the run for good, since a later client's environment may differ
        higher.insert(0, _variables({"clusters": ("SLURM_CLUSTERS", "SBATCH_CLUSTERS")}))
    if kind in _OF_SLURM and any(file.names(_CLUSTERS) for file in files):
        name = _name_of_cluster(kind, _merged([*lower, *higher, own]).get("clusters"))
        lower += [file.layer(_CLUSTERS, name) for file in files]
    return Settings(_merged([*lower, *higher, own]), _merged([*lower, *higher]))


def values_of_profile(profile: str, folder: Path, cluster: str) -> dict[str, Any]:
    """Return the options of a profile for an executor that has a folder and a cluster.

    Raises:
        OptionError: no file has the profile, or it has another folder or cluster.
    """
    settings = _merged(_profile(read_files(), profile))
    for option, same in (("folder", folder), ("cluster", cluster)):
        value = settings[option].value if option in settings else same
        if (path_of(value) if option == "folder" else value) != same:
            reason = f"it has {option}={value!r} in {settings[option].place}, which only a new executor takes"
            raise OptionError(f"profile={profile!r}: {reason}: Executor(profile={profile!r})", option="profile")
    return {option: each.value for option, each in settings.items() if option not in _NO_OPTIONS}


def options_of(settings: Mapping[str, Setting]) -> Options:
    """Return the options among the settings.

    Raises:
        OptionError, UnknownOption: a value is wrong, or two do not fit together; the text names their files.
    """
    try:
        return Options().changed(**{name: each.value for name, each in settings.items() if name not in _NO_OPTIONS})
    except OptionError as error:
        named = [each for each in settings.values() if isinstance(each.source, File) and _names(error, each.option)]
        if not named:
            raise
        sources = "; ".join(f"{each.option} is set in {each.place}" for each in named)
        raise type(error)(f"{error} ({sources})", **vars(error)) from None


def path_of(folder: object) -> Path:
    """Return the folder for the run folders as an absolute path; raise `OptionError` if it is none."""
    try:
        path = Path(folder).expanduser().absolute()  # type: ignore[arg-type]  # else a TypeError
        if "\0" not in str(path):
            return path
        reason = f"{folder!r} holds a NUL character: it is the folder for the run folders; {OF_YOURS}"
    except TypeError:
        reason = f"{folder!r} is no path: it is the folder for the run folders, and the function goes into the call"
    except RuntimeError:  # of expanduser
        reason = f"{folder!r} begins with a user that does not exist: it is the folder for the run folders; {OF_YOURS}"
    raise OptionError(f"folder: {reason}", option="folder")


OF_YOURS = f"give a folder that you may write to, as Executor(folder=...), or by ${FOLDER_VARIABLE}"


# Reading a file.


def _file(path: Path, *, needed: bool) -> File | None:
    try:
        return File.read(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not needed:
            return None
        raise _error(OptionError, path, None, f"${VARIABLE} names it: {error.strerror}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise _error(OptionError, path, None, f"it cannot be read: {getattr(error, 'strerror', error)}") from error


def _read_safely(path: Path) -> str:
    # Without waiting for the writer of a pipe.
    with open(path, encoding="utf-8", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _error(OptionError, path, None, "it is no file")
        if status.st_uid not in {0, os.geteuid()}:
            reason = f"it belongs to user {status.st_uid}: it may hold shell lines, so it must be root's or yours"
            raise _error(OptionError, path, None, reason)
        if status.st_mode & _OTHERS_MAY_WRITE:
            reason = f"others may write to it, and it may hold shell lines: chmod go-w {path}"
            raise _error(OptionError, path, None, reason)
        return file.read()


def _error(kind: type[_Error], path: Path, line: int | None, text: str, **fields: Any) -> _Error:
    where = f"{path}, line {line}" if line else str(path)
    return kind(f"{where}: {text}", **{**fields, "file": str(path), "line": line})


def _check_value(option: str, value: Any) -> None:
    if option == "folder":
        path_of(value)
        if "$" in str(value):
            raise OptionError(f"folder: {value} names a variable that is not set", option="folder")
    elif option == "cluster":
        check_cluster(value)
    else:
        Options().changed(**{option: value})


def _value(option: str, value: Any) -> Any:
    """Return a value of TOML as an executor takes it."""
    if isinstance(value, dt.time):  # 01:30:00 without quotes
        return value.isoformat()
    if option == "container" and isinstance(value, dict) and value.keys() <= {"image", "binds", "runtime", "flags"}:
        with contextlib.suppress(TypeError):  # without an image; the check refuses the dict
            return Container(**value)
    if option == "folder" and isinstance(value, str):
        return os.path.expandvars(value)
    return value


# The layers.


def _built_in() -> dict[str, Setting]:
    found = shutil.which("sbatch")
    why = f"default: sbatch is {found}" if found else "default: sbatch is not on PATH"
    return {
        "folder": Setting("folder", DEFAULT_NAME, DEFAULT),
        "cluster": Setting("cluster", "slurm" if found else "local", why),
    }


def _variables(of: Mapping[str, tuple[str, ...]]) -> dict[str, Setting]:
    """Return the settings by environment variables; of several for one option the first counts."""
    return {
        option: Setting(option, os.environ[name], f"${name}")
        for option, names in of.items()
        for name in reversed(names)
        if os.environ.get(name)
    }


def _profile(files: list[File], profile: str | None) -> list[dict[str, Setting]]:
    if profile is None:
        return []
    known = sorted({name for file in files for name in file.names(_PROFILES)})
    if profile not in known:
        there = f"the profiles are {', '.join(known)}" if known else "no configuration file has a profile"
        reason = (
            f"{profile!r} is no profile: {there}; `slurmlaunch config` shows the files. sbatch's own option goes as"
        )
        raise OptionError(f"profile: {reason} sbatch=['--profile=...']", option="profile")
    return [file.layer(_PROFILES, profile) for file in files]


def _merged(layers: Iterable[Mapping[str, Setting]]) -> dict[str, Setting]:
    """Return the settings of all layers; a later layer wins, also over what sbatch does not take beside its option."""
    merged: dict[str, Setting] = {}
    for layer in layers:
        for other in {other for option in layer for other in alternatives(option)} - layer.keys():
            merged.pop(other, None)
        merged.update(layer)
    return merged


def _name_of_cluster(kind: str, clusters: Setting | None) -> str:
    named = clusters.value if clusters and isinstance(clusters.value, str) else None
    try:
        return current_client().backend(kind, named).cluster_name() or ""
    except SchedulerError as error:
        reason = (
            f"the configuration has values for a cluster ([{_CLUSTERS}.NAME]), and Slurm does not say which this is"
        )
        raise SchedulerError(f"{reason}: {error}", **vars(error)) from error


def _names(error: OptionError, option: str) -> bool:
    return re.search(rf"\b{option}\b", str(error)) is not None
