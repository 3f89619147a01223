"""Definitions on disk: the functions and classes that results refer to, each written once per run.

``definitions/N`` is one record, a pickle of a pair: the identity of the definition (see `slurmlaunch.unpickling`), and
its own pickle, made by cloudpickle. N is a number of 31 bits that follows from the identity. A result refers to it by
``unpickling.stored(N)``. The client that sent the definition takes its own in its place.

`results` writes them, `outcomes` reads them. A node imports this before the user's function, so it does not import
cloudpickle.
"""

from __future__ import annotations

import pickle
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from slurmlaunch import unpickling
from slurmlaunch.errors import ResultLost
from slurmlaunch.outcome import PICKLE_PROTOCOL
from slurmlaunch.runfolder.files import write_once
from slurmlaunch.runfolder.records import Kind, Record, encode, read_records

if TYPE_CHECKING:
    from slurmlaunch.runfolder.files import Location


def number_of(identity: str) -> int:
    """Return the number of the definition with an identity: five bytes in a pickle, which each result pays."""
    return int(identity[:8], 16) >> 1


def write_definition(folder: Location, identity: str, pickled: bytes) -> bool:
    """Write a definition into the folder, unless another process has; return False if its number is taken.

    Raises:
        OSError: it could not be written.
    """
    path = folder / str(number_of(identity))
    if not path.exists():
        with suppress(FileExistsError):
            folder.mkdir()
        if write_once(path, encode(Kind.DEFINITION, pickle.dumps((identity, pickled), PICKLE_PROTOCOL))):
            return True
    return _read(path)[0] == identity


def _read(path: Location) -> tuple[str, bytes]:
    """Return identity and pickle of a definition.

    Raises:
        ResultLost: it is missing or damaged.
        UnsafeRunFolder: it is not safe to read.
    """
    try:
        found = list(read_records(path))
    except OSError as error:
        msg = f"the result needs a definition of the task's, which cannot be read: {error.strerror}"
        raise ResultLost(msg, file=str(path)) from error
    payload = found[0].payload if len(found) == 1 and isinstance(found[0], Record) else b""
    try:
        identity, pickled = pickle.loads(payload)
        if (type(identity), type(pickled)) == (str, bytes):
            return identity, pickled
    except Exception:  # noqa: BLE001, S110  (what a damaged pickle raises is not specified)
        pass
    raise ResultLost("the result needs a definition of the task's, which is damaged on disk", file=str(path), offset=0)


class Definitions(dict[int, Any]):
    """The definitions of one run by number, each read when it is first needed."""

    def __init__(self, folder: Location) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, number: int) -> Any:
        """Read a definition; `ResultLost` says that it cannot be read."""
        identity, pickled = _read(self._folder / str(number))
        found = unpickling.own(identity)
        self[number] = pickle.loads(pickled) if found is None else found
        return self[number]


@lru_cache(maxsize=64)
def definitions_in(folder: Location) -> Definitions:
    """Return the definitions in a folder, the same for all readers in this process."""
    return Definitions(folder)
