"""The batch script of an array: a pure function of the `ArrayJob`.

The Slurm backend submits it, and ``ex.script`` shows it. It must not read the environment, a file or a clock. All
options stand in its ``#SBATCH`` lines and none on a command line, so that a person sees exactly the submitted script.
Its steps in a task::

    restore the umask         sbatch has another one, so that Slurm's logs are the user's alone
    ignore USR1 and TERM      both reach the script too, and it must outlive the node
    open the logs             only where others may exchange the run folder; elsewhere Slurm does
    go to the client's working directory
    set the variables, load the modules, run the set-up lines
    start the node, forward USR1 to it, and wait until it has really ended
    write the end mark        an empty file whose name is the `EndMark`; it reports an
                              out-of-memory kill long before Slurm does
    end with the node's exit status

The script makes files in the run folder only after it has gone there, and has seen that it is the one of the
submission: whoever may write to a folder above could put another one, or a link, in its place.

If a step before the node fails, the log names it, and the exit status and the end mark are `Status.SETUP`. The script
uses only commands that are built into bash, because the set-up lines may change PATH.
"""

from __future__ import annotations

import re
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch.backends.container import OF_THE_HOST
from slurmlaunch.caps import OURS, PYTHON_CPU_COUNT
from slurmlaunch.errors import OptionError
from slurmlaunch.runfolder.layout import STARTED_VARIABLE, EndMark, RunFolder, Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from slurmlaunch.backends.base import ArrayJob
    from slurmlaunch.runfolder.files import Location

_TASK = "${slurmlaunch_task}"
_PLAIN = re.compile(r"[A-Za-z0-9_./:=,@%+*^~-]+")
# Joins conditions by OR; Slurm cannot mix it with the AND that our own condition needs.
_EITHER = "?"
_PER_TASK = {"gpus-per-task", "tres-per-task"}


def render(job: ArrayJob) -> str:
    """Return the batch script of an array.

    Raises:
        OptionError: a value cannot stand in a batch script (a line break, say).
    """
    lines = ["#!/bin/bash", *(f"#SBATCH {_sbatch_word(word)}" for word in sbatch_words(job)), "", *_body(job)]
    script = "\n".join(lines) + "\n"
    if "\0" in script:
        raise OptionError("a batch script cannot hold a NUL character")
    return script


def sbatch_words(job: ArrayJob) -> list[str]:
    """Return sbatch's options, as the arguments of a command line."""
    given = {name.replace("_", "-"): value for name, value in job.options.items() if value is not False}
    ours = _our_options(job, given)
    options = {**ours, **{name: value for name, value in given.items() if name not in ours}}
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    return [*words, *job.flags]


def _our_options(job: ArrayJob, given: Mapping[str, str | bool]) -> dict[str, str | bool]:
    throttle = f"%{job.throttle}" if job.throttle else ""
    options: dict[str, str | bool] = {
        "job-name": job.name,
        **({} if job.alone else {"array": f"0-{job.length - 1}{throttle}"}),
        "output": "/dev/null" if job.exposed else _log_pattern(job, "out"),
        "error": "/dev/null" if job.exposed else _log_pattern(job, "err"),
        "open-mode": "append",  # else a requeue would empty the log
        "export": "ALL",
        "dependency": _dependency(job, given.get("dependency")),
    }
    if job.warning is not None:
        options["signal"] = f"B:USR1@{job.warning}"
    if job.may_requeue and "no-requeue" not in given:
        options["requeue"] = True  # a site's default may be otherwise
    if given.keys() & _PER_TASK and not given.keys() & {"gpus", "ntasks"}:
        options["ntasks"] = str(job.ranks)  # sbatch refuses the option without it
    if "cpus-per-gpu" not in given:  # sbatch refuses both together
        options["cpus-per-task"] = str(job.cpus_per_task)
    return options


def _log_pattern(job: ArrayJob, stream: str) -> str:
    folder = str(job.run_folder)
    if "\\" in folder:
        raise OptionError(
            f"Slurm cannot write its logs below a path with a backslash: {folder!r}. Use another folder.",
            option="folder",
        )
    # Slurm must fill in only the last pattern, our own.
    escaped = RunFolder(Path(folder.replace("%", "%%")))
    return str(escaped.log(job.round, job.array, "0" if job.alone else "%a", stream))


