"""Runs on a site with strict rules: small arrays, few jobs, no accounting, nodes that can do little.

The client is a script of an ordinary user, who needs no option for any of it. What takes longer runs only on the kind
of cluster ``strict``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import started_cluster
from tests.support.clusters import chosen
from tests.support.clusters.strict import strict_site
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.clusters.strict import Site

pytestmark = pytest.mark.slurm

only_here = pytest.mark.skipif(chosen().name != "strict", reason="runs in nox -s cluster-strict")


def result_of(site: Site, text: str, **how: Any) -> Any:
    """Run a script that prints JSON in its last line; return that."""
    script = site.runs(text, **how)
    out, err = script.communicate(timeout=PATIENCE)
    assert script.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Start a site without accounting, on which another user has a job."""
    with strict_site(started_cluster) as site:
        options = ["--account=theirs", "--time=10", "--job-name=theirs", "--output=/dev/null"]
        rival = site.machine.rival.run(
            "sbatch", *options, "--wrap=sleep 600", cwd=site.machine.shared, **site.cluster.env
        )
        assert "Submitted" in rival.communicate(timeout=PATIENCE)[0]
        yield site


MAIN = """
    import json, os, pathlib, shutil, subprocess
    from slurmlaunch import Executor, SubmissionError

    def surroundings(item):
        if item == 11:
            raise ValueError(item)
        home = pathlib.Path.home()
        programs = filter(shutil.which, ("srun", "sbatch", "scancel", "scontrol"))
        return item, os.environ["SITE"], os.access(home, os.W_OK), list(programs)

    with Executor() as executor:
        first = executor.submit(surroundings, -1)
        array = executor.map_array(surroundings, range(12))
        values = [first.result(), *(future.result() for future in array[:11])]
        error = repr(array[11].exception())
        arrays = len(array.job_ids)
    del os.environ["SBATCH_ACCOUNT"]
    try:
        executor = Executor(time="1")
        executor.submit(surroundings, 1)
    except SubmissionError as refused:
        advice = str(refused)
    seen = subprocess.run(["squeue", "--format=%j"], capture_output=True, text=True, check=True).stdout
    print(json.dumps([values, error, arrays, advice, "theirs" in seen]))
"""


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=only_here)])
def test_plain_calls(site: Site, *, slow: bool) -> None:
    """Plain calls run although arrays are short, nodes lack Slurm's commands, and each command takes two seconds."""
    values, error, arrays, advice, sees_others = result_of(site, MAIN, slow=slow)

    assert values == [[item, "strict", False, []] for item in range(-1, 11)]
    assert error == "ValueError(11)"
    assert arrays == 1
    assert "Please give an account (-A)" in advice
    assert "account=" in advice
    assert not sees_others


SEVERAL_ARRAYS = """
    import json
    from slurmlaunch import Executor

    with Executor() as executor:
        array = executor.map_array(abs, range(12), tasks=12)
        print(json.dumps([array.results(), len(array.job_ids)]))
"""


@only_here
def test_several_arrays(site: Site) -> None:
    """More tasks than an array may have go into several, in the user's order."""
    assert result_of(site, SEVERAL_ARRAYS) == [[*range(12)], 3]


DOCTOR = """
    import json, os
    from slurmlaunch import doctor

    report = doctor()
    del os.environ["SBATCH_ACCOUNT"]
    refused = doctor()
    print(json.dumps([{each.name: f"{each.found} {each.advice}" for each in made} for made in
                      (report.errors, report.warnings, refused.errors)]))
"""


@only_here
def test_the_doctor(site: Site) -> None:
    """It names what differs here, and nothing else; of a refused job it says what the site does."""
    errors, warnings, refused = result_of(site, DOCTOR)

    assert errors == {}
    assert warnings.keys() == {"folders above", "accounting", "arrays", "node commands", "threads"}
    assert "at most 5 tasks" in warnings["arrays"]
    assert "scontrol, sbatch, scancel, srun (not on PATH)" in warnings["node commands"]
    assert "OMP_NUM_THREADS=1" in warnings["threads"]
    assert refused.keys() == {"request"}
    assert "Please give an account (-A)" in refused["request"]
    assert "account=" in refused["request"]


FAULTS = """
    import json, os, signal, subprocess, sys, time
    import slurmlaunch
    from slurmlaunch import Executor

    def waits(item):
        open(f"{item}.{os.getpid()}", "w").close()
        if slurmlaunch.current_task().attempt == 0:
            time.sleep(600)
        return item

    def kills():
        os.kill(os.getppid(), signal.SIGKILL)

    def begun(item):
        while not any(name.startswith(f"{item}.") for name in os.listdir(".")):
            time.sleep(0.1)

    executor = Executor(setup=["exec 2>&1"])
    killed = executor.submit(kills)
    ended, again, stopped = (executor.submit(waits, item) for item in ("ended", "again", "stopped"))
    ids = {future: future.run.job_ids[0] for future in (ended, again)}
    begun("ended")
    subprocess.run(["scancel", ids[ended]], check=True)
    begun("again")
    subprocess.run(["scontrol", "requeue", ids[again]], check=True)
    begun("stopped")
    stopped.cancel()
    errors = [type(future.exception()).__name__ for future in (killed, ended)]
    print(json.dumps([errors, again.result(), stopped.cancelled()]))
"""


@only_here
def test_faults(site: Site) -> None:
    """Ends from outside are told as on any cluster: a kill, scancel, a requeue, a cancellation."""
    assert result_of(site, FAULTS) == [["WorkerDied", "TaskCancelled"], "again", True]


