"""How the work runs: keyword arguments become frozen data.

Slurm's options carry sbatch's own long names with underscores, ours are the
fields of `Options`. An option is replaced as a whole by a later one of its
name; None takes it back.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from slurmlaunch.backends import container as containers
from slurmlaunch.backends.base import parse_memory, parse_time
from slurmlaunch.backends.container import Container
from slurmlaunch.client.sbatch_options import (
    NAMES,
    as_count,
    as_line,
    as_time,
    as_words,
    plain_text,
    read_flag,
    read_option,
    refused,
    unknown_option,
)
from slurmlaunch.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

CLUSTERS = ("slurm", "allocation", "local", "inline")
JOB_NAME_LENGTH = 64


@dataclass(frozen=True)
class Shape:
    """The CPUs of one task.

    Attributes:
        cpus_per_task: CPUs that the task asks for.
        processes: how many items run side by side.
        threads: CPUs that one item may use; processes × threads are at most the task's CPUs.
    """

    cpus_per_task: int = 1
    processes: int = 1
    threads: int = 1

    @classmethod
    def resolve(
        cls, *, cpus_per_task: int | None, processes: int | None, threads: int | None, single_item: bool
    ) -> Shape:
        """Find what was not given; all numbers are at least 1.

        Any two give the third. With *cpus_per_task* alone the items of a map have one
        thread each, as many side by side as there are CPUs, and a single item has all of
        them. With *processes* or *threads* alone the task asks for that many CPUs.

        Raises:
            OptionError: the processes with their threads need more CPUs than the task has.
        """
        if cpus_per_task is None:
            processes, threads = processes or 1, threads or 1
            return cls(processes * threads, processes, threads)
        if threads is None and (processes or single_item):
            threads = cpus_per_task // (processes or 1)
        threads = threads or 1
        processes = processes or max(1, cpus_per_task // threads)
        if processes * threads > cpus_per_task:
            raise _too_many(cpus_per_task, processes, threads)
        return cls(cpus_per_task, processes, threads)

    def clipped(self, available: int | None) -> Shape:
        """Return the shape that fits on a machine with so many CPUs; None is no limit.

        Fewer processes first, since that only takes longer; the threads of an item only
        where one process alone has too many. Each number stays at least 1.
        """
        if available is None or self.cpus_per_task <= available:
            return self
        cpus = max(1, available)
        threads = min(self.threads, cpus)
        return Shape(cpus, min(self.processes, cpus // threads), threads)


def _too_many(cpus: int, processes: int, threads: int) -> OptionError:
    option = "processes" if processes > 1 else "threads"
    return refused(
        option,
        f"{processes} processes × {threads} threads need {processes * threads} CPUs, "
        f"and cpus_per_task is {cpus}: ask for more CPUs, or for fewer processes or threads",
    )


@dataclass(frozen=True)
class Options:
    """Everything that says how a run runs.

    Attributes:
        slurm: sbatch's options by long name with underscores: text, or True for a bare flag.
        sbatch: further flags for sbatch, passed on unread.
        throttle: how many tasks may run at once, or None.
        processes: how many items of a task run side by side, or None (see `shape`).
        threads: how many threads an item may use, or None.
        python: the words that start Python; by default the client's, or in a container ``python3``.
        modules: what is given to ``module load``, in order.
        setup: shell lines that run before Python starts.
        container: the image in which the tasks run, or None.
        env: variables to set for the tasks.
        by_value: names of the modules whose code travels with the function.
        name: what the user calls the run, or None.
        retries: how often an item is run again whose end came from outside.
        requeues: how often a task that has come to its time limit is started again.
        grow: by what ``mem`` and ``time`` grow where they were short.
        max_mem: what ``mem`` grows to at most, in sbatch's units, or None.
        max_time: what ``time`` grows to at most, in sbatch's formats, or None.
        launcher: the words that start MPI programs, less the program; None for the backend's own.
        retry_exceptions: names of exception classes, as ``"builtins.OSError"``: an item that
            raised one, or one derived from it, is run again too.
        seed: what the random streams of a run's items follow from; None for 0.
    """

    slurm: Mapping[str, str | bool] = field(default_factory=dict, hash=False)
    sbatch: tuple[str, ...] = ()
    throttle: int | None = None
    processes: int | None = None
    threads: int | None = None
    python: tuple[str, ...] = field(default_factory=lambda: (sys.executable,))
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    container: Container | None = None
    env: Mapping[str, str] = field(default_factory=dict, hash=False)
    by_value: tuple[str, ...] = ()
    name: str | None = None
    retries: int = 0
    requeues: int = 10
    grow: Mapping[str, float] = field(default_factory=lambda: {"mem": 2.0, "time": 1.5}, hash=False)
    max_mem: str | None = None
    max_time: str | None = None
    retry_exceptions: tuple[str, ...] = ()
    seed: int | None = None
    launcher: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, /, **given: Any) -> Options:
        """Read what `slurmlaunch.Executor` was given.

        Raises:
            UnknownOption: a name is no option, or one that slurmlaunch sets itself.
            OptionError: a value cannot be.
        """
        return cls().changed(**given)

    def changed(self, /, **changes: Any) -> Options:
        """Return these options with some replaced; None takes one back to its default.

        Raises:
            UnknownOption: a name is no option, or one that slurmlaunch sets itself.
            OptionError: a value cannot be, or not together with the others.
        """
        slurm = dict(self.slurm)
        ours: dict[str, Any] = {}
        defaults = Options()
        for option, value in changes.items():
            if option in _READERS:
                ours[option] = getattr(defaults, option) if value is None else _READERS[option](option, value)
            elif option in NAMES:
                slurm.pop(option, None)
                given = read_option(option, value)
                if given is not None:
                    slurm[option] = given
            else:
                raise unknown_option(option, _READERS)
        named = changes["python"] is not None if "python" in changes else self.python != _default_python(self.container)
        if not named:
            ours["python"] = _default_python(ours.get("container", self.container))
        options = replace(self, slurm=slurm, **ours)
        options.shape()  # so that what does not fit together is refused here, not at a later call
        return options

    def shape(self, *, single_item: bool = False, available: int | None = None) -> Shape:
        """Return the CPUs of a task, and how its processes share them.

        *single_item* is true for `submit`, whose item has all of the task's CPUs by default.
        *available* are the CPUs of the machine, where the backend is bound to one.

        Raises:
            OptionError: the processes with their threads need more CPUs than the task has, or
                are several where there are ranks.
        """
        if self.ranks > 1 and self.container is not None:
            raise refused("container", f"the {self.ranks} ranks of a task cannot run in one: srun is not inside")
        if self.ranks > 1 and (self.processes or 1) > 1:
            raise refused(
                "processes", f"an item is run by all {self.ranks} ranks of a task, and by one process of each"
            )
        cpus = self.slurm.get("cpus_per_task")
        shape = Shape.resolve(
            cpus_per_task=None if cpus is None else int(cpus),
            processes=self.processes,
            threads=self.threads,
            single_item=single_item or self.ranks > 1,
        )
        return shape.clipped(available)

    @property
    def ranks(self) -> int:
        """How many processes call the function of a task together: as many as srun starts with these options.

        Raises:
            OptionError: it depends on how many nodes Slurm chooses.
        """
        if "ntasks" in self.slurm:
            return int(self.slurm["ntasks"])
        least, _, most = str(self.slurm.get("nodes", 1)).partition("-")
        if not least.isdigit() or (most and most != least):
            raise refused(
                "nodes", f"give ntasks too, since {self.slurm['nodes']!r} leaves open how many ranks there are"
            )
        return int(least) * int(self.slurm.get("ntasks_per_node", 1))

    def to_json(self) -> dict[str, Any]:
        """Return the options as they stand in a manifest."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: _plain(value) for name, value in values.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Options:
        """Read what `to_json` wrote: other keys are ignored, missing ones have their default.

        Nothing is checked again: a manifest may hold what a newer Slurm's table allowed.
        """
        known = ((f.name, data[f.name]) for f in fields(cls) if f.name in data)
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


