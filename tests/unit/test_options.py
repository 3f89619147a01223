"""How keyword arguments become options."""

from __future__ import annotations

import json
import pickle
import re
import runpy
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slurmlaunch import Executor
from slurmlaunch.backends.base import parse_time
from slurmlaunch.backends.sbatch_tables import SHORT
from slurmlaunch.cli.run_options import RunOptionParser
from slurmlaunch.client.options import JOB_NAME_LENGTH, OURS, Options, Shape, check_cluster, job_name, refuse_fixed
from slurmlaunch.client.sbatch_options import FLAGS, NAMES, OPTIONAL, OURS_TO_SET, VALUED
from slurmlaunch.errors import OptionError, UnknownOption

AMOUNTS = {"mem", "mem_per_cpu", "mem_per_gpu", "time", "time_min", "tmp"}
"""The options whose values are read, rather than passed on."""

SBATCH = shutil.which("sbatch")


def slurm(**given: Any) -> dict[str, str | bool]:
    """Return the options that sbatch would get."""
    return dict(Options().changed(**given).slurm)


class TestSbatchOptions:
    """sbatch's own long names."""

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"partition": "small", "account": "project_42"}, {"partition": "small", "account": "project_42"}),
            ({"nodes": 2, "mem": 0, "cpus_per_task": 8}, {"nodes": "2", "mem": "0", "cpus_per_task": "8"}),
            ({"mail_type": ["END", "FAIL"]}, {"mail_type": "END,FAIL"}),
            ({"exclude": ("n1", "n[3-5]")}, {"exclude": "n1,n[3-5]"}),
            ({"nodefile": Path("/a b/c")}, {"nodefile": "/a b/c"}),
            ({"hold": True, "exclusive": True}, {"hold": True, "exclusive": True}),
            ({"exclusive": "user", "nice": 100}, {"exclusive": "user", "nice": "100"}),
            ({"hold": False, "qos": None, "exclude": []}, {}),
            ({"time": "1-00", "time_min": 10}, {"time": "1-00", "time_min": "10"}),
            ({"dependency": ["afterok:1:2", "afterany:3"]}, {"dependency": "afterok:1:2,afterany:3"}),
        ],
    )
    def test_values(self, given: dict[str, object], expected: dict[str, object]) -> None:
        """True is a bare flag, a list is joined by commas, None and False are not given, the rest is text."""
        assert expected == slurm(**given)

    @pytest.mark.parametrize(
        ("duration", "expected"),
        [
            (timedelta(minutes=10), "0-00:10:00"),
            (timedelta(days=2, hours=3, minutes=4, seconds=5), "2-03:04:05"),
            (timedelta(microseconds=1), "0-00:00:01"),
        ],
    )
    def test_timedelta(self, duration: timedelta, expected: str) -> None:
        """A timedelta is written with its days, a part of a second rounded up."""
        assert {"time": expected} == slurm(time=duration)

    @pytest.mark.parametrize(
        ("option", "value", "word"),
        [
            ("comment", "a\nb", "line break"),
            ("comment", "a\rb", "carriage return"),
            ("comment", "a\0b", "NUL"),
            ("mail_type", ["END", "a\n#SBATCH --hold"], "line break"),
            ("gres", {"gpu": 2}, "dict"),
            ("partition", "", "empty"),
            ("partition", object(), "text or a number"),
            ("partition", {"small"}, "text or a number"),
            ("partition", True, "needs a value"),
            ("mail_type", ["END", True], "text or a number"),
            ("hold", "yes", "flag"),
            ("time", 0.5, "timedelta"),
            ("time", timedelta(0), "longer than nothing"),
            ("time", timedelta(seconds=-5), "longer than nothing"),
            ("mem", timedelta(1), "no amount of memory"),
            ("cpus_per_task", 0, "at least 1"),
            ("seed", -1, "at least 0"),
            ("seed", "dice", "whole number"),
            ("seed", True, "whole number"),
            ("cpus_per_task", "8G", "whole number"),
            ("cpus_per_task", 1.0, "whole number"),
            ("dependency", "afterok:1?afterok:2", "'?'"),
        ],
    )
    def test_refused_values(self, option: str, value: object, word: str) -> None:
        """An invalid value is a ValueError that names the option and the reason."""
        with pytest.raises(OptionError, match=re.escape(word)) as caught:
            Options().changed(**{option: value})

        assert option == caught.value.option
        assert str(caught.value).startswith(option)
        assert isinstance(caught.value, ValueError)

    @pytest.mark.parametrize(
        ("given", "seconds"),
        [
            ("90s", 90), ("10m", 600), ("10 min", 600), ("1h", 3600), ("1.5h", 5400), ("1h30m", 5400),
            ("2 hours", 7200), ("1 hour and 30 minutes", 5400), ("1d12h", 129600), ("1 day", 86400), ("2W", 1209600),
            (str(timedelta(days=1, hours=2)), 93600), (str(timedelta(minutes=10)), 600), (90.0, 5400),
        ],
    )  # fmt: skip
    def test_times_with_units(self, given: object, seconds: int) -> None:
        """A time as people write it means the same to sbatch, also as a limit of retries."""
        chosen = Options().changed(time=given, max_time=given)

        assert [seconds] * 2 == [parse_time(str(text)) for text in (chosen.slurm["time"], chosen.max_time)]

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ("4 GB", "4G"), ("4GB", "4G"), ("4 gb", "4G"), ("4GiB", "4G"), ("4Gi", "4G"), ("1.5G", "1536M"),
            ("1.5 TB", "1536G"), ("0.1G", "104858K"), ("512 MB", "512M"), ("2 gigabytes", "2G"), ("1P", "1024T"),
            (4000.0, "4000"), ("4G", "4G"), ("4000", "4000"), (4000, "4000"), ("0", "0"), ("100k", "100k"),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("option", ["mem", "mem_per_cpu", "mem_per_gpu", "tmp"])
    def test_memory_with_units(self, option: str, given: object, expected: str) -> None:
        """An amount of memory as people write it becomes one that sbatch reads; what sbatch reads stays as it is."""
        assert {option: expected} == slurm(**{option: given})

    @pytest.mark.parametrize(
        ("option", "value", "form"),
        [
            *(("time", value, "'1h30m'") for value in ("10 bananas", "h", "1h30", "1-2-3", "٣", "-5", "1e3")),
            *(("mem", value, "'1.5G'") for value in ("lots", "4X", "-4G", "1.5", 1.5, "G", "1e3", "٣")),
            *((option, (1, 30), form) for option, form in (("time", "'1h30m'"), ("mem", "'1.5G'"))),
            ("max_time", "soon", "'1h30m'"),
            ("max_mem", "4 apples", "'1.5G'"),
        ],
    )
    def test_wrong_amounts(self, option: str, value: object, form: str) -> None:
        """The error for a wrong time or amount of memory shows the value and the valid forms."""
        with pytest.raises(OptionError, match=re.escape(repr(value))) as caught:
            Options().changed(**{option: value})

        assert form in str(caught.value)

    @given(st.sampled_from(sorted(VALUED - AMOUNTS - {"cpus_per_task"})), st.text())
    @example("nodes", "²")  # a digit for str.isdigit, and none for int
    @example("ntasks", "²")
    @example("ntasks_per_node", "²")
    def test_one_line(self, option: str, value: str) -> None:
        """Any accepted text reaches sbatch unchanged, on one line."""
        try:
            passed = slurm(**{option: value})
        except OptionError:
            return

        assert {option: value} == passed
        assert not set("\n\r\0") & set(value)

    def test_kinds(self) -> None:
        """Every name has one kind, and none is also ours."""
        kinds = (FLAGS, OPTIONAL, VALUED, frozenset(OURS_TO_SET), frozenset(Options().to_json()))

        assert sum(map(len, kinds)) == len(frozenset().union(*kinds))

    def test_short_forms(self) -> None:
        """Every short form has a long name that is in the table."""
        assert set() == set(SHORT.values()) - NAMES - OURS_TO_SET.keys()


