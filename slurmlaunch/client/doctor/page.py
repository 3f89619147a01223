"""The page of ``slurmlaunch doctor --full``: a report in Markdown that can be attached to a bug report.

`report` calls it. Names of the user, accounts and machines are replaced; the page says what it contains.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import html
import os
import platform
import pwd
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from slurmlaunch.client.doctor.behaviours import BEHAVIOURS
from slurmlaunch.client.doctor.findings import ERROR
from slurmlaunch.client.doctor.items import version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from slurmlaunch.client.doctor.findings import Check

_ABOUT = """\
This page was written by `slurmlaunch doctor --full`. It has versions, the file system of the run folders, what was
found, and the ends of logs of what failed. Your user name, home folder and accounts, this machine's name and those of
the nodes where something failed are replaced by USER, ~, ACCOUNT and HOST. Before you publish it, look for other names
that should stay private: the cluster, partitions and QOS, paths, packages, and what the site prints into logs."""

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
_FENCE = "`" * 8  # which no log has
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
            parts += [f"### {check.name}", html.escape(check.found, quote=False).replace("\n", "  \n")]
            parts += [f"{_FENCE}text\n{check.data['log']}\n{_FENCE}"] if check.data.get("log") else []
    if measured := _measurements(by_name):
        parts += ["## Measurements", _table(("", "measured"), measured)]
    rows = [(check.name, check.level, _join(check.found, check.advice)) for check in others]
    parts += ["## Checks", _table(("check", "result", "found"), rows)]
    nodes = [node for check in checks for node in check.data.get("nodes", ())]
    machines = {platform.node(), _data(by_name, "job").get("host", ""), *nodes}
    accounts = _data(by_name, "account")
    names = {
        **dict.fromkeys((accounts.get("asked"), accounts.get("default"), *accounts.get("accounts", ())), "ACCOUNT"),
        **dict.fromkeys((part for name in machines for part in (name, name.partition(".")[0])), "HOST"),
        **_names_of_the_user(),
    }
    return _replace("\n\n".join(parts) + "\n", {name: other for name, other in names.items() if name})


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
    return " ".join(html.escape(str(value), quote=False).replace("|", "\\|").split())


def _join(*texts: str) -> str:
    return " → ".join(filter(None, texts))


def _names_of_the_user() -> dict[str, str]:
    """Return the user's name and home folder, each with what stands for it; none for root."""
    with contextlib.suppress(KeyError):  # a user without an entry has no name
        user = pwd.getpwuid(os.geteuid())
        if user.pw_uid:
            homes = {user.pw_dir, os.path.realpath(user.pw_dir), str(Path.home())}
            return {user.pw_name: "USER", **{home.rstrip("/"): "~" for home in homes}}
    return {}


def _replace(text: str, others: Mapping[str, str]) -> str:
    """Replace names, where they are words or parts of names between other signs, by others; long ones first."""
    for name in sorted(others, key=len, reverse=True):
        text = re.sub(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", others[name], text)
    return text
