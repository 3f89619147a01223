"""Where tasks run: each backend implements the protocol in `base`, and the client chooses one.

`slurm` submits to Slurm, `local` runs tasks on this machine, `allocation` as steps of an allocation that the user
already has, and `inline` in the calling thread.
"""
