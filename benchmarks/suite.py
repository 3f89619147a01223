"""The benchmarks: slurmlaunch, its peers and the floor on one Slurm, in one run.

    python benchmarks/suite.py                     # the short form, minutes
    python benchmarks/suite.py --full              # the tables of docs/benchmarks.md, about an hour
    python benchmarks/suite.py --only killed       # one line of the table
    python benchmarks/suite.py --list              # which lines, systems and workloads there are

It starts a throwaway Slurm of its own, or uses the one that SLURM_CONF names (then
give a ``--folder`` that its nodes see). Seconds are wall time of a client that is
running already: the median over the rounds, with minimum and maximum. Two tables
(the bars; all that was measured), a plot and all samples are left in ``--out``.
How long something takes never decides the exit status; a wrong result or a lost
item does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bars.measures import FULL, SHORT, Measures, Size
from bars.registry import LINES, ONLY_FULL, rows
from harness.plot import plot
from harness.site import open_site
from harness.table import bars, measured
from systems.base import missing, version
from systems.registry import PEERS, SYSTEMS
from workloads.registry import WORKLOADS

if TYPE_CHECKING:
    from harness.series import Series
    from harness.table import Row

_PLOTTED = ("alone", "sliced", "one_by_one", "ten_thousand", "tenth", "million", "ten_million")
"""The contests that compare speed; others are about memory, files or calls."""

_LEGEND = """
Seconds are medians, with minimum and maximum. Where the floor is taken off in seconds, so is the wait between sbatch's
answer and the start of the first task: Slurm looks at its queue about once a second, whoever submitted."""


def _main() -> int:
    arguments = _parse_arguments()
    if arguments.list:
        print(_listing())
        return 0
    size = _size(arguments)
    keys = arguments.only or [key for key in LINES if arguments.full or key not in ONLY_FULL]
    with open_site(arguments.folder) as site:
        measures = Measures(site, size)
        table = [row for key in keys for row in rows(key, measures)]
        about = f"{site.slurm}, Python {platform.python_version()}, {_versions()}; rounds: {size.rounds}, or fewer"
    _report(arguments.out, about, table, measures)
    for fault in measures.faults:
        print(f"WRONG: {fault}", file=sys.stderr)
    return 1 if measures.faults else 0


def _report(out: Path, about: str, table: list[Row], measures: Measures) -> None:
    """Print the tables, and write them, the plot and the samples."""
    series = [each for contest in measures.held.values() for each in contest]
    text = f"{about}\n\n{bars(table)}\n{_LEGEND}\n\n{measured(series)}\n"
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / "tables.md").write_text(text, encoding="utf-8")
    held = {
        "about": about,
        "size": dataclasses.asdict(measures.size),
        "rows": [dataclasses.asdict(row) for row in table],
        "faults": measures.faults,
        "startups": [dataclasses.asdict(each) for each in vars(measures).get("startups", [])],
        "series": [_as_json(each) for each in series],
    }
    (out / "samples.json").write_text(json.dumps(held, indent=1), encoding="utf-8")
    try:
        plot([measures.held[name] for name in _PLOTTED if name in measures.held], out / "times.svg")
    except ImportError:
        print("There is no plot: matplotlib is not installed.", file=sys.stderr)


def _as_json(series: Series) -> dict[str, object]:
    work = series.entry.work
    return {
        "system": series.entry.name,
        "workload": work.name,
        "items": work.items,
        "tasks": work.tasks,
        "failure": series.failure,
        "samples": [dataclasses.asdict(sample) for sample in series.samples],
    }


def _versions() -> str:
    return ", ".join(dict.fromkeys(version(peer) for peer in PEERS if not missing(peer)))


def _listing() -> str:
    systems = [f"{name} ({missing(system)})" if missing(system) else name for name, system in SYSTEMS.items()]
    found = {"lines": list(LINES), "systems": systems, "workloads": list(WORKLOADS)}
    return "\n".join(f"{kind}:\n    " + "\n    ".join(names) for kind, names in found.items())


def _size(arguments: argparse.Namespace) -> Size:
    size = FULL if arguments.full else SHORT
    if arguments.repeat:
        times = arguments.repeat
        size = dataclasses.replace(size, rounds=times, few_rounds=times, slow_rounds=times)
    return size if not arguments.timeout else dataclasses.replace(size, timeout=arguments.timeout)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure slurmlaunch against its peers and the floor.")
    parser.add_argument("--full", action="store_true", help="all items and more rounds: about an hour")
    parser.add_argument("--repeat", type=int, help="how many rounds, instead of the form's own number")
    parser.add_argument("--only", action="append", choices=list(LINES), help="only this line; may be given again")
    parser.add_argument("--timeout", type=float, help="after how many seconds a run is killed, and reported so")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), help="where tables and plot are written")
    parser.add_argument("--folder", type=Path, help="where runs may write; Slurm's nodes must see it")
    parser.add_argument("--list", action="store_true", help="show all lines, systems and workloads, and run nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(_main())
