"""The harness of the benchmarks: its statistics and output, and that its systems, workloads and lines fit together.

These tests look at no figure: `benchmarks/suite.py` measures those.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bars.comparisons import at_most, beyond, faster
from bars.measures import SHORT, Measures
from bars.registry import LINES, ONLY_FULL, rows
from harness import strace
from harness.client import Answer, Request
from harness.contest import Contest
from harness.plot import plot
from harness.series import Entry, NoSamples, Sample, Series, fastest
from harness.site import Site, open_site
from harness.startup import Startup
from harness.table import Row, bars, measured
from systems.base import Call, Trial, missing, version
from systems.by_hand import ByHand, cut
from systems.registry import FLOORS, OURS, PEERS, SYSTEMS
from workloads.functions import no_op
from workloads.registry import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from systems.base import System

NO_OP = WORKLOADS["no-op"]
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@dataclass(frozen=True)
class Here:
    """A system that runs the items where it is, and loses those of a kind."""

    name: str = "here"
    requires: tuple[str, ...] = ("a_module_that_nobody_has",)
    logs: str = ""
    launcher: tuple[str, ...] = ()
    loses: Any = None

    def run(self, call: Call, folder: Path) -> Trial:  # noqa: ARG002  (it writes nothing)
        """Call the function with each item."""
        return Trial([OSError("lost") if item == self.loses else call.function(item) for item in call.items])


def series(*seconds: float, waited: float | None = None, system: System | None = None, items: int = 10) -> Series:
    """Return the series of a system with these times."""
    samples = [Sample(each, waited) for each in seconds]
    return Series(Entry(system or SYSTEMS["slurmlaunch"], NO_OP.of(items)), samples)


# Statistics.


def test_a_series_is_its_median_and_its_extremes() -> None:
    """The median of the samples is shown, with minimum and maximum where there are several."""
    assert series(3.0, 1.0, 2.5).median() == 2.5
    assert series(3.0, 1.0, 2.5).spread == "2.50 s (1.00 to 3.00)"
    assert series(1.0).spread == "1.00 s"
    assert series(2.0, 4.0).ratio(series(6.0)) == 0.5


def test_slurms_wait_is_subtracted_on_both_sides_or_none() -> None:
    """The floor is compared round by round, without Slurm's wait if that is known for both."""
    assert series(2.0, 3.0, waited=0.5).beyond(series(1.0, 1.0, waited=0.75)) == pytest.approx(1.75)
    assert series(2.0, waited=0.5).beyond(series(1.0, waited=None)) == 1.0


def test_no_samples_is_an_error_that_says_why() -> None:
    """A figure that was not measured is never a number."""
    failed = Series(Entry(Here(), NO_OP), failure="killed after 9 s")
    with pytest.raises(NoSamples, match="killed after 9 s"):
        failed.median()
    with pytest.raises(NoSamples, match="killed after 9 s"):
        failed.beyond(series(1.0))
    with pytest.raises(NoSamples, match="killed after 9 s"):
        series(1.0).ratio(failed)
    assert failed.spread == "killed after 9 s"


def test_the_fastest_is_a_systems_best_configuration() -> None:
    """A failed configuration is no candidate."""
    slow, quick, failed = series(2.0), series(1.0), Series(Entry(Here(), NO_OP), failure="hung")
    assert fastest([slow, failed, quick]) is quick
    with pytest.raises(NoSamples, match="here: hung"):
        fastest([failed])


# Comparisons and tables.


def test_a_bar_that_is_missed_is_shown_as_missed() -> None:
    """Each comparison is met at the bar itself, and missed beyond it."""
    assert [at_most("k", "w", figure, 1.5, " ×").met for figure in (1.5, 1.51)] == [True, False]
    assert [beyond("k", "w", series(each), series(1.0), 0.5).met for each in (1.5, 1.51)] == [True, False]
    assert [faster("k", "w", series(each), series(1.0)).met for each in (0.9, 1.0)] == [True, False]
    assert "| **no** |" in bars([at_most("k", "w", 2.0, 1.5, " ×")])


