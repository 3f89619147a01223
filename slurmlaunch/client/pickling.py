"""Pickling of functions and arguments, and errors that name the part that does not pickle.

The executor uses it, and other parts of the client for the name of a function. It knows no run and no folder;
how large buffers are stored apart is `outcome`'s matter, and which modules travel by value `byvalue`'s.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import pickle
import threading
import types
from collections import Counter
from typing import TYPE_CHECKING, Any

import cloudpickle

from slurmlaunch import byvalue
from slurmlaunch.errors import NotPicklable, SlurmlaunchError
from slurmlaunch.outcome import APART, PICKLE_PROTOCOL, Bundle, pickle_apart
from slurmlaunch.runfolder.buffers import SHARED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    _Part = tuple[str, object]

_DEPTH = 6
"""The depth of the search for the part that does not pickle; the message names the part where it stopped."""


def pickle_function(function: Callable[..., Any]) -> bytes | Bundle:
    """Return the pickled function, its large buffers apart.

    Raises:
        NotPicklable: it does not pickle; the error names the variable or attribute.
    """
    return _dumps(function, f"the function {name_of(function)}", _parts(function), at_least=SHARED)


def pickle_arguments(arguments: tuple[Any, ...]) -> bytes | Bundle:
    """Return the pickled arguments of an item, their large buffers apart.

    Raises:
        NotPicklable: they do not pickle; the error names the argument.
    """
    pickled = _pickled_data(arguments)
    return _dumps(arguments, "an item", _arguments(arguments, {})) if pickled is None else pickled


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function, or of the function that a partial wraps."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", None) or type(function).__qualname__


_REGISTERED: Counter[str] = Counter()
"""The number of blocks, in all threads, that have registered a module with cloudpickle's registry of the process."""

_REGISTERING = threading.Lock()


@contextlib.contextmanager
def travelling(names: Sequence[str]) -> Iterator[None]:
    """Pickle these modules by value within the block; modules that the user has registered remain so."""
    modules = [importlib.import_module(name) for name in names]
    with _REGISTERING:
        listed = cloudpickle.list_registry_pickle_by_value()
        ours = [each for each in modules if each.__name__ in _REGISTERED or each.__name__ not in listed]
        for module in ours:
            cloudpickle.register_pickle_by_value(module)
            _REGISTERED[module.__name__] += 1
    try:
        yield
    finally:
        with _REGISTERING:
            for module in ours:
                _REGISTERED[module.__name__] -= 1
                if not _REGISTERED[module.__name__]:
                    del _REGISTERED[module.__name__]
                    cloudpickle.unregister_pickle_by_value(module)


class _DataPickler(pickle.Pickler):
    """Pickles Python's own types of data and nothing else, faster than cloudpickle."""

    def __init__(self) -> None:
        self.file = io.BytesIO()
        super().__init__(self.file, PICKLE_PROTOCOL)

    def reducer_override(self, value: object) -> Any:
        """Refuse any other type."""
        raise TypeError(type(value))


_PER_THREAD = threading.local()


def _pickled_data(value: object) -> bytes | None:
    """Return the pickle of a value that consists only of numbers, text and containers; None for any other."""
    try:
        pickler: _DataPickler = _PER_THREAD.pickler
    except AttributeError:
        pickler = _PER_THREAD.pickler = _DataPickler()
    try:
        pickler.dump(value)
        return pickler.file.getvalue()
    except Exception:  # noqa: BLE001  (another type, or too deep: cloudpickle handles it, or raises a better error)
        return None
    finally:  # else it would keep the values alive
        pickler.clear_memo()
        pickler.file.seek(0)
        pickler.file.truncate()


def _dumps(value: object, what: str, parts: Iterator[_Part], *, at_least: int = APART) -> bytes | Bundle:
    try:
        return pickle_apart(value, byvalue.dumps, at_least=at_least)
    except SlurmlaunchError:
        raise
    except Exception as error:
        path = " → ".join(_culprit(value, parts, _DEPTH))
        where = f": {path}" if path else ""
        advice = "Create it inside the function, or leave it out by __getstate__."
        raise NotPicklable(f"{what} does not pickle{where} ({error}). {advice}", path=path) from error


def _culprit(value: object, parts: Iterator[_Part], depth: int) -> list[str]:
    """Return the path from a value to the innermost part that does not pickle."""
    if depth:
        for name, part in parts:
            if part is not value and not _pickles(part):
                return [name, *_culprit(part, _parts(part), depth - 1)]
    return []


def _pickles(value: object) -> bool:
    try:
        byvalue.dumps(value, PICKLE_PROTOCOL)
    except Exception:  # noqa: BLE001  (a __reduce__ may raise anything)
        return False
    return True


def _parts(value: object) -> Iterator[_Part]:
    """Yield the parts of a value, each with a name that the user knows."""
    if isinstance(value, functools.partial):
        yield "partial's function", value.func
        yield from _arguments(value.args, value.keywords)
    elif isinstance(value, types.MethodType):
        yield f"the object of {value.__qualname__}", value.__self__
    elif isinstance(value, types.FunctionType):
        yield from _function_parts(value)
    elif isinstance(value, dict):
        yield from ((f"key {key!r}", part) for key, part in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"element {i}", part) for i, part in enumerate(value))
    else:
        yield from _attributes(value)


def _arguments(args: tuple[Any, ...], keywords: dict[str, Any]) -> Iterator[_Part]:
    yield from ((f"argument {i}", part) for i, part in enumerate(args))
    yield from ((f"argument {name!r}", part) for name, part in keywords.items())


def _function_parts(function: types.FunctionType) -> Iterator[_Part]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # the variable has no value yet
            yield f"closure variable {name!r}", cell.cell_contents
    known = function.__globals__
    yield from ((f"global variable {n!r}", known[n]) for n in _names(function.__code__) if n in known)
    parameters = inspect.signature(function).parameters.values()
    yield from ((f"default of {each.name!r}", each.default) for each in parameters if each.default is not each.empty)


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names that a function and the functions inside it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _attributes(value: object) -> Iterator[_Part]:
    if isinstance(value, type):
        members = {k: v for k, v in vars(value).items() if not k.startswith("__")}
        yield from ((f"class attribute {n!r}", v) for n, v in members.items())
    else:
        slots = {n: getattr(value, n) for n in _slots(type(value)) if hasattr(value, n)}
        yield from ((f"attribute {n!r}", v) for n, v in {**getattr(value, "__dict__", {}), **slots}.items())


def _slots(kind: type) -> Iterator[str]:
    for each in kind.__mro__:
        slots = vars(each).get("__slots__", ())
        yield from [slots] if isinstance(slots, str) else slots
