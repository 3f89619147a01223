"""Pickling of functions and arguments, and errors that name the part that does not pickle.

New runs and retries use it, and other parts of the client for the name of a function. It knows no run and no folder.
`outcome` takes large buffers out of a pickle, and `byvalue` decides which modules travel by value.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import linecache
import os
import pickle
import sys
import threading
import time
import types
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle

from slurmlaunch import byvalue
from slurmlaunch.backends.container import own_folders
from slurmlaunch.client.wording import full_name_of, name_of
from slurmlaunch.errors import NotPicklable, SlurmlaunchError
from slurmlaunch.messages import warn
from slurmlaunch.outcome import APART, PICKLE_PROTOCOL, Apart, Bundle
from slurmlaunch.runfolder.buffers import SHARED
from slurmlaunch.runfolder.layout import python_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from slurmlaunch.client.options import Options

    _Part = tuple[str, object]

_DEPTH = 6
"""The depth of the search for the part that does not pickle; the message names the part where it stopped."""


def pickle_function(function: Callable[..., Any], *, single: bool = False) -> bytes | Bundle:
    """Return the pickled function, its large buffers apart; warn of random generators that it shares.

    Args:
        function: the function.
        single: whether it is a partial that holds the arguments of a single call: these are meant to be copied.

    Raises:
        NotPicklable: it does not pickle; the error names the variable or attribute.
    """
    generators: list[object] = []
    dumps = functools.partial(_dumps_noting, generators=generators)
    what = f"{'the call of' if single else 'the function'} {name_of(function)}"
    pickled = _dumps(function, what, _parts(function), dumps, at_least=SHARED)
    if generators:
        called = function.func if single and isinstance(function, functools.partial) else function
        warn_of_generators(called, generators)
    return pickled


def pickle_arguments(arguments: tuple[Any, ...], item: int) -> bytes | Bundle:
    """Return the pickled arguments of an item, whose number an error names, their large buffers apart.

    Raises:
        NotPicklable: they do not pickle; the error names the argument.
    """
    pickled = _pickled_data(arguments)
    return _dumps(arguments, f"item {item}", _arguments(arguments, {}), byvalue.dumps) if pickled is None else pickled


class SharedGenerator(UserWarning):
    """A random generator travels with the function, so that all processes draw the same numbers from it."""


def _dumps_noting(
    value: object,
    protocol: int | None = None,
    buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
    *,
    generators: list[object],
) -> bytes:
    with io.BytesIO() as file:
        byvalue.NotingPickler(file, protocol, buffer_callback, generators=generators).dump(value)
        return file.getvalue()


def warn_of_generators(function: Any, generators: Sequence[object]) -> None:
    """Warn of the first of these random generators to which a function refers."""
    path = _path_to({id(each) for each in generators}, _parts(function), _DEPTH, set())
    if path:
        message = (
            f"{name_of(function)} uses a random generator: {' → '.join(path)}. Each process gets a copy of it in the "
            "same state, and draws the same numbers. In the function, call slurmlaunch.current_task().rng(), which "
            "returns a generator of its own for each item."
        )
        warn(message, SharedGenerator)


def _path_to(wanted: set[int], parts: Iterator[_Part], depth: int, seen: set[int]) -> list[str]:
    """Return the path to the first of the wanted objects, or an empty one."""
    for name, part in parts:
        if id(part) in wanted or id(getattr(part, "__self__", None)) in wanted:  # itself, or a method of it
            return [name]
        if depth and id(part) not in seen and len(seen) < _MOST_SEEN and not isinstance(part, types.ModuleType):
            seen.add(id(part))
            if path := _path_to(wanted, _parts(part), depth - 1, seen):
                return [name, *path]
    return []


_MOST_SEEN = 10_000


def description_of(function: Callable[..., Any], options: Options) -> dict[str, Any]:
    """Return the manifest's keys that describe a function which this process pickles now."""
    search_path = [str(Path(entry).absolute()) for entry in sys.path]
    return {
        "function": full_name_of(function),
        # An image has its own packages, even if it sees the folders of this machine's.
        "sys_path": search_path if options.container is None else own_folders(search_path),
        "python": python_version(),
        "cloudpickle": cloudpickle.__version__,
        "created": time.time(),
    }


