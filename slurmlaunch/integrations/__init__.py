"""Neighbours: other packages that run on slurmlaunch, or that slurmlaunch runs. One file each.

None of the packages is needed to import these files' names from `slurmlaunch`:
what a feature needs it imports when it is used, or says what to install.
"""
