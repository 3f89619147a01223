"""Pickling by value with cloudpickle, with differences. Functions and values that pickle cannot handle use it.

Code keeps the name of its file. Since 3.1.3 cloudpickle removes it, so that its pickles of one function are always
the same. Here that would remove file names and lines from remote tracebacks, and a debugger's breakpoints from items
that run in the same process. And code is refused by another version of Python, which it would crash.

Functions and classes keep their identity, and those of ``__main__`` share its namespace: see `unpickling`.

Objects of such modules that would be pickled as no more than their name (cached functions, type variables) travel by
value too, and of any other kind are refused: where they are unpickled, no module has that name.

Exceptions pickle as their classes define, even if a reducer was registered for all exceptions. tblib registers one as
soon as ``distributed`` is imported, to pickle tracebacks: it keeps the frames alive, and loses the fields that a
builtin has beside its arguments, such as ``SystemExit.code``.
"""

from __future__ import annotations

import copyreg
import dataclasses
import enum
import functools
import io
import pickle
import sys
import threading
import typing
from collections import ChainMap
from contextlib import contextmanager
from functools import partial
from types import CodeType, FunctionType, WrapperDescriptorType
from typing import TYPE_CHECKING, Any, ClassVar

import cloudpickle

from slurmlaunch import unpickling
from slurmlaunch.unpickling import MAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pickle import PickleBuffer

    Reduced = Any


_noting = threading.local()


@contextmanager
def noting_files() -> Iterator[set[str]]:
    """Yield a set that gets the file name of all code that this thread pickles by value within the block."""
    before, _noting.files = getattr(_noting, "files", None), set()
    try:
        yield _noting.files
    finally:
        _noting.files = before


def _reduce_code(code: CodeType) -> tuple[Any, ...]:
    if (files := getattr(_noting, "files", None)) is not None:
        files.add(code.co_filename)
    _, arguments = cloudpickle.Pickler.dispatch_table[CodeType](code)
    # The arguments depend on the Python version. In each the file's name is the first string.
    place = next(i for i, argument in enumerate(arguments) if isinstance(argument, str))
    named = (*arguments[:place], code.co_filename, *arguments[place + 1 :])
    return unpickling.code, (unpickling.version(), *named)


def _sentinels() -> Iterator[tuple[type, Callable[[Any], Any]]]:
    for name, each in vars(dataclasses).items():
        if type(each).__module__ == dataclasses.__name__ and type(each).__name__.endswith("_TYPE"):
            yield type(each), partial(_sentinel, name)


def _sentinel(name: str, _: object) -> tuple[Any, ...]:
    return getattr, (dataclasses, name)


