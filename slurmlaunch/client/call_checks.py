"""The checks of a call's function and arguments, whose errors speak of the caller's own names.

Used by the executor, joblib's and submitit's interfaces. It pickles nothing, and knows no run, plan or option.
"""

from __future__ import annotations

import functools
import inspect
import re
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from slurmlaunch.byvalue import refuse_coroutines
from slurmlaunch.client.wording import name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def check_function(function: object) -> None:
    """Raise `TypeError` if a function cannot be called on the node."""
    if not callable(function):
        raise TypeError(f"{function!r} is not callable: give a function, and its arguments after it")
    refuse_coroutines(function)


def with_kwargs(
    function: Callable[..., Any], kwargs: Mapping[str, Any] | None, positional: int | None = None
) -> Callable[..., Any]:
    """Return the function with keyword arguments that all items have in common.

    It is a partial, so that both are in one pickle, written once: large arrays among them are shared by all processes
    of a node, and every later attempt and round has them.

    Args:
        function: the function.
        kwargs: the keyword arguments, or None.
        positional: how many positional arguments each item has, if that is known.

    Raises:
        TypeError: *kwargs* is no dict of names, or the function does not take them.
    """
    check_function(function)
    if kwargs is None:
        return function
    if not (isinstance(kwargs, Mapping) and all(isinstance(name, str) for name in kwargs)):
        raise TypeError(f"kwargs must be a dict of the function's keyword arguments, not {reprlib.repr(kwargs)}")
    signature = _signature(function)
    if signature is not None and kwargs:
        try:
            if positional is None:
                signature.bind_partial(**kwargs)
            else:
                signature.bind(*range(positional), **kwargs)
        except TypeError as error:
            raise TypeError(f"kwargs do not fit {name_of(function)}(): {error}") from None
    return functools.partial(function, **kwargs) if kwargs else function


def unknown_keywords(function: Callable[..., Any], keywords: Iterable[str]) -> list[str]:
    """Return the keywords for which a function has no parameter, as far as that is known."""
    signature = _signature(function)
    if signature is None or any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values()):
        return []
    return [name for name in keywords if name not in signature.parameters]


def zip_equal(function: Callable[..., Any], iterables: tuple[Iterable[Any], ...]) -> Iterator[tuple[Any, ...]]:
    """Zip iterables of equal length.

    Raises:
        TypeError: one is not iterable.
        ValueError: while the items are read, one proves to be shorter than another.
    """
    return _zipped(function, iterables, _iterators(function, iterables, "map_array"))


def zip_shortest(function: Callable[..., Any], iterables: tuple[Iterable[Any], ...]) -> Iterator[tuple[Any, ...]]:
    """Zip iterables as `concurrent.futures.Executor.map` does: the shortest ends all.

    Raises:
        TypeError: one is not iterable.
    """
    return zip(*_iterators(function, iterables, "map"), strict=False)


def _iterators(function: Callable[..., Any], iterables: tuple[Iterable[Any], ...], call: str) -> list[Iterator[Any]]:
    iterators = []
    for number, each in enumerate(iterables, 1):
        try:
            iterators.append(iter(each))
        except TypeError:
            what = f"number {number}{_parameter(function, number)} is {reprlib.repr(each)}"
            advice = _advice(function, number, each)
            raise TypeError(f"{call} takes iterables, and {what}, which is not iterable: {advice}") from None
    return iterators


def _zipped(
    function: Callable[..., Any], iterables: tuple[Iterable[Any], ...], iterators: list[Iterator[Any]]
) -> Iterator[tuple[Any, ...]]:
    try:
        yield from zip(*iterators, strict=True)
    except ValueError as error:
        # The words of zip; a ValueError of an iterable's own passes through.
        unequal = re.match(r"zip\(\) argument (\d+) is (shorter|longer) than argument", str(error))
        if unequal is None:
            raise
        short = int(unequal[1]) if unequal[2] == "shorter" else 1
        # A text among lists is meant as a whole, whichever is shorter.
        texts = [number for number, each in enumerate(iterables, 1) if isinstance(each, (str, bytes, Mapping))]
        constant = texts[0] if texts and len(texts) < len(iterables) else short
        raise ValueError(
            f"the iterables are not equally long: number {short}{_parameter(function, short)} is shorter than another. "
            f"If number {constant}{_parameter(function, constant)} is meant for every item: "
            + _advice(function, constant, iterables[constant - 1])
        ) from None


def rows_of(argument_tuples: Iterable[Iterable[Any]]) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments of each item of `Executor.starmap_array`.

    Raises:
        TypeError: an item is no tuple.
    """
    try:
        rows = enumerate(argument_tuples)
    except TypeError:
        raise TypeError(
            f"starmap_array takes an iterable with a tuple of arguments for each item, not "
            f"{reprlib.repr(argument_tuples)}, which is not iterable"
        ) from None
    for item, row in rows:
        try:
            arguments = tuple(row)
        except TypeError:
            raise TypeError(
                f"item {item} is {reprlib.repr(row)}, and starmap_array takes a tuple of arguments for each item: "
                "map_array(fn, items) calls a function of one argument"
            ) from None
        yield arguments


def _advice(function: Callable[..., Any], number: int, value: object) -> str:
    name = _names(function).get(number, "name")
    assigned = f"{name}={reprlib.repr(value)}"
    return (
        f"a value that all items have in common goes into map_array(..., kwargs={{{name!r}: {reprlib.repr(value)}}}), "
        f"or into functools.partial({name_of(function)}, {assigned})"
    )


def _parameter(function: Callable[..., Any], number: int) -> str:
    name = _names(function).get(number)
    return "" if name is None else f" ({name!r})"


def _names(function: Callable[..., Any]) -> dict[int, str]:
    """Return the names of the parameters that may be given by name, by the number of their position."""
    signature = _signature(function)
    parameters = () if signature is None else signature.parameters.values()
    return {number: each.name for number, each in enumerate(parameters, 1) if each.kind is each.POSITIONAL_OR_KEYWORD}


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    # What a decorated function is called with is up to its decorator.
    try:
        return inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # many built-in functions have none
        return None