class TestUnknownNames:
    """Errors for names that are no option."""

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("c", "cpus_per_task"),
            ("n", "ntasks"),
            ("N", "nodes"),
            ("t", "time"),
            ("M", "clusters"),
            ("J", "name"),
            ("job-name", "name"),
            ("cpus", "cpus_per_task"),
            ("cpus-per-task", "cpus_per_task"),
            ("CpusPerTask", "cpus_per_task"),
            ("cpusPerTask", "cpus_per_task"),
            ("CPUS_PER_TASK", "cpus_per_task"),
            ("cpus_per_taks", "cpus_per_task"),
            ("slurm_partition", "partition"),
            ("slurmlaunch_gres", "gres"),
            ("Partition", "partition"),
            ("--account", "account"),
            ("timeout_min", "time"),
            ("mem_gb", "mem"),
            ("slurm_array_parallelism", "throttle"),
            ("mail", "mail_type"),
            ("thread", "threads"),
            ("trottle", "throttle"),
            ("module", "modules"),
            ("max_workers", "throttle"),
            ("max_workers", "tasks"),
            ("n_jobs", "throttle"),
            ("workers", "processes"),
            ("tasks_per_node", "ntasks_per_node"),
            ("cluster", "clusters"),
        ],
    )
    def test_suggestions(self, name: str, expected: str) -> None:
        """The option that was meant is among the suggestions, and the message shows it."""
        with pytest.raises(UnknownOption, match=expected) as caught:
            Options().changed(**{name: "1"})

        assert name == caught.value.option
        assert expected in caught.value.suggestions
        assert isinstance(caught.value, TypeError)

    @given(st.text(min_size=1).filter(lambda name: name not in {*NAMES, *Options().to_json()}))
    def test_suggestions_are_valid(self, name: str) -> None:
        """For any name, the suggestions are few, and all of them are options."""
        with pytest.raises(UnknownOption) as caught:
            Options().changed(**{name: "1"})

        assert set(caught.value.suggestions) <= {*NAMES, *Options().to_json(), "tasks"}
        assert len(caught.value.suggestions) <= 3

    def test_nothing_near(self) -> None:
        """If no option is similar, the error still explains how to pass unknown flags."""
        with pytest.raises(UnknownOption, match=r"sbatch=\['--flag=value'\]") as caught:
            Options().changed(zzzzzz=1)

        assert caught.value.suggestions == ()

    @pytest.mark.parametrize(
        ("name", "way"),
        [
            ("array", "throttle"),
            ("output", "stdout()"),
            ("error", "stderr()"),
            ("job_name", "name="),
            ("chdir", "start the client there"),
            ("wrap", "setup="),
            ("parsable", "job_id"),
            ("wait", "results()"),
            ("export", "env="),
            ("export_file", "env="),
            ("open_mode", "stdout()"),
            ("input", "to the function"),
            ("signal", "slurmlaunch's own"),
            ("test_only", "ex.script("),
            ("ignore_pbs", "setup="),
            ("help", "in a shell"),
            ("fn", "retry(fn)"),
            ("tasks", "map_array(fn, items, tasks=...)"),
            ("folder", "new Executor"),
        ],
    )
    def test_ours_to_set(self, name: str, way: str) -> None:
        """Options that slurmlaunch sets are refused, with the supported way to do the same."""
        with pytest.raises(UnknownOption, match=re.escape(way)):
            Options().changed(**{name: "x"})

    def test_pickles(self) -> None:
        """The error keeps its fields through a pickle."""
        with pytest.raises(UnknownOption) as caught:
            Options().changed(cpus=1)
        again = pickle.loads(pickle.dumps(caught.value))

        assert (str(caught.value), "cpus", ("cpus_per_task",)) == (str(again), again.option, again.suggestions[:1])

    def test_check_cluster(self) -> None:
        """An unknown kind of cluster is refused, and the error names clusters=."""
        assert check_cluster("local") == "local"
        with pytest.raises(OptionError, match="clusters='mahti'"):
            check_cluster("mahti")


