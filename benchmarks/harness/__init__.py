"""The harness of the benchmarks: workloads × systems on one Slurm, interleaved, each client a process of its own.

==============  ======================================================================
`site`          where it runs: a Slurm, fresh folders, counted calls
`client`        the process that does one run, and reports it
`contest`       the runs of several systems, in turns, several times
`series`        the runs of one system, and what is computed from them
`rows`          the table's lines: what is run for each, and what is to come of it
`table`         how lines and series are shown: markdown
`plot`          the same as a picture
`startup`       what it costs to start Python and import something
`strace`        what a program asks of file systems
`memory`        how much memory a process has
==============  ======================================================================

Who does the work stands in `systems`, what the work is in `workloads`. A new peer is a class with a `run` method
(`systems.base.System`) and a line in its registry; a new workload is a value; any goes with any.
"""
