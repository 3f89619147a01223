"""How Slurm is spoken to: the batch script, its commands, and what they print."""
