"""The page of ``slurmlaunch doctor --full``: a report in Markdown that can be attached to a bug report.

`report` calls it. Names of the user and of machines are replaced; it says what it contains.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import platform
import pwd
import re
from typing import TYPE_CHECKING, Any, TypeAlias

from slurmlaunch.client.doctor.behaviours import BEHAVIOURS
from slurmlaunch.client.doctor.findings import ERROR
from slurmlaunch.client.doctor.items import version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from slurmlaunch.client.doctor.findings import Check

_ABOUT = """\
This page was written by `slurmlaunch doctor --full`. It has versions, the file system of the run folders, what was
found, and the ends of logs of what failed. Your user name, your home folder, this machine's name and that of the first
job's node are replaced; partitions, accounts and other paths are not. Please read it before you publish it."""

_LABELS = {
    "no_op_items_per_second": "no-op items per second, in one process",
    "round_trip": "a file to the node and the answer back, s",
    "client_to_node": "until the node sees a new file of the client, s (by two clocks)",
    "node_to_client": "until the client sees a new file of the node, s (by two clocks)",
    "growth_seen": "until the client sees that a file on the node has grown, s (by two clocks)",
    "result_after_end": "from the end of an item to its result, s (by two clocks)",
    "seconds": "all behaviours, s",
}
_ORDER = list(BEHAVIOURS)
_Row: TypeAlias = "tuple[object, ...]"


def page_of(checks: Sequence[Check], waiting: str | None) -> str:
    """Return the page."""
    now = dt.datetime.now().astimezone()
    by_name = {check.name: check for check in checks}
    tried = sorted((check for check in checks if "promise" in check.data), key=lambda check: _ORDER.index(check.name))
    others = [check for check in checks if check not in tried and check.name not in {"system", "measurements"}]
    parts = [f"# slurmlaunch {version()}: a full check, {now:%d %B %Y, %H:%M %Z}", _ABOUT]
    parts += [waiting] if waiting else []
    parts += ["## Versions", _table(("", "here", "on the node"), _versions(by_name))]
    if tried:
        rows: list[_Row] = [(each.name, each.data["promise"], each.data["seconds"], _result(each)) for each in tried]
        parts += ["## Behaviours", _table(("behaviour", "promise", "seconds", "result"), rows)]
    for check in tried:
        if check.level == ERROR:
            parts += [f"### {check.name}", check.found.replace("\n", "  \n")]
            parts += [f"```text\n{check.data['log']}\n```"] if check.data.get("log") else []
    parts += ["## Measurements", _table(("", "measured"), _measurements(by_name))]
    rows = [(check.name, check.level, _join(check.found, check.advice)) for check in others]
    parts += ["## Checks", _table(("check", "result", "found"), rows)]
    machines = {platform.node(), _data(by_name, "job").get("host", "")}
    return _without_names("\n\n".join(parts) + "\n", machines)


def _versions(checks: Mapping[str, Check]) -> list[_Row]:
    system = _data(checks, "system")
    rows: list[_Row] = [(name, value, system["node"].get(name, "")) for name, value in system.get("here", {}).items()]
    if not rows:
        there = _data(checks, "node python").get("version", "")
        rows = [("slurmlaunch", version(), ""), ("Python", platform.python_version(), there)]
    return [*rows, ("Slurm", _data(checks, "slurm").get("version", "none"), "")]


def _result(check: Check) -> str:
    return f"**failed**: {check.data['seen']}" if check.level == ERROR else check.found


def _measurements(checks: Mapping[str, Check]) -> list[_Row]:
    timing, data = _data(checks, "timing"), _data(checks, "measurements")
    stages = {**timing.get("stages", {}), **({"in all": timing["total"]} if timing else {})}
    rows: list[_Row] = [(f"first job: {name}, s", f"{value:.2f}") for name, value in stages.items()]
    rows += [(label, f"{data[name]:g}") for name, label in _LABELS.items() if name in data]
    return rows + [(f"calls of {name}", count) for name, count in sorted(data.get("calls", {}).items())]


def _data(checks: Mapping[str, Check], name: str) -> dict[str, Any]:
    return checks[name].data if name in checks else {}


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _join(*texts: str) -> str:
    return " → ".join(filter(None, texts))


def _without_names(text: str, machines: Iterable[str]) -> str:
    """Replace the home folder, the user's name and the names of machines, but for those of root."""
    others = dict.fromkeys(filter(None, (part for name in machines for part in (name, name.partition(".")[0]))), "HOST")
    with contextlib.suppress(KeyError):  # a user without an entry has no name
        user = pwd.getpwuid(os.geteuid())
        if user.pw_uid:
            others = {user.pw_dir: "~", user.pw_name: "USER", **others}
    for name, other in others.items():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", other, text)
    return text
