"""The harness of the benchmarks: workloads × contenders on one Slurm, interleaved.

==============  ======================================================================
`site`          where it runs: a Slurm, fresh folders, counted calls
`work`          what is done: functions, and how many items and tasks
`contenders`    who does it: the floor, slurmlaunch, and its peers
`contest`       who did it how well: the repetitions of several contenders, in turns
`startup`       what it costs to start Python and import something
`table`         what is shown: one line per bar
==============  ======================================================================

A new workload is a value (`work.Workload`), a new peer a class with a `run` method
(`contenders.Contender`); a contest takes any of both.
"""
