"""Pickling by value, as cloudpickle does it, except that code still says which file it comes from.

Since 3.1.3 cloudpickle leaves that out, so that its pickles of one function are
always the same. Here it would take the file names and the lines out of remote
tracebacks, and a debugger's breakpoints out of what runs in the same process.
"""

from __future__ import annotations

import io
from collections import ChainMap
from types import CodeType
from typing import TYPE_CHECKING, Any, ClassVar

import cloudpickle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pickle import PickleBuffer


def _reduce_code(code: CodeType) -> tuple[Any, ...]:
    make, arguments = cloudpickle.Pickler.dispatch_table[CodeType](code)
    # Which arguments there are depends on the Python. In all of them the file's name is the first that is text.
    place = next(i for i, argument in enumerate(arguments) if isinstance(argument, str))
    return make, (*arguments[:place], code.co_filename, *arguments[place + 1 :])


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle ships no types
    """cloudpickle's, with the names of files."""

    dispatch_table: ClassVar = ChainMap({CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)


def dumps(
    value: object, protocol: int | None = None, buffer_callback: Callable[[PickleBuffer], Any] | None = None
) -> bytes:
    """Pickle a value, as `cloudpickle.dumps` does."""
    with io.BytesIO() as file:
        Pickler(file, protocol=protocol, buffer_callback=buffer_callback).dump(value)
        return file.getvalue()
