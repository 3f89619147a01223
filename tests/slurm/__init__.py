"""Tests of Slurm's specifics: its commands, states and batch scripts."""
