"""The node's side: what runs on the machine that a task was given.

A supervisor (`supervisor`) hands the items of one task to the processes of its
pool (`pool`) and records what they came to. It runs no code of the user's, so
that nothing the user's code does can take the task with it.
"""
