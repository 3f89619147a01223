"""A run folder with a file of each kind, the ways to damage one, and every reader: for `test_readers` and `fuzz`.

A damage may be one that checksums cannot show: JSON of another form, and records whose checksums were made anew.
"""

from __future__ import annotations

import json
import os
import pickle
import traceback
from array import array
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.backends.slurm.shared_states import Content
from slurmlaunch.client.attach import open_view
from slurmlaunch.client.item_details import item_node, item_output, item_times
from slurmlaunch.client.watcher import RateLimit
from slurmlaunch.errors import NodeStartError, ResultLost, RunFolderError, SlurmlaunchError
from slurmlaunch.outcome import Bundle, Failure, Value, in_series
from slurmlaunch.runfolder.claims import Claimer, ClaimReader
from slurmlaunch.runfolder.clients import ClientId
from slurmlaunch.runfolder.environment import Environment
from slurmlaunch.runfolder.files import create
from slurmlaunch.runfolder.function import read_function, write_function
from slurmlaunch.runfolder.items import ItemReader, write_items
from slurmlaunch.runfolder.layout import FOLDERS, EndMark, Manifest, RunFolder, python_version, salt_of
from slurmlaunch.runfolder.modules import Module, ModulesReader, Source, changes_between, write_modules
from slurmlaunch.runfolder.outcomes import (
    Launch,
    OutcomeFile,
    OutcomeWriter,
    Times,
    earlier_attempts,
    make_rank_files,
    times_behind,
)
from slurmlaunch.runfolder.output import OutputFile, OutputWriter
from slurmlaunch.runfolder.plan import ArrayPlan, Blocks, RanksPlan, RoundPlan, Slices
from slurmlaunch.runfolder.records import HEADER_SIZE, Damage, Entry, Kind, Record, RecordWriter, encode, scan
from slurmlaunch.runfolder.rounds import (
    CancellationReader,
    Round,
    SchedulerEnd,
    items_of_later_rounds,
    read_rounds,
    round_of_task,
    write_cancellations,
)
from slurmlaunch.runfolder.storage import Patience
from slurmlaunch.runfolder.user_classes import Definitions, write_definition

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

ITEMS = 24
_IDENTITY = "0123456789abcdef"
_GONE = ClientId(os.uname().nodename, 1 << 22, "1")


# The run folder.


def write_sample(path: Path) -> None:
    """Write a run folder with a file of each kind."""
    folder = RunFolder(path)
    folder.salt = salt_of("0")
    for each in (path, *(path / name for name in FOLDERS)):
        each.mkdir(mode=0o700)
    write_function(folder.function, Bundle(pickle.dumps(len), [bytes(5000)]))
    large = Bundle(pickle.dumps((1,)), [bytes(300)])
    write_items(
        folder, ((n if n < 8 else [n],) for n in range(ITEMS)), lambda row, _: large if row[0] == [9] else _dumps(row)
    )
    found = (Module("a", str(path / "a.py"), None, 1, 5), Source(b"a = 1", b"pyc", "0" * 64))
    write_modules(folder.root / "modules", [found, (Module("space", None, ["/a"]), None)], optimize=0)
    Environment({"A": "b"}, {"TOKEN": "c"}, 0o022, {"RLIMIT_NOFILE": 256, "RLIMIT_CORE": -1}).write(
        folder.environment(0)
    )
    write_definition(folder.definitions, _IDENTITY, pickle.dumps(len))
    _write_rounds(folder)
    _write_outcomes(folder)
    write_cancellations(folder, 0, "c", [range(22, 24)])
    for mark in (EndMark(0, 0, 0), EndMark(1, 0, 75), EndMark(1, 1, 1), EndMark(2, 0, 143), EndMark(3, 0, 1)):
        create(folder.ended / mark.filename, b"")
    settings = {"options": ["-O"], "warnings": ["error"], "recursion_limit": 1000, "log_level": None}
    code = {"live": ["b"], "commits": {"/a": ["1", True]}, "distributions": {"/b": {"numpy": "2"}}}
    names: dict[str, Any] = dict.fromkeys(("name", "function", "cwd", "cloudpickle", "client"), "x")
    manifest = {**names, "run": "0", "backend": "local", "items": ITEMS, "created": 1.5, "sys_path": ["/a"]}
    manifest |= {"files": {"function": "function", "modules": "modules"}, "interpreter": settings, "code": code}
    Manifest(**manifest, python=python_version(), seed=3, shared=5000, bound=["a"]).write(folder)


