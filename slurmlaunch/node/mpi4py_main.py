"""The module that mpi4py's processes run in place of the user's script: it finds the definitions in `main_module`."""

from slurmlaunch.node.main_module import look_up as __getattr__  # noqa: F401  (PEP 562)