class TestRawFlags:
    """Flags that go to sbatch unread."""

    @pytest.mark.parametrize(
        "flag",
        ["--flag=x", "--comment=a b", "-p", "-psmall", "--container=x", "--mem=1G", "--no-kill", "-HOs", "--x?y=1"],
    )
    def test_pass(self, flag: str) -> None:
        """A flag that does no harm is passed on as it is, alone or in a list."""
        assert (flag,) == Options().changed(sbatch=flag).sbatch == Options().changed(sbatch=[flag]).sbatch

    @pytest.mark.parametrize(
        "flag",
        ["--array=0-3", "--array", "--arr=0-3", "-a0-3", "-Ha0-3", "-o", "--output=x", "--job=x", "-Jx", "--parsable"],
    )
    def test_ours_to_set(self, flag: str) -> None:
        """Options that slurmlaunch sets are refused in every form that sbatch would read."""
        with pytest.raises(UnknownOption, match="cannot be set"):
            Options().changed(sbatch=[flag])

    @pytest.mark.parametrize(
        ("flag", "option"),
        [
            ("--cpus-per-task=8", "cpus_per_task="),
            ("-c8", "cpus_per_task="),
            ("--cpus-per-t=8", "cpus_per_task="),
            ("-M", "clusters="),
            ("--cluster=x", "clusters="),
            ("--dependency=singleton", "dependency="),
        ],
    )
    def test_must_be_known(self, flag: str, option: str) -> None:
        """A flag whose value slurmlaunch uses is refused, and the error names the option for it."""
        with pytest.raises(OptionError, match=option):
            Options().changed(sbatch=[flag])

    @pytest.mark.parametrize("flag", ["--a=\n#SBATCH --hold", "small", ":", "--", "-", "", 3])
    def test_no_flag(self, flag: object) -> None:
        """A text that is no flag, or has several lines, is refused."""
        with pytest.raises(OptionError, match="sbatch"):
            Options().changed(sbatch=[flag])