def _dumps(value: object) -> bytes:
    return pickle.dumps(value, 5)


def _write_rounds(folder: RunFolder) -> None:
    common: dict[str, Any] = {"cpus_per_task": 2, "processes": 2, "threads": 1, "client": _GONE, "time_limit": 60.0}
    common["options"] = {"slurm": {"mem": "1G", "exclusive": True}, "env": {"A": "b", "TOKEN": None}, "retries": 0}
    first = RoundPlan(
        Slices(ITEMS, 3), 0, (ArrayPlan("a", 0, 2), ArrayPlan("b", 2, 1)), throttle=1, warning=9, **common
    )
    ranks = RanksPlan(2, ("srun",), ("python",))
    second = RoundPlan(Slices(2, 1), 3, (ArrayPlan("c", 3, 1),), items=array("I", [3, 7]), ranks=ranks, **common)
    blocks = Blocks(4, 2, "dynamic")
    third = RoundPlan(Slices(4, 2), 4, (ArrayPlan("d", 4, 2),), items=array("I", [1, 2, 5, 6]), blocks=blocks, **common)
    third = third._replace(manifest={"created": 2.0, "python": python_version()}, automatic=True)
    for number, plan in enumerate((first, second, third)):
        made = Round.make(folder, number, plan)
        for index in range(len(plan.arrays)):
            made.intend(index)
            made.submitted(index, f"{number}{index}")
        made.record_ends("c", [SchedulerEnd(plan.first_task, 1, "FAILED", "1:0", "node", None)])
    made.refused(0, "no")
    made.abandoned(0)
    made.waiting(0, _GONE)
    made.throttled(3)
    made.take_over(_GONE)
    claimer = Claimer(folder.claims(2), 4, 0, blocks.number)
    claimer.claim()
    claimer.claim()


def _write_outcomes(folder: RunFolder) -> None:
    writers = [OutcomeWriter(folder, task) for task in (0, 1, 1, 2, 3, 4)]
    for writer in writers:
        writer.note(started=1.5, node="node")
    pickled = [Value(each).dump() for each in ("one", None)]
    writers[0].packed(Kind.VALUES, 0, array("I", map(len, pickled)), b"".join(pickled))
    series = [in_series(each)[:-1] for each in pickled]
    writers[0].packed(Kind.SERIES, 2, array("I", map(len, series)), b"".join(series))
    writers[0].numbers(Kind.INTEGERS, 4, array("q", [1, 2]).tobytes(), Times(1.5, array("f", [0.5, 1.0])))
    writers[0].numbers(Kind.FLOATS, 6, array("d", [1, 2]).tobytes(), Times(1.5, array("f", [0.5])))
    writers[1].value(8, Bundle(pickle.dumps(b"x"), [bytes(300), bytearray(200)]))
    writers[1].checkpoint(9, pickle.dumps((len, ("a",), {})))
    writers[2].failure(9, Failure(KeyError("k"), "traceback").dump(), count=3)
    writers[3].value(16, Value("sixteen").dump())
    launch = Launch(0, (3, 7), "host", 1234)
    launch.note(writers[4])
    for path in make_rank_files(folder, 1, 3, 0, 2, Patience()):
        with RecordWriter(path, salt=folder.salt, flags=0) as file:
            file.note(launch=0, rank=0, node="node", started=1.5)
            file.append(Entry.of(Kind.VALUES, [pickled[0]], first=3, number=1))
            death = {"rank": 1, "node": "n", "loaded": True, "item": 7, "signal": 9, "status": None, "oom": False}
            file.note(launch=0, died={**death, "time": 2.5})
    output = OutputWriter(folder.output_file(0, 0), folder.salt, limit=5)
    output.add(Kind.STDOUT, [range(1)], b"0")
    output.add(Kind.STDERR, [range(1, 3), range(4, 5)], b"123")
    output.close()
    for writer in writers:
        writer.note(ended=2.5, peak=1000)
        writer.close()


