"""Failures of the storage: which errors of the system they are, and waiting for the short ones to pass.

Tasks use it for all that they write into the run folder or read from it, clients for what they do in the background.
A full disk, a quota or a server that is away often lasts seconds, and an item may have taken hours. Nothing is known
here of items, records or processes.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, TypeVar

from slurmlaunch.errors import StorageFailure
from slurmlaunch.runfolder.layout import Status

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

PATIENCE = 15.0
"""Seconds for which a failure of the storage may last before a task gives up."""

_HURRIED = 1.0
"""The same while a task is being ended."""

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5

_STATUSES = {
    errno.ENOSPC: Status.DISK_FULL,
    errno.EDQUOT: Status.QUOTA,
    errno.EROFS: Status.READ_ONLY,
    errno.EIO: Status.INPUT_OUTPUT,
}
"""The errors that an exit status names: it arrives even if neither the log nor an end mark can be written."""

_OTHERS = frozenset({
    errno.EACCES, errno.EFBIG, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOLCK, errno.ENOTCONN, errno.EPERM,
    errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT,
})  # fmt: skip
"""Expired tickets and immutable files among them; not what a process itself lacks, such as memory or descriptors."""


STORAGE = frozenset({Status.STORAGE, *_STATUSES.values()})
"""The exit statuses of tasks and ranks that ended because of the storage."""


def status_of(error: BaseException) -> Status | None:
    """Return the exit status of a task that ends with this error, or one that it caused; None for other errors."""
    for each in (error, error.__cause__):
        if isinstance(each, OSError) and each.errno is not None:
            return _STATUSES.get(each.errno, Status.STORAGE if each.errno in _OTHERS else None)
    return None


def errno_of(status: int) -> int | None:
    """Return the system's number of the error that an exit status names; None if it names none."""
    return next((number for number, named in _STATUSES.items() if named == status), None)


def named(error: Exception) -> Exception:
    """Return a `StorageFailure` in place of a failure of the storage; other errors stay as they are."""
    if status_of(error) is None:
        return error
    cause = error if isinstance(error, OSError) else error.__cause__
    path = getattr(cause, "filename", None)
    what = f"{path} could not be written or read" if path else f"{error}"
    failure = StorageFailure.of(getattr(cause, "errno", None), what)
    failure.__cause__ = error
    return failure


def _is_lasting(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EFBIG  # a limit of the process's own


class Patience:
    """Waits for failures of the storage to pass, once until it works again.

    Attributes:
        hurried: whether to wait no more than a moment, because the task is being ended.
    """

    def __init__(self) -> None:
        self.hurried = False
        self._in_vain = False

    def run(self, work: Callable[[], T]) -> T:
        """Return what *work* returns; while the storage fails, call it again.

        Raises:
            Exception: what it raises, if that is another failure or lasts too long.
        """
        began, pause = time.monotonic(), _SHORTEST_PAUSE
        while True:
            try:
                result = work()
            except Exception as error:
                limit = 0.0 if self._in_vain else _HURRIED if self.hurried else PATIENCE
                if status_of(error) is None or _is_lasting(error):
                    raise
                if time.monotonic() - began >= limit:
                    self._in_vain = True
                    raise
            else:
                self._in_vain = False
                return result
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)
