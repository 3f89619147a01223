"""submitit's interface on slurmlaunch: ``submitit.AutoExecutor(folder, cluster="slurmlaunch")``.

submitit finds `SlurmlaunchExecutor` and `SlurmlaunchJobEnvironment` by the entry
points of this package, and imports it whenever it lists its clusters; so what
only a client needs is imported later.

A submission becomes an item of a run: its arguments, and its function where that
is not the same for all (`calls`). Each item has a task of its own, as with
submitit, if ``slurmlaunch_tasks`` or ``slurmlaunch_chunksize`` says nothing else.

Sources: submitit's docs/plugins.md, docs/structure.md and docs/checkpointing.md.
"""

from __future__ import annotations

try:
    import submitit as _submitit  # noqa: F401  (what the modules below need)
except ImportError as error:
    message = "submitit is not installed here: pip install 'slurmlaunch[submitit]'"
    raise ImportError(message, name=error.name) from error

from slurmlaunch.integrations.submitit.environment import SlurmlaunchJobEnvironment
from slurmlaunch.integrations.submitit.executor import SlurmlaunchExecutor
from slurmlaunch.integrations.submitit.job import SlurmlaunchJob

__all__ = ["SlurmlaunchExecutor", "SlurmlaunchJob", "SlurmlaunchJobEnvironment"]
