"""Where tasks run: `slurm`, `local` and `inline`, each behind the protocol in `base`.

`slurm` stands on `scheduler`, which knows Slurm's commands and what they print;
`local` on `machine`, which knows this machine's processes.
"""
