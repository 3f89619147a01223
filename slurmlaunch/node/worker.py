"""A worker: a process of the pool that runs items. Only here, and in `rank`, does user code run.

The supervisor forks it (`pool`), and it knows nothing of the rest of the task.
Its messages, each of one byte:

=======  =============================================  ======================
message  from the worker                                the supervisor's reply
=======  =============================================  ======================
R        ready: the function is loaded                  an assignment
C        the same, and SIGUSR2 makes it send a          an assignment
         checkpoint
P        the checkpoint of the running item             none
         (u32 length, bytes); then it ends
X        the function cannot be loaded (a failure       none
         follows: u32 length, bytes); then it ends
B        new outcomes are in the channel                none
F        the channel is full                            G: it was emptied
W        an outcome is too large for the channel        G: emptied; append it
                                                        to the file yourself
D        the large outcome is appended, a value         none
L        the large outcome is appended, a failure       none
N        the large outcome could not be appended        none
O        the item has left processes: here are the      Y, or N: they cannot
         descriptors of new pipes for both streams      be opened
         (u32 each)
E        the assignment is done                         the next one
=======  =============================================  ======================

An assignment is a u32 count and so many item indices, each u64. End of file
ends the worker.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from array import array
from time import monotonic
from typing import TYPE_CHECKING, Any

from slurmlaunch import caps, context
from slurmlaunch.errors import NodeStartError, StorageFailure
from slurmlaunch.node import main_module, system
from slurmlaunch.node.channel import DATA_BYTES, LARGE, LENGTH
from slurmlaunch.node.output import renew_streams
from slurmlaunch.node.report import Reporter
from slurmlaunch.outcome import Bundle, Failure, failure_of, in_series
from slurmlaunch.runfolder.outcomes import outcome_entry
from slurmlaunch.runfolder.records import Kind
from slurmlaunch.runfolder.storage import named

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurmlaunch.node.channel import Channel, Connection
    from slurmlaunch.runfolder.function import Work
    from slurmlaunch.runfolder.interpreter import Interpreter
    from slurmlaunch.runfolder.outcomes import OutcomeWriter

APPENDED = (b"D", b"L")
ABOUT_ITSELF = (b"R", b"C", b"P", b"X")

_ANNOUNCE_AFTER, _ANNOUNCE_ONE_IN = 0.1, 16
"""Seconds after which finished items are announced before the assignment ends, and one in how many items reads the
clock: the supervisor finds them anyway, a tick later."""

_FAILURE = Kind.FAILURE
_ITEM_BYTES = 8

_NUMBERS = frozenset({int, float})
"""The types that `Channel.put_number` takes; bool is not among them."""


_NOT_HANDED_OVER = (
    "the large result could not be handed over, since the function closed descriptors that are not its own: "
    "close those that you opened, rather than all by os.closerange()"
)


def _flushing(call: Callable[[int], Any]) -> Callable[[int], Any]:
    """Return a function that also flushes, so that an item's output is all there before its outcome is."""

    def call_and_flush(item: int) -> Any:
        try:
            return call(item)
        finally:
            system.flush_all_streams()

    return call_and_flush


class _CheckpointSent(BaseException):
    """Ends the running item: the next attempt resumes it from its checkpoint."""