class TestOurOptions:
    """The fields of `Options`."""

    def test_defaults(self) -> None:
        """With nothing given, Python is the client's own, and nothing else is set."""
        assert Options(python=(sys.executable,)) == Options().changed()

    @pytest.mark.parametrize(
        ("option", "value", "expected"),
        [
            ("throttle", 10, 10),
            ("processes", 1, 1),
            ("python", "/opt/my-python", ("/opt/my-python",)),
            ("python", Path("/opt/py"), ("/opt/py",)),
            ("python", ["/with space/python", "-X", "dev"], ("/with space/python", "-X", "dev")),
            ("modules", "gcc/11 python/3.9.5", ("gcc/11", "python/3.9.5")),
            ("modules", ["gcc/11", "python/3.9.5"], ("gcc/11", "python/3.9.5")),
            ("modules", [], ()),
            ("setup", "cd x\r\nif y; then\n  z\nfi", ("cd x", "if y; then", "  z", "fi")),
            ("setup", ["a", "b\nc\x0c"], ("a", "b", "c\x0c")),
            ("env", {"A": "1", "_b2": 3, "C": "a\nb", "D": "", "E": Path("/x")},
             {"A": "1", "_b2": "3", "C": "a\nb", "D": "", "E": "/x"}),
            ("by_value", "my.module", ("my.module",)),
            ("by_value", json, ("json",)),
            ("by_value", [json, "os.path"], ("json", "os.path")),
            ("name", "Größe\n#1", "Größe\n#1"),
        ],
    )  # fmt: skip
    def test_values(self, option: str, value: object, expected: object) -> None:
        """One or several, text or object: each option has one form afterwards."""
        assert expected == getattr(Options().changed(**{option: value}), option)

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("throttle", 0),
            ("throttle", True),
            ("processes", -1),
            ("threads", 1.5),
            ("python", "conda run python"),
            ("python", []),
            ("python", ["python", "a\nb"]),
            ("modules", "a\0b"),
            ("modules", {"gcc": 11}),
            ("setup", "a\0b"),
            ("setup", [1]),
            ("env", ["A=1"]),
            ("env", {"A-B": "1"}),
            ("env", {"1A": "1"}),
            ("env", {"A\n": "1"}),
            ("env", {1: "1"}),
            ("env", {"A": None}),
            ("env", {"A": "a\0b"}),
            ("by_value", "no module"),
            ("by_value", [3]),
            ("name", 3),
        ],
    )
    def test_refused_values(self, option: str, value: object) -> None:
        """A value that cannot be is refused with the option's name."""
        with pytest.raises(OptionError) as caught:
            Options().changed(**{option: value})

        assert str(caught.value).startswith(option)

    def test_not_offered(self) -> None:
        """An unknown option is not silently accepted."""
        with pytest.raises(UnknownOption):
            Options().changed(schedule=1)

    def test_changed(self) -> None:
        """A change replaces the named options and keeps the others; None restores a default."""
        options = Options().changed(mem="1G", qos="low", hold=True, threads=2, python="py", env={"A": "1"}, name="n")

        changed = options.changed(mem="2G", qos=None, hold=False, threads=None, python=None, env={"B": 2}, throttle=3)

        assert Options().changed(mem="2G", env={"B": "2"}, throttle=3, name="n") == changed
        assert options.slurm == {"mem": "1G", "qos": "low", "hold": True}

    def test_namespace(self) -> None:
        """No option has the name of one of Python's own parameters."""
        with pytest.raises(UnknownOption):
            Options().changed(self=1)
        with pytest.raises(UnknownOption):
            Options().changed(cls=1)

    def test_json(self) -> None:
        """Options are the same after JSON, and unknown keys are ignored."""
        options = Options().changed(
            time="10", hold=True, sbatch="--x=1", throttle=1, processes=2, threads=3, python=["a", "b"],
            modules="m", setup="s", env={"A": "ü"}, by_value=json, name="n",
        )  # fmt: skip
        text = json.dumps({**options.to_json(), "a newer version's": {}})

        assert options == Options.from_json(json.loads(text))
        assert hash(options) == hash(Options.from_json(json.loads(text)))

    def test_json_of_a_newer_version(self) -> None:
        """A manifest may have a Slurm option that is not in the table, and lack one of ours."""
        options = Options.from_json({"slurm": {"newest": "1"}})

        assert Options(slurm={"newest": "1"}) == options

    def test_pickles(self) -> None:
        """Options pickle."""
        options = Options().changed(mem="1G", env={"A": "1"})

        assert options == pickle.loads(pickle.dumps(options))


