"""The arguments of items, read from the run folder: as the user gave them, or shortened for errors and tables.

Used by futures, by what errors say of their items (`explanations`), and by `rerun`, which gives a call's arguments to
another function. It knows no outcomes and no tasks.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.client.wording import shown
from slurmlaunch.errors import RunFolderError, SlurmlaunchError
from slurmlaunch.runfolder.function import load_function
from slurmlaunch.runfolder.items import ItemReader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from slurmlaunch.runfolder.layout import Manifest, RunFolder

_LARGEST = 1 << 20
"""Bytes of arguments that are read for an error, at most: nobody asked for them."""

_OURS = "slurmlaunch.integrations."
"""The beginning of the names of functions that call the user's: `call_of` of such a function tells its arguments."""


class Arguments(NamedTuple):
    """The arguments of one call of the user's function."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _TooLarge(Exception):
    """There are more bytes of arguments than may be read."""


class ArgumentsReader:
    """Reads the arguments of a run's items; keeps the last block of short ones, whose neighbours are wanted next."""

    def __init__(self, folder: RunFolder, manifest: Manifest) -> None:
        """Read those of the run with this manifest, as it applies to the last round."""
        self._folder, self._manifest = folder, manifest
        self._lock = threading.Lock()
        self._block: tuple[range, Callable[[int], tuple[Any, ...]]] = range(0), lambda _: ()
        self._function: Callable[..., Any] | None = None  # a small one that has something to tell of each item
        self._keywords: str | None = None  # those that all items have, as text

    def of(self, item: int) -> Arguments:
        """Return the arguments of an item as the user gave them: what a partial holds is not among them.

        Raises:
            RunFolderError: they cannot be loaded here; the message says what does not load.
        """
        try:
            with self._lock:
                return self._of(item, None)
        except Exception as error:  # the user's modules may raise anything
            what = error.what if hasattr(error, "what") else str(error)
            if isinstance(error, ImportError) and error.name:
                what = f"the module {error.name} cannot be imported in this process"
            elif not isinstance(error, SlurmlaunchError):
                what = f"{type(error).__name__}: {what}"
            msg = f"the arguments of item {item} of {self._manifest.name} do not load here: {what}; {self._folder.path}"
            raise RunFolderError(msg, path=str(self._folder.path)) from error

    def row_of(self, item: int) -> tuple[Any, ...]:
        """Return the arguments with which a task calls the stored function for an item; raises as `ItemReader` does."""
        with self._lock:
            return self._item(item, None)

    def call_of(self, item: int) -> str:
        """Return the call of an item, shortened: ``process('csvs/s013.csv')``; never raises."""
        name = self._manifest.function.rpartition(".")[2]
        if self._manifest.function.startswith(_OURS):
            name = self._manifest.name
        return f"{name}({self._shortened(item)})"

    def text_of(self, item: int) -> str:
        """Return the arguments of an item, shortened, a text without quotes: ``csvs/s013.csv``; never raises."""
        text = self._shortened(item)
        with contextlib.suppress(ValueError, SyntaxError):
            import ast

            plain = ast.literal_eval(text)
            return plain if isinstance(plain, str) and plain.isprintable() else text
        return text

    def _shortened(self, item: int) -> str:
        try:
            with self._lock:
                return self._text(item)
        except _TooLarge:
            return "large arguments, which future.args reads"
        except Exception as error:  # noqa: BLE001  (the user's modules may raise anything)
            return f"arguments that do not load here: {type(error).__name__}"

    def _text(self, item: int) -> str:
        if self._manifest.single or self._manifest.function.startswith(_OURS):
            return ", ".join(shown(*self._of(item, _LARGEST)))
        if self._keywords is None:
            try:
                self._keywords = ", ".join(shown((), self._bound(_LARGEST).kwargs))
            except _TooLarge:
                self._keywords = "..."
        return ", ".join(filter(None, [*shown(self._item(item, _LARGEST), {}), self._keywords]))

    def _of(self, item: int, most: int | None) -> Arguments:
        if self._manifest.single:
            return self._bound(most)
        args = self._item(item, most)
        if self._manifest.function.startswith(_OURS):
            tell = getattr(self._load(most), "call_of", None)
            return Arguments(*tell(*args)) if tell else Arguments(args, {})
        return Arguments(args, self._bound(most).kwargs)

    def _item(self, item: int, most: int | None) -> tuple[Any, ...]:
        items, row = self._block
        if item in items:
            return row(item - items.start)
        with contextlib.closing(ItemReader(self._folder)) as reader:
            found = reader.block(item, most)
            if found is None:
                raise _TooLarge
            items, row = found
            args = row(item - items.start)
        if len(items) > 1:  # else it may be read from the file
            self._block = items, row
        return args

    def _bound(self, most: int | None) -> Arguments:
        bound = self._manifest.bound
        if not (bound or (bound is None and self._manifest.single)):
            return Arguments((), {})
        return bound_arguments(self._load(most), bound)

    def _load(self, most: int | None) -> Callable[..., Any]:
        if self._function is not None:
            return self._function
        path = self._manifest.function_in(self._folder)
        size = path.status().st_size + self._manifest.shared
        if most is not None and size > most:
            raise _TooLarge
        function = load_function(path, self._manifest.function_sha256, writable=True)
        if size <= _LARGEST and self._manifest.function.startswith(_OURS):
            self._function = function
        return function


def bound_arguments(function: Callable[..., Any], bound: Sequence[str] | None) -> Arguments:
    """Return the arguments that a call bound to its function, as `Manifest.bound` names them; None means all."""
    if not isinstance(function, functools.partial):
        return Arguments((), {})
    if bound is None:  # as 0.1.0 submitted it
        return Arguments(function.args, function.keywords)
    args = function.args[len(function.args) - bound.count("") :]
    return Arguments(args, {name: function.keywords[name] for name in bound if name})
