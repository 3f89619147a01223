"""What the pickles of `byvalue` call when they are unpickled: code, namespaces and definitions.

A definition is a function or class that travels by value, with an identity: a process that has one by this identity
takes its own. So a class that a task returns is the client's own class in the client that sent it, and
``isinstance`` and ``is`` hold; in any other process it is made anew, once.

In a task the definitions of ``__main__`` become the contents of the task's ``__main__`` (`node.main_module`), which
all pickles of the task share; elsewhere each pickle has a namespace of its own.

Pickles in run folders refer to this module's functions by name, which is part of the format. It imports no cloudpickle,
since a reader of plain values needs none, and knows no folder: `reading` says where the definitions are that
a result refers to.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from slurmlaunch.errors import UnpicklableResult

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Definition = Any
    Setter = Callable[[Any, Any], Any]

MAIN = "__main__"

_IDENTITIES: WeakKeyDictionary[Definition, str] = WeakKeyDictionary()
_KNOWN: WeakValueDictionary[str, Definition] = WeakValueDictionary()
_ARRIVED: WeakKeyDictionary[Definition, bool] = WeakKeyDictionary()
"""The definitions that came from another process, as opposed to those that were pickled first by this one."""

_main: types.ModuleType | None = None


def version() -> str:
    """Return the part of Python's version on which bytecode depends: ``3.11``."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def take_main(module: types.ModuleType) -> None:
    """Let the definitions of ``__main__`` arrive in this module from now on."""
    global _main  # noqa: PLW0603  (a process has one __main__)
    _main = module


# Identities.


def identity(definition: Definition) -> str:
    """Return the identity of a definition, a new one if it has none."""
    found = _IDENTITIES.get(definition)
    if found is None:
        import uuid  # here, because a node must start fast, and most never pickle a new definition

        found = _IDENTITIES.setdefault(definition, uuid.uuid4().hex)
        _KNOWN.setdefault(found, definition)
    return found


def has_identity(definition: Definition) -> bool:
    """Return whether a definition was pickled or unpickled here before."""
    return definition in _IDENTITIES


def has_arrived(definition: Definition) -> bool:
    """Return whether a definition came from another process."""
    return definition in _ARRIVED


def is_named(definition: Definition) -> bool:
    """Return whether its module has a definition under its own name."""
    found = sys.modules.get(definition.__module__)
    try:
        for part in definition.__qualname__.split("."):
            found = getattr(found, part)
    except AttributeError:
        return False
    return found is definition


def own(identity: str) -> Definition | None:
    """Return the definition with this identity if it did not arrive in a pickle, and is what it was.

    A function that has been replaced under its name since, as in a notebook, is not taken: its copy would use
    the globals of now.
    """
    found = _KNOWN.get(identity)
    if found is None or found in _ARRIVED or not (isinstance(found, type) or is_named(found)):
        return None
    return found


# Called by pickles.


def code(made_by: str, *arguments: Any) -> types.CodeType:
    """Return a code object, unless another version of Python made it, whose bytecode would crash this one.

    Raises:
        UnpicklableResult: another version made it.
    """
    if made_by != version():
        raise UnpicklableResult(
            f"it holds code of Python {made_by}, and this is Python {version()}",
            advice=f"Read it with Python {made_by}, or return plain data, or objects of modules that can be imported.",
        )
    return types.CodeType(*arguments)


def namespace(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the globals of functions of ``__main__``: in a task its ``__main__``'s, elsewhere new ones."""
    if _main is None:
        return dict(attributes)
    found = vars(_main)
    for name, value in attributes.items():
        if found.get(name) is None:
            found[name] = value
    return found


def define(identity: str, make: Callable[..., Definition], arguments: tuple[Any, ...]) -> Definition:
    """Return the definition with this identity; make it if this process has none."""
    found = own(identity)
    if found is not None:
        return found
    found = _KNOWN.get(identity)
    if found is None or found not in _ARRIVED:
        # Without a lock, which a process that is forked meanwhile could never take: of two threads one comes first.
        made = make(*arguments)
        _IDENTITIES[made], _ARRIVED[made] = identity, True
        if found is not None:  # replaced since it was pickled here
            _KNOWN[identity] = made
        found = _KNOWN.setdefault(identity, made)
    return found


def complete(definition: Definition, state: tuple[Setter | None, Any, bool]) -> None:
    """Give a definition the rest of its state, unless it is this process's own; in a task, define it in its module."""
    setter, content, named = state
    if definition not in _ARRIVED:
        return
    if setter is not None:
        setter(definition, content)
    else:
        definition.__dict__.update(content)
    if named and _main is not None and definition.__module__ == MAIN and "." not in definition.__qualname__:
        vars(_main)[definition.__qualname__] = definition


def set_attributes(error: BaseException, state: Mapping[str, Any]) -> None:
    """Give an exception its attributes, also one that lets nobody set them."""
    for name, value in state.items():
        object.__setattr__(error, name, value)


def cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:  # noqa: FBT001
    """Return a function with an empty cache, as `functools.lru_cache` makes it."""
    return functools.lru_cache(maxsize, typed)(function)


def dispatching(function: Callable[..., Any]) -> Any:
    """Return a function of `functools.singledispatch`, with no implementation but the default."""
    return functools.singledispatch(function)


def register(dispatcher: Any, state: tuple[Mapping[Any, Callable[..., Any]], Mapping[str, Any]]) -> None:
    """Add the other implementations of a function of `functools.singledispatch`, and its attributes."""
    implementations, attributes = state
    for kind, implementation in implementations.items():
        dispatcher.register(kind, implementation)
    vars(dispatcher).update(attributes)


def cached_property(function: Callable[[Any], Any], name: str | None) -> Any:
    """Return a `functools.cached_property` for the attribute of this name."""
    found = functools.cached_property(function)
    if name is not None:
        found.__set_name__(object, name)
    return found


def named_type(module: str, make: Callable[..., Any], *arguments: Any) -> Any:
    """Return a `typing.NewType` or a type variable of a module."""
    found = make(*arguments)
    with suppress(AttributeError):  # that of a type alias cannot be set
        found.__module__ = module
    return found


# Definitions that a result refers to.


class _Reading(threading.local):
    definitions: Mapping[int, Definition] | None = None


_reading = _Reading()


def reading(definitions: Mapping[int, Definition] | None) -> Mapping[int, Definition] | None:
    """Let this thread find the definitions there that pickles refer to by number; return the previous place."""
    before = _reading.definitions
    _reading.definitions = definitions
    return before


def stored(number: int) -> Definition:
    """Return the definition of this number in the run folder that is being read."""
    return _reading.definitions[number]  # type: ignore[index]  # only results refer to numbers


def new(number: int, *arguments: Any) -> Any:
    """Return an instance of a stored class, without a call of its ``__init__``."""
    cls = _reading.definitions[number]  # type: ignore[index]
    return cls.__new__(cls, *arguments)


def call(number: int, *arguments: Any) -> Any:
    """Call a stored class."""
    return _reading.definitions[number](*arguments)  # type: ignore[index]