class TestTable:
    """The table of our options, and the texts and flags made from it."""

    def test_the_page_is_current(self) -> None:
        """``docs/options.md`` is as ``python docs/options.py`` writes it."""
        docs = Path(__file__).parents[2] / "docs"
        text = (docs / "options.md").read_text(encoding="utf-8")

        assert text == runpy.run_path(str(docs / "options.py"))["page"](text)
        assert all(f"| `{name}` |" in text for name in OURS)

    def test_the_docstring(self) -> None:
        """`Executor`'s docstring has an entry for each option."""
        listed = re.findall(r"^ {8}(\w+) \(", Executor.__doc__ or "", re.MULTILINE)

        assert listed == list(OURS)

    def test_the_command_line(self) -> None:
        """Each flag of the table is one of the command line, which stores it under the option's name."""
        parser = RunOptionParser("map", "", "", "")
        parser.add_run_options()
        flags = {name: option.flag.split()[0] for name, option in OURS.items() if option.flag}

        assert len(flags) > 10
        for name, flag in flags.items():
            given, _ = parser.parse([f"{flag}=A=1", "word"])
            assert getattr(given, name) in ("A=1", ["A=1"])
        assert "%N" in parser.format_help()

    def test_fixed(self) -> None:
        """A retry may change every option but the seed."""
        refuse_fixed([name for name in OURS if name != "seed"])
        with pytest.raises(OptionError, match="a run keeps its seed"):
            refuse_fixed(["retries", "seed"])

    @pytest.mark.parametrize("name", OURS)
    def test_rows(self, name: str) -> None:
        """Each row has its value's form and one sentence."""
        assert OURS[name].form
        assert re.fullmatch(r"[A-Z].*[^.]\.", OURS[name].help)


