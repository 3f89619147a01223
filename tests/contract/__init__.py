"""What the calls promise, on every backend: inline, local and Slurm."""
