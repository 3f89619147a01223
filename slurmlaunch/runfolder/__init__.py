"""The run folder: where client and node meet. This page is its specification, protocol 1.

::

    RUN_FOLDER/                    0700, every file in it 0600
        manifest.json              what the run is
        function                   one record: the pickled function
        items                      records: the arguments, in blocks
        items.index                where each block begins
        rounds/R/plan.json         who has which items in round R = 0, 1, ...
        rounds/R/items             one record: the items of the round, if not all
        rounds/R/checkpoints       records: how items that were begun are gone on with
        rounds/R/journal           records: what was submitted
        rounds/R/successor.K       who submits what its maker left
        outcomes/T.A               records: what attempt A of task T recorded
        ended/T.S.X                empty: start S of task T ended with status X
        cancelled/R.C              records: what client C cancelled in round R
        logs/R-N-E.out, .err       what element E of array N of round R printed

Numbers in names are decimal, from 0. No name depends on a Slurm job id.

**Writing.** A file either appears whole, written beside its place as
``NAME.new``, flushed, and renamed; or it is appended to by one writer, record by
record. A reader takes the whole records and ignores a torn tail. What a record
is stands in `records`; those of ``items`` and the outcome files are salted with
the manifest's ``run``. The order: ``function``, ``items``, ``items.index``, the
round's folder with its plan, ``manifest.json``. With the manifest the folder is
a run; only then is anything submitted. All that a task reads is there before,
save cancellations.

**Manifest** (`manifest`). A JSON object. ``protocol`` is 1; a reader refuses
another number and ignores keys that it does not know. ``python`` is the minor
version that pickled the function, as ``"3.11"``: it holds bytecode, and a node of
another version must not unpickle it. ``items`` is how many items there are.
``seed`` is what the random streams of the items follow from.

**Function** (`work`). One record of kind FUNCTION, a pickle of a callable, made
by cloudpickle. `submit` binds its arguments into it and has one item ``()``.

**Items** (`items`). Blocks, in order and without gaps, each a record whose
``first`` and ``number`` say which items it holds: kind ITEMS, one pickled tuple of
positional arguments per item, packed; or kind COLUMN, one pickled list of such
tuples, only where all arguments are immutable. ``items.index`` has for each block
its first item and the offset of its record, both u64, little-endian.

**Rounds** (`rounds`). A round's folder is made beside its place and renamed, which
only one process can, and who made it submits it. ``plan.json``::

    slices       {"items": n, "tasks": k, "chunksize": c or null}
    first_task   the index of its first task; indices rise from round to round
    arrays       [{"name", "first_task", "length"}, ...], submitted in this order
    items        true if the file ``items`` lists the round's items, u64 each
    automatic    true if ``retries=`` made the round: it counts as one
    cpus_per_task, processes, threads, throttle, options

Task ``first_task + t`` has the positions of slice ``t`` (`slices`); a position is
an item, or an entry of the list. ``journal`` holds NOTE records: ``{"intent": N}``
before array N is submitted, ``{"submitted": N, "job_id": ...}`` after it,
``{"refused": N, "error": ...}``, ``{"throttle": n}``, ``{"waiting": N, "client": ...}``
where there is no room for it; each with its ``time``. The job of a client that died in
between is found by the array's unique name. What waits is gone on with, where its
client is gone, by the one that makes ``rounds/R/successor.K`` (a link, with that
client's name in it) for the first K whose maker is not gone either.

**Outcomes** (`outcomes`). Attempt A is the first number for which a task could
create ``T.A`` (``O_EXCL``). Kinds: VALUES, one pickled value per item, packed;
SERIES, the same in protocol 3 and without the STOP at the end of each, so that an
empty list and a mark before them and APPENDS behind them make one pickle of all;
FAILURE, one pickled failure (see `slurmlaunch.outcome`) that is the outcome of each
of its items; CHECKPOINT, how an item is gone on with; NOTE, about the attempt itself.
A task that is started again reads what its earlier attempts recorded and leaves that
out. Where two attempts of a task recorded one item, the lowest attempt's record stands;
a value stands over the failures of other rounds, and of these the last round's counts.
What is appended is flushed within max(1 s, running tasks / 200 s).

**End marks** (`layout.EndMark`). Made by who started the node (the batch script,
the local backend) after it has ended, so that the outcomes are on disk before.
The status is one of `layout.Status`, or 128 + n for signal n.

**Cancellations** (`cancellations`). Records of kind CANCELLED; the folder's own
time of modification changes with each. A cancelled item stays cancelled, also
where an outcome was recorded; a later round may run it again.

**Safety** (`safety`). Nothing is unpickled that the current user does not own or
that others may write to, and no symbolic link is followed.
"""
