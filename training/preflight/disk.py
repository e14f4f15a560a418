"""A folder as this node sees it: is it there, how much is free, how fast is it."""

import contextlib
import os
import time
from pathlib import Path
from typing import Literal

from training.preflight.facts import PathFacts

_BLOCK_BYTES = 1 << 20
_MOST_BLOCKS = 32
_MOST_SECONDS = 3.0


def look_at_written(
    what: Literal["run directory", "local disk"], folder: Path, label: str, timed: bool = True
) -> PathFacts:
    """Write a file of up to 32 MiB, fsync, read it again past the page cache, remove it.

    Args:
        what: The folder's part in a run.
        folder: Made when it is missing.
        label: Tells this node's file from those of others in the same folder.
        timed: Else a single MiB is written, only to see that it can be.
    """
    path = folder / f".preflight-{label}-{os.getpid()}"
    free: int | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = free_bytes(folder)
        written, write_mbps = _write(path, _MOST_BLOCKS if timed else 1)
        read_mbps = _read(path, written)
        return PathFacts(
            what=what,
            path=str(folder),
            free_bytes=free,
            write_mbps=write_mbps if timed else None,
            read_mbps=read_mbps if timed else None,
        )
    except OSError as error:
        return PathFacts(what=what, path=str(folder), free_bytes=free, error=error.strerror or str(error))
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def look_at_read(what: Literal["corpus", "model"], folder: Path) -> PathFacts:
    """Read up to 32 MiB of the largest file of a folder; nothing is written."""
    try:
        if not folder.exists():
            return PathFacts(what=what, path=str(folder), missing=True)
        files = [path for path in folder.rglob("*") if path.is_file()]
        largest = max(files, key=lambda path: path.stat().st_size, default=None)
        rate = None if largest is None else _read(largest, _MOST_BLOCKS * _BLOCK_BYTES)
        return PathFacts(what=what, path=str(folder), read_mbps=rate)
    except OSError as error:
        return PathFacts(what=what, path=str(folder), error=error.strerror or str(error))


def free_bytes(folder: Path) -> int:
    """Bytes that an ordinary user may still write there."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _write(path: Path, blocks: int) -> tuple[int, float]:
    block = os.urandom(_BLOCK_BYTES)  # a disk that compresses would be too fast with zeros
    began, written = time.perf_counter(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for _ in range(blocks):
            written += os.write(descriptor, block)
            if time.perf_counter() - began > _MOST_SECONDS:
                break
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return written, written / (time.perf_counter() - began) / 1e6


def _read(path: Path, most_bytes: int) -> float | None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Asks the kernel to forget the file's pages; a tmpfs has no other place for them.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        began, count = time.perf_counter(), 0
        while count < most_bytes and (block := os.read(descriptor, _BLOCK_BYTES)):
            count += len(block)
            if time.perf_counter() - began > _MOST_SECONDS:
                break
        seconds = time.perf_counter() - began
    finally:
        os.close(descriptor)
    return count / seconds / 1e6 if count else None
