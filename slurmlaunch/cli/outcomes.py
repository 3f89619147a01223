"""What items returned, printed as text, and why others failed: for `map` and `results`."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

from slurmlaunch.cli.exit_status import FAILED, OK
from slurmlaunch.cli.flag_errors import in_flags
from slurmlaunch.cli.printing import counted
from slurmlaunch.errors import SlurmlaunchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from slurmlaunch.client.futures import Future

_SHOWN_FAILURES = 10
_SHOWN_LINES = 5


def show_all(futures: Iterable[Future[Any]], names: Sequence[str]) -> int:
    """Print the items' output or values in order as they come, then the failures; return the exit status."""
    reasons = {name: show(future) for name, future in zip(range(len(names)), futures, strict=True)}
    failed = {f"item {index} ({names[index]})": reason for index, reason in reasons.items() if reason}
    tell_failures(failed, len(names))
    return FAILED if failed else OK


def tell_failures(failed: Mapping[str, Sequence[str]], items: int) -> None:
    """Print on standard error why items failed: the lines for each, by its name."""
    if failed:
        print(f"slurmlaunch: {len(failed)} of {counted(items, 'item')} failed:", file=sys.stderr)
    for name, reason in list(failed.items())[:_SHOWN_FAILURES]:
        print(f"  {name}: " + "\n      ".join(reason), file=sys.stderr)
    if len(failed) > _SHOWN_FAILURES:
        print(f"  and {len(failed) - _SHOWN_FAILURES} more", file=sys.stderr)


def show(future: Future[Any]) -> list[str]:
    """Wait for an item and print its output or value; if it failed, return why, and the end of its standard error."""
    try:
        error = future.exception()
    except CancelledError:  # by another client
        return ["it was cancelled"]
    if error is None:
        value = future.result()
        if isinstance(value, subprocess.CompletedProcess):
            _print(value.stdout, value.stderr)
        else:
            print(f"{future.index}  {value!r}")
        return []
    if not isinstance(error, subprocess.CalledProcessError):
        says_all = isinstance(error, (SlurmlaunchError, subprocess.SubprocessError))
        return (in_flags(error) if says_all else f"{type(error).__name__}: {error}").splitlines()
    _print(error.stdout, error.stderr)
    reason = f"exit status {error.returncode}" if error.returncode > 0 else f"signal {-error.returncode}"
    return [reason, *error.stderr.rstrip().splitlines()[-_SHOWN_LINES:]]


def _print(out: str, err: str) -> None:
    for stream, text in ((sys.stdout, out), (sys.stderr, err)):
        stream.write(text)
        stream.flush()