_SENTINELS = dict(_sentinels())
"""The sentinels of dataclasses are compared by identity, so they are pickled by name."""


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle ships no types
    """cloudpickle's, with the differences above."""

    dispatch_table: ClassVar = ChainMap({CodeType: _reduce_code, **_SENTINELS}, cloudpickle.Pickler.dispatch_table)

    def __init__(
        self,
        file: io.BytesIO,
        protocol: int | None = None,
        buffer_callback: Callable[[PickleBuffer], Any] | None = None,
    ) -> None:
        super().__init__(file, protocol=protocol, buffer_callback=buffer_callback)
        self._by_value = {MAIN, *cloudpickle.list_registry_pickle_by_value()}
        self._share_main()

    def _share_main(self) -> None:
        """Let all functions of ``__main__`` have the namespace that `unpickling.namespace` returns."""
        main = vars(sys.modules[MAIN])
        self.globals_ref[id(main)] = _Namespace((key, main[key]) for key in _ATTRIBUTES if main.get(key) is not None)

    def reducer_override(self, obj: Any) -> Reduced:
        """Reduce what differs here, and leave all other objects to cloudpickle and pickle."""
        kind = type(obj)
        if kind is FunctionType or issubclass(kind, type):
            return self._definition(obj)
        if issubclass(kind, BaseException):
            for_all = copyreg.dispatch_table.get(BaseException)
            registered = for_all is not None and copyreg.dispatch_table.get(kind) is for_all
            if registered or type(kind.__setattr__) is not WrapperDescriptorType:
                return with_any_state(obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL))
        if kind is functools.cached_property:
            return unpickling.cached_property, (obj.func, obj.attrname)
        return NotImplemented if is_ordinary(kind) else self._unless_by_name(obj)

    def _definition(self, obj: Any) -> Reduced:
        if _is_dispatcher(obj) and not self._is_found(obj):
            default = obj.registry[object]
            others = {key: value for key, value in obj.registry.items() if key is not object}
            attributes = {key: value for key, value in vars(obj).items() if key not in _OF_DISPATCHERS}
            reduced: Reduced = (
                unpickling.dispatching, (default,), (others, attributes), None, None, unpickling.register
            )  # fmt: skip
        else:
            reduced = super().reducer_override(obj)
            if not isinstance(reduced, tuple) or len(reduced) < _WITH_SETTER:
                return reduced  # by name
            if isinstance(obj, type) and _has_own_slots(obj):
                reduced = _with_slots(obj, *reduced)
        return self._identified(obj, *reduced)

    def _identified(self, obj: Any, make: Any, arguments: Any, state: Any, *rest: Any) -> Reduced:
        """Add the identity of a definition to its reduction."""
        named = unpickling.is_named(obj)
        if not (named or isinstance(obj, type) or unpickling.has_identity(obj)):
            return make, arguments, state, *rest
        state = (rest[-1] if rest else None, state, named)
        arguments = (unpickling.identity(obj), make, arguments)
        return unpickling.define, arguments, state, None, None, unpickling.complete

    def _travels(self, obj: Any) -> bool:
        """Return whether the module of an object is not there where the object is unpickled."""
        module = getattr(obj, "__module__", None)
        return isinstance(module, str) and any(
            module == each or module.startswith(f"{each}.") for each in self._by_value
        )

    def _is_found(self, obj: Any) -> bool:
        """Return whether a function is there under its name in a task; one that wraps another may not be."""
        return not self._travels(obj) and unpickling.is_named(obj)

    def _unless_by_name(self, obj: Any) -> Reduced:
        kind = type(obj)
        if not self._travels(obj) and (kind is not _CACHED or unpickling.is_named(obj)):
            return NotImplemented
        if kind is _CACHED:
            maxsize, typed = obj.cache_parameters().values()
            wrapped = getattr(obj.__wrapped__, "__dict__", {})  # `functools.lru_cache` copies it, that of a class, too
            known = _OF_CACHES.union(key for key, value in wrapped.items() if vars(obj).get(key) is value)
            state = {key: value for key, value in vars(obj).items() if key not in known}
            return self._identified(obj, unpickling.cached, (obj.__wrapped__, maxsize, typed), state)
        reduce = self.dispatch_table.get(kind)
        reduced = obj.__reduce_ex__(self.proto) if reduce is None else reduce(obj)
        if isinstance(obj, enum.Enum) and not isinstance(reduced, tuple):  # by `enum.global_enum`
            return kind, (obj.value,)
        if not isinstance(reduced, str):
            return reduced
        if kind in _NAMED_TYPES:
            return unpickling.named_type, (obj.__module__, kind, *_NAMED_TYPES[kind](obj))
        if obj.__module__ == MAIN:  # the node may have another module
            raise pickle.PicklingError(f"{MAIN}.{reduced} pickles as its name alone, which the node does not have")
        return reduced


def with_any_state(reduced: Reduced) -> Reduced:
    """Return the reduction of an exception, whose state is set also if it is a frozen dataclass."""
    if isinstance(reduced, tuple) and len(reduced) == 3 and isinstance(reduced[2], dict):  # noqa: PLR2004
        return *reduced, None, None, unpickling.set_attributes
    return reduced