_REGISTERED: Counter[str] = Counter()
"""The number of blocks, in all threads, that have registered a module with cloudpickle's registry of the process."""

_REGISTERING = threading.Lock()


@contextlib.contextmanager
def travelling(names: Sequence[str]) -> Iterator[set[str]]:
    """Pickle these modules by value within the block; modules that the user has registered remain so.

    It yields a set that gets the file names of the code that is pickled by value.
    """
    modules = [importlib.import_module(name) for name in names]
    with _REGISTERING:
        listed = cloudpickle.list_registry_pickle_by_value()
        ours = [each for each in modules if each.__name__ in _REGISTERED or each.__name__ not in listed]
        for module in ours:
            cloudpickle.register_pickle_by_value(module)
            _REGISTERED[module.__name__] += 1
    try:
        with byvalue.noting_files() as files:
            yield files
    finally:
        with _REGISTERING:
            for module in ours:
                _REGISTERED[module.__name__] -= 1
                if not _REGISTERED[module.__name__]:
                    del _REGISTERED[module.__name__]
                    cloudpickle.unregister_pickle_by_value(module)


def sources_of(files: Iterable[str]) -> dict[str, str]:
    """Return the source of code that lies in no file, such as a notebook's cells, by the names that code has for it."""
    unknown = (file for file in sorted(files) if not os.path.exists(file))  # noqa: PTH110  (any text: this never raises)
    sources = {file: "".join(linecache.getlines(file)) for file in unknown}
    return {file: source for file, source in sources.items() if source and len(source) < _LONGEST_CELL}


_LONGEST_CELL = 1 << 16


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


def _dumps(
    value: object, what: str, parts: Iterator[_Part], dumps: Callable[..., bytes], *, at_least: int = APART
) -> bytes | Bundle:
    try:
        return Apart(at_least).dumps(value, dumps)
    except SlurmlaunchError:
        raise
    except Exception as error:
        path = " → ".join(_culprit(value, parts, _DEPTH))
        where = f": {path}" if path else ""
        advice = "Create it inside the function, or leave it out by __getstate__."
        raise NotPicklable(f"{what} does not pickle{where} ({error}). {advice}", path=path) from error


def _culprit(value: object, parts: Iterator[_Part], depth: int) -> list[str]:
    """Return the path from a value to the innermost part that does not pickle."""
    with contextlib.suppress(Exception):  # an object may let nobody look at it
        for name, part in parts if depth else ():
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
        yield f"the method {value.__qualname__}", value.__func__
    elif isinstance(value, (staticmethod, classmethod, functools.cached_property, property)):
        found = ((name, getattr(value, name, None)) for name in ("__func__", "func", "fget", "fset", "fdel"))
        yield from ((f"its function {part.__name__!r}", part) for _, part in found if part is not None)
    elif hasattr(value, "__wrapped__") and not isinstance(value, (type, types.FunctionType)):
        yield f"the function {name_of(value.__wrapped__)!r}", value.__wrapped__
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
    yield from ((f"global variable {n!r}", known[n]) for n in names_in(function.__code__) if n in known)
    parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    yield from ((f"default of {each.name!r}", each.default) for each in parameters if each.default is not each.empty)
    yield from ((f"annotation of {name!r}", each) for name, each in function.__annotations__.items())
    yield from ((f"attribute {name!r}", each) for name, each in vars(function).items())


def names_in(code: types.CodeType) -> Iterator[str]:
    """Yield the names that a function and the functions inside it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)


def _attributes(value: object) -> Iterator[_Part]:
    if isinstance(value, type):
        of_python = (types.GetSetDescriptorType, types.MappingProxyType, types.MemberDescriptorType)
        members = {k: v for k, v in vars(value).items() if not isinstance(v, of_python)}
        yield from ((f"class attribute {n!r}", v) for n, v in members.items())
    else:
        slots = {n: getattr(value, n) for n in _slots(type(value)) if hasattr(value, n)}
        yield from ((f"attribute {n!r}", v) for n, v in {**getattr(value, "__dict__", {}), **slots}.items())
        yield f"class {type(value).__qualname__}", type(value)


def _slots(kind: type) -> Iterator[str]:
    for each in kind.__mro__:
        slots = vars(each).get("__slots__", ())
        yield from [slots] if isinstance(slots, str) else slots
