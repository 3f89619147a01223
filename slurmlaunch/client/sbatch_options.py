"""sbatch's options: their names, how values are read, and the advice for names that are no option.

`options` and the command line use it; the readers of values serve our own options, too. It knows no run. The tables
hold the long options of Slurm 22.05 to 26.05, from sbatch(1) and Slurm's ``src/common/slurm_opt.c``. An option of a
newer Slurm or of a plugin is given as ``sbatch=["--flag=value"]`` and needs no entry here.
"""

from __future__ import annotations

import math
import operator
import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from slurmlaunch.backends.base import parse_memory, parse_time
from slurmlaunch.backends.sbatch_tables import EXCLUSIVE, SHORT
from slurmlaunch.errors import OptionError, UnknownOption

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

# Bare flags.
FLAGS = frozenset({
    "consolidate_segments", "contiguous", "hold", "no_requeue", "overcommit", "oversubscribe", "reboot", "spread_job",
    "spread_segments", "stepmgr", "use_min_nodes",
})  # fmt: skip

# Options with an optional value.
OPTIONAL = frozenset({
    "exclusive", "get_user_env", "nice", "no_kill", "oom_kill_step", "propagate", "requeue", "resv_ports",
})  # fmt: skip

VALUED = frozenset({
    "account", "acctg_freq", "batch", "bb", "bbf", "begin", "cluster_constraint", "clusters", "comment",
    "constraint", "container_id", "container_type", "context", "core_spec", "cores_per_socket", "cpu_freq",
    "cpus_per_gpu", "cpus_per_task", "deadline", "delay_boot", "dependency", "distribution", "exclude",
    "extra", "extra_node_info", "gid", "gpu_bind", "gpu_freq", "gpus", "gpus_per_node", "gpus_per_socket",
    "gpus_per_task", "gres", "gres_flags", "hint", "kill_on_invalid_dep", "licenses", "mail_type",
    "mail_user", "mcs_label", "mem", "mem_bind", "mem_per_cpu", "mem_per_gpu", "mincpus", "network",
    "nodefile", "nodelist", "nodes", "ntasks", "ntasks_per_core", "ntasks_per_gpu", "ntasks_per_node",
    "ntasks_per_socket", "ntasks_per_tres", "partition", "power", "prefer", "priority", "qos", "reservation",
    "segment", "sockets_per_node", "switches", "thread_spec", "threads_per_core", "time", "time_min", "tmp",
    "tres_bind", "tres_per_task", "uid", "wait_all_nodes", "wckey",
})  # fmt: skip

NAMES = FLAGS | OPTIONAL | VALUED

_SHORT_FLAGS = "HOQVWhsv"

# The sentence of an error for a name that is no option, and the options to suggest.
_Advice = tuple[str, tuple[str, ...]]
_LOGS = "logs are in the run folder: read them with future.stdout(), future.stderr() and futures.logs(task)"
_SCRIPT = "the batch script is written for you: shell lines before Python go into setup=[...]"
_ENVIRONMENT = "tasks have the client's environment: add to it with env={...}"
_OUTPUT = "slurmlaunch reads the output of sbatch: ask for this in a shell"

OURS_TO_SET: Mapping[str, _Advice] = {
    "array": ("the array follows from the call: map_array(..., tasks=..., throttle=...)", ("tasks", "throttle")),
    "chdir": ("tasks run in the client's working directory: start the client there", ()),
    **dict.fromkeys(("error", "output"), (_LOGS, ())),
    **dict.fromkeys(("export", "export_file"), (_ENVIRONMENT, ("env",))),
    "ignore_pbs": (_SCRIPT, ()),
    "input": ("tasks have no standard input: pass the data to the function", ()),
    "job_name": ("give name=...; a unique token is added to it", ("name",)),
    "open_mode": (_LOGS + " (a requeued task appends)", ()),
    "parsable": ("the job id is read for you: future.job_id", ()),
    "signal": ("the signal before the time limit is slurmlaunch's own", ()),
    "test_only": ("ex.script(...) shows what would be submitted, without submitting", ()),
    "wait": ("calls return once sbatch has accepted; wait with .results() or future.result()", ()),
    "wrap": (_SCRIPT, ("setup",)),
    **dict.fromkeys(("autocomplete", "help", "quiet", "usage", "verbose", "version"), (_OUTPUT, ())),
}

