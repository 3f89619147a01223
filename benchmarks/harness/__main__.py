"""The command that `harness.contest` starts for each run; see `harness.client`."""

from harness.client import main

main()
