"""Running a program that ends with the process that started it, and with it all that it started itself.

A function may be killed at any moment: it was cancelled, or its task is over.
A program that it runs would then go on, unseen by the scheduler. So each
program runs in a process group of its own, and the first process in the group
is a guard: a shell that waits for the end of a pipe that we hold, and then
kills the group. However we end, the kernel closes the pipe.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Self

_GUARD = "trap '' HUP INT TERM USR1 USR2; read -r _; kill -KILL 0"

_DOUBT_SECONDS = 1.0
"""How long a death by SIGTERM is held: the same signal may be on its way to us."""

_END_SECONDS = 10.0
"""How soon a supervisor that was told to end has killed its processes, and much more."""

_DRAIN_SECONDS = 1.0
"""How long a program may have ended before what it left behind is seen to hold its output open."""

_SHELLS_STATUS = 128
"""What a shell adds to the number of the signal that ended its command."""


def run(
    command: str | Sequence[str], *, timeout: float | None = None, capture: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with no standard input.

    Args:
        command: its words; or a text, which ``/bin/sh`` reads.
        timeout: seconds after which it is killed, or None.
        capture: whether to take its output; else it goes where ours goes, and
            the output that is returned is empty.

    Returns:
        Its exit status (-n for signal n) and its output, decoded as UTF-8.
        What it left running in the background has been killed.

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: the time was up.
    """
    output = subprocess.PIPE if capture else None
    with _Termination() as termination, _process_group() as group:
        program = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            **_within(group),
        )
        with program:
            try:
                out, err = _output_of(program, group, timeout)
            except BaseException:
                os.killpg(group, signal.SIGKILL)  # else leaving the block would wait for it
                raise
        termination.wait_if_meant(program.returncode)
    return subprocess.CompletedProcess(command, program.returncode, _decoded(out), _decoded(err))


def _output_of(program: subprocess.Popen[bytes], group: int, timeout: float | None) -> tuple[bytes, bytes]:
    """Return what the program wrote up to its end, whatever it left behind holds open."""
    until = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        left = max(0.0, until - time.monotonic())
        try:
            return program.communicate(timeout=min(_DRAIN_SECONDS, left))
        except subprocess.TimeoutExpired as error:
            if program.poll() is not None:
                os.killpg(group, signal.SIGKILL)  # what it left running; then its output ends
                return program.communicate()
            if time.monotonic() >= until:
                error.timeout = timeout or 0.0
                raise


def _decoded(output: bytes | None) -> str:
    return (output or b"").decode("utf-8", "replace")


@contextlib.contextmanager
def _process_group() -> Iterator[int]:
    """Make a process group that is killed when the block is left, or when this process ends; yield its id."""
    guard = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **_within(0),
    )
    with guard:  # which closes the pipe, and waits
        yield guard.pid


def _within(group: int) -> dict[str, Any]:
    """Return what starts a process in a group, or as the first of its own for 0."""
    if sys.version_info >= (3, 11):
        return {"process_group": group}
    return {"preexec_fn": functools.partial(os.setpgid, 0, group)}


class _Termination:
    """Tells a failure of the program's own from the end of the whole task, whose SIGTERM reaches every process in it.

    A process of a pool catches SIGTERM and goes on, since its supervisor
    decides. When the program has failed of it, that is no outcome: the item is
    to stay without one, so that it is run again. So we wait to be killed.
    """

    def __init__(self) -> None:
        self._came = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGTERM)):
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, number: int, frame: object) -> None:
        self._came = True
        self._before(number, frame)

    def wait_if_meant(self, status: int) -> None:
        """Wait for our own end, if SIGTERM was meant for the whole task and not for the program alone."""
        if self._before is None or not status:
            return
        if status in {-signal.SIGTERM, _SHELLS_STATUS + signal.SIGTERM}:
            until = time.monotonic() + _DOUBT_SECONDS
            while not self._came and time.monotonic() < until:
                time.sleep(_DOUBT_SECONDS / 20)
        if self._came:
            time.sleep(_END_SECONDS)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