def _dependency(job: ArrayJob, users: object) -> str:
    """Return the user's conditions and ours: a second job of this name would wait for the first."""
    ours = ["singleton"]
    if job.after is not None:
        ours.insert(0, f"afterany:{job.after.partition(';')[0]}")
    if not isinstance(users, str) or not users:
        return ",".join(ours)
    if _EITHER in users:
        raise OptionError(
            f"dependency={users!r}: conditions joined by '?' (either) cannot be combined with slurmlaunch's own; "
            "join them by commas (all of them)",
            option="dependency",
        )
    return ",".join([users, *(condition for condition in ours if condition not in users.split(","))])


def _sbatch_word(word: str) -> str:
    """Quote an argument for sbatch's own reader of ``#SBATCH`` lines, which is not a shell's."""
    if re.search(r"[\n\r\0]", word):
        raise OptionError(f"sbatch cannot read a line break: {word!r}", option=_option_name(word))
    if word.startswith("-") and _PLAIN.fullmatch(word):
        return word
    name, equals, value = word.partition("=")
    if not (name.startswith("-") and _PLAIN.fullmatch(name)):
        name, equals, value = "", "", word
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}{equals}"{escaped}"'


def _option_name(word: str) -> str:
    return word.partition("=")[0].lstrip("-").replace("-", "_")


def _body(job: ArrayJob) -> Iterator[str]:
    yield f"umask {job.environment.umask:04o}; unset SLURM_UMASK  # as at the submission; sbatch had 077, for the logs"
    yield "# Not at once: a signal for the task reaches this script too, which has to outlive the node."
    yield "trap '' USR1 TERM"
    yield f"export {STARTED_VARIABLE}; printf -v {STARTED_VARIABLE} '%(%s)T' -1"
    yield ""
    yield from _end(job)
    if job.exposed:
        yield from _logs(job)
    if job.shares:
        yield from _too_late(job)
    yield ""
    yield from _environment(job)
    yield from _python_cpu_count(job)
    yield from _node(job)


_FATAL_NAMES = ("HUP", "INT", "QUIT", "ABRT", "USR2", "ALRM", "XCPU")
_FATAL = " ".join(str(int(signal.Signals[f"SIG{name}"])) for name in _FATAL_NAMES)
"""The signals by which people end a task, apart from those that the script ignores and from SIGKILL."""

_MARK_AT_EXIT = "trap 'slurmlaunch_mark $?' EXIT"


def _end(job: ArrayJob) -> Iterator[str]:
    start = "${SLURM_RESTART_COUNT:-0}"
    # The class that reads the name also writes it, here with the shell's words as its fields.
    ended = RunFolder(job.run_folder).ended.name
    mark = EndMark(_TASK, start, "$1").filename  # type: ignore[arg-type]
    known = f" && [ -e ./{job.recognized_by} ]" if job.recognized_by else ""
    yield f"slurmlaunch_task=$(({job.first_task} + {'0' if job.alone else 'SLURM_ARRAY_TASK_ID'}))"
    yield "slurmlaunch_enter() {  # a folder in the run folder, unless another one is in its place"
    yield f'    builtin cd -P -- {shell_quote(str(job.run_folder))} && [ -O . ]{known} && builtin cd -P -- ./"$1"'
    yield "}"
    yield "slurmlaunch_marked= slurmlaunch_node="
    yield "slurmlaunch_mark() {  # how this start of the task ended"
    yield '    [ -z "$slurmlaunch_marked" ] || return 0; slurmlaunch_marked=1'
    yield f'    (umask 077; set -C; slurmlaunch_enter {ended} && : > ./"{mark}") || :'
    yield "}"
    yield "slurmlaunch_give_up() {"
    yield '    trap - ERR EXIT; echo "slurmlaunch: the task was not started: $1" >&2'
    yield f"    slurmlaunch_mark {Status.SETUP}; exit {Status.SETUP}"
    yield "}"
    yield "slurmlaunch_killed() {  # by a signal: the node ends in good order, and the mark names the signal"
    yield '    trap "" "$1"; [ -z "$slurmlaunch_node" ] || { kill "$slurmlaunch_node"; wait "$slurmlaunch_node"; } || :'
    yield '    slurmlaunch_mark $((128 + $1)); trap - ERR EXIT "$1"; kill -"$1" $$'
    yield "} 2>/dev/null"
    yield f"for slurmlaunch_signal in {_FATAL}; do"
    yield '    trap "slurmlaunch_killed $slurmlaunch_signal" "$slurmlaunch_signal"'
    yield "done"
    yield _MARK_AT_EXIT


