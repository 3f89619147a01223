"""The cost of storing the user's modules: at a call, and at the start of a task.

    python benchmarks/modules.py                  # 50 and 3000 modules, a good minute
    python benchmarks/modules.py --full           # medians of nine calls, rather than of five

Each figure is given beside the same with ``code="live"``, which stores nothing, or
as a ratio to it. Seconds are CPU time of the calling thread, which other work on
the machine disturbs little, and wall time. File operations are counted by strace.
How long something takes never decides the exit status; a wrong result does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from harness import strace
from slurmlaunch import Executor

_FEW, _MANY = 50, 3000
_FUNCTIONS = 10  # in a module
_FUNCTION = '''
def function_{}(a, b=1, *args, key=None, **kwargs):
    """Return something."""
    if a > b:
        return [x * b for x in range(a) if x % 2]
    return {{"a": a, "b": b, "total": sum(args) + len(kwargs), "key": key}}
'''
_IMPORTED = 10  # by an item


def write_modules(folder: Path, count: int) -> None:
    """Write a package of so many modules, which were edited some time ago."""
    package = folder / "package"
    package.mkdir()
    text = "".join(_FUNCTION.format(number) for number in range(_FUNCTIONS))
    for number in range(count - 1):
        (package / f"module_{number}.py").write_text(f"NUMBER = {number}\n{text}")
    work = "".join(f"    from package.module_{number} import function_0\n" for number in range(_IMPORTED))
    (package / "__init__.py").write_text(f"def work(item):\n{work}    return item\n")
    long_ago = time.time() - 100
    for path in package.iterdir():
        os.utime(path, (long_ago, long_ago))


def calls(folder: Path, count: int, code: str, repeat: int) -> dict[str, Any]:
    """Import the modules, and measure calls in this process; return CPU and wall time of each, and the run folders."""
    sys.path.insert(0, str(folder))
    for number in range(count - 1):
        import_module(f"package.module_{number}")
    work = import_module("package").work
    Executor(folder / "runs", cluster="local", code="live").submit(int).result()  # slurmlaunch is loaded by now
    executor = Executor(folder / "runs", cluster="local", code=code)
    cpu, wall = [], []
    for number in range(1 + repeat):
        began = time.thread_time(), time.perf_counter()
        array = executor.map_array(work, [number])
        cpu.append(time.thread_time() - began[0])
        wall.append(time.perf_counter() - began[1])
        assert array.results() == [number]
    return {"cpu": cpu, "wall": wall, "folder": str(array.folder)}


def _in_own_process(within: Path, count: int, code: str, repeat: int, **variables: str) -> dict[str, Any]:
    """Measure `calls` in a process of its own, whose modules have ``.pyc`` files unless *variables* forbid them."""
    folder = Path(tempfile.mkdtemp(dir=within))
    write_modules(folder, count)
    command = [sys.executable, __file__, "--calls", str(folder), str(count), code, str(repeat)]
    done = subprocess.run(command, env=os.environ | variables, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def call_lines(within: Path, repeat: int) -> list[str]:
    """Measure the first call and the next; return the lines of the table."""
    lines = [
        '| call, milliseconds | stored: CPU | wall | `code="live"`: CPU | wall | CPU, ratio |',
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for what, count, variables in (
        (f"{_FEW} modules", _FEW, {}),
        (f"{_FEW} modules without `.pyc`", _FEW, {"PYTHONDONTWRITEBYTECODE": "1"}),
        (f"{_MANY} modules", _MANY, {}),
    ):
        stored, live = (_in_own_process(within, count, code, repeat, **variables) for code in ("submitted", "live"))
        for which, part in (("the first", slice(1)), ("the next", slice(1, None))):
            ours, theirs = (
                [1000 * statistics.median(each[key][part]) for key in ("cpu", "wall")] for each in (stored, live)
            )
            numbers = " | ".join(f"{number:.1f}" for number in (*ours, *theirs))
            lines.append(f"| {which} with {what} | {numbers} | {ours[0] / theirs[0]:.2f} × |")
    return lines


def start_lines(within: Path, repeat: int) -> list[str]:
    """Measure the start of a task that has few modules and imports some; return the lines of the table."""
    starts = {code: _Start(within, code) for code in ("submitted", "live")}
    for _ in range(repeat):
        for each in starts.values():
            each.run()
    stored, live = starts.values()
    seconds = [1000 * statistics.median(each.cpu) for each in (stored, live)]
    lines = [
        f'| start of a task with {_FEW} modules that imports {_IMPORTED + 1} | stored | `code="live"` | ratio |',
        "| --- | --- | --- | --- |",
        f"| CPU time, milliseconds | {seconds[0]:.0f} | {seconds[1]:.0f} | {seconds[0] / seconds[1]:.2f} × |",
    ]
    if not strace.installed():
        return lines
    traces = [each.trace() for each in (stored, live)]
    costs = [strace.file_costs(lines) for lines in traces]
    for what in ("opened", "missed", "read"):
        ours, theirs = (getattr(each, what) for each in costs)
        lines.append(f"| {_WORDS[what]} | {ours:,} | {theirs:,} | {ours / theirs:.2f} × |")
    calls = [len(strace.calls_in(lines, each.project)) for lines, each in zip(traces, (stored, live), strict=True)]
    lines.append(f"| file operations in the modules' folder | {calls[0]} | {calls[1]} | {calls[0] / calls[1]:.2f} × |")
    read = strace.file_costs(line for line in traces[0] if "/modules>" in line).read
    size = (stored.folder / "modules").stat().st_size
    return [*lines, f"| bytes read of the stored modules | {read:,} | of {size:,} | {read / size:.2f} × |"]


_WORDS = {"opened": "files opened", "missed": "files looked for in vain", "read": "bytes read"}


class _Start:
    """The start of a task of a run whose modules are stored, or are not.

    Attributes:
        project: the folder of the modules.
        folder: the run folder.
        cpu: the CPU time of each start, in seconds.
    """

    def __init__(self, within: Path, code: str) -> None:
        measured = _in_own_process(within, _FEW, code, 0)
        self.folder = Path(measured["folder"])
        self.project = self.folder.parents[1] / "package"
        self.cpu: list[float] = []

    def _command(self) -> list[str]:
        for kind in ("outcomes", "ended"):
            for path in (self.folder / kind).iterdir():
                path.unlink()
        return [sys.executable, "-P", "-m", "slurmlaunch.node", str(self.folder), "0"]

    def run(self) -> None:
        """Run the task once more."""
        command = self._command()
        pid = os.posix_spawn(command[0], command, os.environ)
        _, status, usage = os.wait4(pid, 0)
        assert not status
        self.cpu.append(usage.ru_utime + usage.ru_stime)

    def trace(self) -> list[str]:
        """Run the task once more; return its system calls."""
        return strace.traced(self._command(), self.folder)


def _main() -> int:
    parser = argparse.ArgumentParser(description="Measure the cost of storing the user's modules.")
    parser.add_argument("--full", action="store_true", help="nine further calls and starts, rather than five")
    parser.add_argument("--calls", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.calls:
        folder, count, code, repeat = arguments.calls
        print(json.dumps(calls(Path(folder), int(count), code, int(repeat))))
        return 0
    with tempfile.TemporaryDirectory() as within:
        parts = [part(Path(within), 9 if arguments.full else 5) for part in (call_lines, start_lines)]
    print("\n\n".join("\n".join(lines) for lines in parts))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
