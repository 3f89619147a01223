"""Submission rounds: the first one, each retry, each further batch of arrays.

A round is a folder that only one process can make; who made it submits it. Its
plan says which task has which items; its journal says what was submitted: the
intent before each submission, the job id after it.
"""

from __future__ import annotations

import errno
import json
import os
import time
from array import array
from contextlib import suppress
from itertools import count
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from slurmlaunch.errors import RunFolderError
from slurmlaunch.runfolder import records
from slurmlaunch.runfolder.outcomes import OutcomeFile
from slurmlaunch.runfolder.plan import ArrayPlan, Blocks, PackedSlices, RanksPlan, RoundPlan, Slices, compact
from slurmlaunch.runfolder.records import Kind, Record, check_folder, make_folder, read_owned, write_once, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from slurmlaunch.runfolder.layout import RunFolder
    from slurmlaunch.runfolder.outcomes import Recorded


class ToldEnd(NamedTuple):
    """What the scheduler said of the end of a task.

    Attributes:
        task: the task.
        attempts: how many attempts of it had begun.
        state: Slurm's word for the end.
        exit_code: Slurm's ``code:signal``, where it is known.
        node: the machine, where it is known.
        reason: why, where that was said.
    """

    task: int
    attempts: int
    state: str
    exit_code: str | None
    node: str | None
    reason: str | None