def _logs(job: ArrayJob) -> Iterator[str]:
    folder = RunFolder(job.run_folder)
    element = "0" if job.alone else "$SLURM_ARRAY_TASK_ID"
    out, err = (folder.log(job.round, job.array, element, stream).name for stream in ("out", "err"))
    yield ""
    yield "# Others may exchange a folder above the logs, so Slurm does not open them."
    yield "slurmlaunch_here=$PWD"
    enter = f"slurmlaunch_enter {folder.logs.name} && umask 077"
    yield f'{enter} && exec >>./"{out}" 2>>./"{err}" || exit {Status.EXCHANGED}'
    yield f'umask {job.environment.umask:04o}; builtin cd -- "$slurmlaunch_here"'


def _environment(job: ArrayJob) -> Iterator[str]:
    if job.container is not None:
        yield f"unset {' '.join(OF_THE_HOST)}"
    if job.cwd is not None:
        yield f"cd -- {shell_quote(str(job.cwd))} || slurmlaunch_give_up 'its working directory is not there'"
    for name, value in job.env.items():
        yield f"export {name}={shell_quote(value)}"
    if job.modules:
        yield from _MODULE_COMMAND
    for module in job.modules:
        word = shell_quote(module)
        yield f"module load {word} || slurmlaunch_give_up {shell_quote(f'module load {word} failed')}"
    if job.setup:
        yield from _SETUP_BEGINS
        yield from job.setup
        yield ""  # a backslash that ends the last line takes this one
        yield f"trap - ERR; case $(trap -p EXIT) in *slurmlaunch_give_up*) {_MARK_AT_EXIT};; esac  # else it is theirs"
    yield ""


# A batch shell reads no profile, so it has `module` only if the environment brought it.
_MODULE_COMMAND = (
    "if ! declare -F module >/dev/null; then",
    "    for slurmlaunch_file in /etc/profile.d/modules.sh /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh \\",
    "        /usr/share/modules/init/bash /usr/share/lmod/lmod/init/bash; do",
    '        [ -r "$slurmlaunch_file" ] || continue',
    '        . "$slurmlaunch_file"',
    "        declare -F module >/dev/null && break",
    "    done",
    "fi",
    "declare -F module >/dev/null || slurmlaunch_give_up 'there is no module command on this machine'",
)

# Lines may belong together (an if, a loop), so each is not tested on its own. A failure inside
# a file that they source is left to that file.
_SETUP_BEGINS = (
    "slurmlaunch_failed() {",
    '    [ "$3" -gt 1 ] || slurmlaunch_give_up "set-up failed with status $1: $2"',
    "}",
    """trap 'slurmlaunch_failed $? "$BASH_COMMAND" ${#BASH_SOURCE[@]}' ERR""",
    """trap 'slurmlaunch_give_up "the set-up lines exited with status $?"' EXIT""",
)


def _python_cpu_count(job: ArrayJob) -> Iterator[str]:
    yield f"if [ -z ${{{PYTHON_CPU_COUNT}+set}} ]; then"
    yield f"    export {PYTHON_CPU_COUNT}={job.threads} {OURS}=${{{OURS}:+${OURS}:}}{PYTHON_CPU_COUNT}"
    yield "fi"


def _node(job: ArrayJob) -> Iterator[str]:
    words = [f'"{_TASK}"' if word == _TASK else shell_quote(word) for word in job.command(_TASK)]
    yield ""
    yield from _OUT_OF_MEMORY
    yield "slurmlaunch_count_ooms; slurmlaunch_before=$slurmlaunch_ooms"
    yield "# TERM ends the node as long as it has not said otherwise; USR1 does not, it may come early."
    yield f"(trap - TERM; exec {' '.join(words)}) &"
    yield "slurmlaunch_node=$!"
    yield """trap 'kill -USR1 "$slurmlaunch_node" 2>/dev/null' USR1"""
    yield "# A signal ends the wait, but not the node: then wait again. Once the node has ended bash remembers its"
    yield "# status, though the next wait may still answer to the last signal, and -1 says that it was missed."
    yield 'while wait "$slurmlaunch_node"; kill -0 "$slurmlaunch_node" 2>/dev/null; do :; done'
    yield "trap '' USR1"
    yield 'wait "$slurmlaunch_node" || :'
    yield "slurmlaunch_status=0"
    yield 'wait "$slurmlaunch_node" || slurmlaunch_status=$?'
    yield '[ "$slurmlaunch_status" -ge 0 ] || slurmlaunch_status=255'
    if job.container is not None:
        yield from _never_started(job)
    if job.shares and "dependency" not in job.options:
        yield from _surplus(job)
    if job.may_requeue:
        yield from _requeue(job)
    yield f'if [ "$slurmlaunch_status" -eq {_KILLED} ]; then'
    yield f'    slurmlaunch_count_ooms; [ "$slurmlaunch_ooms" = "$slurmlaunch_before" ] || slurmlaunch_mark {_OOM}'
    yield "fi"
    yield 'slurmlaunch_mark "$slurmlaunch_status"'
    yield 'exit "$slurmlaunch_status"'


