"""A shell command as a function: ``ex.map_array(Command("python process.py {}"), files)``.

The placeholders are GNU parallel's (see parallel(1)), as is that without any the
arguments come last, as with xargs(1):

=========  =======================================================
``{}``     the argument; with several, all of them
``{.}``    without its extension
``{/}``    without its folder
``{//}``   its folder
``{/.}``   without folder and extension
``{2}``    the second argument, and so ``{2.}``, ``{2/}``, ...
``{lr}``   the keyword argument ``lr``, where one is given
``{{}}``   ``{}`` itself, and so for each of these
=========  =======================================================

All other braces, and what follows a ``$``, are left alone: they are the shell's,
or awk's.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from slurmlaunch import program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_PLACEHOLDER = re.compile(
    r"\{\{(?P<itself>\d*(?://|/\.|/|\.)?|[A-Za-z_]\w*)\}\}"
    r"|(?<!\$)\{(?P<number>\d+)?(?P<part>//|/\.|/|\.)?\}"
    r"|(?<!\$)\{(?P<name>[A-Za-z_]\w*)\}"
)

_NOTED_LINES = 10


class Command:
    """A function that runs a command, with its arguments in the place of ``{}``.

    Given as a text it is run by ``/bin/sh``, and arguments are quoted for it,
    also within quotes: ``"cat '{}' | wc -l"`` works for any file name. Given as a
    list of words it is run as it is, without a shell. It inherits the thread caps
    of the process that runs it, has no standard input, and is killed with all
    that it started when the item is cancelled or its task ends.

    A call returns a `subprocess.CompletedProcess` with ``args``, ``returncode``,
    ``stdout`` and ``stderr``, as text, where bytes that are not UTF-8 are replaced.
    They travel as any result does: a program that says a lot should write to a
    file of its own (``> {.}.log``).

    Args:
        command: a text, or a list of words.
        check: whether an exit status other than 0 raises.
        timeout: seconds that it may take, or None.
        capture: whether its output is taken; else it goes into the task's log.

    Raises:
        TypeError: *command* is neither a text nor a list of words.
        ValueError: it is empty, or holds ``{0}``; *timeout* is not above 0.
    """

    def __init__(
        self,
        command: str | Sequence[str | os.PathLike[str]],
        *,
        check: bool = True,
        timeout: float | None = None,
        capture: bool = True,
    ) -> None:
        self._words = command if isinstance(command, str) else [_word(word) for word in command]
        if not self._words or not "".join(self._words).strip():
            raise ValueError("the command is empty: give a text for the shell, or a list of words")
        for found in _PLACEHOLDER.finditer("\n".join([self._words] if isinstance(self._words, str) else self._words)):
            if found["number"] == "0":
                raise ValueError(f"{found[0]} stands for no argument, they are counted from 1: write {{}} or {{1}}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be a number of seconds above 0, or None, not {timeout!r}")
        self.check, self.timeout, self.capture = check, timeout, capture
        self.__qualname__ = _name(self._words)

    def __repr__(self) -> str:
        changed = {"check": (self.check, True), "timeout": (self.timeout, None), "capture": (self.capture, True)}
        shown = "".join(f", {name}={value!r}" for name, (value, default) in changed.items() if value != default)
        return f"Command({self._words!r}{shown})"

    def __call__(self, /, *args: Any, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        """Run the command with these arguments.

        Raises:
            subprocess.CalledProcessError: it ended with another status than 0;
                the output is with it.
            subprocess.TimeoutExpired: the time was up.
            OSError: the program cannot be started.
            TypeError: there is no place for an argument, or no argument for a place.
        """
        done = program.run(self.fill(*args, **kwargs), timeout=self.timeout, capture=self.capture)
        if self.check and done.returncode:
            error = subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
            last = done.stderr.rstrip().splitlines()[-_NOTED_LINES:]
            if last:  # what add_note() does, which Python 3.10 does not have
                error.__dict__["__notes__"] = ["\n".join(["its standard error ends with:", *last])]
            raise error
        return done

    def fill(self, /, *args: Any, **kwargs: Any) -> str | list[str]:
        """Return the command as it is run with these arguments.

        Raises:
            TypeError: there is no place for an argument, or no argument for a place.
        """
        arguments = _Arguments([_word(arg) for arg in args], {name: _word(value) for name, value in kwargs.items()})
        if isinstance(self._words, str):
            filled: str | list[str] = _fill_text(self._words, arguments)
        else:
            filled = [word for template in self._words for word in _fill_word(template, arguments)]
        unplaced = arguments.named.keys() - arguments.placed
        if unplaced:
            raise TypeError(f"{self!r} has no place for {', '.join(sorted(unplaced))}: write {{{min(unplaced)}}} in it")
        if None in arguments.placed:
            return filled
        if isinstance(filled, str):
            return " ".join([filled, *map(shlex.quote, arguments.given)])
        return [*filled, *arguments.given]


class _Arguments:
    """The arguments of a call, and which of them have been asked for.

    Attributes:
        given: those without a name.
        named: those with one.
        placed: the names that were asked for, and None where one without a name was.
    """

    def __init__(self, given: Sequence[str], named: Mapping[str, str]) -> None:
        self.given, self.named = given, named
        self.placed: set[str | None] = set()

    def of(self, placeholder: re.Match[str]) -> Sequence[str] | None:
        """Return what stands for a placeholder; None where it is none after all."""
        name = placeholder["name"]
        if name is not None:
            if name not in self.named:
                return None
            self.placed.add(name)
            return [self.named[name]]
        self.placed.add(None)
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
    """Return the word, or words, that a word of a list becomes."""
    whole = _PLACEHOLDER.fullmatch(template)
    if whole and whole["itself"] is None:
        words = arguments.of(whole)
        return [template] if words is None else list(words)

    def fill(found: re.Match[str]) -> str:
        if found["itself"] is not None:
            return found[0][1:-1]
        words = arguments.of(found)
        return found[0] if words is None else " ".join(words)

    return [_PLACEHOLDER.sub(fill, template)]


def _fill_text(template: str, arguments: _Arguments) -> str:
    """Return a text for the shell, in which every argument is one word, or within quotes a part of one."""
    pieces, end, quotes = [], 0, _Quotes()
    for found in _PLACEHOLDER.finditer(template):
        pieces.append(template[end : found.start()])
        quotes.read(pieces[-1])
        words = None if found["itself"] is not None else arguments.of(found)
        if words is None:
            pieces.append(found[0] if found["itself"] is None else found[0][1:-1])
        else:
            plain, quoted = " ".join(words), " ".join(map(shlex.quote, words))
            # Out of the quotes and into them again, where that is needed.
            pieces.append(plain if plain == quoted else f"{quotes.open}{quoted}{quotes.open}")
        end = found.end()
    return "".join([*pieces, template[end:]])


class _Quotes:
    """Reads a shell's text from its beginning, and knows within which quotes it ends."""

    def __init__(self) -> None:
        self._within: list[str] = [""]
        self._escaped = False

    @property
    def open(self) -> str:
        """The quote that is open: ``'`` or ``"``, or nothing."""
        innermost = self._within[-1]
        return innermost if innermost in {"'", '"'} else ""

    def read(self, text: str) -> None:
        """Go on reading."""
        for before, character in _with_previous(text):
            if self._escaped:
                self._escaped = False
            elif character == "\\" and self.open != "'":
                self._escaped = True
            else:
                self._take(before, character)

    def _take(self, before: str, character: str) -> None:
        innermost = self._within[-1]
        if character == innermost and innermost:
            self._within.pop()
        elif innermost == "'":
            return
        elif character == "(" and (before == "$" or innermost == ")"):  # a command in a text begins anew
            self._within.append(")")
        elif character == "`" or (character in {"'", '"'} and innermost != '"'):
            self._within.append(character)


def _with_previous(text: str) -> Iterator[tuple[str, str]]:
    return zip(" " + text, text, strict=False)


def _word(value: object) -> str:
    if isinstance(value, (str, bytes, os.PathLike)):
        return os.fsdecode(value)
    return str(value)


def _name(words: str | Sequence[str]) -> str:
    """Return what the command is called: its program, or the script that its interpreter runs."""
    first, second, *_ = [*(words.split() if isinstance(words, str) else words)[:2], "", ""]
    script = second if re.search(r"\.\w+$", second) and not second.startswith("-") else first
    return PurePath(script).stem or "command"