class TestShape:
    """CPUs, processes and threads of a task."""

    @pytest.mark.parametrize(
        ("given", "a_map", "single"),
        [
            ({}, (1, 1, 1), (1, 1, 1)),
            ({"cpus_per_task": 8}, (8, 8, 1), (8, 1, 8)),
            ({"processes": 4}, (4, 4, 1), (4, 4, 1)),
            ({"threads": 4}, (4, 1, 4), (4, 1, 4)),
            ({"cpus_per_task": 8, "threads": 4}, (8, 2, 4), (8, 2, 4)),
            ({"cpus_per_task": 8, "processes": 2}, (8, 2, 4), (8, 2, 4)),
            ({"processes": 2, "threads": 4}, (8, 2, 4), (8, 2, 4)),
            ({"cpus_per_task": 8, "processes": 3}, (8, 3, 2), (8, 3, 2)),
            ({"cpus_per_task": "8", "processes": 2, "threads": 3}, (8, 2, 3), (8, 2, 3)),
        ],
    )
    def test_resolved(self, given: dict[str, Any], a_map: tuple[int, ...], single: tuple[int, ...]) -> None:
        """Any two give the third; maps have one thread an item by default, a single item all CPUs."""
        options = Options().changed(**given)

        assert Shape(*a_map) == options.shape()
        assert Shape(*single) == options.shape(single_item=True)

    @pytest.mark.parametrize(
        "given",
        [
            {"cpus_per_task": 8, "processes": 3, "threads": 3},
            {"cpus_per_task": 2, "processes": 3},
            {"cpus_per_task": 2, "threads": 3},
            {"cpus_per_task": 1, "processes": 1, "threads": 2},
        ],
    )
    def test_too_many(self, given: dict[str, int]) -> None:
        """Processes with their threads over the task's CPUs are refused at once."""
        with pytest.raises(OptionError, match=r"CPUs, and cpus_per_task is \d"):
            Options().changed(**given)

    def test_changed_to_too_many(self) -> None:
        """A change that does not fit the other options is refused."""
        options = Options().changed(cpus_per_task=8, threads=4)

        with pytest.raises(OptionError, match="threads"):
            options.changed(cpus_per_task=2)

    @pytest.mark.parametrize(
        ("given", "available", "expected"),
        [
            ((8, 8, 1), None, (8, 8, 1)),
            ((8, 8, 1), 8, (8, 8, 1)),
            ((8, 8, 1), 2, (2, 2, 1)),
            ((8, 2, 4), 6, (6, 1, 4)),
            ((8, 2, 4), 3, (3, 1, 3)),
            ((8, 1, 8), 1, (1, 1, 1)),
            ((8, 2, 2), 5, (5, 2, 2)),
            ((2, 1, 1), 0, (1, 1, 1)),
        ],
    )
    def test_clipped(self, given: tuple[int, ...], available: int | None, expected: tuple[int, ...]) -> None:
        """A smaller machine reduces processes first, and threads only if one process has too many."""
        assert Shape(*expected) == Shape(*given).clipped(available)

    @given(
        cpus=st.none() | st.integers(1, 40),
        processes=st.none() | st.integers(1, 40),
        threads=st.none() | st.integers(1, 40),
        single=st.booleans(),
    )
    def test_fits(self, *, cpus: int | None, processes: int | None, threads: int | None, single: bool) -> None:
        """Given numbers are kept and fit the task; only numbers that do not fit are refused."""
        try:
            shape = Shape.resolve(cpus, processes, threads, single_item=single)
        except OptionError:
            assert (processes or 1) * (threads or 1) > (cpus or 1)
            return

        assert cpus in {None, shape.cpus_per_task}
        assert processes in {None, shape.processes}
        assert threads in {None, shape.threads}
        assert 1 <= shape.processes * shape.threads <= shape.cpus_per_task

    @given(processes=st.integers(1, 40), threads=st.integers(1, 40), room=st.integers(0, 100))
    def test_clipped_fits(self, processes: int, threads: int, room: int) -> None:
        """A clipped shape fits the machine, and each of its numbers is at least 1."""
        shape = Shape(processes * threads, processes, threads).clipped(room)

        assert min(shape.processes, shape.threads) >= 1
        assert shape.processes * shape.threads <= shape.cpus_per_task <= max(1, room)


class TestJobName:
    """The names of Slurm jobs."""

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("process", "process-t0k3n"),
            ("Größe der Maße, 2.Lauf", "Groe-der-Mae-2.Lauf-t0k3n"),
            ("<lambda>", "lambda-t0k3n"),
            ("--hold", "hold-t0k3n"),
            ("a\n#SBATCH --hold", "a-SBATCH---hold-t0k3n"),
            ("函数", "slurmlaunch-t0k3n"),
            (None, "slurmlaunch-t0k3n"),
        ],
    )
    def test_readable(self, name: str | None, expected: str) -> None:
        """The readable part of the user's name is followed by the token."""
        assert expected == job_name(name, "t0k3n")

    @given(st.none() | st.text(), st.from_regex(r"[A-Za-z0-9._-]{1,60}", fullmatch=True))
    def test_always_valid(self, name: str | None, token: str) -> None:
        """For any name, the job's name has safe characters only, is short enough, and ends in the token."""
        made = job_name(name, token)

        assert re.fullmatch(r"[A-Za-z0-9._-]+", made)
        assert len(made) <= JOB_NAME_LENGTH
        assert made.endswith(f"-{token}")
        assert made[0].isalnum()

    @pytest.mark.parametrize("token", ["", "a b", "a\n", "x" * 63])
    def test_bad_token(self, token: str) -> None:
        """A token that is no name itself, or leaves no space for one, is refused."""
        with pytest.raises(ValueError, match="job's name"):
            job_name("x", token)