def _default_python(container: Container | None) -> tuple[str, ...]:
    return (sys.executable,) if container is None else containers.PYTHON


def _as_container(option: str, value: object) -> Container:
    if isinstance(value, (str, os.PathLike)):
        value = Container(value)
    if not isinstance(value, Container):
        raise refused(option, f"must be a slurmlaunch.Container, not {value!r}")
    return value


def _as_python(option: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) and len(value.split()) > 1:
        # A path with a space, or a command with an argument: only the user knows.
        raise refused(option, f"is it one word or several? Give a list of words, as {value.split()!r}")
    words = as_words(option, value)
    if not words:
        raise refused(option, "needs at least one word")
    return words


def _as_modules(option: str, value: object) -> tuple[str, ...]:
    return tuple(name for words in as_words(option, value) for name in words.split())


def _as_setup(option: str, value: object) -> tuple[str, ...]:
    texts = value if isinstance(value, (list, tuple)) else (value,)
    lines: list[str] = []
    for text in texts:
        if not isinstance(text, str):
            raise refused(option, f"must be shell lines, not {text!r}")
        # Not splitlines(): the shell ends a line at a line feed and nowhere else.
        lines += text.replace("\r\n", "\n").split("\n")
    if any("\0" in line for line in lines):
        raise refused(option, "holds a NUL character")
    return tuple(lines)


