"""The fault suite: what kills, requeues, preempts and restarts, on a real Slurm.

Whatever happens, each item ends as its own value or as an error that names the real cause.
"""
