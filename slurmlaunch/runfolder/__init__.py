"""The run folder, through which client and node communicate. This page is its specification, protocol 2.

::

    RUN_FOLDER/                    0700, every file in it 0600
        manifest.json              the description of the run
        function                   records: the pickled function
        function.buffers           the large arrays that it refers to, if any
        environment                the environment of the submission
        modules                    records: the user's modules, if any
        items                      records: the arguments, in blocks
        items.index                the first item and the offset of each block
        secret-X                   empty: batch scripts recognize the run folder by this name
        rounds/R/plan.json         which task has which items in round R = 0, 1, ...
        rounds/R/items             one record: the items of the round, if not all
        rounds/R/environment       the environment of the round, if not that of the round before
        rounds/R/function, ...     the function of the round, its large arrays, the modules, if it has its own
        rounds/R/items.N           records: the arguments of items that the round adds to the run, from item N on
        rounds/R/items.N.index     the first item and the offset of each block
        rounds/R/checkpoints       records: the calls that resume items
        rounds/R/journal           records: the submissions of the round's arrays
        rounds/R/ends.C            records: the ends of tasks that client C learned from the scheduler
        rounds/R/claims/B          the claim of block B of a dynamic round: a link to
        rounds/R/claims/T.A.B.S.L.K  the file of the claim, by attempt A of task T
        rounds/R/claims/surplus.N  a link to surplus.N.T: the elements of array N that task T found to be not needed
        rounds/R/successor.K       the client that submits the rest of the round for its maker
        rounds/R/ranks/T.A.K       records: the outcomes of rank K of attempt A of task T
        definitions/N              one record: a class or function that results refer to
        outcomes/T.A               records: the outcomes of attempt A of task T; a folder: the task is closed
        output/T.A                 records: what the items of attempt A of task T wrote
        output/T.A.K               records: what they wrote on rank K
        ended/T.S.X                empty: start S of task T ended with status X
        rounds/R/removal           in the place of a round: the client that removes the run
        clients/CLIENT             empty: a further client that uses the run
        cancelled/R.C              records: the items that client C cancelled in round R
        logs/R-N-E.out, .err       the output of element E of array N of round R

Numbers in names are decimal, from 0. No name depends on a Slurm job id. C is any name that no other process uses.

**Writing** (`records`). A file either appears whole (written beside its place under a random name, flushed, and
renamed), or one writer appends records to it. A reader uses whole records and ignores a torn tail. Headers in
``items`` and the outcome files are salted with the manifest's ``run``. The order is ``function.buffers``,
``function``, ``items``,
``items.index``, ``modules``, ``environment``, the round's folder with its plan, ``manifest.json``. The manifest makes
the folder a run, and only then is anything submitted. Everything that a task reads is on disk before, except
cancellations and claims.

**Manifest** (`layout.Manifest`). A JSON object. ``protocol`` is 2, or 1 in a run folder of 0.1.0, which has none of the
keys and files that came with 2; a reader refuses other numbers and ignores unknown keys. ``python`` is the minor
version that pickled the function, as ``"3.11"``: the pickle holds bytecode, and a node of another version must not
unpickle it. ``items`` is the number of items at first, ``shared`` the number of bytes of buffers that the function
refers to, ``seed`` the seed of the items' random streams, and ``interpreter`` the settings of the client's Python that
tasks take over (`interpreter.Interpreter`). ``made_in`` is the folder of runs at that time. Since protocol 2, ``files``
has the paths in the run folder of the files that the tasks read besides their items, by name: ``{"function":
"function"}`` if the key is missing. ``cells`` has the source of pickled code that lies in no file, such as a notebook's
cells, by the code's file name, for tracebacks.

A round may have other values for some keys: they are in the key ``manifest`` of its plan. So a round that runs another
function has ``function``, ``python``, ``cloudpickle``, ``sys_path``, ``shared``, ``cells`` and ``created`` of that
function, and ``files`` with ``rounds/R/function``. A retry by a person has the user's modules of now in
``rounds/R/modules``, and ``code``, ``created`` and ``interpreter`` of that time; or none of this, if it is to run what
was submitted. If it runs
a function of an earlier round, ``repeated`` is the ``created`` of that. A round that ``retries=`` made has the values
of the last one.

A round that adds items has in its plan's ``manifest`` the new number of all ``items``, and in ``files`` and ``sha256``
the file ``items.N`` and the SHA-256 of its index, as those of the run's items; N is the first new item. Later rounds
repeat all of this. Only their lists name these items. A client may have read the run before: to it they do not exist.

A run that can be resumed has a path that follows from its name alone. Its client writes the run folder, the manifest
included, under another name, and renames it: of several processes one makes the run, and the others go on with it. A
client that resumes a run makes a round, as for a retry.

**Function** (`function`). One record of kind FUNCTION, a pickle of a callable, made by cloudpickle. `submit` binds its
arguments into it and has one item ``()``; ``bound`` in the manifest has a text for each argument that a call bound:
its name, or an empty one for a positional argument. Buffers of 1 MiB and more that the function refers to (pickle
protocol 5, out of band) are in ``function.buffers`` beside it, and a record of kind SHARED is their table (`buffers`).
A task verifies their checksums once. Then each of its processes maps the file, so that a machine holds the bytes once:
read-only, or, for `submit`, as a private copy that this process may write to.

**Modules** (`modules`). The source of the user's own modules as it was at the submission, from which tasks import.
The manifest's ``files`` has the path of each file that tasks read besides their items, by name; without a ``modules``
in it, tasks import what they find on disk. The first record is a NOTE, the index::

    optimize     the level of optimization for which the modules are compiled
    modules      [[name, file, search, mtime, size, offset, code, sha256, code_sha256], ...]

``file`` and ``search`` are ``__file__`` and ``__path__``, or null; ``mtime`` (in nanoseconds) and ``size`` are the
file's. The source is in the record of kind MODULE at ``offset``, and the next record is the content of the ``.pyc``
file, ``code`` bytes long; 0 says that there is none. A module without ``offset`` is not stored: an extension module if
it has a ``file``, else a namespace package or a parent of other modules. Positions count from the end of the index.
``sha256`` is the source's, and ``code_sha256`` that of the ``.pyc`` file. Several runs may share the file by
hard links. The manifest's ``code`` says what else identifies the code: ``live`` modules, which are imported as they are
on disk, ``commits`` of git by folder, each ``[commit, dirty]``, and ``distributions``, by folder, name and version.

**Items** (`items`). Blocks, in order and without gaps, each a record whose ``first`` and ``number`` give its items:
kind ITEMS, one pickled tuple of positional arguments per item, packed; or kind COLUMN, one pickled list of such
tuples, only if all arguments are immutable; or kind BUNDLE, one pickled tuple and its large buffers (`buffers`).
``items.index`` has for each block its first item and the offset of its record, both u64, little-endian.

**Rounds** (`plan`, `rounds`). A round's folder is made beside its place and renamed, which only one process can do,
and its maker submits it. ``plan.json``::

    slices       {"items": n, "tasks": k, "chunksize": c or null}
    first_task   the index of its first task; indices rise from round to round
    arrays       [{"name", "first_task", "length"}, ...], submitted in this order
    items        true if the file ``items`` lists the round's items, u64 each: see below
    blocks       null, or {"items": n, "tasks": k, "schedule", "chunksize": c or null}
    automatic    true if ``retries=`` made the round: it counts as one
    ranks        null, or {"number", "launcher", "command"}: see below
    manifest     the keys of the manifest that have other values in this round: see above
    client       its maker, [machine, pid, start time]: see below
    cpus_per_task, processes, threads, throttle, time_limit, warning, requeues, options

Task ``first_task + t`` has the positions of slice ``t`` (`plan.Slices`). A position is an item, or an entry of the
list, which is sorted. Slices packed by cost have ``"lengths"``, one for each, in place of ``chunksize``; their list
holds all items, slice after slice. A round that runs another function than the run's has a list, and its plan lacks the
key ``items``, so that 0.1.0, which would run the run's, refuses it. A round with ``blocks`` is dynamic: its slices have
no meaning, and tasks have the blocks that they claim. ``journal`` holds NOTE records, each with its ``time``:
``{"intent": N}`` before array N is submitted, ``{"submitted": N, "job_id": ...}`` after it,
``{"refused": N, "error": ...}``, ``{"abandoned": N}`` if its client does not know whether it was submitted and will not
retry, ``{"not_needed": N}`` if no item is left for it, ``{"throttle": n}``, ``{"waiting": N, "client": ...}`` while
there is no room for it in the queue.

**Environment** (`environment`). A JSON object: ``variables``, with which the first array was submitted; ``secrets``,
the names of further variables, whose values look secret; ``umask``, in octal; ``limits``, the soft limits by name
(``RLIMIT_NOFILE``), null for none. Variables that describe a job, a machine or a session are left out. A client that
submits a later array of the run, or a round of ``retries=``, does so with this umask, these limits and variables, with
its own variables of its machine and session, and with the secrets that it has. A round that a person submits has its
own file, which also applies to the rounds after it. Tasks do not read these files. In a plan, ``env`` of the
``options`` has null for a secret.

**Clients** (`clients`). A client is a machine, a process id and the start time of that process, in the kernel's
ticks since boot. Another client may act in its place if it has ended, or if it is on another machine and its round's
journal has not changed for an hour. If a client dies between intent and job id, the job is found by the array's unique
name. Arrays that wait for room, and rounds that ``retries=`` made, are then submitted by the client that makes
``rounds/R/successor.K``, a link to a file with its JSON, for the first K whose maker can be replaced too.

A client that attaches to a run makes the empty file ``clients/MACHINE-PID-START``, and then looks for a removal. A
client that removes a run first puts a folder with the file ``removal``, a client in JSON, in the place of the next
round, in one step, so that no round is added; then it looks for other clients that have not ended. It removes
``rounds`` last but for the manifest: a folder with a removal, or without ``rounds``, is the rest of a run.

The scheduler's reason for an end is in no outcome file, and the scheduler forgets it. A client that acts on it appends
the NOTE ``{"ends": [[task, attempts, state, exit_code, node, reason], ...]}`` to its ``ends.C``. This record counts if
the scheduler does not report the task, and no more than that many attempts of it have begun.

**Claims** (`claims`). Blocks are parts of the positions of a dynamic round, numbered from 0 in order. To claim block B,
with the L positions from S on, attempt A of task T makes a file ``claims/T.A.B.S.L.K`` that holds its own name and a
line feed, and then the hard link ``claims/B`` to it; K is how many tasks have claimed anything by then, T included.
Only one process can make that link; the others remove their file. If ``link`` fails, the inode of ``claims/B`` tells
whether it was made after all and its answer lost. Block B is claimed only after the claim of block B - 1 was read, and
begins where that ends, so that no number and no position is left out; a claim is never removed. A task is free to
choose L: see `plan.Blocks` and `plan.Measured`. A reader finds the claim of B by its inode, as a listing gives it, or
by the content of the file. A task's next attempt begins with the blocks of the earlier ones, without the items that
these recorded. What an ended task has claimed, or no task when all have ended, belongs to a later round. A task claims
another block when one of its processes is idle, and none after it was told to end. A task that cannot load the function
claims one block, to record the failure there. In protocol 1 a file ``claims/T.A.S`` stands for all claims of an
attempt, and the positions of block B follow from B (`plan.Blocks`). Where the schedule is "auto", a task of Slurm that
finds no unclaimed block writes ``claims/surplus.N.T``: the elements of its array N whose tasks have neither an outcome
file nor a claim, as ``"17-40,42"``. The one that makes the link ``claims/surplus.N`` to its file has its batch script
cancel them; a task that begins later ends at once. There are two names for each claim, and at most tasks × (8 +
log2(items / tasks)) claims of items that are short.

**Outcomes** (`outcomes`). Attempt A is the first number for which a task could create ``T.A`` (``O_EXCL``), and no
less than the number of its start: earlier starts without a file first get an empty one. Before a client makes a round
with items that a task left without outcomes, it makes the folder ``T.A`` for the next A, which closes the task: a start
that meets it makes no attempt and exits with 0. If the attempt was first, its items are in no other round. Kinds:
VALUES, one pickled value per item, packed; SERIES, the same in protocol 3 and without the STOP at the end of each, so
that an empty list and a mark before them and APPENDS behind them make one pickle of all; INTEGERS and FLOATS, values
that are numbers, eight bytes each; BUNDLE, one pickled value and its large buffers (`buffers`); FAILURE, one pickled
failure (see `slurmlaunch.outcome`) that is the outcome of each of its items; CHECKPOINT, the call that resumes an
item; NOTE, about the attempt itself. TIMES follows a record of outcomes and has the same items: f64, when the first of
them began, in seconds since the epoch, and f32 for each, the seconds that it took until the next began; a single f32 is
the share of each item in a block of short ones. Some records of outcomes have none. A requeued task reads the outcomes
of its earlier attempts and skips these items, and those that a later round has.
If two attempts of a task recorded one item, the lowest attempt's record counts. A value counts before failures of
other rounds, and of these the last round's counts. Appended records are flushed within max(1 s, running tasks / 200 s).

**Output** (`output`). The records of ``output/T.A`` are bytes that items wrote, in the order they came: kind STDOUT or
STDERR, of one item, or of several that ran as a block, of which some wrote them; 0 items: no item wrote them. An empty
payload says that some were left out. The folder and the files are made when there is something to write. The logs hold
all output of a task. What an item wrote before its end is in the file before its outcome is recorded, except for what a
block wrote last. Of a task with ranks each rank has its own file instead, ``output/T.A.K``, which the launches of the
attempt share: where an item runs in several of them, it has the output of all.

**Definitions** (`user_classes`). Where a result refers to a class or function of ``__main__``, or of a module that
travels by value, its pickle calls `stored`, `new` or `call` of `slurmlaunch.unpickling` with a number N. The process
that ran the item has written ``definitions/N`` before: one record of kind DEFINITION, the pickle of the definition's
identity, a word in hexadecimal, and of its own pickle. N is half the identity's first 32 bits. Of two definitions with
one N only the first is written, and results hold the other, and all that have no place in the folder, themselves.

**Ranks** (`plan.RanksPlan`, `outcomes.Launch`). If the plan has ranks, ``number`` processes call the function for each
item of a task, in order and together. Each is started as ``command`` with the words RUN_FOLDER, task, attempt and
launch appended, by ``launcher`` or, if that is empty, by the task's supervisor. Before launch L the supervisor makes
the files of the ranks and appends the NOTE ``{"launch": L, "items": [[first, stop], ...], "host", "port"}`` to
``outcomes/T.A``. A rank appends to its own file: a NOTE with its ``launch``, then VALUES or FAILURE for each item, and
at its death the NOTE ``{"launch", "died": {...}}``. In ``outcomes/T.A`` an item has the value of rank 0 once all ranks
have one, else the failure of the lowest rank that failed. The value of rank K is in the last record of the item in the
file of rank K.

**Secret name**. Before an array goes to Slurm, a client makes the empty file ``secret-X``, if there is none: X is the
SHA-256 of what ``SLURMLAUNCH_RUN`` holds (see Safety). The batch script goes to the path of the run folder, and makes
files in it only if the folder is the user's and has that file: another user who may rename a folder above might have
put another one in its place.

**End marks** (`layout.EndMark`). The batch script or the local backend, which started the node, makes them after it
has ended, so that the outcomes are on disk before. The status is one of `layout.Status`, or 128 + n for signal n.

**Cancellations** (`rounds`). Records of kind CANCELLED. Each changes the modification time of the folder. A
cancelled item stays cancelled even if an outcome was recorded; a later round may run it again.

**Safety** (`files`). Nothing is read that the current user does not own or that others may write to, and no symbolic
link is followed. A process holds the run folder, and each folder in it, by a descriptor, and opens, makes, renames and
lists everything relative to that: whoever may rename a folder above gains nothing. A descriptor that had to be closed
is opened again by path, and must lead to the device and inode of before. The manifest has a ``secret`` of 128 bits in
hexadecimal, and by name, in ``sha256``, the SHA-256 of ``function`` and ``items.index`` and, for ``modules``, of the
index, which has those of the modules. A job's environment has ``SLURMLAUNCH_RUN``, the SHA-256 of the manifest, a
hyphen and the secret. A node that finds this variable refuses any other folder.
"""