class Round:
    """One round on disk.

    Attributes:
        number: its number, from 0.
        plan: its plan.
    """

    def __init__(self, folder: RunFolder, number: int, plan: RoundPlan) -> None:
        self.number = number
        self.plan = plan
        self._path = folder.round(number)
        self._salt = folder.salt

    @classmethod
    def make(
        cls, folder: RunFolder, number: int, plan: RoundPlan, checkpoints: Mapping[int, Recorded] = MappingProxyType({})
    ) -> Round:
        """Make the round; who succeeds is the one to submit it.

        Args:
            folder: the run folder.
            number: the number of the round.
            plan: its plan.
            checkpoints: how items of it are gone on with that tasks of earlier rounds began.

        Raises:
            FileExistsError: another process made it.
        """
        import secrets  # here, as a node, which makes none, is to start soon
        import shutil

        beside = folder.rounds / f"{number}.{secrets.token_hex(4)}.new"
        make_folder(beside)
        try:
            cls._write(beside, plan)
            if checkpoints:
                write_whole(beside / "checkpoints", _checkpoints(checkpoints, folder.salt))
            # In one step, so that a client that is killed leaves a whole round or none. An empty
            # folder in its place would be replaced, one with a plan is not.
            beside.rename(folder.round(number))
        except BaseException as error:
            shutil.rmtree(beside, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                raise FileExistsError(*error.args) from error
            raise
        return cls(folder, number, plan)

    @staticmethod
    def _write(path: Path, plan: RoundPlan) -> None:
        content = plan._asdict()
        content["slices"] = plan.slices.to_json()
        content["arrays"] = [each._asdict() for each in plan.arrays]
        if plan.blocks is not None:
            content["blocks"] = plan.blocks.to_json()
            make_folder(path / "claims")
        if plan.ranks is not None:
            content["ranks"] = plan.ranks._asdict()
            make_folder(path / "ranks")
        if plan.items is not None:
            data = records.encode(Kind.LIST, _u64(plan.items).tobytes(), count=len(plan.items))
            write_whole(path / "items", [data])
            content["items"] = True
        write_whole(path / "plan.json", [json.dumps(content).encode()])

    @classmethod
    def read(cls, folder: RunFolder, number: int) -> Round:
        """Read a round.

        Raises:
            FileNotFoundError: there is none of that number, or its plan is not written yet.
            RunFolderError: it is damaged.
            UnsafeRunFolder: another user owns it, or may write to it.
        """
        path = folder.round(number)
        data = read_owned(path / "plan.json")
        check_folder(path)
        try:
            content = json.loads(data)
            content["slices"] = _slices_of(content["slices"])
            content["blocks"] = _blocks_of(content.get("blocks"))
            content["arrays"] = tuple(_known(ArrayPlan, each) for each in content["arrays"])
            if content.get("ranks"):
                check_folder(path / "ranks")
            content["ranks"] = RanksPlan.from_json(content["ranks"]) if content.get("ranks") else None
            content["items"] = _read_list(path / "items") if content["items"] else None
            plan = _known(RoundPlan, content)
        except (ValueError, KeyError, TypeError) as error:
            msg = f"the plan of round {number} is damaged: {path / 'plan.json'} ({error})"
            raise RunFolderError(msg, path=str(path)) from error
        return cls(folder, number, plan)

    def checkpoints(self) -> dict[int, Recorded]:
        """Return how items of the round are gone on with that tasks of earlier rounds began."""
        if not self.number:
            return {}
        file = OutcomeFile(self._path / "checkpoints", self._salt)
        with suppress(FileNotFoundError):
            for _ in file.read(final=True):
                pass  # no outcomes are in it
        return file.checkpoints

    def intend(self, number: int) -> None:
        """Write down that an array is about to be submitted."""
        self._note(intent=number, time=time.time())

    def submitted(self, number: int, job_id: str) -> None:
        """Write down the job id of an array."""
        self._note(submitted=number, job_id=job_id, time=time.time())

    def refused(self, number: int, error: str) -> None:
        """Write down that an array was refused for good."""
        self._note(refused=number, error=error, time=time.time())

    def abandoned(self, number: int) -> None:
        """Write down that it is not known whether an array was submitted, and that its client does not try again."""
        self._note(abandoned=number, time=time.time())

    def waiting(self, number: int, client: tuple[str, int, str]) -> None:
        """Write down that an array waits for room in the queue, and which process will submit it."""
        self._note(waiting=number, client=client, time=time.time())

    def succeed(self, client: tuple[str, int, str], is_gone: Callable[[tuple[str, int, str]], bool]) -> bool:
        """Become the process that submits what is left of the round; False where another has, and is not gone.

        Only one of those that try at once can: the first who makes ``successor.K``,
        for the first K whose maker is not gone.
        """
        for number in count():
            path = self._path / f"successor.{number}"
            try:
                other = json.loads(read_owned(path))
            except FileNotFoundError:
                return write_once(path, json.dumps(client).encode())
            if not is_gone(tuple(other)):
                return False
        raise AssertionError  # count() has no end

    def throttled(self, throttle: int | None) -> None:
        """Write down a change of the throttle."""
        self._note(throttle=throttle, time=time.time())

    def told(self, client: str, ends: Sequence[ToldEnd]) -> None:
        """Write down what a client was told of tasks that left no word of their own end."""
        self._note(f"ends.{client}", ends=ends)

    def ends(self) -> Iterator[ToldEnd]:
        """Yield what clients were told of such tasks."""
        for path in sorted(self._path.glob("ends.*")):
            for found in records.scan(memoryview(read_owned(path))):
                if isinstance(found, Record):
                    yield from (ToldEnd(*each) for each in json.loads(bytes(found.payload))["ends"])

    def _note(self, file: str = "journal", /, **content: Any) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self._path / file, flags, 0o600)
        try:
            data = records.encode(Kind.NOTE, json.dumps(content).encode(), count=0)
            records.append(descriptor, [data], os.fstat(descriptor).st_size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def journal(self) -> list[dict[str, Any]]:
        """Return what was written down, in order; a torn last entry is left out."""
        with suppress(FileNotFoundError):
            data = memoryview(read_owned(self._path / "journal"))
            found = records.scan(data)
            return [json.loads(bytes(r.payload)) for r in found if isinstance(r, Record)]
        return []

    def waits(self) -> dict[int, tuple[str, int, str]]:
        """Return the arrays that wait for room, and which process took it upon itself to submit each."""
        return {entry["waiting"]: tuple(entry["client"]) for entry in self.journal() if "waiting" in entry}

    @property
    def touched(self) -> float:
        """When something was last written down of the round, in seconds since the epoch."""
        journal = self._path / "journal"
        return (journal if journal.exists() else self._path).stat().st_mtime

    @property
    def throttle(self) -> int | None:
        """How many of its tasks may run at once: as planned, or as changed since."""
        changes = [entry["throttle"] for entry in self.journal() if "throttle" in entry]
        return changes[-1] if changes else self.plan.throttle

    def job_ids(self) -> dict[int, str]:
        """Return the job ids of the arrays that are known to have been submitted."""
        return {e["submitted"]: e["job_id"] for e in self.journal() if "submitted" in e}

    def abandonments(self) -> set[int]:
        """Return the arrays that their client may not have submitted, and does not try again."""
        return {entry["abandoned"] for entry in self.journal() if "abandoned" in entry}

    def refusals(self) -> dict[int, str]:
        """Return why arrays were refused for good, of those that were."""
        return {e["refused"]: e["error"] for e in self.journal() if "refused" in e}


def read_rounds(folder: RunFolder, start: int = 0) -> Iterator[Round]:
    """Yield the rounds of a run in order, from a number on."""
    number = start
    while True:
        try:
            yield Round.read(folder, number)
        except FileNotFoundError:
            return
        number += 1


def round_of_task(folder: RunFolder, task: int) -> Round:
    """Return the round that has a task.

    Raises:
        RunFolderError: none has.
    """
    for candidate in read_rounds(folder):
        if task in candidate.plan.tasks:
            return candidate
    msg = f"no round of {folder.path} has a task {task}"
    raise RunFolderError(msg, path=str(folder.path))


_Plan = TypeVar("_Plan", ArrayPlan, RoundPlan)


def _known(kind: type[_Plan], content: Mapping[str, Any]) -> _Plan:
    """Make a plan of what stands on disk, keys left out that a later version wrote."""
    return kind(**{key: value for key, value in content.items() if key in kind._fields})


def _checkpoints(checkpoints: Mapping[int, Recorded], salt: int) -> Iterator[bytes]:
    for item, recorded in checkpoints.items():
        yield records.encode(Kind.CHECKPOINT, recorded.payload(), first=item, salt=salt)


def _slices_of(content: dict[str, Any]) -> Slices | PackedSlices:
    return PackedSlices.from_json(content) if "lengths" in content else Slices.from_json(content)


def _blocks_of(content: dict[str, Any] | None) -> Blocks | None:
    if content is None:
        return None
    return Blocks.from_json(content)


def _u64(items: Sequence[int]) -> array[int]:
    return array("Q", items)


def _read_list(path: Path) -> array[int]:
    found = next(records.scan(memoryview(read_owned(path))), None)
    if isinstance(found, Record):
        items = array("Q")
        items.frombytes(found.payload)
        return compact(items)
    msg = f"the list of a round's items is damaged: {path}"
    raise ValueError(msg)
