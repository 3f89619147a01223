"""``slurmlaunch logs``: what the items of a run wrote, or the logs of its tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slurmlaunch.cli.exit_status import OK
from slurmlaunch.cli.parsers import ITEMS, RunParser, chosen, find, items_in, look
from slurmlaunch.cli.printing import print_json, print_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurmlaunch.client.futures import Future

_DESCRIPTION = """\
Print what items wrote to their standard output, and then to their standard
error. Without ITEMS print the logs of all tasks, which have the output of the
batch script, too.
"""
_EXAMPLES = """\
examples:
  slurmlaunch logs fit
  slurmlaunch logs fit 7 --follow
  slurmlaunch logs --newest failed | less
"""


def main(arguments: Sequence[str]) -> int:
    """Print the output; return 0."""
    parser = RunParser("logs", _DESCRIPTION, _EXAMPLES, items=ITEMS)
    parser.add_argument(
        "-f", "--follow", action="store_true", help="print the last lines, and what comes until all has ended"
    )
    parser.add_json()
    given = parser.read(arguments)
    if given.follow:
        if given.json:
            parser.error("--follow prints text: leave --json out")
        futures = find(given)
        items = None if given.items is None else items_in(given.items, futures)
        if items is not None and len(items) != 1:
            parser.error("--follow takes one item, or the whole run")
        (futures[items[0]] if items else futures).tail(follow=True)
        return OK
    futures = look(given)
    if given.items is None:
        text = futures.logs()
        print_json({"folder": str(futures.folder), "log": text}) if given.json else print_text(text)
        return OK
    some = chosen(given, futures)
    if given.json:
        print_json({"folder": str(futures.folder), "items": list(map(_as_dict, some))})
        return OK
    for future in some:
        text = future.stdout() + future.stderr()
        print_text(f"==> item {future.index} <==\n{text}" if len(some) > 1 else text)
    return OK


def _as_dict(future: Future[Any]) -> dict[str, Any]:
    return {
        "item": future.index,
        "stdout": future.stdout(),
        "stderr": future.stderr(),
        "log": str(future.log("err")),
    }
