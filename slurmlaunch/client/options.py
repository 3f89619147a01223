"""How a run runs: the table of slurmlaunch's own options, and keyword arguments read into frozen data.

The fields of `Options` are that table. The validation of `Executor`'s keywords, the list in its docstring,
``docs/options.md`` and the flags of the command line are made from it, so a new option is one new field.
sbatch's options are in `sbatch_options`. This file knows no run, no folder and no backend but their values.
"""

from __future__ import annotations

import functools
import math
import os
import re
import reprlib
import sys
import textwrap
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from slurmlaunch.backends import container as containers
from slurmlaunch.backends.base import parse_memory
from slurmlaunch.backends.container import Container
from slurmlaunch.client.sbatch_options import (
    NAMES,
    OF_A_CALL,
    alternatives,
    as_count,
    as_memory,
    as_time,
    as_words,
    plain_text,
    read_flag,
    read_option,
    refused,
    unknown_option,
)
from slurmlaunch.errors import OptionError, UnknownOption
from slurmlaunch.runfolder.output import MAX_LOG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

SUBMITTED, LIVE = "submitted", "live"
"""The code of the user's modules that tasks run: as it was at the submission, or as it is when they start."""

CLUSTERS = ("slurm", "allocation", "local", "inline")
JOB_NAME_LENGTH = 64