# Damage.

_ODD: list[Any] = [
    None, True, False, -1, 0, 1, 3, 1 << 31, (1 << 63) - 1, 1 << 64, 10**400, 0.5, -1e300, 1e300, float("nan"),
    float("inf"), "", "x", "../x", "\0", "\ud800", "9" * 30, "\u00b2", [], [[]], [1], {}, {"a": 1}, {"": []},
    [None, "x", 1 << 70],
]  # fmt: skip


def damaged(data: bytes, random: Random) -> bytes:
    """Return the content of a file, damaged."""
    if data[:1] in {b"{", b"["} and random.random() < 0.8:
        return _damaged_json(data, random)
    if data[:4] == b"\x93SLR" and random.random() < 0.9:
        return _damaged_records(data, random)
    return _damaged_bytes(data, random)


def _damaged_bytes(data: bytes, random: Random) -> bytes:
    found = bytearray(data)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(found) + 1)
        match random.randrange(4):
            case 0 if at < len(found):
                found[at] ^= 1 << random.randrange(8)
            case 1:
                del found[at : at + random.randint(1, 40)]
            case 2:
                found[at:at] = bytes(random.randrange(256) for _ in range(random.randint(1, 9)))
            case 3:
                del found[at:]
    return bytes(found)


def _damaged_json(data: bytes, random: Random) -> bytes:
    if random.random() < 0.1:
        depth = random.choice([500, 5_000, 200_000])
        return random.choice([b"[", b'{"a":']) * depth
    value = json.loads(data)
    places = list(_places(value))
    if not places:
        return json.dumps(random.choice(_ODD)).encode()
    holder, key = random.choice(places)
    if isinstance(holder, dict) and random.random() < 0.15:
        del holder[key]
    elif isinstance(holder, list) and random.random() < 0.15:
        holder.insert(key, random.choice(_ODD))
    else:
        holder[key] = random.choice(_ODD)
    return json.dumps(value).encode()


def _places(value: Any) -> Any:
    for key, each in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(each, (dict, list)):
            yield from _places(each)


_NUMBERS = [0, 1, 2, 3, 23, 24, 25, 1 << 20, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]


def _damaged_records(data: bytes, random: Random) -> bytes:
    """Damage a record, whose checksums are right, or the order of records."""
    salts = (0, salt_of("0"))
    salt = max(salts, key=lambda salt: sum(isinstance(each, Record) for each in scan(memoryview(data), salt=salt)))
    records = [each for each in scan(memoryview(data), salt=salt) if isinstance(each, Record)]
    number = random.randrange(len(records))
    header, payload = records[number].header, bytes(records[number].payload)
    match random.randrange(5):
        case 0 | 1:
            payload = damaged(payload, random)
            new = encode(header.kind, payload, first=header.first, count=header.number, salt=salt)
        case 2:
            name = random.choice(["kind", "number", "first", "length"])
            value = random.choice([*Kind, 0, 255] if name == "kind" else _NUMBERS)
            value = min(value, (1 << 32) - 1) if name == "number" else value
            new = header._replace(**{name: int(value)}).encode(salt) + payload
        case 3:
            new = b""
        case _:
            new = encode(random.choice([*Kind]), payload, first=header.first, count=header.number, salt=salt) * 2
    start = records[number].offset
    return data[:start] + new + data[start + HEADER_SIZE + header.length :]


# The readers.