_KILLED, _OOM = 137, int(Status.OUT_OF_MEMORY)

# As `slurmlaunch.node.system` reads it, which says where it stands.
_OUT_OF_MEMORY = (
    "slurmlaunch_count_ooms() {  # how many processes of this task the kernel has ended for want of memory",
    "    local line file name number; slurmlaunch_ooms=0",
    "    while read -r line; do",
    "        case $line in",
    "            0::*) file=/sys/fs/cgroup${line#0::}/memory.events ;;",
    "            *:memory:*) file=/sys/fs/cgroup/memory${line#*:memory:}/memory.oom_control ;;",
    "            *) continue ;;",
    "        esac",
    '        [ -r "$file" ] || continue',
    '        while read -r name number; do [ "$name" != oom_kill ] || slurmlaunch_ooms=$number; done < "$file"',
    "    done < /proc/self/cgroup",
    "} 2>/dev/null",
)


def _never_started(job: ArrayJob) -> Iterator[str]:
    first = f'(slurmlaunch_enter {RunFolder(job.run_folder).outcomes.name} && [ -e ./"$slurmlaunch_task.0" ])'
    yield "# A container that did not come up, or has no slurmlaunch, may end as a node does that ran its items."
    yield f'[ "$slurmlaunch_status" -gt 1 ] || {first} || slurmlaunch_status={Status.NODE}'


def _too_late(job: ArrayJob) -> Iterator[str]:
    surplus = RunFolder(job.run_folder).surplus(job.round, job.array)
    none_left = f"(slurmlaunch_enter {_folder_of(surplus)} && [ -e ./{surplus.name} ])"
    began = f'(slurmlaunch_enter {RunFolder(job.run_folder).outcomes.name} && [ -e ./"$slurmlaunch_task.0" ])'
    yield "# A task that has not begun before all items were taken loads no module and starts no Python."
    yield f'if [ "${{SLURM_RESTART_COUNT:-0}}" -eq 0 ] && {none_left} && ! {began}; then'
    yield f"    slurmlaunch_mark {Status.VALUES}; exit {Status.VALUES}"
    yield "fi"


def _surplus(job: ArrayJob) -> Iterator[str]:
    surplus = RunFolder(job.run_folder).surplus(job.round, job.array)
    own = f'./{surplus.name}."$slurmlaunch_task"'
    yield "# The elements that are too late, by their numbers: a requeued one waits in the queue, too, and has items."
    enter = f"slurmlaunch_enter {_folder_of(surplus)}"
    yield f'slurmlaunch_late=$({enter} && [ -s {own} ] && echo "$(< {own})" && : >| {own})'
    yield "# Where nodes have no scancel, they begin, and end at once."
    yield 'if [ -n "$slurmlaunch_late" ] && command -v scancel >/dev/null; then'
    yield '    scancel "${SLURM_ARRAY_JOB_ID}_[$slurmlaunch_late]" || :'
    yield "fi"


def _folder_of(file: Location) -> str:
    return file.inside.rpartition("/")[0]


def _requeue(job: ArrayJob) -> Iterator[str]:
    # Not by the node, which may run in a container without scontrol.
    element = '"$SLURM_JOB_ID"' if job.alone else '"${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"'
    yield f'if [ "$slurmlaunch_status" -eq {Status.REQUEUE} ]; then'
    yield '    slurmlaunch_mark "$slurmlaunch_status"  # before the requeue, which ends this script'
    yield f"    scontrol requeue {element} || {{ slurmlaunch_marked=; slurmlaunch_status={Status.NOT_REQUEUED}; }}"
    yield "fi"


def shell_quote(text: str) -> str:
    """Quote for bash, on one line, so that no value begins a line of the script.

    `shlex.quote` keeps line breaks, and sbatch reads ``#PBS`` and ``#BSUB`` lines wherever they stand.
    """
    if re.search(r"[\n\r]", text):
        escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
        return f"$'{escaped}'"
    return shlex.quote(text)