AGAIN = """
    import json, os, signal, sys
    from slurmlaunch import Executor, attach

    def mendable(item):
        if item == 1 and not os.path.exists("mended"):
            os.kill(os.getpid(), signal.SIGKILL)
        if item == 2 and not os.path.exists("mended"):
            raise ValueError(item)
        return item

    with Executor(setup=["exec 2>&1"]) as executor:
        array = executor.map_array(mendable, range(4))
        errors = [type(future.exception()).__name__ for future in array]
    open("mended", "w").close()
    again = attach(array.job_ids[0]).retry()
    print(json.dumps([errors, again.results(), attach(array.folder).results()]))
"""


@only_here
def test_again(site: Site) -> None:
    """Another process finds the run by its job id, and runs again what was killed and what raised."""
    assert result_of(site, AGAIN) == [["NoneType", "WorkerDied", "ValueError", "NoneType"], [*range(4)], [*range(4)]]


RANKS = """
    import json
    from slurmlaunch import Executor

    with Executor(ntasks=2) as executor:
        error = executor.submit(abs, -1).exception()
        print(json.dumps([type(error).__name__, str(error)]))
"""


@only_here
def test_ranks_without_srun(site: Site) -> None:
    """Where the nodes have no srun to start ranks, the error says so, and what to give instead."""
    kind, said = result_of(site, RANKS)

    assert kind == "NodeStartError"
    assert "srun" in said
    assert "launcher=" in said


TIME_LIMIT = """
    import json, time
    from slurmlaunch import Executor, current_task

    def waits(item):
        time.sleep(25)
        return item, current_task().task

    with Executor(time="1") as executor:
        print(json.dumps(executor.map_array(waits, range(3), tasks=1).results()))
"""


@only_here
def test_time_limit(site: Site) -> None:
    """What a task has left near its time limit runs in another, although the node cannot ask for a requeue."""
    assert result_of(site, TIME_LIMIT) == [[0, 0], [1, 0], [2, 1]]


BEHAVIOURS = """
    import json
    from slurmlaunch import doctor
    from slurmlaunch.client.doctor.behaviours import BEHAVIOURS

    names = [name for name in BEHAVIOURS if name != "time limit"]
    tried = [check for check in doctor(full=names).checks if "promise" in check.data]
    print(json.dumps({check.name: check.found for check in tried if check.level != "ok"}))
"""


@only_here
def test_behaviours(site: Site) -> None:
    """All behaviours are as documented, but for ranks, for which the nodes lack srun."""
    lacking = result_of(site, BEHAVIOURS)
    assert lacking.keys() == {"ranks", "mpi4py"}
    assert all(found.startswith("not available: the ranks cannot be launched") for found in lacking.values())


WITHOUT_ARRAYS = """
    import json, os, signal, sys, time
    from concurrent.futures import wait
    from slurmlaunch import Executor, attach

    def kills():
        os.kill(os.getppid(), signal.SIGKILL)

    def waits():
        open("waits", "w").close()
        time.sleep(600)

    executor = Executor()
    futures = [executor.submit(abs, -1), executor.submit(kills), executor.submit(waits)]
    try:
        executor.map_array(abs, range(3))
    except Exception as error:
        refused = f"{type(error).__name__}: {error}"
    while not os.path.exists("waits"):
        time.sleep(0.1)
    attach(futures[2].run.folder)[0].cancel()
    wait(futures)
    found = [futures[0].result(), type(futures[1].exception()).__name__, futures[2].cancelled()]
    print(json.dumps([found, refused, executor.map_array(abs, range(3), tasks=1).results()]))
"""


def test_without_arrays() -> None:
    """Where arrays are switched off, submit runs single jobs, and map_array raises an error that says so."""
    with strict_site(started_cluster, array_size=0) as site:
        found, refused, in_one_task = result_of(site, WITHOUT_ARRAYS)

        assert found == [1, "WorkerDied", True]
        assert refused.startswith("SubmissionError: this cluster has job arrays switched off")
        assert in_one_task == [0, 1, 2]
        wait_until(lambda: not site.cluster.run("squeue", "--noheader", f"--user={site.machine.victim.name}"))


MANY_RUNS = """
    import json, logging, threading
    from slurmlaunch import Executor

    said = []
    logger = logging.getLogger("slurmlaunch")
    logger.addFilter(lambda record: said.append(record.getMessage()) or True)
    most = 0
    with Executor() as executor:
        futures = []
        for item in range(40):
            futures.append(executor.submit(abs, -item))
            lines = [each for each in threading.enumerate() if each.name == "slurmlaunch-submit"]
            most = max(most, len(lines))
        values = [future.result() for future in futures]
    print(json.dumps([values, most, [text for text in said if "room" in text]]))
"""


@only_here
def test_many_runs() -> None:
    """Forty submits behind a QOS of eight jobs wait in one thread, with one warning at most, which counts them."""
    with strict_site(started_cluster, submit_limit=8) as site:
        values, threads, said = result_of(site, MANY_RUNS)

        assert values == [*range(40)]
        assert threads == 1
        assert len(said) <= 1
        assert all("room in the queue to submit" in text for text in said)


FEW_JOBS = """
    import json
    from slurmlaunch import Executor

    with Executor() as executor:
        plain = executor.map_array(abs, range(30))
        given = executor.map_array(abs, range(10), tasks=10)
        single = [executor.submit(abs, item) for item in range(10)]
        print(json.dumps([plain.results(), given.results(), [future.result() for future in single]]))
"""


@only_here
@pytest.mark.parametrize("array_size", [5, 1001])
def test_few_jobs(array_size: int) -> None:
    """A plain call runs although the QOS lets the user submit eight jobs: in fewer tasks, or as room comes."""
    with strict_site(started_cluster, submit_limit=8, array_size=array_size) as site:
        assert result_of(site, FEW_JOBS) == [[*range(30)], [*range(10)], [*range(10)]]
