"""A folder that is complete or absent: filled under a hidden name beside its place, then renamed there."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from training.data.shards import storage_errors
from training.errors import StorageError
from training.files import sync_folder


@contextlib.contextmanager
def stage_folder(final: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it takes ``final``'s place when the body ends without an error.

    What stood at ``final`` stays until then. A process that was killed leaves its hidden folder, which
    the next one empties; two at once are kept apart by a lock that dies with its process.

    Raises:
        StorageError: Another process is filling the same folder, or the disk refuses.
    """
    staging = final.with_name(f".{final.name}.partial")
    with storage_errors(final):
        staging.mkdir(parents=True, exist_ok=True)
        lock = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(lock, staging, final)
        with storage_errors(final):
            _restore(final)
            _empty(staging)
        try:
            yield staging
            with storage_errors(final):
                _replace(staging, final)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _lock(descriptor: int, staging: Path, final: Path) -> None:
    busy = StorageError(f"{final}: another `metier prepare` is writing it; wait for it to end")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise busy from None
    # The other may have finished, and renamed the folder away, between our open and our lock.
    if not staging.exists() or staging.stat().st_ino != os.fstat(descriptor).st_ino:
        raise busy


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _restore(final: Path) -> None:
    # Killed between the two renames of _replace: the former folder is still whole.
    former = _former(final)
    if former.exists() and not final.exists():
        former.rename(final)


def _replace(staging: Path, final: Path) -> None:
    former = _former(final)
    if former.exists():
        shutil.rmtree(former)
    sync_folder(staging)
    if final.exists():
        final.rename(former)
    staging.rename(final)
    sync_folder(final.parent)
    if former.exists():
        shutil.rmtree(former)


def _former(final: Path) -> Path:
    return final.with_name(f".{final.name}.former")