# What the number of processes is called for other pools, which tools pass to any executor.
_OF_A_POOL = ("concurrency", "jobs", "max_jobs", "max_workers", "n_jobs", "n_workers", "num_workers", "workers")
_AT_ONCE = (
    "throttle= limits how many tasks run at once, map_array(..., tasks=...) cuts the items into so many tasks, and "
    "processes= is how many items run side by side in a task"
)
OF_A_CALL = ("chunksize", "cost", "kwargs", "schedule", "tasks")
_CALL = "this belongs to the call, as in ex.map_array(fn, items, {}=...)"
_EXECUTOR = "a new Executor takes this as a parameter; ex.options(...) keeps it"
_ELSEWHERE: Mapping[str, _Advice] = {
    **{name: (_CALL.format(name), ()) for name in OF_A_CALL},
    **dict.fromkeys(_OF_A_POOL, (_AT_ONCE, ("throttle", "tasks", "processes"))),
    **dict.fromkeys(
        ("fn", "func", "function"), ("the function is given first and without a name, as in retry(fn)", ())
    ),
    "cluster": (_EXECUTOR + "; Slurm's own clusters are given as clusters=", ("clusters",)),
    "folder": (_EXECUTOR, ()),
    "profile": ("this names a profile of the configuration; sbatch's own goes as sbatch=['--profile=...']", ()),
    "timeout": ("a timeout belongs to the wait: .results(timeout=...), future.result(timeout=...)", ()),
}

# Names of other launchers that difflib finds too far from ours.
_HABITS = {
    "account": ("project",),
    "cpus_per_task": ("cores", "cpu", "cpus", "n_cpus"),
    "env": ("environment",),
    "mem": ("mem_gb", "memory"),
    "modules": ("modules_to_load",),
    "ntasks_per_node": ("tasks_per_node",),
    "partition": ("queue",),
    "sbatch": ("additional_parameters",),
    "throttle": ("array_parallelism",),
    "time": ("timeout_min", "walltime"),
}

# Options that sbatch=[...] must not contain, because slurmlaunch needs their values: the caps follow from the CPUs,
# the ranks from tasks and nodes, later queries go to the clusters, and our dependency is added to the user's.
_MUST_BE_KNOWN = frozenset({"clusters", "cpus_per_task", "dependency", "nodes", "ntasks", "ntasks_per_node"})


# Reading values. Each function takes an option's name and its value, and raises `OptionError` if the value is wrong.

_BREAKS = {"\n": "a line break", "\r": "a carriage return", "\0": "a NUL character"}
_MINUTE = 60
_DAY = 24 * 60 * _MINUTE


def refused(option: str, reason: str) -> OptionError:
    """Return the error for an option's value."""
    return OptionError(f"{option}: {reason}", option=option)


def as_count(option: str, value: object, *, least: int = 1) -> int:
    """Read a whole number of at least *least*, a NumPy integer or a numeral included."""
    if isinstance(value, str) and value.isascii() and value.strip().isdigit():
        value = int(value)
    number = _whole(value)
    if number is None:
        raise refused(option, f"must be a whole number, not {value!r}")
    if number < least:
        raise refused(option, f"must be at least {least}, not {number}")
    return number


def _whole(value: Any) -> int | None:
    # To Python, True is an integer; as a count it is a mistake.
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def as_line(option: str, value: object) -> str:
    """Read a text, number or path as one line."""
    if isinstance(value, dict):
        raise refused(option, "a dict has no meaning here: write the value as sbatch does")
    text = plain_text(option, value)
    if not text:
        raise refused(option, "is empty: leave it out, or give None")
    return one_line(option, text)


