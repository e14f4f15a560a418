"""Files that are complete or absent: written beside their place, made durable, then renamed into it."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from training.errors import DataError, StorageError

_CHUNK_BYTES = 1 << 20


def is_url(path: str) -> bool:
    """Tell a URL from a folder of this machine."""
    return "://" in path


def find_local_files(setting: str, pattern: str) -> list[str]:
    """Resolve a path or a glob on this machine's disks, in any order.

    Raises:
        DataError: It matches nothing, or names a folder; the message begins with ``setting``.
    """
    plain = pattern.removeprefix("file://")
    exact = Path(plain)
    if exact.is_dir():
        raise DataError(f"{setting}: {plain} is a folder; name its files, for instance {plain}/*.jsonl")
    # A file may be called notes[1].jsonl, which as a glob would mean notes1.jsonl.
    # Not Path.glob: it refuses absolute patterns.
    names = [plain] if exact.exists() else glob.glob(plain, recursive=True)  # noqa: PTH207
    found = [name for name in names if Path(name).is_file()]
    if not found:
        raise DataError(f"{setting}: no file {pattern} (seen from {Path.cwd()}); correct the path")
    return found


def say_bytes(count: float) -> str:
    """Write a size for people."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"  # noqa: PLR2004


def _say_remedy(error: OSError) -> str:
    if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.EROFS}:
        return "no folder can be made there, choose another one"
    return "free some space or set its permissions"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a sibling of ``path``, then rename it there once it is on the disk.

    Raises:
        StorageError: The disk is full or refuses; nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        sync_file(partial)
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}); {_say_remedy(error)}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, complete or not at all."""

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, complete or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync_file(path: Path) -> None:
    """Return once the file's bytes would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Return once the folder's entries would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Hash a file of any size in constant memory; hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_checksum(path: Path) -> str:
    """Compute XXH3-128 of a file of any size in constant memory; hexadecimal. Finds damage, not forgery."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def hold_lock(path: Path, *, busy: str, shared: bool = False) -> Iterator[None]:
    """Hold an advisory lock on ``path`` (flock(2)); the kernel frees it when the process ends.

    Args:
        path: The lock's file; made when missing, kept.
        busy: The error's words when another process holds the lock.
        shared: Several may hold it at once, but none beside one that holds it alone.

    Raises:
        StorageError: Another process holds the lock, or the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); {_say_remedy(error)}") from error
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(busy) from None
        # Whoever held it may have removed the file, and the folder, between our open and our lock.
        if not path.exists() or path.stat().st_ino != os.fstat(descriptor).st_ino:
            raise StorageError(busy)
        yield
    finally:
        os.close(descriptor)
