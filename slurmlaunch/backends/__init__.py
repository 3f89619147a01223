"""Where tasks run: `slurm`, `local` and `inline`, each behind the protocol in `base`."""