def _read_all_rounds(folder: RunFolder) -> None:
    Manifest.read(folder)
    for each in read_rounds(folder):
        journal = each.journal()
        each.checkpoints()
        list(each.ends())
        _ = journal.intents, journal.job_ids, journal.refusals, journal.abandoned, journal.waits, each.throttle
        for task in list(each.plan.tasks)[:50]:
            list(each.plan.items_of(task))
            each.plan.element_of(task)
        for item in range(ITEMS) if each.plan.items is None else each.plan.items:
            each.plan.task_of(item)
    items_of_later_rounds(folder, 0)
    round_of_task(folder, 5)
    made = Round.read(folder, 2)
    made.may_replace(_GONE)
    made.take_over(_GONE)


def _read_outcomes(folder: RunFolder) -> None:
    Manifest.read(folder)
    files: list[OutcomeFile] = []
    for each in (folder.outcomes, folder.round(1) / "ranks"):
        files += [OutcomeFile(each / name, folder.salt) for name in sorted(each.names())]
    for file in files:
        for found in [*file.read(), *file.read(final=True)]:
            if not isinstance(found, Damage):
                _read_content(folder, found)
                times_behind(file.path, found.offset, folder.salt)
        for checkpoint in file.checkpoints.values():
            with suppress(ResultLost):
                checkpoint.read().parts()
        Launch.read(OutcomeFile(file.path, folder.salt), 0, ITEMS)
    for task in range(5):
        earlier_attempts(folder, task, 2)


def _read_content(folder: RunFolder, recorded: Any) -> None:
    covered = folder.covered_by(recorded.header)
    with suppress(ResultLost):
        content = recorded.read()
        assert isinstance(content.raised, str)
        values = content.values(covered) if covered == content.items else None
        assert values is None or len(values) == len(covered)
        for item in covered:
            content.outcome(item)


def _read_output(folder: RunFolder) -> None:
    Manifest.read(folder)
    file = OutputFile(folder.output_file(0, 0), folder.salt)
    for item in range(ITEMS):
        for kind in (Kind.STDOUT, Kind.STDERR):
            assert isinstance(file.read(kind, item).cut, bool)


def _read_items(folder: RunFolder) -> None:
    Manifest.read(folder)
    with closing(ItemReader(folder)) as items:
        for item in range(ITEMS):
            try:
                assert type(items[item]) is tuple
            except ResultLost as error:
                _check(error.file is not None and error.offset is not None, error)
            except Exception as error:
                if not _is_of_pickle(error, "_unpickled"):
                    raise


def _read_function(folder: RunFolder) -> None:
    found = read_function(folder.function)
    list(found.check())
    _ = found.needs_cloudpickle
    found.shared.map()


def _read_modules(folder: RunFolder) -> None:
    with closing(ModulesReader(folder.root / "modules")) as reader:
        for module in reader:
            if module.is_stored:
                with suppress(RunFolderError):
                    reader.source(module)
                with suppress(RunFolderError):
                    reader.code(module)
        reader.hashes()
        changes_between(reader)


def _read_claims(folder: RunFolder) -> None:
    list(ClaimReader(folder.claims(2)).new())
    Claimer(folder.claims(2), 4, 1, 4).own()


def _read_definition(folder: RunFolder) -> None:
    try:
        _ = Definitions(folder.definitions)[int(_IDENTITY[:8], 16) >> 1]
    except ResultLost:
        raise
    except Exception as error:
        if not _is_of_pickle(error, "__missing__"):
            raise


def _is_of_pickle(error: Exception, caller: str) -> bool:
    """Whether the user's pickle, which a function has loaded, raised this: it may raise anything, the function not."""
    return traceback.extract_tb(error.__traceback__)[-1].name == caller


def _read_cancellations(folder: RunFolder) -> None:
    Manifest.read(folder)
    for _, items in CancellationReader(folder, [0]).new():
        assert len(items) <= ITEMS