def test_a_peer_that_failed_stands_in_the_table_with_why() -> None:
    """It is not dropped, and no bar is met by its failure; a bar inside its words would break the table."""
    failed = Series(Entry(Here(), NO_OP), failure="not installed: x | y\nz")
    row = faster("k", "w", series(1.0), failed)
    assert (row.met, row.theirs) == (None, "here: not installed: x / y z")
    assert "| 1,000 × no-op | here | not installed: x / y z |" in measured([failed])


def test_fewer_items_of_a_peer_are_said() -> None:
    """A peer that got fewer items is compared all the same, and the table says so."""
    row = faster("k", "w", series(1.0), series(2.0, system=Here(), items=5))
    assert (row.met, row.theirs) == (True, "here: 2.00 s for 5 items")


def test_the_table_has_a_line_per_row_and_equally_many_cells() -> None:
    """It is Markdown."""
    lines = bars([Row("k", "w", "1", "2", met=True), Row("k", "w", "1", "2")]).splitlines()
    assert {line.count("|") for line in lines} == {7}
    assert len(lines) == 4
    (line,) = measured(
        [Series(Entry(Here(), NO_OP.of(10)), [Sample(1.0, submitting=0.25, calls={"sbatch": 2}, memory=3_000_000)])]
    ).splitlines()[2:]
    assert line == "| 10 × no-op | here | 1.00 s | 0.25 |  | 0.00 | 100,000.0 | 0 | 0.00 | 2 sbatch | 3 |"


@pytest.mark.slow
def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    """Failed systems, and contests with a single system, are left out; the plot of no contest is a picture, too."""
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    failed = Series(Entry(Here(), NO_OP), failure="hung")
    for number, drawn in enumerate(([[series(1.0, 2.0), series(3.0, system=Here(), items=2), failed], [failed]], [])):
        plot(drawn, tmp_path / f"{number}.svg")
        assert "<svg" in (tmp_path / f"{number}.svg").read_text(encoding="utf-8")


# Workloads.


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_is_well_formed(name: str) -> None:
    """It has a name, items and tasks, and goes to another process."""
    work = WORKLOADS[name]
    assert work.name == name
    assert work.items > 0
    assert work.tasks > 0
    travelled = pickle.loads(pickle.dumps(work))
    assert dataclasses.replace(travelled, function=work.function) == work


@pytest.mark.parametrize("name", [name for name, work in WORKLOADS.items() if work.killed is None and " s" not in name])
def test_a_workload_returns_its_items(name: str) -> None:
    """A wrong result is seen by its value."""
    assert [WORKLOADS[name].function(item) for item in range(5)] == list(range(5))


def test_outcomes_are_checked() -> None:
    """Exceptions are counted as lost; a wrong value, or one too few or too many, is an error."""
    work = NO_OP.of(3)
    assert work.lost([0, 1, 2]) == 0
    assert work.lost([0, OSError(), 2]) == 1
    for outcomes in ([0, 2, 1], [0, 1], [0, 1, 2, 3]):
        with pytest.raises(AssertionError, match="3 items"):
            work.lost(outcomes)


# Systems.


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_is_well_formed(name: str) -> None:
    """Every system has its name and requirements, runs a call in a folder, and can be pickled."""
    system = SYSTEMS[name]
    assert system.name == name
    for words in (system.requires, system.launcher):
        assert isinstance(words, tuple)
        assert all(isinstance(word, str) and word for word in words)
    assert list(inspect.signature(system.run).parameters) == ["call", "folder"]
    assert pickle.loads(pickle.dumps(system)) == system


def test_the_systems_have_names_of_their_own() -> None:
    """None hides another; only peers need more than slurmlaunch does."""
    assert len(SYSTEMS) == len(FLOORS) + len(OURS) + len(PEERS)
    assert all(peer.requires for peer in PEERS)
    assert not any(system.requires for system in (*FLOORS, *OURS))


def test_missing_modules_are_named() -> None:
    """A peer that cannot run names its missing module."""
    assert missing(Here()) == "not installed: a_module_that_nobody_has"
    assert missing(Here(requires=("cloudpickle",))) == ""
    assert version(Here(requires=("cloudpickle",))).startswith("cloudpickle 3")


