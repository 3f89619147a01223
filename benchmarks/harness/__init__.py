"""The harness of the benchmarks: workloads × systems on one Slurm, interleaved, each client a process of its own.

==============  ======================================================================
`site`          where it runs: a Slurm, fresh folders, counted calls
`client`        the process that does one run, and reports it
`contest`       the runs of several systems, in turns, several times
`series`        the runs of one system, and figures computed from them
`rows`          the table's lines: the runs behind each, and its bar
`table`         how lines and series are shown: markdown
`plot`          the same as a picture
`startup`       the cost of starting Python and importing a module
`strace`        the file operations of a program
`memory`        the memory of a process
==============  ======================================================================

`systems` holds the contenders, `workloads` the work. A new peer is a class with a `run` method
(`systems.base.System`) and a line in its registry; a new workload is a value; any goes with any.
"""
