"""Damaged files for every reader, searched by Hypothesis: ``nox -s fuzz`` or ``python -m tests.faults.fuzz [seconds]``.

Each reader has its turn, again and again, until the time is over. What a reader raises that is not specified, a wait of
a minute, or memory beyond two GiB ends it, with an example that Hypothesis has made as small as it can.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.faults.readers import TARGETS, read_damaged, read_snapshot, write_sample

if TYPE_CHECKING:
    from random import Random

HANGS_AFTER = 60.0
MEMORY = 2 << 30
TURN = settings(
    max_examples=500,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def take_turn(name: str, folder: Path, number: int) -> int:
    """Let Hypothesis search for damage that a reader does not report as specified; return how many it tried."""
    tried = 0

    @seed(number)
    @TURN
    @given(st.randoms(use_true_random=False))
    def search(random: Random) -> None:
        nonlocal tried
        tried += 1
        faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
        if name == "snapshot":
            read_snapshot(random)
        else:
            read_damaged(folder, TARGETS[name], random)

    search()
    return tried


def main() -> int:
    """Search for the time on the command line."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 120.0
    names, tried = [*TARGETS, "snapshot"], Counter[str]()
    os.environ["SLURMLAUNCH_LATENCY"] = "0"
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    until, number = time.monotonic() + seconds, int.from_bytes(os.urandom(4))
    print(f"seed {number}, {seconds:.0f} s", flush=True)  # noqa: T201
    with tempfile.TemporaryDirectory(prefix="fuzz") as name:
        folder = Path(name, "run")
        write_sample(folder)
        while time.monotonic() < until:
            turn = names[number % len(names)]
            tried[turn] += take_turn(turn, folder, number)
            number += 1
    print(dict(sorted(tried.items())))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
