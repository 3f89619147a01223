"""A process of the pool: it runs items, and is the only place on a node where user code runs.

What passes between it and its supervisor, each word one byte:

=====  =============================================  ==========================
word   from the process                               the supervisor's answer
=====  =============================================  ==========================
R      ready: the function is loaded                  an assignment
C      the same, and it can be asked for a            an assignment
       checkpoint, by SIGUSR2
P      the checkpoint of the running item             none
       (u32 length, bytes); then it ends
X      the function cannot be loaded (a failure       none
       follows: u32 length, bytes); then it ends
B      there are new outcomes in the channel          none
F      the channel is full                            G: it was emptied
W      an outcome too large for the channel           G: emptied; append it
                                                      to the file yourself
D      the large outcome is appended, a value         none
L      the large outcome is appended, a failure       none
N      the large outcome could not be appended        none
E      the assignment is done                         the next one
=====  =============================================  ==========================

An assignment is a u32 count and so many item indices, each u64. End of file
ends the process.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import struct
import sys
from _thread import get_ident
from array import array
from time import monotonic
from typing import TYPE_CHECKING, NoReturn

from slurmlaunch import caps, context
from slurmlaunch.errors import NodeStartError
from slurmlaunch.node import system
from slurmlaunch.node.channel import LARGE
from slurmlaunch.outcome import Bundle, Failure, failure_of, in_series
from slurmlaunch.runfolder.function import Work
from slurmlaunch.runfolder.outcomes import outcome_entry
from slurmlaunch.runfolder.records import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slurmlaunch.node.channel import Channel, Connection
    from slurmlaunch.runfolder.layout import Manifest, RunFolder
    from slurmlaunch.runfolder.outcomes import OutcomeWriter, Recorded

LENGTH = struct.Struct("<I")

APPENDED = (b"D", b"L")
ABOUT_ITSELF = (b"R", b"C", b"P", b"X")

_ANNOUNCE_AFTER, _ANNOUNCE_ONE_IN = 0.1, 16
"""Seconds after which finished items are announced, though the assignment goes on, and one in how many looks at the
clock: they are found without it, too, a tick later."""

_FAILURE = Kind.FAILURE

_NUMBERS = frozenset({int, float})
"""What `Channel.put_number` takes; a bool is none."""


class Worker:
    """Runs what it is assigned until its supervisor is gone."""

    def __init__(self, connection: Connection, channel: Channel, writer: OutcomeWriter, task: context.Task) -> None:
        self._connection = connection
        self._channel = channel
        self._writer = writer
        self._task = task
        self._is_copy = False
        self._not_appended = b""

    def main(
        self,
        folder: RunFolder,
        manifest: Manifest,
        mask: frozenset[int] | None,
        checkpoints: Mapping[int, Recorded],
    ) -> NoReturn:
        """Run to the end of the process; never return into the supervisor's code."""
        status = 70
        try:
            self._become_ours(mask)
            status = self._serve(folder, manifest, checkpoints)
        except ConnectionError:  # the supervisor is gone, and has told why
            status = 0
        except BaseException:  # noqa: BLE001  (nothing may pass: above is the supervisor's stack)
            sys.excepthook(*sys.exc_info())
        finally:
            flush()
            os._exit(status)

    def _become_ours(self, mask: frozenset[int] | None) -> None:
        task = self._task
        take_signals()
        go_first()
        os.register_at_fork(after_in_child=self._become_a_copy)
        if mask is not None:
            os.sched_setaffinity(0, mask)
        os.environ.update(caps.share_of_gpus(os.environ, task.process, task.processes))
        caps.apply(task.threads)
        context.swap(task)
        line_buffer()

    def _become_a_copy(self) -> None:
        self._is_copy = True

    def _serve(self, folder: RunFolder, manifest: Manifest, checkpoints: Mapping[int, Recorded]) -> int:
        try:
            # The supervisor has checked for all of us what the function refers to.
            work = Work(folder, manifest, checkpoints, checked=bool(manifest.shared))
        except NodeStartError as error:
            data = Failure(error, failure_of(error.__cause__ or error).traceback).dump()
            self._connection.send(b"X" + LENGTH.pack(len(data)) + data)
            return 0
        gc.enable()
        system.end_with_parent()  # until here the end of the connection was enough
        if work.can_checkpoint:
            signal.signal(signal.SIGUSR2, lambda *_: self._checkpoint(work))
            self._connection.send(b"C")
        else:
            self._connection.send(b"R")
        while (items := self._assignment()) is not None:
            self._run(work, items)
            flush()
            self._connection.send(b"E")
        return 0

    def _checkpoint(self, work: Work) -> None:
        """Hand in how the running item is gone on with, and end: it would only go on beyond that."""
        pickled = work.checkpoint()
        if pickled is not None:
            flush()
            self._connection.send(b"P" + LENGTH.pack(len(pickled)) + pickled)
            os._exit(0)

    def _assignment(self) -> array[int] | None:
        header = self._connection.receive(LENGTH.size)
        if header is None:
            return None
        items = array("Q")
        data = self._connection.receive(LENGTH.unpack(header)[0] * items.itemsize)
        if data is None:
            return None
        items.frombytes(data)
        self._channel.restart()
        return items

    def _run(self, work: Work, items: array[int]) -> None:
        call, task, channel = work.call, self._task, self._channel
        announced = monotonic()
        for item, position in zip(items, channel.begin(len(items)), strict=False):
            task.item = item
            try:
                value = call(item)
            except BaseException as error:  # noqa: BLE001  (whatever it is belongs to the client)
                self._hand_in(item, _FAILURE, work.failure(error))
            else:
                if type(value) not in _NUMBERS or self._is_copy or not channel.put_number(value):
                    self._hand_in(item, *work.pickled(value))
                del value  # a large array is not to be there still while the next one is made
            if not position % _ANNOUNCE_ONE_IN and monotonic() - announced > _ANNOUNCE_AFTER:
                self._connection.send(b"B")
                announced = monotonic()

    def _hand_in(self, item: int, kind: Kind, data: bytes | Bundle) -> None:
        if self._is_copy:
            _end_copy(succeeded=kind is not _FAILURE)
        if isinstance(data, Bundle) or len(data) >= LARGE:
            if self._append(item, kind, data):
                return
            kind, data = _FAILURE, self._not_appended
        elif kind is Kind.VALUES:
            data = in_series(data)
        while not self._channel.put(data, failed=kind is _FAILURE):
            self._ask(b"F")

    def _append(self, item: int, kind: Kind, data: bytes | Bundle) -> bool:
        """Append a large outcome to the file; False if that fails, which then is the outcome."""
        entry = outcome_entry(item, data, succeeded=kind is not _FAILURE)
        self._ask(b"W")  # from here on the others wait
        try:
            self._writer.adopt(failed=False)
            self._writer.append(entry)
        except OSError as error:
            self._connection.send(b"N")
            self._not_appended = failure_of(error).dump()
            return False
        self._connection.send(b"L" if kind is _FAILURE else b"D")
        return True

    def _ask(self, word: bytes) -> None:
        self._connection.send(word)
        if self._connection.receive(1) is None:
            raise ConnectionError
        self._channel.restart()