def plain_text(option: str, value: object) -> str:
    """Read a text, number or path, with any characters."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(float(value))  # the repr of a NumPy float contains its type
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    number = _whole(value)
    if number is None:
        raise refused(option, f"must be text or a number, not {value!r}")
    return str(number)


def one_line(option: str, text: str) -> str:
    """Return the text itself, which must hold no line break and no NUL."""
    for character, word in _BREAKS.items():
        if character in text:
            raise refused(option, f"holds {word}: {text!r}")
    return text


_TIMES = "give minutes (90), '01:30:00', '1-12:00:00' (days first), '90m', '1h30m', or a datetime.timedelta"
_UNIT_OF_TIME = re.compile(
    r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[wdhms])"
    r"(?:(?<=w)eeks?|(?<=d)ays?|(?<=h)(?:ours?|rs?)|(?<=m)in(?:ute)?s?|(?<=s)ec(?:ond)?s?)?(?:\s*(?:,|and\b))?\s*",
)
_DAYS_AND_CLOCK = re.compile(r"([0-9]+)\s*days?,?\s+(?=[0-9]+:)")  # as Python prints a timedelta
_NAME_OF_UNIT = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


def as_time(option: str, value: object) -> str:
    """Read a duration: a `timedelta`, whole minutes, sbatch's own text for one, or numbers with units (``1h30m``)."""
    if isinstance(value, timedelta):
        return _duration(option, value)
    if isinstance(value, float) and not value.is_integer():
        # sbatch reads "0.5" as 0, and 0 as no limit.
        raise refused(option, f"minutes are whole: give datetime.timedelta(minutes={float(value)!r})")
    wrong = f"{value!r} is no time: {_TIMES}"
    text = _DAYS_AND_CLOCK.sub(r"\1-", _amount(option, value, wrong))
    parts = list(_UNIT_OF_TIME.finditer(text.lower()))
    if parts and "".join(part[0] for part in parts) == text.lower():
        amounts = [timedelta(**{_NAME_OF_UNIT[part["unit"]]: float(part["number"])}) for part in parts]
        return _duration(option, sum(amounts, timedelta()))
    return _checked(option, text, parse_time, wrong)


_AMOUNTS = "give megabytes (4000), or a text with a unit, as '4G', '1.5G' or '512M'"
_UNIT_OF_MEMORY = re.compile(
    r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[kmgtp]?)(?P<bytes>i?b|(?<=[kmgtp])i|(?:ilo|ega|iga|era|eta|ibi|ebi)?bytes?)?"
)


def as_memory(option: str, value: object) -> str:
    """Read an amount of memory: whole megabytes, or sbatch's own text, also with a point, a blank or ``B``."""
    wrong = f"{value!r} is no amount of memory: {_AMOUNTS}"
    text = _amount(option, value, wrong)
    found = _UNIT_OF_MEMORY.fullmatch(text.lower())
    if found is None or ("." in text and not (found["unit"] or found["bytes"])):
        raise refused(option, wrong)
    if "." not in text and not found["bytes"] and " " not in text and found["unit"] != "p":
        return _checked(option, text, parse_memory, wrong)
    unit = "kmgtp".find(found["unit"] or "-")  # -1: bytes
    from decimal import Decimal

    kibibytes = Decimal(found["number"]) * 1024**unit if unit >= 0 else Decimal(found["number"]) / 1024
    whole = math.ceil(kibibytes)
    for letter in "KMG":
        if whole % 1024 or not whole:
            return f"{whole}{letter}"
        whole //= 1024
    return f"{whole}T"


