"""Another Debian in a folder that debootstrap makes, and the kinds of cluster that have the Slurm and Python of one.

The tests run inside: their client, Slurm's daemons and the jobs. They are in namespaces of their own, so that all
mounts and processes are gone when they end, also when they are killed. The checkout is `/checkout` there.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from tests.support.clusters.kind import CHECKOUT, INSIDE, Kind

_MIRROR = "http://deb.debian.org/debian"
# The scripts of debootstrap are the same for all Debians of today, and an old one has none for the newest.
_SCRIPT = Path("/usr/share/debootstrap/scripts/sid")
_PACKAGES = (
    "slurmctld slurmd slurmdbd slurm-client slurm-wlm-mysql-plugin munge python3 python3-venv hostname procps strace"
    " ca-certificates"
)
# These need a running dpkg, so the folder's own apt installs them.
_MORE = "mariadb-server slurm-wlm-basic-plugins"
# What pip and apt need to reach their servers from here.
_NETWORK = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL", "PIP_CERT", "SSL_CERT_FILE")

# Mounts on mounts are no harm: they end with the namespace. The folder is mounted on itself, because a root that is no
# mount is missing in the list of mounts, and its file system's type with it.
_ENTER = """\
set -eu
root=$1; shift
mount --bind "$root" "$root"
for place in /sys /dev; do mount --rbind "$place" "$root$place"; done
mount -t proc proc "$root/proc"
if [ -d /etc/ssl/certs ]; then mount --bind /etc/ssl/certs "$root/etc/ssl/certs"; fi
mkdir -p "$root/checkout"
mount --bind {checkout} "$root/checkout"
cp /etc/resolv.conf "$root/etc/resolv.conf"
printf '127.0.0.1 localhost\\n127.0.1.1 %s\\n' "$(hostname)" > "$root/etc/hosts"
cd "$root"
chroot . "$@"
"""


class DebianFolder:
    """A Debian in a folder.

    Attributes:
        path: the folder.
        installed: a file that is there once all has been installed.
    """

    def __init__(self, path: Path, suite: str, packages: str) -> None:
        """Describe the Debian of this *suite* with *packages*, whose names are separated by blanks."""
        self.path = path
        self.installed = path / "installed"
        self._suite = suite
        self._packages = packages

    def missing(self) -> list[str]:
        """Return what this machine lacks, a sentence each."""
        if os.geteuid() != 0:
            return ["Only root can make another Debian's folder and enter it."]
        if self.installed.exists():
            return []
        lacks = [f"There is no Debian {self._suite} in {self.path}; --install makes one, of up to 2 GB, in minutes."]
        if not shutil.which("debootstrap") or not _SCRIPT.exists():
            lacks.append("--install needs debootstrap. On Debian: apt-get install debootstrap")
        return lacks

    def make(self) -> None:
        """Make it, unless it has been made."""
        unfinished = self.path / "debootstrap"
        if unfinished.exists() or not (self.path / "usr").exists():
            self.path.mkdir(parents=True, exist_ok=True)
            include = f"--include={self._packages.replace(' ', ',')}"
            command = ["debootstrap", "--variant=minbase", include, self._suite, str(self.path), _MIRROR, str(_SCRIPT)]
            subprocess.run(command, check=True)


class Debian(Kind):
    """The Slurm and the Python of another Debian."""

    is_here = False

    def __init__(self, name: str, summary: str, suite: str) -> None:
        super().__init__(name, summary)
        self._suite = suite

    def missing(self) -> list[str]:
        """Return what this machine lacks."""
        return self._debian.missing()

    def install(self) -> None:
        """Install the Debian with its Slurm, and the tests' requirements in a virtual environment inside."""
        self._debian.make()
        # A suite that is no release yet may have a list of packages that is older than it says it will be.
        self._run("apt-get", "-o", "Acquire::Check-Valid-Until=false", "update", "-q")
        self._run("apt-get", "install", "-qy", "--no-install-recommends", *_MORE.split())
        self._run("python3", "-m", "venv", "/venv")
        self._run("/venv/bin/pip", "install", "--upgrade", "pip")  # for --group
        self._run("sh", "-c", "cd /checkout && /venv/bin/pip install --editable . --group test")
        self._debian.installed.touch()

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs Python there."""
        python = shlex.join(["/venv/bin/python", "-m", *arguments])
        return self._inside("sh", "-c", f"cd /checkout && exec {python}")

    @property
    def _debian(self) -> DebianFolder:
        return DebianFolder(self.folder, self._suite, _PACKAGES)

    def _run(self, *command: str) -> None:
        subprocess.run(self._inside(*command), check=True)

    def _inside(self, *command: str) -> list[str]:
        variables = {
            "PATH": "/venv/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            "SLURMLAUNCH_TEST_CLUSTER": self.name,
            INSIDE: self.name,
            **{name: os.environ[name] for name in _NETWORK if name in os.environ},
        }
        environment = ["env", "-i", *(f"{name}={value}" for name, value in variables.items())]
        enter = _ENTER.format(checkout=shlex.quote(str(CHECKOUT)))
        # The shell stays, as the first process of its namespace, which inherits orphans and must reap them.
        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation=slave"]
        return [*own, "sh", "-c", enter, "sh", str(self.folder), *environment, *command]
