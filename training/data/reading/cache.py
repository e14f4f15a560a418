"""The node's own copies of a corpus's files: bounded, verified, and shared by its processes without a race.

Files are named by their checksum, so corpora share them and a name never means two contents. What keeps
processes (and threads) apart is flock alone, which the kernel takes back from whoever is killed:

* A file in use is held with a shared lock; it is evicted only with an exclusive one, got without waiting.
* Who fetches holds the lock of the file's name, so that the others wait for it rather than fetch as well.
* Room is made, and reserved, under one lock for the whole folder: the limit holds for all together.

flock needs a file system of this machine, which a cache should be on anyway.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.data.corpus.manifest import FileRecord
from training.data.reading.remote import Origin
from training.errors import DataError, StorageError

_PARTIAL = ".partial"
_ROOM = "room"
_FULL = {errno.ENOSPC, errno.EDQUOT}


class NoRoomError(StorageError):
    """Everything that could be evicted is in use."""


@dataclass(frozen=True, slots=True)
class _Stored:
    path: Path
    bytes: int
    used_ns: int


class FileCache:
    """Keeps files of any corpus in ``folder``, ``limit_bytes`` in all; the least recently opened go first."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Make the folder.

        Raises:
            StorageError: It cannot be made or written.
        """
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.fetched_bytes = 0
        """What this object copied from origins."""

        self.refetched = 0
        """Files that came damaged and were fetched again."""

        self._counting = threading.Lock()
        self._files, self._locks = folder / "files", folder / "locks"
        with self._storage_errors():
            self._files.mkdir(parents=True, exist_ok=True)
            self._locks.mkdir(exist_ok=True)

    def holds(self, record: FileRecord) -> bool:
        """Whether the file is here; it may be evicted until it is opened."""
        return self.path(record).exists()

    def path(self, record: FileRecord) -> Path:
        """Where the file lies, when it is here."""
        return self._files / record.checksum

    def fetch(self, record: FileRecord, origin: Origin) -> None:
        """Make sure that the file is here, now.

        Raises:
            DataError: As ``open``.
            StorageError: As ``open``.
        """
        os.close(self.open(record, origin))

    def open(self, record: FileRecord, origin: Origin) -> int:
        """Open the file, fetched and verified where it is not here.

        Returns:
            A descriptor. The file stays for as long as it, or a mapping made from it, is open.

        Raises:
            DataError: The file is missing at its origin, or came damaged twice.
            StorageError: It cannot be read there, or the cache's disk is full or refuses.
            NoRoomError: The limit is too small for what is in use at once.
        """
        with self._storage_errors():
            descriptor = self._open_present(record)
            if descriptor is not None:
                return descriptor
            with self._locked(record.checksum[:2]):
                descriptor = self._open_present(record)  # another process may have been faster
                return self._fetch(record, origin) if descriptor is None else descriptor

    def discard(self, record: FileRecord) -> None:
        """Take out a file that is damaged; who has it open keeps what was opened."""
        with self._storage_errors(), self._locked(_ROOM):
            self.path(record).unlink(missing_ok=True)

    def _open_present(self, record: FileRecord) -> int | None:
        try:
            descriptor = os.open(self.path(record), os.O_RDONLY)
        except FileNotFoundError:
            return None
        # An evictor holds its lock for an instant only. What it evicted meanwhile has no name any more.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_nlink == 0:
            os.close(descriptor)
            return None
        with contextlib.suppress(PermissionError):  # another user's file: it ages, that is all
            os.utime(descriptor)
        return descriptor

    def _fetch(self, record: FileRecord, origin: Origin) -> int:
        for _ in range(2):
            descriptor, partial = self._reserve(record)
            try:
                checksum = self._fill(record, origin, descriptor)
                if checksum == record.checksum:
                    os.fsync(descriptor)
                    with self._locked(_ROOM):
                        partial.rename(self.path(record))
                    # Our exclusive lock becomes a shared one: whoever waits for the file may open it too.
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
                    os.utime(descriptor)
                    with self._counting:
                        self.fetched_bytes += record.bytes
                    return descriptor
            except BaseException:
                _drop(descriptor, partial)
                raise
            _drop(descriptor, partial)
            with self._counting:
                self.refetched += 1
        raise DataError(
            f"{origin.place(record.file)}: damaged, its checksum is not the manifest's, also when fetched "
            "again; copy the corpus there again, or run `metier prepare` to write it again"
        )

    def _fill(self, record: FileRecord, origin: Origin, descriptor: int) -> str:
        while True:
            try:
                return origin.copy(record.file, descriptor)
            except OSError as error:
                # Reserved space is ours, but not every file system keeps that promise.
                with self._locked(_ROOM):
                    self._free_disk(record.bytes, error)

    def _reserve(self, record: FileRecord) -> tuple[int, Path]:
        """Make room, and take it: an empty file of the size that is to come, with an exclusive lock."""
        partial = self._files / f"{record.checksum}.{secrets.token_hex(4)}{_PARTIAL}"
        with self._locked(_ROOM):
            self._keep_limit(record)
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                self._allocate(descriptor, record.bytes)
            except BaseException:
                _drop(descriptor, partial)
                raise
        return descriptor, partial

    def _keep_limit(self, record: FileRecord) -> None:
        stored = self._clean()
        excess = sum(file.bytes for file in stored) + record.bytes - self.limit_bytes
        if excess > 0 and self._evict(excess) < excess:
            raise NoRoomError(
                f"{self.folder}: loader.cache_bytes={self.limit_bytes} is too small for {record.file} of "
                f"{record.bytes} bytes beside the files in use; raise loader.cache_bytes"
            )

    def _allocate(self, descriptor: int, size: int) -> None:
        while True:
            try:
                os.posix_fallocate(descriptor, 0, size)
            except OSError as error:
                self._free_disk(size, error)
            else:
                return

    def _free_disk(self, size: int, error: OSError) -> None:
        """Evict something so that ``size`` bytes can be tried again; under the room's lock."""
        if error.errno not in _FULL:
            raise error
        if not self._evict(size):
            space = os.statvfs(self.folder)
            free = space.f_bavail * space.f_frsize
            raise NoRoomError(
                f"{self.folder}: the disk is full: {size} bytes are needed, {free} are free, and "
                "all that is cached is in use; free some space or set loader.cache_path to another disk"
            ) from None

    def _clean(self) -> list[_Stored]:
        """List what is here, after leftovers of killed processes were removed. Under the room's lock."""
        stored = []
        for entry in os.scandir(self._files):
            if entry.name.endswith(_PARTIAL) and _remove_unused(Path(entry.path)):
                continue
            with contextlib.suppress(FileNotFoundError):
                state = entry.stat()
                stored.append(_Stored(Path(entry.path), state.st_size, state.st_mtime_ns))
        return stored

    def _evict(self, wanted: int) -> int:
        """Remove files that nobody uses, the least recently opened first; gives the bytes that this freed."""
        freed = 0
        files = [file for file in self._clean() if file.path.suffix != _PARTIAL]
        for file in sorted(files, key=lambda file: (file.used_ns, file.path.name)):
            if freed >= wanted:
                break
            if _remove_unused(file.path):
                freed += file.bytes
        return freed

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        # These few files (one for each beginning of a checksum) are never removed: a lock on a removed file
        # would keep out nobody.
        descriptor = os.open(self._locks / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise StorageError(
                f"{self.folder}: cannot be written ({reason}); free some space, set its permissions, or set "
                "loader.cache_path to another disk"
            ) from error


def _remove_unused(path: Path) -> bool:
    """Remove a file unless somebody holds a lock on it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _drop(descriptor: int, partial: Path) -> None:
    partial.unlink(missing_ok=True)
    os.close(descriptor)
