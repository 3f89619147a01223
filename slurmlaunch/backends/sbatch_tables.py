"""Two tables of sbatch's options, for those who must not load the Slurm backend to check an option.

The client's options, the command line and Slurm's commands use them.
"""

from __future__ import annotations

EXCLUSIVE = (
    {"mem", "mem-per-cpu", "mem-per-gpu"},
    {"requeue", "no-requeue"},
    {"bb", "bbf"},
    {"cpus-per-gpu", "cpus-per-task"},
)
"""Groups of options of which one that is given drops the others and their variables.

sbatch would refuse them together, or let the wrong one win.
"""

SHORT = {
    "A": "account", "B": "extra_node_info", "C": "constraint", "D": "chdir", "F": "nodefile", "G": "gpus",
    "H": "hold", "J": "job_name", "L": "licenses", "M": "clusters", "N": "nodes", "O": "overcommit",
    "Q": "quiet", "S": "core_spec", "V": "version", "W": "wait", "a": "array", "b": "begin",
    "c": "cpus_per_task", "d": "dependency", "e": "error", "h": "help", "i": "input", "k": "no_kill",
    "m": "distribution", "n": "ntasks", "o": "output", "p": "partition", "q": "qos", "s": "oversubscribe",
    "t": "time", "v": "verbose", "w": "nodelist", "x": "exclude",
}  # fmt: skip
"""The options of sbatch that have a short name, by its letter."""
