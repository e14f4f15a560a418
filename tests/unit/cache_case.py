"""An origin of five files, a cache for them, and how tests of the cache read it."""

import os
from pathlib import Path

import pytest

from tests.cache_worker import write_origin
from training.data.corpus.manifest import FileRecord
from training.data.reading.cache import FileCache
from training.data.reading.remote import Origin

SIZE = 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "origin"


@pytest.fixture
def origin(folder: Path) -> Origin:
    return Origin(root=str(folder), attempts=3, first_wait_seconds=0.001)


@pytest.fixture
def records(folder: Path) -> list[FileRecord]:
    return write_origin(folder, 5, SIZE)


def make(tmp_path: Path, files: float = 100) -> FileCache:
    return FileCache(tmp_path / "cache", int(files * SIZE))


def read(cache: FileCache, record: FileRecord, origin: Origin) -> bytes:
    descriptor = cache.open(record, origin)
    try:
        return os.pread(descriptor, 2 * SIZE, 0)
    finally:
        os.close(descriptor)


def names(cache: FileCache) -> set[str]:
    return {path.name for path in (cache.folder / "files").iterdir()}
