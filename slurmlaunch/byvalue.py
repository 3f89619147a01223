"""Pickling by value, as cloudpickle does it, with two exceptions.

Code still says which file it comes from. Since 3.1.3 cloudpickle leaves that
out, so that its pickles of one function are always the same. Here it would take
the file names and the lines out of remote tracebacks, and a debugger's
breakpoints out of what runs in the same process.

Exceptions pickle as their classes say, also where a way to pickle was registered
for all that there are. tblib does so as soon as ``distributed`` is imported, to
let tracebacks travel: the frames stay alive with them, and what a builtin holds
beside its arguments, such as ``SystemExit.code``, is lost.
"""

from __future__ import annotations

import copyreg
import io
import pickle
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
    """cloudpickle's, with the names of files, and exceptions as they are."""

    dispatch_table: ClassVar = ChainMap({CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)

    def reducer_override(self, obj: Any) -> Any:
        """Reduce an object before the dispatch table is asked, or leave it to that."""
        if issubclass(type(obj), BaseException):
            for_all = copyreg.dispatch_table.get(BaseException)
            if for_all is not None and copyreg.dispatch_table.get(type(obj)) is for_all:
                return obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return super().reducer_override(obj)


def dumps(
    value: object, protocol: int | None = None, buffer_callback: Callable[[PickleBuffer], Any] | None = None
) -> bytes:
    """Pickle a value, as `cloudpickle.dumps` does."""
    with io.BytesIO() as file:
        Pickler(file, protocol=protocol, buffer_callback=buffer_callback).dump(value)
        return file.getvalue()
