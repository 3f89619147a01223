"""`Command`: a shell command as a function, ``ex.map_array(Command("python process.py {}"), files)``.

Users write it, ``slurmlaunch map`` makes one, and tasks call it; it knows neither client nor run folder.
The placeholders are GNU parallel's (see parallel(1)); without one, the arguments come last, as with xargs(1):

=========  =======================================================
``{}``     the argument; with several, all of them
``{.}``    without its extension
``{/}``    without its folder
``{//}``   its folder
``{/.}``   without folder and extension
``{2}``    the second argument, and so ``{2.}``, ``{2/}``, ...
``{lr}``   the keyword argument ``lr``, if there is one
``{{}}``   ``{}`` itself, and so for each of these
=========  =======================================================

All other braces, and those after a ``$`` or a backslash, stay as they are: they are the shell's, or awk's.

A value never becomes part of the text that the shell reads. The shell gets it in a variable, and the placeholder
becomes ``${slurmlaunch_1+"$slurmlaunch_1"}``: dash, bash and POSIX take it for one word outside quotes, and expand
it as it is within double quotes, substitutions and here-documents. Positional parameters would do the same, but
within a function of the text they are the function's own. Between single quotes the shell expands nothing, and the
reference must close and open them: the shell itself says which placeholders these are, as it reads the text.

A function may be killed at any moment: its item was cancelled, or its task ended. Its program must not
survive it, unseen by the scheduler. So each program runs in a process group whose first process is a guard:
a shell that waits until a pipe that this process holds is closed, and then kills the group. The kernel
closes the pipe however this process ends.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import selectors
import shlex
import signal
import subprocess
import threading
import time
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from slurmlaunch.context import is_in_task
from slurmlaunch.errors import SIGNALLED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

_PLACEHOLDER = re.compile(
    r"\{\{(?P<itself>\d*(?://|/\.|/|\.)?|[A-Za-z_]\w*)\}\}"
    r"|(?<![$\\])\{(?P<number>\d+)?(?P<part>//|/\.|/|\.)?\}"
    r"|(?<![$\\])\{(?P<name>[A-Za-z_]\w*)\}"
)

_SHELL = "/bin/sh"
# A word for the shell, except between single quotes: it closes them, and no shell reads what then stands outside.
_ONLY_OUTSIDE_SINGLE_QUOTES = "';;;;'"

_NOTED_LINES = 10

_PIECE = 1 << 16
"""The bytes that are read at once."""

_GUARD = "trap '' HUP INT TERM USR1 USR2; read -r _; kill -KILL 0"

# A death by SIGTERM stays unreported for so long: the same signal may be about to reach this process.
_SIGTERM_GRACE_SECONDS = 1.0
# More than enough for a supervisor that received SIGTERM to kill its processes.
_SUPERVISOR_END_SECONDS = 10.0
# After so long a program that has ended counts as ended, even if a child of it holds its output open.
_DRAIN_SECONDS = 1.0


class Command:
    """A function that runs a command, with its arguments in place of ``{}``.

    A text is run by ``/bin/sh``, for which an argument is a value and never code, with or without quotes
    around its place: ``"cat '{}' | wc -l"`` works for any file name. A list of words runs without a shell.
    The command has the thread caps of the process that runs it and no standard input; it and all its
    children are killed when the item is cancelled or its task ends.

    A call returns a `subprocess.CompletedProcess` with ``args`` (the command as a person would type it),
    ``returncode``, and ``stdout`` and ``stderr`` as text; bytes that are not UTF-8 are replaced. In a task the
    output is also the item's (`Future.stdout`, the task's log), as it comes. As a result it travels like any other:
    a program that prints a lot should write to a file of its own (``> {.}.log``).

    Args:
        command: a text, or a list of words.
        check: raise if the exit status is not 0.
        timeout: seconds after which the command is killed, or None.
        capture: return the output; if False it goes to the task's log alone.
        log: in a task, write the output to its log, too; False for a program that prints so much that once is enough.

    Raises:
        TypeError: *command* is neither a text nor a list of words.
        ValueError: it is empty or contains ``{0}``, or *timeout* is not above 0.
    """

    log = True
    """Commands that an earlier version has pickled have none of their own."""

    def __init__(
        self,
        command: str | Sequence[str | os.PathLike[str]],
        *,
        check: bool = True,
        timeout: float | None = None,
        capture: bool = True,
        log: bool = True,
    ) -> None:
        self._words = command if isinstance(command, str) else [_word(word) for word in command]
        text = self._words if isinstance(self._words, str) else "\n".join(self._words)
        if not text.strip():
            raise ValueError("the command is empty: give a text for the shell, or a list of words")
        for found in _PLACEHOLDER.finditer(text):
            if found["number"] == "0":
                raise ValueError(f"{found[0]} stands for no argument, they are counted from 1: write {{}} or {{1}}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be a number of seconds above 0, or None, not {timeout!r}")
        self.check, self.timeout, self.capture, self.log = check, timeout, capture, log
        self.__qualname__ = _name(self._words)

    def __repr__(self) -> str:
        defaults = {"check": True, "timeout": None, "capture": True, "log": True}
        given = {name: getattr(self, name) for name in defaults}
        shown = "".join(f", {name}={value!r}" for name, value in given.items() if value != defaults[name])
        return f"Command({self._words!r}{shown})"

    def __call__(self, /, *args: Any, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        """Run the command with these arguments.

        Raises:
            subprocess.CalledProcessError: the exit status is not 0; it carries the output.
            subprocess.TimeoutExpired: the command took longer than *timeout*.
            OSError: the program cannot be started.
            TypeError: an argument has no placeholder, or a placeholder has no argument.
        """
        shown, variables = self.fill(*args, **kwargs), _Variables()
        command = self._fill(args, kwargs, variables.reference)
        words = [_SHELL, "-c", "--", command] if isinstance(command, str) else command
        copied = self.log and is_in_task()
        done = _run(words, variables, self.timeout, shown=shown, capture=self.capture, copied=copied)
        if self.check and done.returncode:
            error = subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
            last = done.stderr.rstrip().splitlines()[-_NOTED_LINES:]
            if last:
                error.add_note("\n".join(["its standard error ends with:", *last]))
            raise error
        return done

    def fill(self, /, *args: Any, **kwargs: Any) -> str | list[str]:
        """Return the command with these arguments, as a person would type it; raise as a call does."""
        return self._fill(args, kwargs, shlex.quote)

    def _fill(
        self, args: Sequence[object], kwargs: Mapping[str, object], write: Callable[[str], str]
    ) -> str | list[str]:
        arguments = _Arguments([_word(arg) for arg in args], {name: _word(value) for name, value in kwargs.items()})
        if isinstance(self._words, str):
            filled = [_fill_text(self._words, arguments, write, _in_single_quotes(self._words))]
        else:
            filled = [word for template in self._words for word in _fill_word(template, arguments)]
        unplaced = arguments.named.keys() - arguments.placed
        if unplaced:
            raise TypeError(f"{self!r} has no place for {', '.join(sorted(unplaced))}: write {{{min(unplaced)}}} in it")
        rest = [] if None in arguments.placed else arguments.given
        if isinstance(self._words, str):
            return " ".join([*filled, *map(write, rest)])
        return [*filled, *rest]


class _Arguments:
    """The arguments of a call, and the names of those that a placeholder has used; None is a positional one's."""

    def __init__(self, given: Sequence[str], named: Mapping[str, str]) -> None:
        self.given, self.named = given, named
        self.placed: set[str | None] = set()

    def of(self, placeholder: re.Match[str]) -> list[str] | str:
        """Return the words for a placeholder, or the text that stays in its place if it is none after all."""
        if placeholder["itself"] is not None:
            return placeholder[0][1:-1]
        name = placeholder["name"]
        if name is not None and name not in self.named:
            return placeholder[0]
        self.placed.add(name)
        if name is not None:
            return [self.named[name]]
        number = int(placeholder["number"] or 0)
        if number > len(self.given):
            raise TypeError(
                f"there is no argument {number} for {placeholder[0]}, there are {len(self.given)}; "
                f"to keep it as it is, write {{{placeholder[0]}}}"
            )
        chosen = [self.given[number - 1]] if number else self.given
        return [_PARTS[placeholder["part"]](each) for each in chosen]


