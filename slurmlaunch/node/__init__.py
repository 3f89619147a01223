"""The node: the process tree that runs one task on a machine of the cluster.

A supervisor (`supervisor`, or `mpi` for tasks with ranks) hands the items of the
task to worker processes and records their outcomes. It runs no user code, so
that user code cannot end the task.
"""
