"""Items that print in every way, and what is expected of their output. Nodes import this file, so it imports little."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

WAYS = ("python", "c", "descriptor", "program")


def print_in_all_ways(name: int, lines: int, *, killed: bool = False) -> None:
    """Print so many lines with a name in each way, C's without a flush; then kill the process if asked."""
    c = ctypes.CDLL(None)
    for number in range(lines):
        sys.stdout.write(f"python {name} {number}\n")
        c.printf(b"c %d %011d\n", name, number)  # as long as any, so that no line is in two of C's buffers
        os.write(1, b"descriptor %d %d\n" % (name, number))
    subprocess.run(["awk", f'BEGIN {{ for (i = 0; i < {lines}; i++) print "program {name}", i }}'], check=True)
    os.write(2, b"error %d" % name)
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)


def check_output(text: str, name: int, lines: int, *, killed: bool = False) -> None:
    """Check that the output is all that was printed, in order; C's may end where its process was killed."""
    printed = text.splitlines()
    assert {*WAYS} >= {line.partition(" ")[0] for line in printed}
    for way in WAYS:
        own = [line for line in printed if line.startswith(way)]
        expected = [f"{way} {name} {number:0{11 if way == 'c' else 1}}" for number in range(lines)]
        if killed and way == "c":
            expected = expected[: len(own)]  # the rest was in C's buffer when the process was killed
        assert expected == own