@given(st.integers(0, 200), st.integers(1, 40))
def test_slices_by_hand_hold_each_item_once(items: int, count: int) -> None:
    """They are in order, and differ by one item at most."""
    slices = cut(range(items), count)
    assert [item for each in slices for item in each] == list(range(items))
    assert len(slices) == count
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_slices_by_hand_join_the_results(tmp_path: Path) -> None:
    """A slice that is lost loses all its items."""
    call = Call(no_op, range(10), 4)
    assert ByHand(Here()).run(call, tmp_path).outcomes == list(range(10))
    outcomes = list(ByHand(Here(loses=range(2, 5))).run(call, tmp_path).outcomes or ())
    assert [isinstance(each, OSError) for each in outcomes] == [item in {2, 3, 4} for item in range(10)]


# Lines.


class Rehearsal(Contest):
    """A contest in which every entry has the same sample, or none."""

    def __init__(self, sample: Sample | None) -> None:
        super().__init__(site=None)  # type: ignore[arg-type]
        self.sample = sample

    def hold(self, entries: Sequence[Entry], rounds: int) -> list[Series]:
        """Run nothing."""
        return [Series(each, [self.sample] * rounds if self.sample else [], "hung") for each in entries]


def rehearsed(sample: Sample | None) -> Measures:
    """Return measures for which nothing was run."""
    measures = Measures(None, SHORT)  # type: ignore[arg-type]
    vars(measures)["_contest"] = Rehearsal(sample)
    vars(measures)["startups"] = [Startup(name, [1.0], [1.0]) for name in ("node", "cloudpickle")]
    return measures


@pytest.mark.parametrize("key", LINES)
def test_every_line_can_be_drawn(key: str) -> None:
    """Every system and workload that a line names is registered, and its value can be computed."""
    kinds = {f"{what} {how}": 5.0 for what in ("node", "cloudpickle") for how in ("opened", "missed", "read")}
    measures = {"all": 51.0, "stat": 51.0, "grown": 1.0, "resident, unread": 1.0, **kinds}
    seconds = iter(range(1, 1000))
    sample = Sample(1.0, 0.5, files=3, bytes=7, memory=9, calls={"sbatch": 1}, measures=measures)
    held = rehearsed(sample)
    if key == "growth":  # it divides by differences
        held.growing = [series(next(seconds), items=items) for items in (10_000, 10_000, 100_000, 1_000_000)]
    made = rows(key, held)
    assert made
    assert {row.key for row in made} == {key}
    if strace.installed():
        assert "not measured" not in {row.ours for row in made}


@pytest.mark.parametrize("key", [key for key in LINES if key != "imports"])
def test_a_line_without_samples_meets_no_bar(key: str) -> None:
    """A line without measurements says so, and never meets its bar."""
    made = rows(key, rehearsed(None))
    assert made
    assert not any(row.met for row in made)
    assert "hung" in bars(made) or not strace.installed()


def test_the_short_form_leaves_out_only_known_lines() -> None:
    """A misspelt key would leave out nothing."""
    assert LINES.keys() >= ONLY_FULL


# System calls.

TRACE = """\
7 execve("/usr/bin/python", ["python"], 0x7ffd /* 9 vars */) = 0
7 openat(AT_FDCWD</home>, "/runs/a/items", O_RDONLY|O_CLOEXEC) = 3</runs/a/items>
7 read(3</runs/a/items>,  <unfinished ...>
8 stat("/runs/ab", 0x7ffd) = -1 ENOENT (No such file or directory)
7 <... read resumed>""..., 4096) = 221
8 access("/mark", F_OK) = -1 ENOENT (No such file or directory)
8 openat(AT_FDCWD</home>, "/runs/a", O_RDONLY|O_DIRECTORY) = 4</runs/a>
8 getdents64(4</runs/a>, 0x55 /* 3 entries */, 32768) = 96
8 openat(AT_FDCWD</home>, "/proc/self/status", O_RDONLY) = 5</proc/8/status>
8 read(5</proc/8/status>, ""..., 1024) = 900
8 read(6<pipe:[77]>, ""..., 1024) = 50
8 access("/mark", F_OK) = -1 ENOENT (No such file or directory)
"""