def _amount(option: str, value: object, wrong: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if _whole(value) is None and not isinstance(value, (str, float)):
        raise refused(option, wrong)
    return as_line(option, value).strip()


def _checked(option: str, text: str, parse: Callable[[str], float], wrong: str) -> str:
    try:
        parse(text if text.isascii() else "")
    except ValueError:
        raise refused(option, wrong) from None
    return text


def _duration(option: str, value: timedelta) -> str:
    seconds = -(-value // timedelta(seconds=1))  # rounded up, since sbatch reads 0 as no limit
    if seconds < 1:
        raise refused(option, f"must be longer than nothing, not {value}")
    days, rest = divmod(seconds, _DAY)
    minutes, second = divmod(rest, _MINUTE)
    hour, minute = divmod(minutes, 60)
    return f"{days}-{hour:02}:{minute:02}:{second:02}"


def as_words(option: str, value: object) -> tuple[str, ...]:
    """Read a list of texts; one text or path stands for a list of one."""
    words = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(as_line(option, word) for word in words)


def read_option(name: str, value: object) -> str | bool | None:
    """Return the value that sbatch gets for an option: text, True for a bare flag, or None if it gets none.

    *name* is one of `NAMES`. None, False and an empty list leave the option out.
    """
    if value is None or value is False or (isinstance(value, (list, tuple)) and not value):
        return None
    if value is True:
        if name in VALUED:
            raise refused(name, "needs a value, True is for flags")
        return True
    if name in FLAGS:
        raise refused(name, f"is a flag: give True or False, not {value!r}")
    return _READERS.get(name, _as_list)(name, value)


def _as_list(option: str, value: object) -> str:
    return ",".join(as_words(option, value))


def _as_count(option: str, value: object) -> str:
    return str(as_count(option, value))


def _as_dependency(option: str, value: object) -> str:
    text = _as_list(option, value)
    if "?" in text:
        # "a?b" means either; our own dependency, which must always hold, cannot be joined to it.
        raise refused(option, "alternatives ('?') cannot be combined with slurmlaunch's own dependency; use ','")
    return text


_READERS: Mapping[str, Callable[[str, object], str]] = {
    "cpus_per_task": _as_count,
    "dependency": _as_dependency,
    "mem": as_memory,
    "mem_per_cpu": as_memory,
    "mem_per_gpu": as_memory,
    "ntasks": _as_count,
    "ntasks_per_node": _as_count,
    "time": as_time,
    "time_min": as_time,
    "tmp": as_memory,
}


def alternatives(name: str) -> set[str]:
    """Return the options that sbatch does not take beside one: ``mem_per_cpu`` and ``mem_per_gpu`` for ``mem``."""
    word = name.replace("_", "-")
    return {other.replace("-", "_") for group in EXCLUSIVE if word in group for other in group - {word}}


def read_flag(flag: str) -> str:
    """Return a flag for sbatch unchanged; refuse an option that slurmlaunch sets, or whose value it needs."""
    one_line("sbatch", flag)
    if not re.match(r"--?[A-Za-z]", flag):
        raise refused("sbatch", f"every entry is one flag, as '--flag=value', not {flag!r}")
    for name in _options_of(flag):
        if name in OURS_TO_SET:
            raise unknown_option(name, ())
        if name in _MUST_BE_KNOWN:
            raise refused("sbatch", f"give {name}=... instead of {flag!r}: slurmlaunch must know its value")
    return flag


def _options_of(flag: str) -> list[str]:
    if not flag.startswith("--"):
        # "-HW" is two flags; any other letter is followed by its value.
        value = flag[1:].lstrip(_SHORT_FLAGS)[1:]
        return [SHORT.get(letter, letter) for letter in flag[1:].removesuffix(value)]
    name = flag[2:].partition("=")[0].replace("-", "_")
    if name == "cluster":  # an undocumented synonym
        name = "clusters"
    known = NAMES | OURS_TO_SET.keys() | {"container"}
    # getopt accepts a unique beginning of a name.
    meant = [name] if name in known else [full for full in known if full.startswith(name)]
    return meant if len(meant) == 1 else []


def unknown_option(name: str, ours: Collection[str]) -> UnknownOption:
    """Return the error for a name that is no option, with suggestions from sbatch's options and *ours*."""
    word = _snake_case(name)
    advice = OURS_TO_SET.get(word) or _ELSEWHERE.get(word)
    if advice:
        sentence, suggestions = advice
        return UnknownOption(f"{name} cannot be set: {sentence}", option=name, suggestions=suggestions)
    suggestions = _nearest(word, sorted({*NAMES, *ours}))
    meant = f"; did you mean {' or '.join(suggestions)}?" if suggestions else "."
    return UnknownOption(
        f"{name!r} is an option neither of sbatch nor of slurmlaunch{meant} "
        "A flag of a plugin or of a newer Slurm goes as sbatch=['--flag=value'].",
        option=name,
        suggestions=suggestions,
    )


def _snake_case(name: str) -> str:
    if name in SHORT:
        return SHORT[name]
    word = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip("-")).replace("-", "_").lower()
    for prefix in ("slurm_", "sbatch_", "slurmlaunch_"):  # of submitit, and of environment variables
        word = word.removeprefix(prefix)
    return word


def _nearest(word: str, names: Collection[str]) -> tuple[str, ...]:
    if word in names:
        return (word,)
    exact = [name for name, habits in _HABITS.items() if word in habits]
    import difflib  # here, since only an unknown name needs it

    close = difflib.get_close_matches(word, names)
    part_of = [name for name in names if word in name.split("_")]
    return tuple(dict.fromkeys(exact + close + part_of))[:3]
