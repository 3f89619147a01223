"""A round that adds items to a run: what a view of before knows of them, and where their arguments are."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from slurmlaunch.client.events import RoundAdded
from slurmlaunch.client.ledger import ItemStatus
from slurmlaunch.client.pickling import pickle_arguments
from slurmlaunch.runfolder.items import ItemReader, write_further, write_items
from slurmlaunch.runfolder.layout import RunFolder
from slurmlaunch.runfolder.plan import ArrayPlan, RoundPlan, Slices
from tests.support.state_tables import new_state, values

if TYPE_CHECKING:
    from pathlib import Path

GROWN = RoundPlan(
    Slices(3, 3), 3, (ArrayPlan("grown", 3, 3),), 1, 1, 1, items=array("I", [2, 6, 7]), manifest={"items": 8}
)
"""It runs item 2 again, and adds two to the six that there are."""


def test_a_new_view() -> None:
    """A view that nobody holds yet gets the new items, and their outcomes."""
    state = new_state()
    state.handle(RoundAdded(1, GROWN, reopen=True), 0.0)

    assert (8, 8) == (state.ledger.items, state.ledger.open)
    assert [3, 4, 5] == [state.tasks.task_of(item) for item in (2, 6, 7)]
    assert [[7], [0, 1], [3]] == [list(state.tasks.items_of(task)) for task in (5, 0, 1)]
    for event in values(5, 7)(state):
        state.handle(event, 0.0)
    assert ItemStatus.VALUE == state.ledger.status(7)


def test_a_view_of_before() -> None:
    """A view whose futures somebody holds has no further items, and passes over their outcomes."""
    state = new_state()
    state.handle(RoundAdded(1, GROWN), 0.0)

    assert (6, 6) == (state.ledger.items, state.ledger.open)
    assert [[], [2], [3]] == [list(state.tasks.items_of(task)) for task in (5, 3, 1)]
    for event in (*values(5, 7)(state), *values(3, 2)(state)):
        state.handle(event, 0.0)
    assert 5 == state.ledger.open


def test_arguments(tmp_path: Path) -> None:
    """Arguments of all files are read, in any order, also after the function has closed the descriptor."""
    folder = RunFolder(tmp_path)
    tmp_path.chmod(0o700)
    write_items(folder, [(0,), (1,)], pickle_arguments)
    sha256 = write_further(folder.root / "items.2", folder.salt, [("c",), ({3},)], pickle_arguments, first=2)
    folder.grow({"items": 4, "files": {"items.2": "items.2", "items.x": "x"}, "sha256": {"items.2": sha256}})

    reader = ItemReader(folder)

    expected = [(0,), (1,), ("c",), ({3},)]
    assert 4 == folder.number_of_items
    assert expected[::-1] == [reader[item] for item in (3, 2, 1, 0)]
    reader.close()
    assert expected == [reader[item] for item in range(4)]
    reader.close()