def _end_copy(*, succeeded: bool) -> NoReturn:
    """End a process that the function forked, and in which it returned too: what counts is where it was called."""
    flush()
    os._exit(not succeeded)


def line_buffer(*, whole: bool = False) -> None:
    """Have what this process says outlive it, line by line; *whole* lines also where Python is told not to buffer."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, write_through=False if whole else None)  # type: ignore[union-attr]


def flush() -> None:
    """Write out what is buffered of what was printed."""
    for stream in (sys.stdout, sys.stderr):
        # A full disk, or a stream that the function closed or replaced: the outcome matters more.
        with contextlib.suppress(Exception):
            stream.flush()


_OOM_SCORE = b"300"
"""How much sooner, in thousandths of the memory that there is."""

_LEFT_TO_SUPERVISOR = (signal.SIGTERM, signal.SIGUSR1)


def go_first() -> None:
    """Have the kernel take a process of the pool where memory is short, not the supervisor, who tells what happened."""
    with contextlib.suppress(OSError):  # not Linux
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, _OOM_SCORE)
        finally:
            os.close(descriptor)


def take_signals() -> None:
    """Leave TERM and USR1 to the supervisor, who decides what an end from outside means.

    They are caught rather than ignored: an ignored signal stays ignored in the
    programs that the function starts, a caught one has its default there.
    """
    for number in _LEFT_TO_SUPERVISOR:
        signal.signal(number, _leave)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=_default_signals)


def _leave(_number: int, _frame: object) -> None:
    pass


def _hold_signals() -> None:
    """Let no signal reach a forked child before it has its defaults: there it would be lost."""
    _held[get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_SUPERVISOR)


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.pop(get_ident()))


def _default_signals() -> None:
    for number in _LEFT_TO_SUPERVISOR:
        if signal.getsignal(number) is _leave:  # else it is the function's own
            signal.signal(number, signal.SIG_DFL)
    _release_signals()


_held: dict[int, set[int | signal.Signals]] = {}
"""The signal mask of each thread that is about to fork."""