class Worker:
    """Runs its assignments until the supervisor closes the connection."""

    def __init__(
        self,
        connection: Connection,
        channel: Channel,
        writer: OutcomeWriter,
        task: context.Task,
        interpreter: Interpreter,
    ) -> None:
        self._connection, self._channel, self._writer, self._task = connection, channel, writer, task
        self._interpreter = interpreter
        self._is_copy = self._is_checkpointed = False

    def main(self, mask: frozenset[int] | None, load: Callable[[], Work]) -> None:
        """Run assignments on these CPUs (None: on all of the task's); return when the process is to end normally."""
        try:
            self._set_up(mask)
            self._serve(load)
        except _CheckpointSent:
            pass
        except ConnectionAbortedError:
            system.log("slurmlaunch: an item closed the descriptors of its process (os.closerange?), which is replaced")
        except ConnectionError:  # the supervisor has ended, and reported why
            system.leave(status=0)
        except BaseException:  # noqa: BLE001  (nothing may pass: above is the supervisor's stack)
            sys.excepthook(*sys.exc_info())
            system.leave(status=70)
        caps.limit_end()

    def _set_up(self, mask: frozenset[int] | None) -> None:
        task = self._task
        context.swap(task)
        system.leave_signals_to_supervisor()
        system.prefer_for_oom_kill()
        os.register_at_fork(after_in_child=self._mark_copy)
        if mask is not None:
            os.sched_setaffinity(0, mask)
        os.environ.update(caps.share_of_gpus(os.environ, task.process, task.processes))
        caps.apply(task.threads)
        system.line_buffer()
        self._interpreter.take_over()

    def _mark_copy(self) -> None:
        self._is_copy = True

    def _serve(self, load: Callable[[], Work]) -> None:
        try:
            work = load()
        except (NodeStartError, StorageFailure) as error:
            system.end_if_interrupted(self._task.item)
            data = Failure(error, failure_of(error.__cause__ or error).traceback).dump()
            self._connection.send(b"X" + LENGTH.pack(len(data)) + data)
            return
        main_module.function_is_loaded()
        gc.enable()
        system.end_with_parent()  # before, the end of the connection was enough
        system.adopt_orphans()
        reporter = Reporter(work, self._connection.reading)
        call = work.call
        if work.can_checkpoint:
            call = self._until_checkpoint(call)
            signal.signal(signal.SIGUSR2, lambda *_: self._checkpoint(work))
        flushing = _flushing(call)
        self._connection.send(b"C" if work.can_checkpoint else b"R")
        while (items := self._assignment()) is not None:
            self._run(call if len(items) > 1 else flushing, reporter, items)
            self._channel.end()
            system.flush_all_streams()
            if system.has_children():
                renew_streams(self._connection)
            self._connection.send(b"E")

    def _checkpoint(self, work: Work) -> None:
        """Send the checkpoint of the running item, and end: running on would only get beyond it."""
        pickled = None if self._is_checkpointed else work.checkpoint()
        if pickled is not None:
            self._connection.send(b"P" + LENGTH.pack(len(pickled)) + pickled)
            self._is_checkpointed = True
            raise _CheckpointSent

    def _until_checkpoint(self, call: Callable[[int], Any]) -> Callable[[int], Any]:
        """Return a function that has no outcome once the checkpoint was sent, even if the user's catches all."""

        def call_until_checkpoint(item: int) -> Any:
            try:
                return call(item)
            finally:
                if self._is_checkpointed:
                    raise _CheckpointSent

        return call_until_checkpoint

    def _assignment(self) -> array[int] | None:
        header = self._connection.receive(LENGTH.size)
        data = self._connection.receive(LENGTH.unpack(header)[0] * _ITEM_BYTES) if header else None
        if data is None:
            return None
        self._channel.restart()
        return array("Q", data)

    def _run(self, call: Callable[[int], Any], reporter: Reporter, items: array[int]) -> None:
        task, channel = self._task, self._channel
        announced = monotonic()
        for item, position in zip(items, channel.begin(len(items)), strict=False):
            task.item = item
            try:
                value = call(item)
            except _CheckpointSent:
                raise
            except BaseException as error:  # noqa: BLE001  (any exception of the function is its outcome)
                self._check_copy(failed=True)
                system.end_if_interrupted(item)
                self._deliver(item, _FAILURE, reporter.failure(error))
            else:
                if type(value) not in _NUMBERS or self._is_copy or not channel.put_number(value):
                    self._check_copy(failed=False)
                    self._deliver(item, *reporter.pickled(value))
                del value  # free a large array before the next one is made
            if not position % _ANNOUNCE_ONE_IN and monotonic() - announced > _ANNOUNCE_AFTER:
                self._connection.send(b"B")
                announced = monotonic()

    def _check_copy(self, *, failed: bool) -> None:
        """End a copy: the function forked, and returned there as well. Only the worker's own outcome counts."""
        if self._is_copy:
            system.leave(status=failed)

    def _deliver(self, item: int, kind: Kind, data: bytes | Bundle) -> None:
        if isinstance(data, Bundle) or len(data) >= LARGE:
            try:
                failure = self._append(item, kind, data)
            except ConnectionAbortedError:
                self._put_last(kind, data)
                raise
            if failure is None:
                return
            kind, data = _FAILURE, failure
        elif kind is Kind.VALUES:
            data = in_series(data)
        while not self._channel.put(data, failed=kind is _FAILURE):
            self._ask(b"F")

    def _put_last(self, kind: Kind, data: bytes | Bundle) -> None:
        """Put a large outcome into the channel, which is emptied after all, or a failure if it is too large."""
        if isinstance(data, Bundle) or len(data) > DATA_BYTES // 2:
            kind, data = _FAILURE, failure_of(OSError(_NOT_HANDED_OVER)).dump()
        elif kind is Kind.VALUES:
            data = in_series(data)
        self._channel.put(data, failed=kind is _FAILURE)

    def _append(self, item: int, kind: Kind, data: bytes | Bundle) -> bytes | None:
        """Append a large outcome to the file; return the failure if that fails."""
        entry = outcome_entry(item, data, succeeded=kind is not _FAILURE)
        self._ask(b"W")  # from now on the other workers wait
        try:
            self._writer.adopt(failed=False)
            self._writer.append(entry)
        except OSError as error:
            self._connection.send(b"N")
            return Failure(named(error)).dump()
        self._connection.send(b"L" if kind is _FAILURE else b"D")
        return None

    def _ask(self, message: bytes) -> None:
        self._connection.send(message)
        if self._connection.receive(1) is None:
            raise ConnectionError
        self._channel.restart()
