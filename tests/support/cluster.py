"""A complete, private, throwaway Slurm in one temporary folder.

The tests run against the real thing, because a mock leaves out the things that break a launcher: states that lag,
rows that vanish, jobs that start again. A cluster starts in three seconds, needs no root and nothing under /etc,
and several of them live side by side on one machine::

    with Cluster(ClusterSpec(nodes=2)) as cluster:
        cluster.run("sbatch", "--wait", "--wrap", "hostname")

From a shell, ``python -m tests.support.cluster`` gives the developer a shell inside such a cluster, and
``python -m tests.support.cluster -- command`` runs one command there.

The processes::

    this process ──starts──► munged, mariadbd, slurmdbd, slurmctld, slurmd-n1, … (each in a session of its own)
         │                                                              └──► slurmstepd ──► the jobs
         └──pipe──► guard

The daemons are our children and stay in the foreground, so that their end is seen at once and their messages are in
``folder/log``. *Ending* them is the work of the guard alone, a second small process: it waits for a line or for the end
of the pipe, then kills all that belongs to the cluster and removes the folder. So a cluster ends in the same way when
``stop`` is called as when the test session is killed with SIGKILL.

The guard runs this file as a script. That is why it imports the standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import pwd
import random
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self  # part of typing from Python 3.11 on; type checkers bring it

# The Debian package of each program.
_PACKAGES = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
_ACCOUNTING_PACKAGES = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
}

# Variables of an outer job or of the developer that would change the behaviour of Slurm's commands.
_FOREIGN = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SCONTROL_", "PMI")

# In the environment of every daemon: the mark by which the guard finds it.
_MARK = "SLURMLAUNCH_TEST_DAEMON_OF"

# The daemons that two clusters beside each other share.
_SHARED = ("munged", "mariadbd", "slurmdbd")

# Generous, since a machine that is busy with other tests may be ten times slower. Only what hangs is waited for as
# long as that; what ends is seen at once.
_PATIENCE = 60.0

# A Unix socket's path may have 107 bytes, and slurmstepd's takes up to 52 below the temporary folder.
_LONGEST_TEMPORARY = 50


class ClusterError(Exception):
    """The throwaway cluster, or a command that ran in it, failed."""


class ProgramsMissing(ClusterError):
    """Slurm is not installed here; the message names the packages that bring it."""


@dataclasses.dataclass(frozen=True)
class ClusterSpec:
    """The size and the settings of a cluster.

    Attributes:
        nodes: how many nodes there are: n1, n2, … All are this one machine, and may claim more than it has.
        cpus_per_node: how many CPUs each of them claims.
        memory: how many MB each claims.
        gpus: how many GPUs each claims. Jobs see them in CUDA_VISIBLE_DEVICES alone.
        accounting: with slurmdbd and its database, where the user belongs to the account ``test``. Limits are set
            with sacctmgr, and hold where a line says so: ``AccountingStorageEnforce=limits``.
        cgroup: jobs are really held to their ``--mem``. Needs root.
        node: more properties of each node, as in slurm.conf: ``Features=fast ThreadsPerCore=2``.
        lines: more lines for slurm.conf, settings and partitions; each replaces ours of the same name.
        users: all users of this machine may be its clients. Needs root.
        files: further files beside slurm.conf, by name: job_submit.lua, a prolog.
        node_command: what each slurmd is started with, such as a command that gives it mounts of its own.
    """

    nodes: int = 2
    cpus_per_node: int = 8
    memory: int = 8000
    gpus: int = 0
    accounting: bool = True
    cgroup: bool = False
    node: str = ""
    lines: tuple[str, ...] = ()
    users: bool = False
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    node_command: tuple[str, ...] = ()

    @property
    def node_names(self) -> tuple[str, ...]:
        """Every node's name."""
        return tuple(f"n{number}" for number in range(1, self.nodes + 1))


def missing_programs(spec: ClusterSpec | None = None) -> dict[str, str]:
    """Find the programs that this machine lacks for a cluster, each with its Debian package."""
    needed = _PACKAGES | (_ACCOUNTING_PACKAGES if spec is None or spec.accounting else {})
    return {program: package for program, package in needed.items() if not shutil.which(program, path=_search_path())}


