"""Tests without a process, a clock or a scheduler."""
