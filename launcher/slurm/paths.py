"""Whether the nodes will find what the run reads and writes, as far as a login node can tell."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from launcher.checks import find_model_here
from training.config.schema import RunConfig
from training.errors import ClusterError, StorageError
from training.files import is_url
from training.layout import RunLayout
from training.model.arithmetic import count_parameters
from training.model.place import CONFIG

_MOUNTS = Path("/proc/self/mountinfo")
_IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})
_OF_ONE_MACHINE = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # noqa: S108 - folders that are looked for
_FULL_BYTES = 14
"""A parameter that is trained, as saved: fp32 value, two moments, 16-bit copy (docs/performance.md)."""

_ADAPTER_SHARE = 0.05
"""An adapter has less than this of a model's parameters, modules that are trained whole left out."""

_IMAGE_ENDINGS = (".sif", ".sqsh", ".img")


def check_paths(config: RunConfig) -> list[str]:
    """Look at the folders and files of a run.

    Returns:
        What may go wrong, in words.

    Raises:
        ClusterError: The image or the Python of the nodes is missing.
        StorageError: The checkpoints do not fit on the disk.
    """
    _check_python(config)
    notes = [*_note_image(config), *_note_local_folders(config)]
    check_space(config)
    return notes


def check_space(config: RunConfig) -> None:
    """Refuse a run whose checkpoints will not fit, where the model's size is known from its files.

    Raises:
        StorageError: The disk of the run directory has less.
    """
    each = estimate_checkpoint(config)
    if each is None:
        return
    layout = RunLayout.of(config.run_root, config.name)
    there = sum(1 for _ in layout.checkpoints.glob("step_*")) if layout.checkpoints.is_dir() else 0
    # Those that stay, and the one that is written before the oldest goes.
    count = max(1, config.loop.keep_checkpoints + 1 - there)
    folder = _first_existing(layout.root)
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < each * count:
        raise StorageError(
            f"{folder} has {_gigabytes(free)} free, and the run's checkpoints need about "
            f"{_gigabytes(each * count)} ({count} x {_gigabytes(each)}); choose another run_root, or keep "
            f"fewer than loop.keep_checkpoints={config.loop.keep_checkpoints}"
        )


def estimate_checkpoint(config: RunConfig) -> float | None:
    """Estimate the bytes of one checkpoint; None where the model cannot be seen or is of an unknown kind."""
    folder = find_model_here(config.model)
    if folder is None:
        return None
    architecture = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    counted = count_parameters(architecture.get("text_config", architecture))
    if counted is None:
        return None
    share = 1.0 if config.adapter.kind == "none" else _ADAPTER_SHARE
    return counted.total * share * _FULL_BYTES


def find_filesystem(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """Name the type of the file system that a path lies on; None where the system does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    best, kind = -1, None
    resolved = path.resolve()
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        # The last of two mounts on one place is the one that is seen.
        if resolved.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind


def _note_local_folders(config: RunConfig) -> Iterator[str]:
    # A single node as well: it is most often not the login node.
    found: dict[str, list[str]] = {}
    for setting, path in _shared_paths(config):
        kind = find_filesystem(_first_existing(path))
        own = next((each for each in _OF_ONE_MACHINE if path.is_relative_to(each)), None)
        if own or kind in _IN_MEMORY:
            found.setdefault(f"below {own}" if own else f"on a {kind}", []).append(f"{setting}={path}")
    for where, folders in found.items():
        yield (
            f"{', '.join(folders)} lie{'s' * (len(folders) == 1)} {where}, most often each machine's own: "
            "the nodes must see the same folder there"
        )


def _shared_paths(config: RunConfig) -> Iterator[tuple[str, Path]]:
    yield "run_root", Path(config.run_root).absolute()
    if not is_url(config.data.path):
        yield "data.path", Path(config.data.path).absolute()
    folder = find_model_here(config.model)
    if folder is not None:
        setting = "model.path" if config.model.source == "huggingface" else "model.folder"
        yield setting, folder.absolute()
    if config.cluster.container.kind == "none":
        python = config.cluster.environment.python or sys.executable
        yield "cluster.environment.python", Path(python)


def _note_image(config: RunConfig) -> Iterator[str]:
    container = config.cluster.container
    if container.kind == "none" or container.image is None:
        return
    image = container.image
    if image.startswith(("/", "./", "../")) or image.endswith(_IMAGE_ENDINGS):
        if not Path(image).exists():
            raise ClusterError(
                f"cluster.container.image={image} is missing here; build or copy it to a folder that the "
                "nodes see as well"
            )
    else:
        yield f"cluster.container.image={image} is fetched on the nodes; nobody looked whether it is there"


def _check_python(config: RunConfig) -> None:
    python = config.cluster.environment.python
    if python is None or config.cluster.container.kind != "none" or "/" not in python:
        return
    if not (Path(python).is_file() and os.access(python, os.X_OK)):
        raise ClusterError(
            f"cluster.environment.python={python} is no program here; name one that the nodes see as well, "
            "or null for the one that runs this command"
        )


def _first_existing(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB"