def _watch(folder: RunFolder) -> None:
    """Read the run as a client does."""
    watch = open_view(folder.path)
    limit = RateLimit()
    for _ in range(3):
        watch.poll(limit)
    for item in range(ITEMS):
        if not watch.run.ledger.is_open(item) and watch.run.ledger.status(item).name != "CANCELLED":
            outcome = watch.run.outcome(item)
            error = outcome.error if isinstance(outcome, Failure) else None
            assert error is None or isinstance(error, (SlurmlaunchError, KeyError)), repr(error)
        item_times(watch.run, item)
        item_node(watch.run, item)
        item_output(watch.run, item, "out")
    watch.run.environments.of_round(0)
    watch.run.code(0)


class Target(NamedTuple):
    """A reader, and the files that are damaged for it, as patterns in the run folder."""

    files: tuple[str, ...]
    read: Callable[[RunFolder], object]


TARGETS: Mapping[str, Target] = {
    "manifest": Target(("manifest.json",), lambda folder: Manifest.read(folder)),  # noqa: PLW0108
    "rounds": Target(("rounds/*/plan.json", "rounds/*/items", "rounds/*/[jes]*"), _read_all_rounds),
    "outcomes": Target(("outcomes/*", "rounds/1/ranks/*"), _read_outcomes),
    "output": Target(("output/*",), _read_output),
    "items": Target(("items", "items.index"), _read_items),
    "function": Target(("function", "function.buffers"), _read_function),
    "modules": Target(("modules",), _read_modules),
    "environment": Target(("environment",), lambda folder: Environment.read(folder.environment(0))),
    "claims": Target(("rounds/2/claims/*",), _read_claims),
    "definitions": Target(("definitions/*",), _read_definition),
    "cancellations": Target(("cancelled/*",), _read_cancellations),
    "client": Target(
        ("manifest.json", "environment", "modules", "rounds/*/*", "outcomes/*", "cancelled/*", "output/*"), _watch
    ),
}

SPECIFIED = (RunFolderError, ResultLost, NodeStartError)


def read_damaged(folder: Path, target: Target, random: Random) -> None:
    """Damage a file for a reader, have it read, and write the file as it was.

    The folder is as `write_sample` writes it. An error that is not specified passes through, as does one that does not
    name a file of the folder.
    """
    files = sorted(path for pattern in target.files for path in folder.glob(pattern) if path.is_file())
    path = random.choice(files)
    whole = {each: (each.read_bytes(), each.stat()) for each in folder.rglob("*") if each.is_file()}
    path.write_bytes(damaged(whole[path][0], random))
    try:
        target.read(RunFolder(folder))
    except SPECIFIED as error:
        _check(str(folder) in str(error), error)
    finally:
        _check_closed(folder)
        for each in folder.rglob("*"):
            if each.is_file() and each not in whole:
                each.unlink()
        for each, (content, status) in whole.items():
            if each.read_bytes() != content:
                each.write_bytes(content)
                os.utime(each, ns=(status.st_atime_ns, status.st_mtime_ns))


def _check_closed(folder: Path) -> None:
    """Check that no file of the folder is left open; folders are held."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of the listing
            assert descriptor.is_dir() or not descriptor.readlink().is_relative_to(folder), descriptor.readlink()


def read_snapshot(random: Random) -> None:
    """Read a damaged snapshot of the scheduler's answers: an empty one, or one that can be written again."""
    group = ["0-4,7", "RUNNING", None, "node", None, None, 0.0]
    states = {"alive": [group], "ended": [], "lost": [group], "seen": "0-9", "absent": 0.0, "gone": False}
    times = dict.fromkeys(("asked", "taken", "age", "no_accounts_until"), 1.5)
    whole = {"version": 1, **times, "watchers": {"1-2-3": {"7": 1.5}}, "jobs": {"7": states}}
    content = Content.parse(damaged(json.dumps(whole).encode(), random))
    content.watched_by("me", {"8": 1.0})
    json.dumps(content.to_json())
    for job in content.jobs.values():
        job.after_squeue([], 5.0).after_sacct([], 100.0, 70.0, failed=False).get(3)


def _check(holds: object, error: Exception) -> None:
    assert holds, repr(error)
