"""Objects pickled by value still name their module."""

from __future__ import annotations

import pickle
import traceback
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest

from slurmlaunch import byvalue

if TYPE_CHECKING:
    from collections.abc import Callable


def travelled(function: Callable[..., Any]) -> Any:
    """Pickle a function by value and return its copy."""
    return pickle.loads(byvalue.dumps(function))


def test_code_keeps_its_file() -> None:
    """A function pickled by value, and the one inside it, keep the name of their source file."""

    def outer() -> Callable[[], None]:
        def inner() -> None:
            raise KeyError

        return inner

    assert [__file__] * 2 == [function.__code__.co_filename for function in (travelled(outer), travelled(outer)())]


def test_a_traceback_shows_the_line() -> None:
    """The traceback of an unpickled function shows the source line that raised."""

    def fails() -> None:
        raise KeyError("here")

    with pytest.raises(KeyError) as caught:
        travelled(fails)()
    assert 'raise KeyError("here")' in "".join(traceback.format_exception(caught.value))


def test_other_things_travel_as_ever() -> None:
    """Objects that are not code are pickled as by cloudpickle, and large buffers go to the given callback."""
    buffer = pickle.PickleBuffer(b"large")
    value = {"numbers": [1, 2.0], "class": KeyError}
    seen: list[pickle.PickleBuffer] = []

    assert cloudpickle.dumps(value, 5) == byvalue.dumps(value, 5)
    byvalue.dumps(buffer, 5, buffer_callback=seen.append)
    assert [buffer] == seen
