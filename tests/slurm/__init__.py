"""What is particular to Slurm: its commands, states and batch scripts."""
