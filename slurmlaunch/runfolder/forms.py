"""The JSON in a run folder: each reader says which form it takes, and gets values of that form or an error.

A damaged file may hold anything. The readers of this package pass the bytes of JSON to `parse`, so that the code behind
them meets no other types, no negative counts and no missing keys. The meaning of the values is not known here.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from slurmlaunch.errors import RunFolderError

Form: TypeAlias = Callable[[Any], bool]
"""Whether a value has the form."""

_LARGEST = 1 << 63
_MOST = 1 << 20
"""More than any task has of CPUs, processes or ranks."""


def parse(data: bytes | memoryview, form: Form, path: os.PathLike[str], offset: int = 0) -> Any:
    """Return the value of JSON.

    Args:
        data: its text, in UTF-8.
        form: the form of the value.
        path: the file that holds it.
        offset: its position there, in bytes.

    Raises:
        RunFolderError: it is no JSON, or is of another form.
    """
    try:
        value = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error), offset) from error
    return check(value, form, path, offset)


def check(value: Any, form: Form, path: os.PathLike[str], offset: int = 0) -> Any:
    """Return a value of JSON that has the form, and raise as `parse` does if it has another."""
    if not form(value):
        wrong = form.misfit(value) if isinstance(form, Keys) else "the whole"
        raise damaged(path, f"{wrong} is not what slurmlaunch writes", offset)
    return value


def damaged(path: os.PathLike[str], how: str, offset: int = 0) -> RunFolderError:
    """Return the error for a damaged part of a file, which begins at *offset*."""
    return RunFolderError(f"{path} is damaged, at byte {offset}: {how}", path=os.fspath(path), offset=offset)


class Keys:
    """The form of an object; keys that are not named may have any value.

    Args:
        required: the forms of the values, by key.
        optional: the same for keys that may be missing.
    """

    def __init__(self, required: Mapping[str, Form] | None = None, optional: Mapping[str, Form] | None = None) -> None:
        self._required = required or {}
        self._forms = {**self._required, **(optional or {})}

    def __call__(self, value: Any) -> bool:
        """Whether a value has the form."""
        return self.misfit(value) is None

    def misfit(self, value: Any) -> str | None:
        """Return the key whose value is missing or of another form; None if there is none."""
        if type(value) is not dict:
            return "the whole"
        missing = next((name for name in self._required if name not in value), None)
        return missing or next(
            (name for name, form in self._forms.items() if name in value and not form(value[name])), None
        )


def anything(_: Any) -> bool:
    """Whether it is any value: always."""
    return True


def text(value: Any) -> bool:
    """Whether it is text that the system takes in names and arguments."""
    if type(value) is not str or "\0" in value:
        return False
    try:
        return value.isascii() or bool(value.encode(errors="surrogateescape"))
    except UnicodeEncodeError:
        return False


def flag(value: Any) -> bool:
    """Whether it is true or false."""
    return type(value) is bool


def integer(value: Any) -> bool:
    """Whether it is an integer of 64 bits."""
    return type(value) is int and -_LARGEST <= value < _LARGEST


def count(value: Any) -> bool:
    """Whether it is an integer from 0 on, of 63 bits."""
    return type(value) is int and 0 <= value < _LARGEST


def few(value: Any) -> bool:
    """Whether it is a number of things of which one task may have that many."""
    return type(value) is int and 1 <= value <= _MOST


def seconds(value: Any) -> bool:
    """Whether it is a time since the epoch, or a duration, that Python's functions take."""
    return type(value) in {int, float} and 0 <= value <= _LATEST


_LATEST = 1e11
"""In about three thousand years."""


def limit(value: Any) -> bool:
    """Whether it is a duration that may be infinite."""
    return seconds(value) or value == math.inf


def null_or(form: Form) -> Form:
    """Return the form of null and of values of another form."""
    return lambda value: value is None or form(value)


def listing(form: Form) -> Form:
    """Return the form of lists whose elements have a form."""
    return lambda value: type(value) is list and all(map(form, value))


def row(*forms: Form) -> Form:
    """Return the form of lists of a fixed length, by the forms of the elements."""
    return lambda value: (
        type(value) is list
        and len(value) == len(forms)
        and all(form(each) for form, each in zip(forms, value, strict=True))
    )


def mapping(form: Form) -> Form:
    """Return the form of objects whose values have a form."""
    return lambda value: type(value) is dict and all(map(form, value.values()))
