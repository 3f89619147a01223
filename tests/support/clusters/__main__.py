"""``python -m tests.support.clusters NAME...``: run the test suites on these kinds of cluster, and print a table.

`nox -s cluster-NAME` and `nox -s clusters` call it. What a kind lacks is said; ``--install`` installs it into a folder
of its own. Other options go to pytest.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support.clusters import KINDS
from tests.support.clusters.kind import CHECKOUT, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

_ABOUT = re.compile(r"^cluster: \w+ \((.*)\)$")
_SUMMARY = re.compile(r"^=+ (.*) in [\d.]+s")
_COUNT = re.compile(r"\d+ (?:passed|failed|skipped|errors?|xfailed|xpassed)")
_NO_TESTS = 5  # pytest's exit status


@dataclasses.dataclass
class Row:
    """A kind's row of the table: its versions, or why it did not run, and pytest's counts in each folder of tests."""

    kind: str
    about: str = ""
    counts: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def main(words: list[str]) -> int:
    """Do what the command line says; return 1 if a test failed, or if the only kind could not run."""
    arguments, options = _parse_arguments(words)
    rows: list[Row] = []
    failed = False
    for kind in [KINDS[name] for name in arguments.names]:
        if kind.missing() and arguments.install:
            kind.install()
        row = Row(kind.name)
        rows.append(row)
        if problems := kind.missing():
            row.about = f"not run: {' '.join(problems)}"
            failed |= len(arguments.names) == 1
            continue
        for suite in arguments.suite or kind.suites:
            status, row.about, counts = _run(kind, suite, options)
            row.counts.setdefault(suite.partition("/")[0], []).append(counts)
            failed |= status not in {0, _NO_TESTS}
    _print_table(rows)
    return int(failed)


def _parse_arguments(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.clusters",
        description="Run the test suites on kinds of cluster. Further options go to pytest.",
        epilog="\n".join(f"{kind.name:10}{kind.summary}" for kind in KINDS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", choices=KINDS, metavar="NAME", help="the kinds")
    parser.add_argument("--install", action="store_true", help="install what is missing into a folder of its own")
    parser.add_argument(
        "--suite",
        action="append",
        help="a folder of tests/; may be repeated; by default all that say something about the kind",
    )
    return parser.parse_known_args(words)


def _run(kind: Kind, suite: str, options: Iterable[str]) -> tuple[int, str, str]:
    """Run a suite; return pytest's exit status, the versions that it tested, and its counts."""
    command = kind.command("pytest", f"tests/{suite}", "-m", kind.marks, *options)
    environment = os.environ | {"SLURMLAUNCH_TEST_CLUSTER": kind.name, "SLURMLAUNCH_REQUIRE_SLURM": "1"}
    about = counts = ""
    with subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True) as tests:
        for line in tests.stdout or ():
            sys.stdout.write(line)
            sys.stdout.flush()
            if found := _ABOUT.match(line):
                about = found[1]
            if found := _SUMMARY.match(line):
                counts = ", ".join(_COUNT.findall(found[1]))
    return tests.returncode, about, counts or f"pytest ended with {tests.returncode}"


def _print_table(rows: list[Row]) -> None:
    suites = list(dict.fromkeys(suite for row in rows for suite in row.counts))
    cells = [["cluster", "what it is", *suites], ["---"] * (2 + len(suites))]
    cells += [[row.kind, row.about, *("; ".join(row.counts.get(suite, ())) for suite in suites)] for row in rows]
    lines = [f"| {' | '.join(line)} |" for line in cells]
    sys.stdout.write("\n".join(["", str(dt.datetime.now(dt.UTC).date()), "", *lines, ""]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
