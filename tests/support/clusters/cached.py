"""Run folders on GlusterFS, which the client and the nodes mount each for themselves, with caches of ten seconds.

A brick on this machine serves both mounts. The tests' temporary folders lie on the client's; the slurmds, in namespaces
of their own, have the nodes' mount in its place. So a new file, a longer file and a removed one are seen on the other
side up to ten seconds later, as on a site's file system. GlusterFS itself runs in a Debian's folder, where the folder
of both mounts is `/mnt`.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
import tempfile
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from tests.support.clusters.debian import DebianFolder
from tests.support.clusters.kind import INSIDE, Kind
from tests.support.waiting import SEEN_LATE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.cluster import ClusterSpec

_SECONDS = 10
_PLACE = "SLURMLAUNCH_TEST_GLUSTER"  # the variable that names the folder with both mounts

_BRICK = """\
volume posix
  type storage/posix
  option directory /mnt/brick
end-volume
volume locks
  type features/locks
  subvolumes posix
end-volume
volume /mnt/brick
  type performance/io-threads
  subvolumes locks
end-volume
volume server
  type protocol/server
  option transport-type tcp
  option transport.socket.bind-address 127.0.0.1
  option transport.socket.listen-port {port}
  option auth.addr./mnt/brick.allow 127.0.0.1
  subvolumes /mnt/brick
end-volume
"""

# The translators of a volume's client as `gluster volume create` lists them, as far as they matter here.
_CLIENT = """\
volume client
  type protocol/client
  option transport-type tcp
  option remote-host 127.0.0.1
  option remote-port {port}
  option remote-subvolume /mnt/brick
end-volume
volume write-behind
  type performance/write-behind
  subvolumes client
end-volume
volume md-cache
  type performance/md-cache
  subvolumes write-behind
end-volume
"""

_ENTER = """\
set -eu
root=$1; place=$2; shift 2
trap 'umount --lazy --recursive "$place"; rm -rf "$place"' EXIT
mount --bind "$place" "$place"
mount --make-shared "$place"  # what is mounted on the folder's /mnt is mounted here, too
mount --bind "$place" "$root/mnt"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
chroot "$root" glusterfsd --no-daemon --volfile=/mnt/brick.vol --log-file=/mnt/brick.log &
for side in shared nodes; do
    until chroot "$root" glusterfs {caches} --volfile=/mnt/client.vol --log-file="/mnt/$side.log" "/mnt/$side" &&
        ls "$place/$side" > /dev/null 2>&1; do  # the brick may not listen yet
        umount --lazy "$place/$side"
        sleep 0.2
    done
done
"$@"
"""


class Cached(Kind):
    """Run folders on a file system that caches names and attributes."""

    suites = ("contract", "faults", *(f"slurm/test_{name}.py" for name in ("cached", "two_users", "behaviours")))
    latency = _SECONDS + 2.0
    skipped: Mapping[str, str] = MappingProxyType(
        {
            "test_disk.py::test_full_in_the_middle_of_a_result[slurm]": (
                "the small file system that the test mounts is not mounted on the nodes"
            )
        }
    )
    is_here = False

    def missing(self) -> list[str]:
        """Return what this machine lacks."""
        lacks = [*super().missing(), *self._debian.missing()]
        if not Path("/dev/fuse").exists():
            lacks.append("This kernel has no FUSE.")
        return lacks

    def install(self) -> None:
        """Install GlusterFS."""
        self._debian.make()
        self._debian.installed.touch()

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs Python where both are mounted."""
        place = Path(tempfile.mkdtemp(prefix="gluster-", dir="/var/tmp"))
        place.chmod(0o755)  # for tests of ordinary users
        for name in ("brick", "shared", "nodes"):
            (place / name).mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        (place / "brick.vol").write_text(_BRICK.format(port=port), encoding="utf-8")
        (place / "client.vol").write_text(_CLIENT.format(port=port), encoding="utf-8")
        caches = " ".join(f"--{what}-timeout={_SECONDS}" for what in ("attribute", "entry", "negative"))
        variables = {
            _PLACE: place,
            INSIDE: self.name,
            SEEN_LATE: self.latency,
            "PYTEST_ADDOPTS": f"--basetemp={place}/shared/tests",
        }
        environment = ["env", *(f"{name}={value}" for name, value in variables.items())]
        own = ["unshare", "--mount", "--mount-proc", "--pid", "--fork", "--kill-child", "--propagation=slave"]
        enter = _ENTER.replace("{caches}", caches)
        folders = [str(self.folder), str(place)]
        return [*own, "sh", "-c", enter, "sh", *folders, *environment, sys.executable, "-m", *arguments]

    @property
    def place(self) -> Path:
        """The client's mount."""
        return Path(os.environ[_PLACE], "shared")

    def adapt(self, spec: ClusterSpec) -> ClusterSpec:
        """Give each node the other mount."""
        mount = 'mount --bind "$0/nodes" "$0/shared" && exec "$@"'
        command = ("unshare", "--mount", "--propagation=private", "sh", "-c", mount, os.environ[_PLACE])
        return dataclasses.replace(spec, node_command=command)

    @property
    def _debian(self) -> DebianFolder:
        return DebianFolder(self.folder, "bookworm", "glusterfs-server glusterfs-client")
