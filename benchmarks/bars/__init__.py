"""The lines of the table, each with its bar.

==============  ======================================================================
`measures`      the contests that the lines are made from, each held once
`main_job`      the lines of the main job: against the floor and submitit
`items`         the lines of many items: against a pool on one machine, and all peers
`registry`      all lines, by the key that ``--only`` takes
==============  ======================================================================
"""
