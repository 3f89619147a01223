"""Pickling by value with cloudpickle, with two differences. Functions and values that pickle cannot handle use it.

Code keeps the name of its file. Since 3.1.3 cloudpickle removes it, so that its pickles of one function are always
the same. Here that would remove file names and lines from remote tracebacks, and a debugger's breakpoints from items
that run in the same process.

Exceptions pickle as their classes define, even if a reducer was registered for all exceptions. tblib registers one as
soon as ``distributed`` is imported, to pickle tracebacks: it keeps the frames alive, and loses the fields that a
builtin has beside its arguments, such as ``SystemExit.code``.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections import ChainMap
from functools import partial
from types import CodeType
from typing import TYPE_CHECKING, Any, ClassVar

import cloudpickle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pickle import PickleBuffer


def _reduce_code(code: CodeType) -> tuple[Any, ...]:
    make, arguments = cloudpickle.Pickler.dispatch_table[CodeType](code)
    # The arguments depend on the Python version. In each the file's name is the first string.
    place = next(i for i, argument in enumerate(arguments) if isinstance(argument, str))
    return make, (*arguments[:place], code.co_filename, *arguments[place + 1 :])


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle ships no types
    """cloudpickle's, with the names of files, and exceptions as their classes define."""

    dispatch_table: ClassVar = ChainMap({CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)

    def reducer_override(self, obj: Any) -> Any:
        """Reduce exceptions here, and leave all other objects to cloudpickle."""
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


def refuse_coroutines(function: Callable[..., object]) -> None:
    """Raise `TypeError` for an ``async def``: a call only makes a coroutine, which runs nothing and does not pickle."""
    import inspect  # here, because a node must start fast

    while isinstance(function, partial):
        function = function.func
    for each in (function, getattr(type(function), "__call__", None)):  # noqa: B004  (not whether it can be called)
        if inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each):
            name = getattr(function, "__qualname__", None) or f"the object of class {type(function).__qualname__}"
            raise TypeError(
                f"{name} is asynchronous, and a call of it runs nothing by itself: give a function that wraps it in "
                "asyncio.run, as def work(*arguments): return asyncio.run(function(*arguments))"
            )