_PARTS: Mapping[str | None, Callable[[str], str]] = {
    None: str,
    ".": lambda argument: os.path.splitext(argument)[0],  # noqa: PTH122  (a Path would drop a leading "./")
    "/": os.path.basename,
    "//": lambda argument: os.path.dirname(argument) or ".",  # noqa: PTH120
    "/.": lambda argument: PurePath(argument).stem,
}


def _fill_word(template: str, arguments: _Arguments) -> list[str]:
    """Return the words that replace one word of a list."""
    whole = _PLACEHOLDER.fullmatch(template)
    if whole:
        words = arguments.of(whole)
        return [words] if isinstance(words, str) else words

    return [_fill_text(template, arguments, str)]


def _fill_text(
    template: str, arguments: _Arguments, write: Callable[[str], str], single_quoted: Collection[int] = ()
) -> str:
    """Return the template with each value as *write* writes it; *single_quoted* are positions of placeholders."""

    def fill(found: re.Match[str]) -> str:
        values = arguments.of(found)
        if isinstance(values, str):
            return values
        written = [write(value) for value in values]
        if found.start() in single_quoted and written != values:
            return " ".join(f"'{word}'" for word in written)
        return " ".join(written)

    return _PLACEHOLDER.sub(fill, template)


class _Variables(dict[str, str]):
    """The shell's variables for the values of one call, by name."""

    def reference(self, value: str) -> str:
        name = f"slurmlaunch_{len(self) + 1}"
        self[name] = value
        return f'${{{name}+"${name}"}}'