def slurm_version() -> str:
    """Return what the installed Slurm calls itself, such as "Slurm 24.11.5"."""
    if missing_programs():
        return "no Slurm"
    shown = subprocess.run([_program("slurmctld"), "-V"], capture_output=True, text=True, check=False).stdout
    return f"Slurm {shown.split()[-1]}"


def clean_environment() -> dict[str, str]:
    """Copy our environment without the variables of an outer job and the settings of Slurm's commands."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return kept | {"PATH": _search_path()}


class Cluster:
    """A Slurm of one's own, from ``start`` to ``stop`` or inside a ``with``.

    Its clients need nothing but the variables in ``env``. Its daemons have names, for tests that stop them: ``munged``,
    ``mariadbd``, ``slurmdbd``, ``slurmctld``, and ``slurmd-n1`` and so on.
    """

    def __init__(self, spec: ClusterSpec | None = None, *, beside: Cluster | None = None) -> None:
        """Describe a cluster, perhaps *beside* a running one, of which it shares munge and the accounting."""
        self.spec = spec or ClusterSpec()
        self._beside = beside
        self._life = contextlib.ExitStack()
        self._site: _Site | None = None
        self._daemons: dict[str, _Daemon] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def folder(self) -> Path:
        """The folder of all the cluster's files; it is removed at the end."""
        return self._running.folder

    @property
    def name(self) -> str:
        """Slurm's ClusterName, different for every cluster, so that no cached answer of one is used for the next."""
        return self._running.name

    @property
    def env(self) -> dict[str, str]:
        """The environment that makes Slurm's commands, and so slurmlaunch, clients of this cluster."""
        return {"SLURM_CONF": str(self._running.slurm_conf)}

    @property
    def daemons(self) -> tuple[str, ...]:
        """The names of all daemons, in the order in which they were started."""
        return tuple(self._daemons)

    def start(self) -> None:
        """Start every daemon, and return when all nodes are idle. The error of a failing start gives the reason."""
        if self._site is not None:
            raise ClusterError("This cluster is running already.")
        _check_possible(self.spec)
        with contextlib.ExitStack() as life:
            life.callback(self._forget)
            ports = [life.enter_context(_reserve_port()).getsockname()[1] for _ in range(2 + self.spec.nodes)]
            other = self._beside._site if self._beside else None  # noqa: SLF001  (a cluster's own class)
            self._site = _Site(self.spec, life.enter_context(_guarded_folder()), ports, other)
            self._site.write()
            if self.spec.users:
                self._site.open_to_users()
            if self._beside:
                self._register()
            for daemon in _daemons(self._site):
                if self._beside and daemon.name in _SHARED:
                    continue
                self._daemons[daemon.name] = daemon
                daemon.start()
                if daemon.name == "slurmdbd":
                    self._register()  # before slurmctld, which must find its cluster there
            self._await_idle()
            self._life = life.pop_all()

    def stop(self) -> None:
        """Kill every daemon and every job, and remove the folder. A second call does nothing."""
        self._life.close()

    def run(self, *command: str) -> str:
        """Run a command as a client of the cluster, and return its output."""
        done = subprocess.run(
            command,
            env=clean_environment() | self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE,
        )
        if done.returncode:
            raise ClusterError(f"{shlex.join(command)} ended with {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout

    def stop_daemon(self, name: str, sig: int = signal.SIGKILL) -> None:
        """End one daemon, and return when it is gone. The jobs of a slurmd continue without it, as on a real node."""
        self._daemons[name].stop(sig)

    def start_daemon(self, name: str) -> None:
        """Start a stopped daemon again, and return when it listens."""
        self._daemons[name].start()

    def pid(self, name: str) -> int:
        """Return the process of one daemon, for example to send it SIGSTOP: its clients then wait for a time-out."""
        return self._daemons[name].pid

    @property
    def _running(self) -> _Site:
        if self._site is None:
            raise ClusterError("This cluster is not running.")
        return self._site

    def _register(self) -> None:
        self.run("sacctmgr", "-i", "add", "cluster", self.name)
        self.run("sacctmgr", "-i", "add", "account", "test")
        self.run("sacctmgr", "-i", "add", "user", _user(), "account=test")

    def _await_idle(self) -> None:
        def all_idle() -> bool:
            # A node has a line for each of its partitions.
            lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
            return set(lines) == {f"{node} idle" for node in self.spec.node_names}

        self._daemons["slurmctld"].wait_until(all_idle, "had all nodes idle")

    def _forget(self) -> None:
        # They are dead already, but zombies until somebody waits for them.
        for daemon in self._daemons.values():
            daemon.reap()
        self._daemons = {}
        self._site = None


def _check_possible(spec: ClusterSpec) -> None:
    missing = missing_programs(spec)
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise ProgramsMissing(f"A throwaway Slurm needs {', '.join(missing)}. On Debian: apt-get install {packages}")
    if (spec.cgroup or spec.users) and os.getuid() != 0:
        raise ClusterError("Only root can start a cluster with cgroup=True or users=True.")


def _search_path() -> str:
    # Daemons lie in sbin, which an ordinary user's PATH lacks on Debian.
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def _program(name: str) -> str:
    # By its whole path, since Popen looks for it in our PATH and not in the one that the program is given.
    return shutil.which(name, path=_search_path()) or name


def _user() -> str:
    # Not getpass.getuser(), which trusts $USER, also after a change of user that kept it.
    return pwd.getpwuid(os.getuid()).pw_name


def _host() -> str:
    return socket.gethostname().partition(".")[0]


# Paths, and the files that are written before the daemons start.


@dataclasses.dataclass(frozen=True)
class _Site:
    """A cluster's folder and ports, and the files that follow from them."""

    spec: ClusterSpec
    folder: Path
    ports: Sequence[int]  # slurmctld's, slurmdbd's, and one for each node
    beside: _Site | None = None  # the cluster whose munge and accounting it uses

    @property
    def name(self) -> str:
        return f"test{self.ports[0]}"

    @property
    def slurm_conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return (self.beside or self).folder / "munge" / "socket"

    @property
    def database_socket(self) -> Path:
        return self.folder / "database.socket"

    @property
    def node_ports(self) -> dict[str, int]:
        return dict(zip(self.spec.node_names, self.ports[2:], strict=True))

    def write(self) -> None:
        """Write all that the daemons read."""
        for name in ("log", "munge", "state", *(f"spool/{node}" for node in self.spec.node_names)):
            (self.folder / name).mkdir(parents=True)
        _write_private(self.folder / "munge" / "key", os.urandom(128))
        _write_private(self.slurm_conf, _slurm_conf(self).encode())
        for name, text in self.spec.files.items():
            (self.folder / name).write_text(text, encoding="utf-8")
            (self.folder / name).chmod(0o755)
        if self.spec.gpus:
            # Files, since a mere count is taken for 0 and drains the node. No job opens them.
            _write_private(self.folder / "gres.conf", f"Name=gpu File=/dev/tty[1-{self.spec.gpus}]\n".encode())
        if self.spec.cgroup:
            _write_private(self.folder / "cgroup.conf", _CGROUP_CONF.encode())
        if self.spec.accounting and self.beside is None:
            _write_private(self.folder / "slurmdbd.conf", _slurmdbd_conf(self).encode())
            _write_private(self.folder / "database.sql", _DATABASE_SQL.encode())
            _install_database(self.folder)

    def open_to_users(self) -> None:
        """Let all users of this machine find the controller, authenticate and run jobs."""
        for folder in (self.folder, self.folder / "munge", self.folder / "spool", *(self.folder / "spool").iterdir()):
            folder.chmod(0o711)
        self.slurm_conf.chmod(0o644)


_CGROUP_CONF = """\
IgnoreSystemd=yes
ConstrainRAMSpace=yes
ConstrainSwapSpace=yes
"""

# Executed at every start of the database, not at the first one alone. slurmdbd has a user of its own there, with a
# password, as it would on a site.
_DATABASE_SQL = """\
CREATE DATABASE IF NOT EXISTS slurm_acct_db;
CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED BY 'slurm';
GRANT ALL ON slurm_acct_db.* TO slurm@localhost;
"""


def _write_private(path: Path, content: bytes) -> None:
    # munged refuses a key, and slurmdbd a configuration, that others may read.
    path.touch(mode=0o600)
    path.write_bytes(content)


def _slurm_conf(site: _Site) -> str:
    settings = _base_settings(site) | _optional_settings(site)
    lines = ["=".join(setting) for setting in settings.items()] + _node_lines(site)
    # Slurm complains of a setting that is there twice, and refuses a partition that does.
    return "\n".join([*{_subject(line): line for line in [*lines, *site.spec.lines]}.values(), ""])


def _subject(line: str) -> str:
    """Find the subject of a line of slurm.conf: a setting, or one node or partition."""
    first = line.split(maxsplit=1)[0]
    return first if first.startswith(("NodeName=", "PartitionName=")) else first.partition("=")[0]


def _base_settings(site: _Site) -> dict[str, str]:
    return {
        "ClusterName": site.name,
        "SlurmctldHost": f"{_host()}(127.0.0.1)",
        "SlurmctldPort": str(site.ports[0]),
        "SlurmUser": _user(),
        "SlurmdUser": _user(),
        "StateSaveLocation": f"{site.folder}/state",
        "SlurmdSpoolDir": f"{site.folder}/spool/%n",
        "SlurmctldPidFile": f"{site.folder}/slurmctld.pid",
        "SlurmdPidFile": f"{site.folder}/slurmd-%n.pid",
        "SlurmctldSyslogDebug": "quiet",
        "SlurmdSyslogDebug": "quiet",
        # A requeued job waits until its old credential has expired: by default, two minutes.
        "AuthInfo": f"socket={site.munge_socket},cred_expire=5",
        # A job starts within a second. No setting makes it faster: slurmctld looks at its queue once a second.
        "SchedulerParameters": "sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=1",
        # Nodes may claim more than the machine has.
        "SlurmdParameters": "config_overrides",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU_Memory",
        # Otherwise a job that asks for no memory gets all of its node's, and has the node for itself.
        "DefMemPerCPU": str(site.spec.memory // site.spec.cpus_per_node),
        "ProctrackType": "proctrack/linuxproc",
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherFrequency": "1",
        "MpiDefault": "pmi2",
        "ReturnToService": "2",
        "JobRequeue": "1",
        "KillWait": "5",
        # What is named by the job is the whole machine's: control groups with their limits and counts of OOM kills,
        # MPICH's shared memory. So two clusters must not number their jobs alike.
        "FirstJobId": str(random.randrange(1, 60_000_000)),
        "MaxArraySize": "1001",
        "MinJobAge": "300",
    }


def _optional_settings(site: _Site) -> dict[str, str]:
    settings = {}
    if site.spec.accounting:
        settings["AccountingStorageType"] = "accounting_storage/slurmdbd"
        settings["AccountingStorageHost"] = "127.0.0.1"
        settings["AccountingStoragePort"] = str((site.beside or site).ports[1])
        # sacct does not read AuthInfo. Without this, it asks the system's munge.
        settings["AccountingStoragePass"] = str(site.munge_socket)
    if site.spec.gpus:
        settings["GresTypes"] = "gpu"
    if site.spec.cgroup:
        settings["ProctrackType"] = "proctrack/cgroup"
        settings["TaskPlugin"] = "task/cgroup,task/affinity"
    return settings


def _node_lines(site: _Site) -> list[str]:
    resources = f"CPUs={site.spec.cpus_per_node} RealMemory={site.spec.memory}"
    if site.spec.gpus:
        resources += f" Gres=gpu:{site.spec.gpus}"
    resources += f" {site.spec.node}"
    nodes = [
        f"NodeName={node} NodeHostname={_host()} NodeAddr=127.0.0.1 Port={port} {resources}"
        for node, port in site.node_ports.items()
    ]
    return [*nodes, "PartitionName=debug Nodes=ALL Default=YES DefaultTime=INFINITE MaxTime=INFINITE"]


def _slurmdbd_conf(site: _Site) -> str:
    return f"""\
AuthType=auth/munge
AuthInfo=socket={site.munge_socket}
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={site.ports[1]}
DebugLevelSyslog=quiet
PidFile={site.folder}/slurmdbd.pid
SlurmUser={_user()}
StorageType=accounting_storage/mysql
StorageUser=slurm
StoragePass=slurm
"""


def _database_options(folder: Path) -> list[str]:
    # MariaDB runs as root only when it is told to.
    # A folder of its own for temporary tables, too: several databases that share one fail now and then.
    folders = [f"--datadir={folder}/database", f"--tmpdir={folder}/database-tmp"]
    return ["--no-defaults", *folders, *(["--user=root"] if os.getuid() == 0 else [])]


def _install_database(folder: Path) -> None:
    # --rpm: as root, the script would otherwise hand files of the system's MariaDB to another owner.
    options = [*_database_options(folder), "--rpm", "--auth-root-authentication-method=normal", "--skip-test-db"]
    (folder / "database-tmp").mkdir()
    log = folder / "log" / "mariadb-install-db.log"
    with log.open("wb") as output:
        done = subprocess.run([_program("mariadb-install-db"), *options], stdout=output, stderr=output, check=False)
    if done.returncode:
        raise ClusterError(f"mariadb-install-db ended with {done.returncode}. {_tail(log)}")


# The daemons.


class _Daemon:
    """One process of the cluster: how it is started, and how one sees that it listens."""

    def __init__(self, site: _Site, name: str, command: Sequence[str], listens: Callable[[], bool]) -> None:
        self.name = name
        self._command = [_program(command[0]), *command[1:]]
        self._log = site.folder / "log" / f"{name}.log"
        self._listens = listens
        self._environment = {
            "SLURM_CONF": str(site.slurm_conf),
            # For slurmdbd, which has no setting for the socket and would look for the system's database.
            "MYSQL_UNIX_PORT": str(site.database_socket),
            _MARK: str(site.folder),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._running.pid

    def start(self) -> None:
        """Start it, and return when it listens."""
        if self._process is not None and self._process.poll() is None:
            raise ClusterError(f"{self.name} is running already.")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment() | self._environment,
                start_new_session=True,  # or Ctrl-C would end the cluster under the tests that it ends
            )
        self.wait_until(self._listens, "listened")

    def wait_until(self, happened: Callable[[], bool], what: str) -> None:
        """Wait for a condition that needs this daemon; if the daemon ends before, raise with its last output."""
        deadline = time.monotonic() + _PATIENCE
        while not happened():
            status = self._running.poll()
            if status is not None:
                raise ClusterError(f"{self.name} ended with {status} before it {what}. {_tail(self._log)}")
            if time.monotonic() > deadline:
                raise ClusterError(f"After {_PATIENCE:.0f} s {self.name} has not {what}. {_tail(self._log)}")
            time.sleep(0.01)

    def stop(self, sig: int) -> None:
        """Send the daemon a signal that ends it, and return when it has exited."""
        self._running.send_signal(sig)
        self.reap()

    def reap(self) -> None:
        """Wait until the daemon has exited."""
        if self._process is not None:
            self._process.wait(_PATIENCE)

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ClusterError(f"{self.name} has not been started.")
        return self._process


def _daemons(site: _Site) -> Iterator[_Daemon]:
    """Describe all daemons, in the order in which they must start."""
    yield _munged(site)
    if site.spec.accounting:
        yield _mariadbd(site)
        yield _Daemon(site, "slurmdbd", ["slurmdbd", "-D"], _listens_at(site.ports[1]))
    # -i: Slurm 26.05 refuses to start again where it was killed before it had saved its state.
    yield _Daemon(site, "slurmctld", ["slurmctld", "-D", "-i"], functools.partial(_is_up, site))
    for node, port in site.node_ports.items():
        slurmd = [*site.spec.node_command, _program("slurmd"), "-D", "-N", node]
        yield _Daemon(site, f"slurmd-{node}", slurmd, _listens_at(port))


def _munged(site: _Site) -> _Daemon:
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={site.folder}/munge/{name}" for option, name in files.items()]
    return _Daemon(site, "munged", ["munged", "--foreground", "--force", *options], _listens_at(site.munge_socket))


def _mariadbd(site: _Site) -> _Daemon:
    options = [f"--socket={site.database_socket}", f"--init-file={site.folder}/database.sql", "--skip-networking"]
    command = ["mariadbd", *_database_options(site.folder), *options]
    return _Daemon(site, "mariadbd", command, _listens_at(site.database_socket))


def _listens_at(place: Path | int) -> Callable[[], bool]:
    """Return a function that says whether anyone listens at a socket or a port."""

    def listens() -> bool:
        with socket.socket(socket.AF_UNIX if isinstance(place, Path) else socket.AF_INET) as client:
            client.settimeout(1)
            return client.connect_ex(str(place) if isinstance(place, Path) else ("127.0.0.1", place)) == 0

    return listens


def _is_up(site: _Site) -> bool:
    """Return whether the controller answers: from Slurm 26.05 on it opens its port long before."""
    if not _listens_at(site.ports[0])():
        return False
    environment = clean_environment() | {"SLURM_CONF": str(site.slurm_conf)}
    command = [_program("scontrol"), "ping"]
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-20:]
    return "\n".join([f"{log.name} ends with:", *lines])


# Separation of clusters, and their end.


def _reserve_port() -> socket.socket:
    """Find a free port, and hold it for a daemon, also while that is down.

    The trick is in the order: without SO_REUSEADDR, bind fails where any other cluster holds the port. With it,
    set afterwards, a daemon of ours (which sets it too) can bind the port that we hold but do not listen at.
    """
    # Below the kernel's own range, where a client's end of some connection might have taken the port meanwhile.
    for port in random.sample(range(20_000, 30_000), 100):
        holder = socket.socket()
        try:
            holder.bind(("", port))
        except OSError:
            holder.close()
        else:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return holder
    raise ClusterError("No port is free between 20000 and 30000.")


@contextlib.contextmanager
def _guarded_folder() -> Iterator[Path]:
    """Make a folder, and a guard that ends all that lives in it when we are done, or are no more."""
    parent = tempfile.gettempdir()
    if len(parent) > _LONGEST_TEMPORARY:
        parent = "/tmp"  # noqa: S108  (mkdtemp makes a private folder there)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir=parent))
    guard = subprocess.Popen(
        [sys.executable, "-I", __file__, "--guard", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=clean_environment(),
        start_new_session=True,
    )
    try:
        yield folder
    finally:
        # A line, since the pipe's end might be held open by a process that somebody forked from us.
        guard.communicate(b"stop\n", _PATIENCE)
        if guard.returncode:
            raise ClusterError(f"The guard of {folder} ended with {guard.returncode}, see stderr.")


def _guard(folder: Path) -> None:
    """Wait for a line or the end of the pipe, then kill all processes of a cluster and remove its folder."""
    sys.stdin.readline()
    while processes := {*_daemons_and_jobs(folder), *_step_daemons(folder)}:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)
    shutil.rmtree(folder)


def _daemons_and_jobs(folder: Path) -> Iterator[int]:
    """Find daemons by their mark, and the jobs' processes by the variables that Slurm gave them."""
    mark = f"{_MARK}={folder}".encode()
    client = f"SLURM_CONF={folder}/slurm.conf".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        variables = _variables(path)
        in_job = any(variable.startswith(b"SLURM_JOB_ID=") for variable in variables)
        if mark in variables or (in_job and client in variables):
            yield int(path.parent.name)


def _variables(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        # It has ended since we saw it, or is another user's and so none of ours.
        return []


def _step_daemons(folder: Path) -> Iterator[int]:
    """Find each slurmstepd by the socket at which it listens: it writes its title over its environment."""
    for path in folder.glob("spool/*/*_*.*"):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            if client.connect_ex(str(path)) == 0:
                credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                yield struct.unpack("3i", credentials)[0]


# The developer's command.


def _main() -> int:
    arguments = _parse_arguments()
    if arguments.guard:
        _guard(arguments.guard)
        return 0
    spec = ClusterSpec(
        nodes=arguments.nodes,
        cpus_per_node=arguments.cpus,
        gpus=arguments.gpus,
        accounting=arguments.accounting,
        cgroup=arguments.cgroup,
    )
    with Cluster(spec) as cluster:
        command = arguments.command or [os.environ.get("SHELL", "/bin/sh")]
        status = subprocess.run(command, env=clean_environment() | cluster.env, check=False).returncode
    return status if status >= 0 else 128 - status  # as a shell reports an end by a signal


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.cluster", description="Run a shell, or one command, in a throwaway Slurm."
    )
    defaults = ClusterSpec()
    parser.add_argument("--nodes", type=int, default=defaults.nodes)
    parser.add_argument("--cpus", type=int, default=defaults.cpus_per_node, help="how many each node claims to have")
    parser.add_argument("--gpus", type=int, default=defaults.gpus, help="how many each node claims to have")
    parser.add_argument("--no-accounting", dest="accounting", action="store_false", help="no slurmdbd, and so no sacct")
    parser.add_argument("--cgroup", action="store_true", help="hold jobs to their --mem; needs root")
    parser.add_argument("--guard", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="*", help="what to run in it, after --; a shell by default")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(_main())
