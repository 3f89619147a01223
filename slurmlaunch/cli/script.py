"""``slurmlaunch script``: the batch script that ``slurmlaunch map`` with the same arguments would submit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurmlaunch.cli.map import new_parser, print_script, read_call

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION = """\
Print the batch script that slurmlaunch map with the same arguments would
submit. Nothing is submitted or written.
"""
_EXAMPLES = """\
examples:
  slurmlaunch script -p small --time=00:10:00 'python process.py {}' data_*.nc
  slurmlaunch script --json 'wc {}' *.txt | jq -r .script
"""


def main(arguments: Sequence[str]) -> int:
    """Print the script; return 0."""
    return print_script(read_call(new_parser("script", _DESCRIPTION, _EXAMPLES), arguments))