@functools.lru_cache
def _in_single_quotes(text: str) -> frozenset[int]:
    """Return the positions of the placeholders between single quotes."""
    if "'" not in text or not _is_read(text):
        return frozenset()
    return frozenset(
        found.start()
        for found in _PLACEHOLDER.finditer(text)
        if not _is_read(text[: found.start()] + _ONLY_OUTSIDE_SINGLE_QUOTES + text[found.end() :])
    )


def _is_read(text: str) -> bool:
    """Return True if the shell can read a text, which it does not run."""
    return subprocess.run([_SHELL, "-n", "-c", "--", text], check=False, capture_output=True).returncode == 0


def _word(value: object) -> str:
    if isinstance(value, (str, bytes, os.PathLike)):
        return os.fsdecode(value)
    return str(value)


def _name(words: str | Sequence[str]) -> str:
    """Return the name of the program, or of the script that an interpreter runs."""
    first, second, *_ = [*(words.split() if isinstance(words, str) else words)[:2], "", ""]
    script = second if re.search(r"\.\w+$", second) and not second.startswith("-") else first
    return PurePath(script).stem or "command"


def _run(
    words: Sequence[str],
    variables: Mapping[str, str],
    timeout: float | None,
    *,
    shown: str | list[str],
    capture: bool,
    copied: bool,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, and kill the processes that it leaves running; results and errors say *shown*."""
    pipe = subprocess.PIPE if capture else None
    with _termination() as wait_for_own_end, _process_group() as group:
        program = subprocess.Popen(
            words,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            process_group=group,
        )
        program.args = shown
        with program:
            try:
                output = _output_of(program, group, timeout, copied=copied)
            except BaseException:
                os.killpg(group, signal.SIGKILL)  # else leaving the block would wait for it
                raise
        wait_for_own_end(program.returncode)
    return subprocess.CompletedProcess(shown, program.returncode, _decoded(output.of(1)), _decoded(output.of(2)))


def _output_of(program: subprocess.Popen[bytes], group: int, timeout: float | None, *, copied: bool) -> _Output:
    """Return the program's output up to its end, even if a child of it holds the pipe open."""
    until = math.inf if timeout is None else time.monotonic() + timeout
    look = time.monotonic() + _DRAIN_SECONDS
    with contextlib.closing(_Output(program, copied=copied)) as output:
        while output.is_open or program.poll() is None:
            if not output.read(min(look, until) - time.monotonic()):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    program.wait(max(0.0, min(look, until) - time.monotonic()))
            now = time.monotonic()
            if now < min(look, until):
                continue
            if program.poll() is not None:
                os.killpg(group, signal.SIGKILL)  # the children that it left; then its output ends
            elif now >= until:
                raise subprocess.TimeoutExpired(program.args, timeout or 0.0, output.of(1), output.of(2))
            look, until = now + _DRAIN_SECONDS, until if now < until else math.inf
    return output


class _Output:
    """What a program writes to its pipes, if it has any.

    Attributes:
        is_open: whether more may come.
    """

    def __init__(self, program: subprocess.Popen[bytes], *, copied: bool) -> None:
        """Begin to read; *copied*: what comes goes to the same stream of this process, too."""
        self._copied = copied
        self._data: dict[int, bytearray] = {}
        self._reading = selectors.DefaultSelector()
        for stream, pipe in ((1, program.stdout), (2, program.stderr)):
            if pipe is not None:
                self._data[stream] = bytearray()
                self._reading.register(pipe, selectors.EVENT_READ, stream)

    @property
    def is_open(self) -> bool:
        return bool(self._reading.get_map())

    def read(self, seconds: float) -> bool:
        """Wait for output, and read it; return False at once if none can come."""
        if not self.is_open:
            return False
        for key, _ in self._reading.select(max(0.0, seconds)):
            data = os.read(key.fd, _PIECE)
            self._data[key.data] += data
            if not data:
                self._reading.unregister(key.fileobj)
            elif self._copied:
                _write(key.data, data)
        return True

    def of(self, stream: int) -> bytes | None:
        """Return what came on a stream, 1 or 2; None if that has no pipe, as `subprocess` does."""
        return bytes(self._data[stream]) if stream in self._data else None

    def close(self) -> None:
        self._reading.close()


def _write(stream: int, data: bytes) -> None:
    view = memoryview(data)
    with contextlib.suppress(OSError):  # the function may have closed it
        while view:
            view = view[os.write(stream, view) :]


def _decoded(output: bytes | None) -> str:
    return (output or b"").decode("utf-8", "replace")


@contextlib.contextmanager
def _process_group() -> Iterator[int]:
    """Make a process group that is killed on leaving the block, or when this process ends; yield its id."""
    guard = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    with guard:  # leaving closes the pipe, and waits
        yield guard.pid


@contextlib.contextmanager
def _termination() -> Iterator[Callable[[int], None]]:
    """Tell a failure of the program from the end of the whole task, whose SIGTERM reaches all processes in it.

    A pool process survives SIGTERM, because its supervisor decides when to end. A program that died of the
    same signal has no outcome: its item must stay without one, to be run again. So the function that this
    yields waits to be killed, if the program failed because of a SIGTERM to the whole task.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda _: None
        return
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        before(number, frame)

    def wait_for_own_end(status: int) -> None:
        if status in {-signal.SIGTERM, SIGNALLED + signal.SIGTERM}:
            until = time.monotonic() + _SIGTERM_GRACE_SECONDS
            while not received and time.monotonic() < until:
                time.sleep(_SIGTERM_GRACE_SECONDS / 20)
        if status and received:
            time.sleep(_SUPERVISOR_END_SECONDS)

    signal.signal(signal.SIGTERM, note)
    try:
        yield wait_for_own_end
    finally:
        signal.signal(signal.SIGTERM, before)
