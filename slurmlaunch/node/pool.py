"""The workers of one task: their assignments, their outcomes and their ends.

Used by `supervisor`; knows nothing of Slurm, time limits or clients. When a
worker dies, the item that it was running is reported, and the rest of its
assignment goes back to the queue.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from array import array
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.errors import ResultLost
from slurmlaunch.node.channel import FAILED, FLOAT, INTEGER, LENGTH, MARKS, MAX_ITEMS, Channel, Connection
from slurmlaunch.node.output import Streams
from slurmlaunch.node.system import RUSAGE_UNIT, kill_trees, mapped_file_bytes, reap_orphans
from slurmlaunch.node.worker import ABOUT_ITSELF, APPENDED
from slurmlaunch.runfolder.outcomes import ranges_of
from slurmlaunch.runfolder.records import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from slurmlaunch.node.events import Events
    from slurmlaunch.node.output import Output
    from slurmlaunch.node.queue import Queue
    from slurmlaunch.node.report import FailureLog
    from slurmlaunch.runfolder.outcomes import OutcomeWriter, Times

    _Child = Callable[[int, Connection, Channel], None]

ASSIGNMENT_SECONDS = 0.1
"""The work of one assignment, by measured duration: enough to make the hand-over negligible,
and little enough to balance and to take back."""

_GROWTH = 8
"""How much longer an assignment may be than the last one; the first item is handed over alone."""

_QUIET = 100
"""After how many items without output several are handed over at once again."""

PATIENCE = 0.25
"""Seconds that an item may run before the items behind it go to other workers."""


class Sinks(NamedTuple):
    """What becomes of what the workers produce."""

    writer: OutcomeWriter
    output: Output
    log: FailureLog


class Death(NamedTuple):
    """The end of a worker: the item that it was running, and its exit status, or minus the signal that killed it."""

    worker: WorkerHandle
    item: int | None
    code: int
    times: Times | None
    """When the item began and for how long it ran."""


class Assignment:
    """The items that a worker has, and how far it has got with them.

    Attributes:
        items: the items, without those that were taken back; none while the worker is idle.
        since: when they were handed over.
        recorded: how many of them have been recorded.
        wrote: whether anything was written while they ran.
        ended: whether the worker has said that it is done.
        seen: the position of the running item, and when it was seen first.
        slow: the position of an item behind which no further item is begun, since it takes long.
    """

    def __init__(self, items: array[int]) -> None:
        self.items, self.since, self.recorded = items, monotonic(), 0
        self.wrote = self.ended = False
        self.seen = (-1, self.since)
        self.slow: int | None = None


_IDLE = array("Q")


class WorkerHandle:
    """The supervisor's view of one worker.

    Attributes:
        pid: its process, once it is started.
        assignment: its items.
        streams: its standard output and standard error.
        failure: why it could not load the function, pickled.
        checkpoint: the checkpoint of the running item, pickled.
        shared_bytes: the most bytes of files that it was seen to map, which other workers may share.
    """

    def __init__(self, slot: int, connection: Connection, channel: Channel, output: Output) -> None:
        self.slot, self.pid, self.connection, self._channel = slot, 0, connection, channel
        self.assignment = Assignment(_IDLE)
        self.streams = Streams(output, self._writers)
        self.ready = self.killed = self.can_checkpoint = False
        self.failure: bytes | None = None
        self.checkpoint: bytes | None = None
        self.shared_bytes = 0

    @property
    def busy(self) -> bool:
        """True while it has an assignment."""
        return bool(self.assignment.items)

    @property
    def running(self) -> int | None:
        """The position of the running item in the assignment, as far as is known."""
        current, finished = self._channel.current, self.assignment.recorded + self._channel.new
        return current if current is not None and finished <= current < len(self.assignment.items) else None

    @property
    def running_item(self) -> int | None:
        """The running item, as far as is known."""
        position = self.running
        return None if position is None else self.assignment.items[position]

    @property
    def running_since(self) -> float:
        """When the running item began, or later."""
        position, seen = self.running, self.assignment.seen
        if not position:
            return self.assignment.since
        return seen[1] if seen[0] == position else monotonic()

    def note(self, message: bytes) -> None:
        """Note a message of the worker about itself."""
        if message in (b"R", b"C"):
            self.ready, self.can_checkpoint = True, message == b"C"
            return
        header = self.connection.receive(LENGTH.size)
        content = self.connection.receive(LENGTH.unpack(header)[0]) if header else None
        if message == b"X":
            self.failure = content
        else:
            self.checkpoint = content

    def assign(self, items: array[int]) -> None:
        """Send it items; it must be idle."""
        self.assignment = Assignment(items)
        self._channel.assign(len(items))
        self._send(LENGTH.pack(len(items)) + items.tobytes())

    def resume(self) -> None:
        """Let it continue with an empty channel, after `drain`."""
        self._channel.reset()
        self._send(b"G")

    def _send(self, data: bytes) -> None:
        with suppress(BrokenPipeError):  # it has died: see Pool.reap
            self.connection.send(data)

    def drain(self, writer: OutcomeWriter, log: FailureLog) -> int:
        """Record the outcomes in the channel, and show failures; return their number."""
        lengths = self._channel.lengths()
        if not lengths:
            return 0
        self.streams.empty()  # before the outcomes: with an outcome there is all of the output
        recorded = self.assignment.recorded
        items = self.assignment.items[recorded : recorded + len(lengths)]
        times = self.times(len(lengths))
        for start, stop in _records(items, lengths):
            alike = lengths[start:stop]
            mark, data, ran = alike[0] & MARKS, self._channel.take(alike), times.part(start, stop)
            if mark in _KINDS:
                writer.numbers(_KINDS[mark], items[start], data.tobytes(), ran)
            elif mark:
                log.show_item(items[start], data)
                writer.failure(items[start], data, ran)
            else:
                writer.packed(Kind.SERIES, items[start], alike, data, ran)
        self.assignment.recorded += len(lengths)
        return len(lengths)

    def times(self, number: int) -> Times:
        """Return when the next items ran that have not been recorded; the last of them may be running."""
        recorded = self.assignment.recorded
        return self._channel.times(recorded, recorded + number)

    def _writers(self) -> Sequence[range]:
        """Return the items of which one has just written something; none while it is idle.

        From then on items are handed over one by one (`Durations.size`), so that each has its own output.
        """
        work = self.assignment
        running = None if work.ended else self.running  # once, since the worker may finish the item meanwhile
        begun = work.recorded + self._channel.new if running is None else running + 1
        if begun and not work.wrote:
            work.wrote = True
            if len(work.items) > 1:
                self.take_back()
        return list(ranges_of(sorted(work.items[:begun])))

    def take_back_behind_slow(self, patience: float) -> array[int]:
        """Take back the items behind one that has run for longer than *patience*; return them.

        It takes two calls: one lowers the limit, and the next, a tick later,
        sees whether the worker continued before it could know.
        """
        work, position, now = self.assignment, self.running, monotonic()
        if position is None or position + 1 >= len(work.items):
            return _IDLE
        if work.slow == position:
            taken, work.items = work.items[position + 1 :], work.items[: position + 1]
            return taken
        if work.seen[0] != position:
            work.seen = (position, now)
        elif now - work.seen[1] > patience:
            self._channel.limit(position + 1)
            work.slow = position
        return _IDLE

    def take_back(self) -> None:
        """Have it end its assignment after the running item."""
        position = self.running
        self._channel.limit(self.assignment.recorded + self._channel.new if position is None else position + 1)


_KINDS = {INTEGER: Kind.INTEGERS, FLOAT: Kind.FLOATS}


def _records(items: array[int], lengths: array[int]) -> Iterator[tuple[int, int]]:
    """Cut outcomes into records: consecutive items with values of one kind; each failure is a record of its own."""
    total = len(items)
    if not total:
        return
    alike = lengths.count(lengths[0]) == total if lengths[0] in _KINDS else max(lengths) < FLOAT
    # The ends alone are not enough: a slice that was packed by cost has its items in any order.
    if alike and items[-1] - items[0] == total - 1 and items == array("Q", range(items[0], items[0] + total)):
        yield 0, total
        return
    start = 0
    for i in range(1, total + 1):
        if i == total or items[i] != items[i - 1] + 1 or lengths[i] & FAILED or (lengths[i] ^ lengths[i - 1]) & MARKS:
            yield start, i
            start = i


class Durations:
    """How long items take, and so how many are handed over at once.

    Attributes:
        began: when the first item began.
        longest: an upper bound, in seconds, for the longest item so far.
        seconds_per_item: how long the items of the last assignments took, each; 0 before the first has ended.
    """

    def __init__(self) -> None:
        self.began = math.inf
        self.seconds_per_item = self.longest = 0.0
        self._recent_seconds = self._recent_items = 0.0
        self._last_size = 0
        self._quiet = _QUIET

    def size(self, left: int, workers: int) -> int:
        """Return how many of the items that are left to hand over at once to one of so many workers."""
        if not self.seconds_per_item or self._quiet < _QUIET:
            return 1
        size = int(ASSIGNMENT_SECONDS / self.seconds_per_item)
        # Several workers end together; the last assignments of one that is alone would be ever shorter for nothing.
        share = -(-left // (2 * workers)) if workers > 1 else left
        return max(1, min(size, _GROWTH * self._last_size, share, MAX_ITEMS))

    def add(self, ended: Assignment) -> None:
        """Count an assignment that has just ended."""
        number, seconds = max(1, len(ended.items)), monotonic() - ended.since
        self._quiet = 0 if ended.wrote else self._quiet + len(ended.items)
        self._last_size = number
        self._recent_seconds += seconds
        self._recent_items += number
        self.seconds_per_item = max(self._recent_seconds / self._recent_items, 1e-7)
        if self._recent_seconds > 2 * ASSIGNMENT_SECONDS:  # so that items that become shorter count soon
            self._recent_seconds, self._recent_items = self._recent_seconds / 2, self._recent_items / 2
        self.longest = max(self.longest, seconds)  # of one item, or of several that were expected to be short


class Pool:
    """The workers of one task.

    Attributes:
        workers: the live ones, by process id.
        appending: the worker that appends to the outcome file itself, or None: nobody else may then.
        progress: how many outcomes and checkpoints have been recorded.
        durations: how long items take.
    """

    def __init__(self, events: Events, sinks: Sinks, queue: Queue, child: _Child, *, shares: bool) -> None:
        """Create an empty pool.

        *child* runs in each new process, with its slot, its end of the connection and its channel;
        *shares* tells whether the workers map large arrays of the function.
        """
        self.workers: dict[int, WorkerHandle] = {}
        self.appending: WorkerHandle | None = None
        self.progress = 0
        self._events, self._queue, self._child, self._shares = events, queue, child, shares
        self._writer, self._output, self._log = sinks
        self.durations = Durations()
        self._deferred: list[tuple[WorkerHandle, bytes]] = []
        self._peaks: dict[int, int] = {}
        self._shared_bytes = 0

    @property
    def peak(self) -> int:
        """The most memory, in bytes, that the workers used together, as far as they have ended."""
        return sum(self._peaks.values()) + self._shared_bytes

    @property
    def busy(self) -> int:
        """The number of workers with an assignment."""
        return sum(worker.busy for worker in self.workers.values())

    # Assignments.

    def fill(self, slots: Collection[int]) -> None:
        """Start workers in the free ones of these slots, while there are more items than idle workers."""
        used = {worker.slot for worker in self.workers.values()}
        idle = len(self.workers) - self.busy
        free = [slot for slot in slots if slot not in used]
        for slot in free[: max(0, len(self._queue) - idle)]:
            self._start(slot)

    def _start(self, slot: int) -> None:
        ours, theirs = Connection.pair()
        channel = Channel()
        worker = WorkerHandle(slot, ours, channel, self._output)
        pid = os.fork()
        if not pid:
            ours.close()
            for other in self.workers.values():
                other.connection.close()  # else the others would not see the end of the supervisor
            worker.streams.take()
            self._child(slot, theirs, channel)
            sys.exit()  # through the supervisor's frames: this process ends as Python ends, and not by `os._exit`
        theirs.close()
        worker.streams.give()
        worker.pid, self.workers[pid] = pid, worker
        self._events.add(ours.reading, lambda: self._receive(worker))

    def feed(self) -> None:
        """Assign items to every idle worker."""
        for worker in self.workers.values():
            if worker.ready and not worker.busy:
                items = self._queue.take(self.durations.size(len(self._queue), len(self.workers)))
                if items:
                    worker.assign(items)
                    self.durations.began = min(self.durations.began, worker.assignment.since)

    def take_back(self) -> None:
        """Take back all items that are not running; they return to the queue when their assignment ends."""
        for worker in self.workers.values():
            if worker.busy:
                worker.take_back()

    def poll(self) -> None:
        """Record outcomes that were not announced yet, and take items back from behind slow ones."""
        if self.appending is not None:
            return
        for worker in self.workers.values():
            if worker.busy:
                self.progress += worker.drain(self._writer, self._log)
                self._queue.put_back(worker.take_back_behind_slow(PATIENCE))

    # Messages.

    def _receive(self, worker: WorkerHandle) -> None:
        message = worker.connection.receive(1)
        if message is not None:
            self._handle(worker, message)
        else:
            self._events.remove(worker.connection.reading)  # dead, or about to be: see reap

    def _handle(self, worker: WorkerHandle, message: bytes) -> None:
        if message in ABOUT_ITSELF:
            worker.note(message)
        elif message == b"O":
            worker.streams.renew(worker.connection, worker.pid)
        elif self.appending is not None and worker is not self.appending:
            # One writer at a time: until the large outcome is in the file, the others wait.
            self._deferred.append((worker, message))
        elif message in APPENDED:
            self._adopt(worker, failed=message == b"L")
            self._release()
        elif message == b"N":
            self._writer.cut()
            self._release()
        else:
            worker.assignment.ended = message == b"E"
            worker.streams.empty()
            self.progress += worker.drain(self._writer, self._log)
            if message == b"E":
                self._end_assignment(worker)
            elif message in (b"F", b"W"):
                if message == b"W":
                    self.appending = worker
                worker.resume()

    def _end_assignment(self, worker: WorkerHandle) -> None:
        self._measure_shared(worker)
        work = worker.assignment
        self.durations.add(work)
        self._queue.put_back(work.items[work.recorded :])
        worker.assignment = Assignment(_IDLE)

    def _adopt(self, worker: WorkerHandle, *, failed: bool) -> None:
        work = worker.assignment
        item, offset = work.items[work.recorded], self._writer.end
        if self._writer.adopt(failed=failed):
            if failed:
                self._show_appended(item, offset)
            self._writer.times(item, worker.times(1))
        work.recorded += 1
        self.progress += 1

    def _show_appended(self, item: int, offset: int) -> None:
        with suppress(ResultLost, ValueError):
            [pickled] = self._writer.read(offset).parts()
            self._log.show_item(item, bytes(pickled))

    def _release(self) -> None:
        self.appending = None
        deferred, self._deferred = self._deferred, []
        for worker, message in deferred:
            self._handle(worker, message)

    @property
    def can_checkpoint(self) -> bool:
        """Whether a running function has a ``checkpoint()`` method."""
        return any(worker.busy and worker.can_checkpoint for worker in self.workers.values())

    def running_items(self, wanted: Callable[[float], bool]) -> set[int]:
        """Return the running items that are *wanted*, by when they began at the latest."""
        running = {worker.running_item: worker for worker in self.workers.values() if worker.busy}
        return {item for item, worker in running.items() if item is not None and wanted(worker.running_since)}

    def request_checkpoints(self) -> None:
        """Ask the running functions that have a ``checkpoint()`` method for one."""
        for worker in self.workers.values():
            if worker.busy and worker.can_checkpoint:
                os.kill(worker.pid, signal.SIGUSR2)

    # Ends.

    def measure_shared(self) -> None:
        """Measure the memory that the workers share, from time to time."""
        for worker in self.workers.values():
            self._measure_shared(worker)

    def _measure_shared(self, worker: WorkerHandle) -> None:
        """Measure the memory that a worker may share: the kernel counts it in the peak of each."""
        if self._shares:
            worker.shared_bytes = max(worker.shared_bytes, mapped_file_bytes(worker.pid))

    def kill(self, items: Collection[int] | None = None) -> None:
        """Kill the workers that run one of these items, with all that they started; without *items*, all workers."""
        chosen = [each for each in self.workers.values() if items is None or each.running_item in items]
        for worker in chosen:
            worker.killed = True
        kill_trees([worker.pid for worker in chosen])  # `reap` notices the deaths

    def reap(self) -> list[Death]:
        """Record the last outcomes of workers that have died since the last call; return the deaths."""
        deaths = []
        # While one appends, the outcomes of the others cannot be recorded: their deaths wait.
        for pid in [self.appending.pid] if self.appending else list(self.workers):
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            if ended:
                worker = self.workers.pop(pid)
                own = max(0, usage.ru_maxrss * RUSAGE_UNIT - worker.shared_bytes)
                self._peaks[worker.slot] = max(own, self._peaks.get(worker.slot, 0))
                self._shared_bytes = max(self._shared_bytes, worker.shared_bytes)
                deaths.append(self._remove(worker, status))
        reap_orphans(self.workers)
        return deaths

    def _remove(self, worker: WorkerHandle, status: int) -> Death:
        worker.streams.leave()
        appended = self._read_rest(worker)
        if self.appending is worker and not appended:
            self._writer.cut()
        self._deferred = [each for each in self._deferred if each[0] is not worker]
        self.progress += worker.drain(self._writer, self._log)
        running, item = worker.running, worker.running_item
        times = None if running is None else worker.times(1)
        if worker.checkpoint is not None and item is not None:
            self._writer.checkpoint(item, worker.checkpoint)
            self.progress += 1
            item = None  # it returns to the queue, to be resumed
        rest = worker.assignment.recorded if running is None else running + (item is not None)
        self._queue.put_back(worker.assignment.items[rest:])
        self._events.remove(worker.connection.reading)
        worker.connection.close()
        if self.appending is worker:
            self._release()  # only now are all of its outcomes in the file: there is one writer at a time
        return Death(worker, item, os.waitstatus_to_exitcode(status), times)

    def _read_rest(self, worker: WorkerHandle) -> bool:
        """Read the last messages of a dead worker; return True if it had appended a large outcome completely."""
        appended = False
        if worker.connection.reading < 0:
            return False
        os.set_blocking(worker.connection.reading, False)  # a child of its own may hold the other end open
        with suppress(BlockingIOError):
            while message := worker.connection.receive(1):
                if message in ABOUT_ITSELF:
                    worker.note(message)
                elif message in APPENDED:
                    self._adopt(worker, failed=message == b"L")
                    appended = True
                elif message == b"O":
                    worker.connection.receive(2 * LENGTH.size)
                elif message == b"W":
                    break
        return appended

    def close(self) -> None:
        """Let idle workers end; `reap` returns their deaths."""
        for worker in self.workers.values():
            self._events.remove(worker.connection.reading)
            if not worker.busy:  # busy ones were killed, and may have sent that their last outcome is in the file
                worker.connection.close()
