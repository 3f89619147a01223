"""The fault suite: kills, requeues, preemptions and restarts, on a real Slurm.

After any fault, each item ends as its own value or as an error that names the real cause.
"""