def _has_own_slots(cls: type) -> bool:
    """Return whether a class defines its slots itself: neither an enumeration nor a named tuple may."""
    named = typing.NamedTuple in vars(cls).get("__orig_bases__", ())
    return "__slots__" in vars(cls) and not isinstance(cls, enum.EnumMeta) and not named


def _with_slots(cls: Any, make: Any, arguments: Any, *rest: Any) -> Reduced:
    """Let a class be made with its slots, which cloudpickle sets too late: instances would have a ``__dict__``."""
    kind, name, bases, members, *others = arguments
    slots = cls.__slots__ if isinstance(cls.__slots__, str) else tuple(cls.__slots__)
    return make, (kind, name, bases, {**members, "__slots__": slots}, *others), *rest


def is_ordinary(kind: type) -> bool:
    """Return whether all instances of a class are pickled as its own code and `object` define."""
    inherited = all(getattr(kind, name) is getattr(object, name) for name in ("__reduce__", "__reduce_ex__"))
    return inherited and kind is not functools.cached_property


class NotingPickler(Pickler):
    """Pickles by value, and notes the random generators that travel along.

    Attributes:
        generators: the random generators that were met.
    """

    def __init__(self, *arguments: Any, generators: list[object] | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.generators = [] if generators is None else generators
        self._kinds = tuple(_generator_kinds())

    def reducer_override(self, obj: Any) -> Any:
        """Reduce as `Pickler` does, and note generators."""
        if isinstance(obj, self._kinds):
            self.generators.append(obj)
        return super().reducer_override(obj)


_GENERATORS = (
    ("random", ("Random",)),
    ("numpy.random", ("Generator", "BitGenerator", "RandomState")),
    ("torch", ("Generator",)),
)


def _generator_kinds() -> Iterator[type]:
    for name, kinds in _GENERATORS:
        if name in sys.modules:
            yield from (getattr(sys.modules[name], kind) for kind in kinds)


class _Namespace(dict[str, Any]):
    """The attributes of ``__main__`` that its functions refer to by themselves."""

    def __reduce__(self) -> Reduced:
        return unpickling.namespace, (dict(self),)


_ATTRIBUTES = ("__name__", "__package__", "__path__", "__file__")
_WITH_SETTER = 6

_CACHED = type(functools.lru_cache(len))
_OF_CACHES = frozenset({"__wrapped__", "cache_parameters"})
_OF_DISPATCHERS = frozenset({"register", "dispatch", "registry", "_clear_cache", "__wrapped__"})


@functools.singledispatch
def _dispatcher(_: object) -> None:
    """Do nothing: an example of what `functools.singledispatch` makes."""


def _is_dispatcher(obj: Any) -> bool:
    return isinstance(obj, FunctionType) and obj.__code__ is _dispatcher.__code__  # type: ignore[attr-defined]


_NAMED_TYPES: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    typing.NewType: lambda made: (made.__qualname__, made.__supertype__),
    **{
        getattr(typing, each): lambda variable: (variable.__name__,)
        for each in ("ParamSpec", "TypeVarTuple")
        if hasattr(typing, each)  # not all: a node of an older Python reports its version with the help of this module
    },
}
if sys.version_info >= (3, 12):
    _NAMED_TYPES[typing.TypeAliasType] = lambda alias: (alias.__name__, alias.__value__)
"""Types that pickle as their name, and what they are made of."""


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

    cached = type(functools.lru_cache(refuse_coroutines))
    while isinstance(function, (partial, cached)):
        function = function.func if isinstance(function, partial) else function.__wrapped__
    for each in (function, getattr(type(function), "__call__", None)):  # noqa: B004  (not whether it can be called)
        if inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each):
            name = getattr(function, "__qualname__", None) or f"the object of class {type(function).__qualname__}"
            raise TypeError(
                f"{name} is asynchronous, and a call of it runs nothing by itself: give a function that wraps it in "
                "asyncio.run, as def work(*arguments): return asyncio.run(function(*arguments))"
            )
