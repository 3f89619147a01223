"""The tests: one behaviour suite for every backend, and a real Slurm to run it on."""
