"""Tests of the public calls on every backend: inline, local and Slurm."""