def test_a_trace_is_counted() -> None:
    """Interrupted calls are joined; the kernel's files and pipes cost no storage anything."""
    lines = strace.joined(TRACE.splitlines(keepends=True))
    assert '7 read(3</runs/a/items>, ""..., 4096) = 221' in lines
    assert strace.file_costs(lines) == strace.FileCosts(opened=2, missed=3, read=221)
    assert strace.calls_in(lines, Path("/runs/a")) == ["openat", "read", "openat", "getdents64"]
    assert strace.calls_in(strace.between(lines, "/mark"), Path("/runs/a")) == ["openat", "getdents64"]
    with pytest.raises(ValueError, match="0 lines name /other"):
        strace.between(lines, "/other")


@pytest.mark.skipif(not strace.installed(), reason="strace is not installed")
def test_a_real_trace_counts_reads(tmp_path: Path) -> None:
    """A file of known length is opened once and read whole, and one lookup of a missing file is counted."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_bytes(bytes(1234))
    code = "import os, sys; open(sys.argv[1], 'rb').read(); os.path.exists(sys.argv[1] + '.new')"
    command = [sys.executable, "-c", code, str(tmp_path / "data" / "file")]
    lines = [line for line in strace.traced(command, tmp_path) if f"{tmp_path}/data" in line and "execve" not in line]
    assert strace.file_costs(lines) == strace.FileCosts(opened=1, missed=1, read=1234)


# Clients.


def test_a_client_reports_its_work(tmp_path: Path) -> None:
    """The client is a separate process, which checks its results and measures its memory."""
    for name in ("talk", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "calls").write_text("sbatch\n", encoding="ascii")
    request = Request(SYSTEMS["ProcessPoolExecutor(2)"], NO_OP.of(200), tmp_path / "run", tmp_path / "calls")
    (tmp_path / "talk" / "request").write_bytes(pickle.dumps(request))
    here = [str(BENCHMARKS), str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(here)}
    subprocess.run([sys.executable, "-m", "harness", str(tmp_path / "talk")], check=True, env=env)
    answer: Answer = pickle.loads((tmp_path / "talk" / "answer").read_bytes())
    assert (answer.wrong, answer.error, answer.lost, answer.calls_before) == ("", "", 0, len("sbatch\n"))
    assert answer.seconds > 0
    assert answer.memory > 1_000_000


@pytest.fixture(scope="module")
def site(cluster: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Be a client of the throwaway Slurm, as the benchmarks are."""
    with open_site(tmp_path_factory.mktemp("site")) as opened:
        yield opened


@pytest.mark.slurm
def test_systems_take_turns_on_slurm(site: Site) -> None:
    """Each run has a folder and a process of its own, and its files and calls are counted."""
    contest = Contest(site)
    floor, ours = contest.hold([Entry(SYSTEMS[name], NO_OP.of(20, 2)) for name in ("floor", "slurmlaunch")], 2)
    assert contest.faults == []
    assert [(len(each.samples), each.failure) for each in (floor, ours)] == [(2, ""), (2, "")]
    assert [sample.files for sample in floor.samples] == [4, 4]
    assert [sample.calls["sbatch"] for sample in ours.samples] == [1, 1]
    assert all(sample.waited is not None for sample in (*floor.samples, *ours.samples))
    assert list(site.folder.iterdir()) == []


@pytest.mark.slurm
def test_a_hanging_run_is_killed_with_its_jobs(site: Site) -> None:
    """A run that hangs is reported, a fault of the harness is a fault, and nothing is left for the next run."""
    contest = Contest(site)
    (hung,) = contest.hold([Entry(SYSTEMS["slurmlaunch"], WORKLOADS["60 s"].of(1, 1), timeout=3.0)], 2)
    assert (hung.samples, hung.failure) == ([], "killed after 3 s")
    assert contest.faults == ["slurmlaunch: killed after 3 s"]
    site.settle()


def test_a_peer_that_is_not_installed_is_not_run() -> None:
    """No process is started for it, and that is no fault of ours."""
    contest = Contest(site=None)  # type: ignore[arg-type]
    (peer,) = contest.hold([Entry(Here(), NO_OP)], 3)
    assert (peer.samples, peer.failure) == ([], "not installed: a_module_that_nobody_has")
    assert contest.faults == []
