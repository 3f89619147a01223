"""What runs on the node: the function of a run, which calls what an item says.

A function that all items have in common is pickled once. Not so one that can be
checkpointed: it keeps its state in itself, and each item is to have its own.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from submitit.core import utils

from slurmlaunch.integrations.submitit.environment import hide_rank_variables

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Calls:
    """The function of a run: calls what an item says.

    Args:
        function: what all items call; None where each brings its own.
        stderr_to_stdout: whether standard error goes where standard output goes.
    """

    def __init__(self, function: Callable[..., Any] | None, *, stderr_to_stdout: bool = False) -> None:
        self.function = function
        self.stderr_to_stdout = stderr_to_stdout

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any], function: Any = None) -> Any:
        """Call the function; leave the traceback of a failure in the log too, where submitit's users look for it."""
        hide_rank_variables()
        if self.stderr_to_stdout:
            os.dup2(sys.stdout.fileno(), sys.stderr.fileno())
        try:
            return (self.function if function is None else function)(*args, **kwargs)  # type: ignore[misc]
        except Exception:
            traceback.print_exc()
            raise

    def submission(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], function: Any = None
    ) -> utils.DelayedSubmission:
        """Return an item as it was submitted."""
        called: Any = self.function if function is None else function
        return utils.DelayedSubmission(called, *args, **kwargs)


class CheckpointableCalls(Calls):
    """The same where functions know how they are gone on with: ``checkpoint`` or ``__submitit_checkpoint__``."""

    def checkpoint(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], function: Any = None
    ) -> utils.DelayedSubmission | None:
        """Return how an item is gone on with; None where its function does not know."""
        later = self.submission(args, kwargs, function)._checkpoint_function()  # noqa: SLF001  (the protocol's own)
        return later and utils.DelayedSubmission(self, later.args, later.kwargs, later.function)


def as_items(
    submissions: Sequence[utils.DelayedSubmission], *, stderr_to_stdout: bool
) -> tuple[Calls, list[tuple[Any, ...]]]:
    """Return the function of a run for these submissions, and its items."""
    functions = [each.function for each in submissions]
    if any(map(_is_checkpointable, functions)):
        rows = [(each.args, each.kwargs, each.function) for each in submissions]
        return CheckpointableCalls(None, stderr_to_stdout=stderr_to_stdout), rows
    if all(function is functions[0] for function in functions):
        return Calls(functions[0], stderr_to_stdout=stderr_to_stdout), [
            (each.args, each.kwargs) for each in submissions
        ]
    rows = [(each.args, each.kwargs, each.function) for each in submissions]
    return Calls(None, stderr_to_stdout=stderr_to_stdout), rows


def _is_checkpointable(function: object) -> bool:
    return hasattr(function, "checkpoint") or hasattr(function, "__submitit_checkpoint__")
