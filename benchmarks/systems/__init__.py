"""The systems, one file each, used as their own manuals recommend.

==================  ==================================================================
`base`              a system: its name, its requirements, and `run`
`by_hand`           additions of a user to a system: slices, a pool inside a task
`floor`             an array that only creates files; a plain pool on this machine
`slurmlaunch`       ours, and the ways to use it
the other files     our peers
`registry`          all of them, by name
==================  ==================================================================
"""
