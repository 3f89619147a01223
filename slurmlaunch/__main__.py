"""``python -m slurmlaunch``: the command line, where the script `slurmlaunch` is not on the PATH."""

from __future__ import annotations

import sys

from slurmlaunch.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