@dataclass(frozen=True)
class Shape:
    """The CPUs of one task, its items side by side, and the CPUs of each: processes × threads ≤ cpus_per_task."""

    cpus_per_task: int = 1
    processes: int = 1
    threads: int = 1

    @classmethod
    def resolve(
        cls, cpus_per_task: int | None, processes: int | None, threads: int | None, *, single_item: bool
    ) -> Shape:
        """Fill in the missing numbers; all are at least 1.

        Any two determine the third. With *cpus_per_task* alone, the items of a map have one thread each and as
        many run side by side as there are CPUs; a single item has all CPUs. With *processes* or *threads* alone,
        the task asks for that many CPUs.
        """
        if cpus_per_task is None:
            processes, threads = processes or 1, threads or 1
            return cls(processes * threads, processes, threads)
        if threads is None and (processes or single_item):
            threads = cpus_per_task // (processes or 1)
        threads = threads or 1
        processes = processes or max(1, cpus_per_task // threads)
        if processes * threads > cpus_per_task:
            raise refused(
                "processes" if processes > 1 else "threads",
                f"{processes} processes × {threads} threads need {processes * threads} CPUs, "
                f"and cpus_per_task is {cpus_per_task}: ask for more CPUs, or for fewer processes or threads",
            )
        return cls(cpus_per_task, processes, threads)

    def clipped(self, available: int | None) -> Shape:
        """Return the shape that fits on a machine with so many CPUs; None is no limit.

        Processes are given up first, since that only takes longer; threads only if one process alone has too
        many. Each number stays at least 1.
        """
        if available is None or self.cpus_per_task <= available:
            return self
        cpus = max(1, available)
        threads = min(self.threads, cpus)
        return Shape(cpus, min(self.processes, cpus // threads), threads)


# Reading the values of our options; each function takes the option's name and the value.


def _as_container(option: str, value: object) -> Container:
    if isinstance(value, (str, os.PathLike)):
        return Container(value)
    if not isinstance(value, Container):
        raise refused(option, f"must be a slurmlaunch.Container, not {value!r}")
    return value


def _as_python(option: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) and len(value.split()) > 1:
        # It may be a path with a space, or a command with an argument: only the user knows.
        raise refused(option, f"is it one word or several? Give a list of words, as {value.split()!r}")
    words = as_words(option, value)
    if not words:
        raise refused(option, "needs at least one word")
    return words


def _as_modules(option: str, value: object) -> tuple[str, ...]:
    return tuple(name for words in as_words(option, value) for name in words.split())


def _as_setup(option: str, value: object) -> tuple[str, ...]:
    lines: list[str] = []
    for text in _listed(value):
        if not isinstance(text, str):
            raise refused(option, f"must be shell lines, not {text!r}")
        # Not splitlines(): for the shell only a line feed ends a line.
        lines += _without_nul(option, text).replace("\r\n", "\n").split("\n")
    return tuple(lines)


def _as_names(option: str, value: object) -> tuple[str, ...]:
    for name in _listed(value):
        if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)):
            raise refused(option, f"{name!r} is no name of a variable: letters, digits and _, no digit first")
    return tuple(_listed(value))


def _as_env(option: str, value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise refused(option, f"must be a dict of names and values, not {value!r}")
    _as_names(option, [*value])
    texts = {name: (f"{option}[{name!r}]", given) for name, given in value.items()}
    return {name: _without_nul(where, plain_text(where, given)) for name, (where, given) in texts.items()}


def _without_nul(option: str, text: str) -> str:
    if "\0" in text:
        raise refused(option, "holds a NUL character")
    return text


def _as_code(option: str, value: object) -> str:
    if isinstance(value, str) and value in {SUBMITTED, LIVE}:
        return value
    raise refused(option, f"must be {SUBMITTED!r} or {LIVE!r}, not {value!r}")


def _as_module_names(option: str, value: object) -> tuple[str, ...]:
    names = [module.__name__ if isinstance(module, ModuleType) else module for module in _listed(value)]
    for name in names:
        if not (isinstance(name, str) and all(part.isidentifier() for part in name.split("."))):
            raise refused(option, f"must be modules or their names, not {name!r}")
    return tuple(names)


_as_number = functools.partial(as_count, least=0)


def _as_growth(option: str, value: object) -> dict[str, float]:
    if not isinstance(value, Mapping) or not set(value) <= _GROWTH.keys():
        raise refused(option, f"must be a dict with the keys 'mem' and 'time', not {value!r}")
    for name, factor in value.items():
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not factor >= 1:
            raise refused(f"{option}[{name!r}]", f"must be a number of at least 1, not {factor!r}")
    return {**_GROWTH, **{name: float(factor) for name, factor in value.items()}}


_GROWTH = {"mem": 2.0, "time": 1.5}


def _as_bytes(option: str, value: object) -> int:
    size = parse_memory(as_memory(option, value))
    return 0 if math.isinf(size) else int(size)


def _as_classes(option: str, value: object) -> tuple[str, ...]:
    for each in _listed(value):
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise refused(option, f"must be exception classes, not {each!r}")
    return tuple(f"{each.__module__}.{each.__qualname__}" for each in _listed(value))


def _as_flags(option: str, value: object) -> tuple[str, ...]:
    return tuple(read_flag(flag) for flag in as_words(option, value))


def _as_name(option: str, value: object) -> str:
    if not isinstance(value, str):
        raise refused(option, f"must be text, not {value!r}")
    return value


def _listed(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else (value,)


# The table.

ALL, TASKS, SLURM = "all", "slurm, allocation, local", "slurm"
"""The backends that use an option: every one; those that start a Python per task; Slurm alone."""

_WORDS = "str or list of str"


class Option(NamedTuple):
    """A row of the table: one of slurmlaunch's own options, in the words of its users."""

    form: str  # the value's type
    help: str
    read: Callable[[str, object], Any]  # from the option's name and a value to the value as stored
    flag: str = ""  # the command line's, as "--throttle N"; with "..." after it, it may be repeated
    backends: str = ALL
    default: str = ""  # if the default value's repr would not do
    fixed: str = ""  # why a retry cannot change it


def _row(value: Any, form: str, text: str, read: Callable[[str, object], Any], **more: str) -> Any:
    """Make a field of `Options`: its default, or a function that returns that, and its row of the table."""
    default = {"default_factory": value, "hash": None if value is _default_python else False}
    row = Option(form, text, read, **more)
    return field(metadata={"row": row}, **(default if callable(value) else {"default": value}))


def _default_python(container: Container | None = None) -> tuple[str, ...]:
    return (sys.executable,) if container is None else containers.PYTHON


@dataclass(frozen=True)
class Options:
    """Everything that says how a run runs: sbatch's options in `slurm`, and the table of ours."""

    slurm: Mapping[str, str | bool] = field(default_factory=dict, hash=False)
    """sbatch's options by long name with underscores: text, or True for a bare flag."""

    # fmt: off
    throttle: int | None = _row(None, "int", "How many tasks may run at once (sbatch's %N).",
        as_count, flag="--throttle N", backends=TASKS, default="no limit")
    processes: int | None = _row(None, "int", "How many items run side by side in a task.",
        as_count, flag="--processes N", default="one per CPU for maps, 1 for submit")
    threads: int | None = _row(None, "int", "How many CPUs, and so threads, each item may use.",
        as_count, flag="--threads N", default="1 for maps, all CPUs of the task for submit")
    python: tuple[str, ...] = _row(_default_python, _WORDS, "The command that starts Python on the node.",
        _as_python, flag="--python WORDS", backends=TASKS, default="the client's Python, or python3 in a container")
    modules: tuple[str, ...] = _row((), _WORDS, "Modules to load (module load) before Python starts.",
        _as_modules, flag="--module NAME ...", backends=TASKS)
    setup: tuple[str, ...] = _row((), _WORDS, "Shell lines to run before Python starts.",
        _as_setup, flag="--setup LINE ...", backends=TASKS)
    container: Container | None = _row(None, "Container or path", "The image in which tasks run.",  # noqa: RUF009
        _as_container, flag="--container IMAGE", backends=TASKS, default="none")
    env: Mapping[str, str | None] = _row(dict, "dict of str", "Variables to set for the tasks.",
        _as_env, flag="--env NAME=VALUE ...", backends=TASKS)
    env_secret: tuple[str, ...] = _row((), _WORDS,
        "Names of variables whose values are secret, besides those that look so: the run folder does not hold them.",
        _as_names, flag="--env-secret NAME ...", backends=TASKS)
    by_value: tuple[str, ...] = _row((), "module, name or list",
        "Modules whose code travels with the function, since nodes cannot import them.", _as_module_names)
    code: str = _row(SUBMITTED, "str", "The code of your own modules that tasks run: 'submitted', as it was at the "
        "submission, or 'live', as it is when a task imports it.", _as_code)
    code_exclude: tuple[str, ...] = _row((), "module, name or list",
        "Modules of your own that are not stored at the submission: tasks import them as they are then.",
        _as_module_names)
    name: str | None = _row(None, "str", "The name of the run and of its jobs.",
        _as_name, flag="--name NAME", default="the function's name")
    seed: int | None = _row(None, "int", "The seed of current_task().rng().",
        _as_number, default="0", fixed="a run keeps its seed, so that an item that is run again has its stream again")
    launcher: tuple[str, ...] | None = _row(None, _WORDS, "The command that starts the ranks of a task: mpirun, say.",
        as_words, backends=TASKS, default="srun on Slurm, else mpiexec")
    retries: int = _row(0, "int", "How often an item is run again if something other than its function ended it.",
        _as_number, flag="--retries N")
    retry_exceptions: tuple[str, ...] = _row((), "class or list of classes",
        "Exceptions of the function after which retries= runs an item again, too.", _as_classes)
    grow: Mapping[str, float] = _row(_GROWTH.copy, "dict of float",
        "The factors by which mem and time grow in an automatic retry if they were short.", _as_growth, backends=TASKS)
    max_mem: str | None = _row(None, "str or int", "The largest mem that grow may ask for.",
        as_memory, flag="--max-mem SIZE", backends=TASKS, default="no limit")
    max_time: str | None = _row(None, "str, int or timedelta", "The longest time that grow may ask for.",
        as_time, flag="--max-time TIME", backends=TASKS, default="no limit")
    requeues: int = _row(10, "int", "How often a task that reached its time limit is requeued for the other items.",
        _as_number, backends=SLURM)
    max_log: int = _row(MAX_LOG, "str or int",
        "How much output is kept by item, for each attempt of a task or each rank; the task's log has everything.",
        _as_bytes, flag="--max-log SIZE", backends=TASKS, default="100M")
    sbatch: tuple[str, ...] = _row((), _WORDS, "Further flags for sbatch, passed on unchecked.",
        _as_flags, flag="--sbatch FLAG ...", backends=SLURM)
    # fmt: on

    def changed(self, /, **changes: Any) -> Options:
        """Return these options with some replaced as a whole; None restores a default.

        Raises:
            UnknownOption: a name is no option, or one that slurmlaunch sets itself.
            OptionError: a value is wrong, by itself or together with the others.
        """
        slurm = dict(self.slurm)
        ours: dict[str, Any] = {}
        for option, value in changes.items():
            if option in OURS:
                ours[option] = getattr(_DEFAULTS, option) if value is None else OURS[option].read(option, value)
            elif option in NAMES:
                slurm.pop(option, None)
                given = read_option(option, value)
                if given is not None:
                    slurm[option] = given
                    for other in alternatives(option) - changes.keys():
                        slurm.pop(other, None)
            else:
                raise unknown_option(option, OURS)
        named = changes["python"] is not None if "python" in changes else self.python != _default_python(self.container)
        if not named:
            ours["python"] = _default_python(ours.get("container", self.container))
        options = replace(self, slurm=slurm, **ours)
        options.shape()  # refuses numbers that do not fit together here rather than at a later call
        return options

    def shape(self, *, single_item: bool = False, available: int | None = None) -> Shape:
        """Return the CPUs of a task and how its processes share them.

        Args:
            single_item: the task is one of `submit`, whose item has all CPUs by default.
            available: the CPUs of the machine, if the backend is bound to one.

        Raises:
            OptionError: the processes with their threads need more CPUs than the task has, or
                a task with ranks has several processes or a container.
        """
        if self.ranks > 1 and self.container is not None:
            raise refused("container", f"the {self.ranks} ranks of a task cannot run in one: srun is not inside")
        if self.ranks > 1 and (self.processes or 1) > 1:
            reason = f"an item is run by all {self.ranks} ranks of a task, and by one process of each"
            raise refused("processes", reason)
        asked = self.slurm.get("cpus_per_task")
        cpus = None if asked is None else int(asked)
        single_item = single_item or self.ranks > 1
        return Shape.resolve(cpus, self.processes, self.threads, single_item=single_item).clipped(available)

    @property
    def clusters(self) -> str | None:
        """The clusters that sbatch submits to (its ``--clusters``), if any are named."""
        clusters = self.slurm.get("clusters")
        return clusters if isinstance(clusters, str) else None

    @property
    def ranks(self) -> int:
        """How many processes srun starts with these options; they call the function of a task together."""
        if "ntasks" in self.slurm:
            return int(self.slurm["ntasks"])
        least, _, most = str(self.slurm.get("nodes", 1)).partition("-")
        if not least.isdecimal() or (most and most != least):
            reason = f"give ntasks too, since {self.slurm['nodes']!r} leaves open how many ranks there are"
            raise refused("nodes", reason)
        return int(least) * int(self.slurm.get("ntasks_per_node", 1))

    def to_json(self) -> dict[str, Any]:
        """Return the options in the form of a round's plan."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Options:
        """Read the form of `to_json`, also of another version; values are not checked again."""
        known = ((each.name, data[each.name]) for each in fields(cls) if each.name in data)
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in known}
        if values.get("container") is not None:
            values["container"] = Container.from_json(values["container"])
        return cls(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Container):
        return value.to_json()
    return dict(value) if isinstance(value, Mapping) else value


OURS: Mapping[str, Option] = {each.name: each.metadata["row"] for each in fields(Options) if each.metadata}
"""The table: slurmlaunch's own options by name."""

_DEFAULTS = Options()


def is_option(name: str) -> bool:
    """Return whether an executor takes a keyword as an option."""
    return name in OURS or name in NAMES


def misplaced_option(name: str, value: object, place: str) -> UnknownOption:
    """Return the error for a keyword of a call that is no parameter of it: an option, or an argument of the function.

    *place* shows where options go, as ``"ex.options({}=...)"``.
    """
    if is_option(name):
        text = f"{name} says how a run runs, and belongs to the executor: {place.format(name)}"
        return UnknownOption(text, option=name, suggestions=(name,))
    known = unknown_option(name, (*OURS, *OF_A_CALL))
    if "cannot be set" in str(known):
        return known
    meant = f" (did you mean {' or '.join(known.suggestions)}?)" if known.suggestions else ""
    text = (
        f"the call has no parameter {name!r}{meant}: an argument of the function that all items have in common goes "
        f"into kwargs={{{name!r}: {reprlib.repr(value)}}}, and an option into {place.replace('{}=...', '...')}"
    )
    return UnknownOption(text, option=name, suggestions=known.suggestions)


def refuse_fixed(changes: Iterable[str]) -> None:
    """Raise `OptionError` if a retry changes an option that belongs to the run for good."""
    for name in changes:
        if name in OURS and OURS[name].fixed:
            raise refused(name, OURS[name].fixed)


def default_of(name: str) -> str:
    """Return the default of one of our options as text for users; empty for an empty list or dict."""
    value = getattr(_DEFAULTS, name)
    return OURS[name].default or (repr(value) if value else "" if isinstance(value, (tuple, Mapping)) else repr(value))


def with_options_listed(executor: type[T]) -> type[T]:
    """Append the table to the docstring of a class."""
    entries = []
    for name, row in OURS.items():
        default = f" Default: {text}." if (text := default_of(name)) else ""
        where = "" if row.backends == ALL else f" Backends: {row.backends}."
        text = f"{name} ({row.form}): {row.help}{default}{where}"
        entries.append(textwrap.fill(text, 110, initial_indent=" " * 8, subsequent_indent=" " * 12))
    head = (executor.__doc__ or "").rstrip()
    executor.__doc__ = "\n".join([head, "", "    Options of slurmlaunch's own:", *entries, ""])
    return executor


def check_cluster(cluster: str) -> str:
    """Return the name of a kind of backend; raise `OptionError` if there is none of this name."""
    if cluster in CLUSTERS:
        return cluster
    raise OptionError(
        f"cluster={cluster!r} is none of {', '.join(map(repr, CLUSTERS))}. "
        f"One of several Slurm clusters (sbatch -M) is given as clusters={cluster!r}.",
        option="cluster",
    )


TOKEN_LENGTH = 8
"""The length of the token that makes the names of a run's jobs, and of its folder, unique."""


def job_name(name: str | None, token: str) -> str:
    """Return the name of a Slurm job: the readable part of *name*, and the token that makes it unique.

    Of the name, the characters that sbatch, squeue and sacct all accept are kept: ``[A-Za-z0-9._-]``, at most
    `JOB_NAME_LENGTH` with the token, which must consist of such characters itself.
    """
    room = JOB_NAME_LENGTH - len(token) - 1
    if room < 1 or not re.fullmatch(r"[A-Za-z0-9._-]+", token):
        raise ValueError(f"{token!r} makes no job's name")
    letters = unicodedata.normalize("NFKD", name or "").encode("ascii", "ignore").decode()
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", letters).strip("-._")[:room].rstrip("-._")
    return f"{readable or 'slurmlaunch'[:room]}-{token}"
