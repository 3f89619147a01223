"""The checks of a cluster that `slurmlaunch.doctor` makes.

``report`` puts them together; ``here`` checks this machine and the folder, ``scheduler`` asks Slurm, ``job`` submits
one small job whose item is ``on_node``, and compares what it finds. ``full`` tries the table of ``behaviours`` by more
jobs, whose items are ``items``; ``page`` is what a bug report needs. This file imports nothing, because nodes import
``on_node`` and ``items``. Where others may put another folder in the place of that of the checks, they write to no file
of the user's: they hold their folder as runs hold theirs, and nobody else can predict the names of their files.
"""
