"""Who does the work: one file for each system, each as its own manual would have it.

==================  ==================================================================
`base`              what a system is: a name, what must be installed, and `run`
`by_hand`           what a user can add to a system: slices, a pool inside a task
`floor`             an array that only creates files; a plain pool on this machine
`slurmlaunch`       ours, and the ways to use it
the other files     our peers
`registry`          all of them, by name
==================  ==================================================================
"""
