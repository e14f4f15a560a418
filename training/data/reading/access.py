"""How a corpus's files are reached: where they lie, or through the node's cache. What is opened is whole."""

import os
from pathlib import Path
from typing import Protocol

import xxhash

from training.data.corpus.manifest import FileRecord
from training.data.reading.cache import FileCache
from training.data.reading.remote import Origin
from training.errors import DataError

_HASHED_AT_ONCE = 1 << 20


class Files(Protocol):
    """How a corpus's files are reached."""

    def open(self, record: FileRecord) -> int:
        """Open a file that is what its record says; gives a descriptor."""

    def is_here(self, record: FileRecord) -> bool:
        """Whether ``open`` would give it at once."""

    def fetch(self, record: FileRecord) -> None:
        """Bring it here, for an ``open`` that comes later."""

    def place(self, record: FileRecord) -> str:
        """Name it in messages."""


class FilesInPlace:
    """Files of a corpus on a disk of this machine, read where they lie."""

    def __init__(self, root: Path) -> None:
        """Open nothing yet."""
        self._root = root
        self._verified: set[str] = set()

    def open(self, record: FileRecord) -> int:
        """Open a file; verified the first time.

        Raises:
            DataError: It is missing or damaged.
        """
        path = self._root / record.file
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); run `metier prepare` to write it again"
            ) from None
        if record.checksum not in self._verified:
            if not _is_whole(descriptor, record):
                os.close(descriptor)
                raise DataError(
                    f"{path}: damaged, its checksum is not the manifest's; remove it and run "
                    "`metier prepare` to write it again"
                )
            self._verified.add(record.checksum)
        return descriptor

    def is_here(self, record: FileRecord) -> bool:
        """Always: there is no other place to wait for."""
        return True

    def fetch(self, record: FileRecord) -> None:
        """Nothing to do."""

    def place(self, record: FileRecord) -> str:
        """Its path."""
        return str(self._root / record.file)


class CachedFiles:
    """Files of a corpus that lies elsewhere, copied into the node's cache as they are needed."""

    def __init__(self, cache: FileCache, origin: Origin) -> None:
        """Fetch nothing yet."""
        self.cache = cache
        self.origin = origin
        self._verified: set[str] = set()

    def open(self, record: FileRecord) -> int:
        """Open a file, fetched where it is not here; verified the first time, fetched again if damaged.

        Raises:
            DataError: It is missing at its origin, or damaged there.
            StorageError: It cannot be fetched, or not be kept.
        """
        for _ in range(2):
            descriptor = self.cache.open(record, self.origin)
            if record.checksum in self._verified or _is_whole(descriptor, record):
                self._verified.add(record.checksum)
                return descriptor
            os.close(descriptor)
            self.cache.discard(record)
        raise DataError(
            f"{self.cache.path(record)}: damaged again after it was fetched anew; the disk of "
            "loader.cache_path loses what is written to it: use another"
        )

    def is_here(self, record: FileRecord) -> bool:
        """Whether the cache holds it."""
        return self.cache.holds(record)

    def fetch(self, record: FileRecord) -> None:
        """Bring it into the cache.

        Raises:
            DataError: As ``open``.
            StorageError: As ``open``.
        """
        self.cache.fetch(record, self.origin)

    def place(self, record: FileRecord) -> str:
        """Where it comes from."""
        return self.origin.place(record.file)


def _is_whole(descriptor: int, record: FileRecord) -> bool:
    """Compare an open file with its record, in constant memory and without mapping it."""
    if os.fstat(descriptor).st_size != record.bytes:
        return False
    hasher = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(record.bytes, _HASHED_AT_ONCE)))
    offset = 0
    while size := os.preadv(descriptor, [buffer], offset):
        hasher.update(buffer[:size])
        offset += size
    digest: str = hasher.hexdigest()
    return digest == record.checksum
