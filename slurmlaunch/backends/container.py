"""Containers: the command line that starts a node inside an image; an `ArrayJob` calls it.

The image's own Python runs inside. It sees these folders of the client: the run folder, the working directory, and the
folders of the user's own modules. Packages *installed* for the client stay outside, because the image has its own. The
client's variables are set inside, and signals reach the node: a runtime either becomes the node (charliecloud), or
forwards signals (the others do without a terminal). Batch scripts and schedulers are unknown here. Sources:
apptainer-exec, podman-run(1), ch-run(1).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurmlaunch.backends.installed import is_installed
from slurmlaunch.errors import OptionError
from slurmlaunch.runfolder.layout import Status

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

PYTHON = ("python3",)
"""The words that start Python in an image by default."""

OF_THE_HOST = ("PYTHONPATH", "PYTHONHOME")
"""Variables that describe the client's Python, and would mislead the image's."""

_FILES = (".sif", ".simg", ".img", ".sqfs", ".squashfs", ".sqsh")
_GPU_OPTIONS = frozenset({"gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task"})
_GRES_OPTIONS = ("gres", "tres-per-task")

# Only the node knows its own PATH.
_FIRST_THERE = (
    'for each in {programs}; do if command -v "$each" >/dev/null; then exec "$each" "$@"; fi; done; '
    'echo "slurmlaunch: the task was not started: none of {programs} is on the PATH of this node. '
    'Load its module with modules=[...], or name another: Container(..., runtime=...)" >&2; exit {status}'
)


@dataclass(frozen=True)
class Container:
    """A container image in which tasks run.

    Attributes:
        image: the image: a path that the nodes see too, or another name that the runtime
            accepts, such as ``docker://python:3.11``. It needs a Python of the client's
            minor version, slurmlaunch and cloudpickle.
        binds: folders of the node to show inside: ``"/scratch"``, ``"/data:/mnt"``,
            ``"/data:/mnt:ro"``.
        runtime: ``"apptainer"``, ``"singularity"``, ``"podman"`` or ``"charliecloud"``; by
            default apptainer or singularity, whichever is on the node's PATH.
        flags: further flags for the runtime, passed on unchanged.

    Raises:
        OptionError: a value is not valid.
    """

    image: str
    binds: tuple[str, ...] = ()
    runtime: str | None = None
    flags: tuple[str, ...] = ()

    def __init__(
        self,
        image: str | os.PathLike[str],
        binds: Iterable[str | os.PathLike[str]] = (),
        *,
        runtime: str | None = None,
        flags: Iterable[str] = (),
    ) -> None:
        if runtime not in _RUNTIMES:
            known = ", ".join(repr(name) for name in _RUNTIMES if name)
            raise _refused(f"runtime={runtime!r} is none of {known}")
        vars(self).update(
            image=_image(image, runtime),
            binds=tuple(_bind(each, runtime) for each in _listed("binds", binds)),
            runtime=runtime,
            flags=tuple(_text("flags", each) for each in _listed("flags", flags)),
        )

    @property
    def path(self) -> Path | None:
        """The path of the image, or None if only the runtime knows it."""
        return Path(self.image) if self.image.startswith("/") else None

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs; the node needs one of them."""
        return _RUNTIMES[self.runtime][0]

    def variables(self, name: str, value: str) -> dict[str, str]:
        """Return the variables that set a variable inside, also with the flag ``--cleanenv`` of apptainer.

        Not a flag with the value: every user of the node sees command lines.
        """
        with_cleanenv = self.programs if _RUNTIMES[self.runtime][1] is _apptainer else ()
        return {f"{each.upper()}ENV_{name}": value for each in with_cleanenv}

    def to_json(self) -> dict[str, Any]:
        """Return the container as stored in a manifest."""
        return {"image": self.image, "binds": [*self.binds], "runtime": self.runtime, "flags": [*self.flags]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Container:
        """Read a container from a manifest."""
        return cls(data["image"], data.get("binds", ()), runtime=data.get("runtime"), flags=data.get("flags", ()))

    def command(self, words: Sequence[str], *, cwd: Path, folders: Sequence[Path], gpus: bool) -> tuple[str, ...]:
        """Return the command line that runs *words* inside, with the host's *folders* bound at the same paths.

        Raises:
            OptionError: the runtime cannot bind a folder of that name.
        """
        binds = (*(_same_path(folder, self.runtime) for folder in self._not_covered(folders)), *self.binds)
        arguments = _RUNTIMES[self.runtime][1](self, binds, cwd, gpus=gpus)
        if len(self.programs) == 1:
            return (*self.programs, *arguments, *words)
        find = _FIRST_THERE.format(programs=" ".join(self.programs), status=int(Status.NODE))
        return ("/bin/sh", "-c", find, "slurmlaunch", *arguments, *words)

    def _not_covered(self, folders: Sequence[Path]) -> list[Path]:
        """Return the folders that no bind of the user shows already, at the same path."""
        parts = (bind.split(":") for bind in self.binds)
        covered = {Path(source) for source, target, *options in parts if source == target and not options}
        return [folder for folder in folders if not covered & {folder, *folder.parents}]

    def prepare(self, folders: Sequence[Path]) -> None:
        """Create the mount points of all binds in the image, just before it is used.

        Only charliecloud needs it: it mounts images read-only, and creates no mount points.

        Raises:
            OptionError: the image does not exist, or cannot be written to.
        """
        if self.path is not None and not self.path.exists():
            text = f"there is no image {self.image}: it must be in a folder that this machine and the nodes see"
            raise OptionError(text, option="container")
        if self.runtime != "charliecloud" or self.path is None or not self.path.is_dir():
            return
        if any(flag.startswith(("--write", "-w", "-W")) for flag in self.flags):
            return
        targets = {str(folder): folder for folder in self._not_covered(folders)}
        targets |= {parts[-1]: Path(parts[0]) for parts in (bind.split(":") for bind in self.binds)}
        for target, source in targets.items():
            if not target.startswith("/tmp/"):  # noqa: S108  (the host's own, also inside)
                _create_mount_point(self.path, target, source)


def _apptainer(container: Container, binds: Sequence[str], cwd: Path, *, gpus: bool) -> tuple[str, ...]:
    # AMD's flag is --rocm; a user who gives one of the three has chosen.
    nv = ["--nv"] if gpus and not {"--nv", "--nvccli", "--rocm"} & {*container.flags} else []
    return ("exec", *(f"--bind={bind}" for bind in binds), f"--pwd={cwd}", *nv, *container.flags, container.image)


def _podman(container: Container, binds: Sequence[str], cwd: Path, *, gpus: bool) -> tuple[str, ...]:
    # In the job's own control group, so that Slurm's limits and signals apply inside.
    ours = (
        "--rm", "--env-host", "--cgroups=disabled", "--ipc=host", "--network=host",
        "--security-opt=label=disable", "--entrypoint=",
    )  # fmt: skip
    named = any(flag.partition("=")[0] == "--device" for flag in container.flags)
    device = ["--device=nvidia.com/gpu=all"] if gpus and not named else []
    volumes = (f"--volume={bind}" for bind in binds)
    return ("run", *ours, *volumes, f"--workdir={cwd}", *device, *container.flags, container.image)


def _charliecloud(container: Container, binds: Sequence[str], cwd: Path, *, gpus: bool) -> tuple[str, ...]:
    del gpus  # the devices are visible anyway; ch-fromhost puts the driver's libraries into an image
    # The image's own variables, its PATH among them, which the other runtimes set by themselves.
    has_variables = container.path is not None and (container.path / "ch/environment").is_file()
    own = ["--set-env"] if has_variables else []
    return (*(f"--bind={bind}" for bind in binds), f"--cd={cwd}", *own, *container.flags, container.image, "--")


# The programs of each runtime, the first of them on the PATH, and their arguments.
_RUNTIMES = {
    None: (("apptainer", "singularity"), _apptainer),
    "apptainer": (("apptainer",), _apptainer),
    "singularity": (("singularity",), _apptainer),
    "podman": (("podman",), _podman),
    "charliecloud": (("ch-run",), _charliecloud),
}


def asks_for_gpus(options: Mapping[str, str | bool], flags: Collection[str]) -> bool:
    """Return whether the options or flags of sbatch request GPUs."""
    given = {name.replace("_", "-"): str(value) for name, value in options.items()}
    for flag in flags:
        name, _, value = flag[2:].partition("=") if flag.startswith("--") else ("", "", "")
        given["gpus" if flag.startswith("-G") else name] = value
    return bool(given.keys() & _GPU_OPTIONS) or any("gpu" in given.get(name, "") for name in _GRES_OPTIONS)


def own_folders(search_path: Iterable[str]) -> list[str]:
    """Return the user's own entries of a module search path: neither standard library nor installed packages."""
    return [entry for entry in search_path if not is_installed(entry)]


def folders_inside(run_folder: Path, cwd: Path, search_path: Iterable[str]) -> tuple[Path, ...]:
    """Return the folders of the host that a node needs in its container, none of them inside another."""
    wanted = [cwd, run_folder, *(Path(entry) for entry in own_folders(search_path))]
    there = [each for each in dict.fromkeys(wanted) if each == run_folder or os.path.isdir(each)]  # noqa: PTH112  (never raises)
    there = [folder for folder in there if folder != Path("/")]  # which an image has of its own
    return tuple(folder for folder in there if not any(other in folder.parents for other in there))


def _create_mount_point(image: Path, target: str, source: Path) -> None:
    point = image / target.lstrip("/")
    if not point.resolve().is_relative_to(image.resolve()):
        raise _refused(f"{target} leads out of the image {image} by a symbolic link: bind to another path")
    try:
        if source.is_file():
            point.parent.mkdir(parents=True, exist_ok=True)
            point.touch()
        else:
            point.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(
            f"{point} cannot be created, and charliecloud binds only to existing paths of the image {image}: "
            f"{error.strerror}. Make it, or, with a newer charliecloud, use Container(..., flags=['--write-fake'])"
        ) from error


# Checks of the user's values.


def _image(image: object, runtime: str | None) -> str:
    text = _text("image", image)
    if "://" in text:
        return text
    path = Path(text).expanduser()
    looks_like_one = (
        isinstance(image, os.PathLike)
        or text.startswith(("/", "~", "./", "../"))
        or text.endswith(_FILES)
        or runtime in {None, "apptainer", "singularity"}
        or (runtime == "charliecloud" and path.exists())
    )
    return str(path.absolute()) if looks_like_one else text


def _bind(bind: object, runtime: str | None) -> str:
    parts = _text("binds", bind).split(":")
    if len(parts) > 3 or not all(parts) or "," in "".join(parts) or (len(parts) == 3 and parts[2] not in {"ro", "rw"}):  # noqa: PLR2004
        raise _refused(f"binds: {bind!r} is none of 'SOURCE', 'SOURCE:TARGET', 'SOURCE:TARGET:ro'; give a list of them")
    if parts[2:] == ["ro"] and runtime == "charliecloud":
        raise _refused(f"binds: {bind!r}: charliecloud cannot bind a folder that is only read")
    source = str(Path(parts[0]).expanduser().absolute())
    target = parts[1] if len(parts) > 1 else source
    if not target.startswith("/"):
        raise _refused(f"binds: {bind!r}: the path in the image must be absolute, not {target!r}")
    return ":".join([source, target, *(["ro"] if parts[2:] == ["ro"] else [])])


def _same_path(folder: Path, runtime: str | None) -> str:
    path = str(folder)
    separators = ":" if runtime in {"podman", "charliecloud"} else ":,"
    if any(each in path for each in separators):
        raise _refused(f"{path!r} cannot be bound into a container because of its name: use a folder without , and :")
    return f"{path}:{path}"


def _listed(name: str, values: object) -> Sequence[object]:
    if isinstance(values, (str, os.PathLike)):
        return (values,)
    if isinstance(values, (list, tuple)):
        return values
    raise _refused(f"{name} must be a list of texts, not {values!r}")


def _text(name: str, value: object) -> str:
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text:
        raise _refused(f"{name}: must be text or a path, not {value!r}")
    if re.search(r"[\n\r\0]", text):
        raise _refused(f"{name}: holds a line break or a NUL character: {text!r}")
    return text


def _refused(reason: str) -> OptionError:
    return OptionError(f"container: {reason}", option="container")
