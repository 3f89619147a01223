"""The run folder: where client and node meet. This page is its specification, protocol 1.

::

    RUN_FOLDER/                    0700, every file in it 0600
        manifest.json              what the run is
        function                   records: the pickled function
        function.buffers           the large arrays that it refers to, if any
        items                      records: the arguments, in blocks
        items.index                where each block begins
        rounds/R/plan.json         who has which items in round R = 0, 1, ...
        rounds/R/items             one record: the items of the round, if not all
        rounds/R/checkpoints       records: how items that were begun are gone on with
        rounds/R/journal           records: what was submitted
        rounds/R/ends.C            records: what client C was told of ends
        rounds/R/claims/B          who has block B of a dynamic round: a link to
        rounds/R/claims/T.A.S      a file of attempt A of task T
        rounds/R/successor.K       who submits what its maker left
        rounds/R/ranks/T.A.K       records: what rank K of attempt A of task T recorded
        outcomes/T.A               records: what attempt A of task T recorded
        ended/T.S.X                empty: start S of task T ended with status X
        cancelled/R.C              records: what client C cancelled in round R
        logs/R-N-E.out, .err       what element E of array N of round R printed

Numbers in names are decimal, from 0. No name depends on a Slurm job id.

**Writing.** A file either appears whole, written beside its place as
``NAME.new``, flushed, and renamed; or it is appended to by one writer, record by
record. A reader takes the whole records and ignores a torn tail. What a record
is stands in `records`; those of ``items`` and the outcome files are salted with
the manifest's ``run``. The order: ``function.buffers``, ``function``, ``items``,
``items.index``, the round's folder with its plan, ``manifest.json``. With the
manifest the folder is a run; only then is anything submitted. All that a task
reads is there before, save cancellations and claims.

**Manifest** (`layout.Manifest`). A JSON object. ``protocol`` is 1; a reader refuses
another number and ignores keys that it does not know. ``python`` is the minor
version that pickled the function, as ``"3.11"``: it holds bytecode, and a node of
another version must not unpickle it. ``items`` is how many items there are,
``shared`` how many bytes of buffers the function refers to, and ``seed`` what the
random streams of the items follow from.

**Function** (`function`). One record of kind FUNCTION, a pickle of a callable, made
by cloudpickle. `submit` binds its arguments into it and has one item ``()``.
Buffers of 1 MiB and more that it refers to (pickle protocol 5, out of band) lie in
``function.buffers``, and a record of kind SHARED says where (`buffers`). A task
verifies their checksums once; then each of its processes maps the file, so that a
machine holds the bytes once: read-only, or, for `submit`, to be written to by that
process alone.

**Items** (`items`). Blocks, in order and without gaps, each a record whose
``first`` and ``number`` say which items it holds: kind ITEMS, one pickled tuple of
positional arguments per item, packed; or kind COLUMN, one pickled list of such
tuples, only where all arguments are immutable; or kind BUNDLE, one pickled tuple
and its large buffers (`buffers`). ``items.index`` has for each block its first item
and the offset of its record, both u64, little-endian.

**Rounds** (`plan`, `journal`). A round's folder is made beside its place and renamed, which
only one process can, and who made it submits it. ``plan.json``::

    slices       {"items": n, "tasks": k, "chunksize": c or null}
    first_task   the index of its first task; indices rise from round to round
    arrays       [{"name", "first_task", "length"}, ...], submitted in this order
    items        true if the file ``items`` lists the round's items, u64 each
    blocks       null, or {"items": n, "tasks": k, "schedule", "chunksize": c or null}
    automatic    true if ``retries=`` made the round: it counts as one
    ranks        null, or {"number", "launcher", "command"}: see below
    cpus_per_task, processes, threads, throttle, options

Task ``first_task + t`` has the positions of slice ``t`` (`plan.Slices`); a position is
an item, or an entry of the list, which is sorted. Slices that were packed by cost
have ``"lengths"``, one for each, in place of ``chunksize``; their list holds all items,
slice after slice. Where there are ``blocks``, the round is dynamic: then slices
mean nothing, and tasks have what they claim. ``journal`` holds NOTE records: ``{"intent": N}``
before array N is submitted, ``{"submitted": N, "job_id": ...}`` after it,
``{"refused": N, "error": ...}``, ``{"abandoned": N}`` where its client neither knows
whether it was submitted nor tries again, ``{"throttle": n}``, ``{"waiting": N, "client": ...}``
where there is no room for it; each with its ``time``. The job of a client that died in
between is found by the array's unique name. What waits, and what ``retries=`` is to run
again, is gone on with, where its client is gone, by the one that makes
``rounds/R/successor.K`` (a link, with that client's name in it) for the first K whose
maker is not gone either.

What the scheduler tells of an end stands in no outcome file, and it forgets: so a client
that believes it appends the NOTE ``{"ends": [[task, attempts, state, exit_code, node,
reason], ...]}`` to its ``ends.C``. It counts where the scheduler is silent, and no more
than so many attempts of the task have begun.

**Claims** (`claims`). Blocks cut the positions of a dynamic round as `plan.Blocks` says:
their numbers, from 0, tell their positions. A task that wants one makes a file
``claims/T.A.S`` once (S is the first number that is free), which holds its own name
and a line feed, and then the hard link ``claims/B`` to it. ``link`` is made by one
alone; where it fails, the inode of ``claims/B`` says whether it was made after all
and its answer lost. Block B is claimed only after the one before it was seen there,
so that no number is left out; nothing is removed. A reader finds the owner of B by
its inode, as a listing tells it, or by what the file holds. A task's next attempt
begins with the blocks of those before it, less what they recorded; what is claimed by
a task that is over, or by nobody when all are, is a later round's. A task takes
another block when a process of it has nothing to do, and none after it was told to
end; one that can load no function takes one, for the failure to stand at.

**Outcomes** (`outcomes`). Attempt A is the first number for which a task could
create ``T.A`` (``O_EXCL``). Kinds: VALUES, one pickled value per item, packed;
SERIES, the same in protocol 3 and without the STOP at the end of each, so that an
empty list and a mark before them and APPENDS behind them make one pickle of all;
INTEGERS and FLOATS, values that are numbers, eight bytes each; BUNDLE, one pickled
value and its large buffers (`buffers`); FAILURE, one pickled failure (see
`slurmlaunch.outcome`) that is the outcome of each of its items;
CHECKPOINT, how an item is gone on with; NOTE, about the attempt itself. A task that
is started again reads what its earlier attempts recorded and leaves that out. Where
two attempts of a task recorded one item, the lowest attempt's record stands; a value
stands over the failures of other rounds, and of these the last round's counts.
What is appended is flushed within max(1 s, running tasks / 200 s).

**Ranks** (`plan.RanksPlan`, `outcomes.Launch`). Where the plan has them, ``number`` processes call the function
for each item of a task, in order and together, each started as ``command`` with
the words RUN_FOLDER, task, attempt and launch behind it, by ``launcher`` or, where that
is empty, by the task's supervisor. Before launch L it appends the NOTE ``{"launch": L,
"items": [[first, stop], ...], "host", "port"}`` to ``outcomes/T.A``, and has made the
files of the ranks. A rank appends to its own file: a NOTE with its ``launch``, then
VALUES or FAILURE for each item, at its death the NOTE ``{"launch", "died": {...}}``. In
``outcomes/T.A`` an item has the value of rank 0 once all ranks have one, else the
failure of the lowest rank that has. The value of rank K is in the last record
of the item in the file of rank K.

**End marks** (`layout.EndMark`). Made by who started the node (the batch script,
the local backend) after it has ended, so that the outcomes are on disk before.
The status is one of `layout.Status`, or 128 + n for signal n.

**Cancellations** (`cancellations`). Records of kind CANCELLED; the folder's own
time of modification changes with each. A cancelled item stays cancelled, also
where an outcome was recorded; a later round may run it again.

**Safety** (`records`). Nothing is unpickled that the current user does not own or
that others may write to, and no symbolic link is followed.
"""
