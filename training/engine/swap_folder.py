"""A folder of this process's own under strategy.nvme_path, for what is swapped out: it goes with the process.

Two runs on a node, or two starts of one run, never share a folder. The owner holds a lock on it, which the
system lets go when the process dies, in whatever way: so a folder without an owner can be told, and whoever
starts next on the node removes it.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from training.config.schema import RunConfig
from training.errors import ClusterError

_PREFIX = "metier_swap_"
_PATIENCE_SECONDS = 60.0
"""For a node's ranks that start at once, one after another, and the sweep of what the dead left."""

_PAUSE_SECONDS = 0.05
_MARK = ".made_by_metier"
"""A file in each folder of ours: a user's that happens to be called so is left alone."""


@contextmanager
def own_swap_folder(config: RunConfig) -> Iterator[RunConfig]:
    """Give the configuration with a folder of this process alone as nvme_path; remove the folder afterwards.

    Without offload to NVMe the configuration is given as it is.

    Raises:
        ClusterError: The folder cannot be made.
    """
    if not config.strategy.swaps_to_disk or config.strategy.nvme_path is None:
        yield config
        return
    with found_folder(Path(config.strategy.nvme_path), config.name) as folder:
        strategy = config.strategy.model_copy(update={"nvme_path": str(folder)})
        yield config.model_copy(update={"strategy": strategy})


@contextmanager
def found_folder(root: Path, name: str) -> Iterator[Path]:
    """Make a folder in ``root`` after those that nobody owns any more are gone; remove it afterwards.

    Raises:
        ClusterError: It cannot be made.
    """
    folder, lock = _found(root, name)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _found(root: Path, name: str) -> tuple[Path, int]:
    """Make a folder and lock it, after those that nobody owns any more are gone."""
    try:
        guard = _lock_in_time(root)
        try:
            _sweep(root)
            folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{name}_", dir=root))
            (folder / _MARK).touch()
            return folder, _lock(folder)
        finally:
            os.close(guard)
    except (FileNotFoundError, NotADirectoryError):
        raise ClusterError(
            f"strategy.nvme_path={root} is no folder on {os.uname().nodename}; make it on every node, or "
            "name another"
        ) from None
    except OSError as error:
        raise ClusterError(
            f"strategy.nvme_path={root} cannot be used on {os.uname().nodename} ({error.strerror}); name a "
            "folder on a local disk that you may write to"
        ) from None


def _sweep(root: Path) -> None:
    """Remove the folders whose owners are dead."""
    for folder in root.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # its owner lives, or it is another user's
            lock = _lock(folder)
            if (folder / _MARK).exists():
                shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _lock_in_time(folder: Path) -> int:
    """Lock a folder that others of ours hold for a moment at a time.

    Raises:
        ClusterError: Something else holds it.
    """
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return _lock(folder)
        except BlockingIOError:
            if time.monotonic() > end:
                raise ClusterError(
                    f"strategy.nvme_path={folder} has been locked by another program for "
                    f"{_PATIENCE_SECONDS:.0f} s; name another folder"
                ) from None
            time.sleep(_PAUSE_SECONDS)


def _lock(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