def _as_env(option: str, value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise refused(option, f"must be a dict of names and values, not {value!r}")
    return {_variable(option, name): _value_of(f"{option}[{name!r}]", v) for name, v in value.items()}


def _variable(option: str, name: object) -> str:
    if isinstance(name, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        return name
    raise refused(option, f"{name!r} is no name of a variable: letters, digits and _, no digit first")


def _value_of(option: str, value: object) -> str:
    text = plain_text(option, value)
    if "\0" in text:
        raise refused(option, "holds a NUL character")
    return text


def _as_by_value(option: str, value: object) -> tuple[str, ...]:
    modules = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(_module_name(option, module) for module in modules)


def _module_name(option: str, module: object) -> str:
    name = module.__name__ if isinstance(module, ModuleType) else module
    if isinstance(name, str) and all(part.isidentifier() for part in name.split(".")):
        return name
    raise refused(option, f"must be modules or their names, not {module!r}")


def _as_number(option: str, value: object) -> int:
    return as_count(option, value, least=0)


def _as_growth(option: str, value: object) -> dict[str, float]:
    if not isinstance(value, Mapping) or not set(value) <= {"mem", "time"}:
        raise refused(option, f"must be a dict with the keys 'mem' and 'time', not {value!r}")
    for name, factor in value.items():
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not factor >= 1:
            raise refused(f"{option}[{name!r}]", f"must be a number of at least 1, not {factor!r}")
    return {**Options().grow, **{name: float(factor) for name, factor in value.items()}}


def _as_memory(option: str, value: object) -> str:
    return _parsed(option, as_line(option, value), parse_memory)


def _as_limit(option: str, value: object) -> str:
    return _parsed(option, as_time(option, value), parse_time)


def _parsed(option: str, text: str, parse: Callable[[str], float]) -> str:
    try:
        parse(text)
    except ValueError:
        raise refused(option, f"{text!r} is not a value that sbatch knows") from None
    return text


def _as_classes(option: str, value: object) -> tuple[str, ...]:
    classes = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(_class_name(option, each) for each in classes)


def _class_name(option: str, value: object) -> str:
    if isinstance(value, type) and issubclass(value, BaseException):
        return f"{value.__module__}.{value.__qualname__}"
    raise refused(option, f"must be exception classes, not {value!r}")


def _as_flags(option: str, value: object) -> tuple[str, ...]:
    return tuple(read_flag(flag) for flag in as_words(option, value))


def _as_name(option: str, value: object) -> str:
    if not isinstance(value, str):
        raise refused(option, f"must be text, not {value!r}")
    return value


_READERS: Mapping[str, Callable[[str, object], Any]] = {
    "by_value": _as_by_value,
    "container": _as_container,
    "env": _as_env,
    "grow": _as_growth,
    "launcher": as_words,
    "max_mem": _as_memory,
    "max_time": _as_limit,
    "modules": _as_modules,
    "name": _as_name,
    "processes": as_count,
    "python": _as_python,
    "requeues": _as_number,
    "retries": _as_number,
    "retry_exceptions": _as_classes,
    "sbatch": _as_flags,
    "seed": _as_number,
    "setup": _as_setup,
    "threads": as_count,
    "throttle": as_count,
}


def names() -> frozenset[str]:
    """Return the names of all options: sbatch's, and ours."""
    return NAMES | _READERS.keys()


def check_cluster(cluster: str, known: Collection[str] = CLUSTERS) -> str:
    """Return the name of a kind of backend as it is.

    Raises:
        OptionError: there is no such kind; perhaps one of Slurm's own clusters was meant.
    """
    if cluster in known:
        return cluster
    raise OptionError(
        f"cluster={cluster!r} is none of {', '.join(map(repr, known))}. "
        f"One of several Slurm clusters (sbatch -M) is given as clusters={cluster!r}.",
        option="cluster",
    )


def job_name(name: str | None, token: str) -> str:
    """Return the name of a Slurm job: what can be read of *name*, and the token that makes it unique.

    Of the name, what sbatch, squeue and sacct all take is kept: ``[A-Za-z0-9._-]``, at most
    `JOB_NAME_LENGTH` characters with the token.

    Raises:
        ValueError: the token is no such name itself, or leaves no room.
    """
    room = JOB_NAME_LENGTH - len(token) - 1
    if room < 1 or not re.fullmatch(r"[A-Za-z0-9._-]+", token):
        raise ValueError(f"{token!r} makes no job's name")
    letters = unicodedata.normalize("NFKD", name or "").encode("ascii", "ignore").decode()
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", letters).strip("-._")[:room].rstrip("-._")
    return f"{readable or 'slurmlaunch'[:room]}-{token}"
