"""The cache of a node: bounded, whole, and shared by its processes without a race."""

import errno
import fcntl
import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from tests.cache_worker import write_origin
from tests.unit.cache_case import SIZE, folder, make, names, origin, read, records
from training.data.corpus.manifest import FileRecord
from training.data.reading.cache import NoRoomError
from training.data.reading.remote import Origin
from training.errors import ConfigError, DataError, StorageError

__all__ = ["folder", "origin", "records"]


def test_a_file_is_fetched_once_and_is_what_its_record_says(
    tmp_path: Path, folder: Path, origin: Origin, records: list[FileRecord]
) -> None:
    cache = make(tmp_path)

    for _ in range(3):
        for record in records:
            assert read(cache, record, origin) == (folder / record.file).read_bytes()

    assert cache.fetched_bytes == 5 * SIZE
    assert names(cache) == {record.checksum for record in records}


def test_the_least_recently_opened_goes_first(
    tmp_path: Path, origin: Origin, records: list[FileRecord]
) -> None:
    cache = make(tmp_path, files=3)
    a, b, c, d, _ = records
    for record in (a, b, c, a, d):
        read(cache, record, origin)

    assert names(cache) == {record.checksum for record in (a, c, d)}


@pytest.mark.parametrize("hold", ["descriptor", "mapping"])
def test_what_is_open_is_not_evicted(
    tmp_path: Path, origin: Origin, records: list[FileRecord], hold: str
) -> None:
    cache = make(tmp_path, files=2)
    held: int | mmap.mmap = cache.open(records[0], origin)
    if hold == "mapping":
        mapped = mmap.mmap(held, 0, prot=mmap.PROT_READ)
        os.close(held)
        held = mapped

    for record in records[1:]:
        read(cache, record, origin)

    assert records[0].checksum in names(cache)
    assert len(names(cache)) == 2
    held.close() if isinstance(held, mmap.mmap) else os.close(held)
    for record in records[3:]:
        read(cache, record, origin)
    assert records[0].checksum not in names(cache)


def test_a_file_evicted_between_its_opening_and_its_lock_is_fetched_again(
    tmp_path: Path, origin: Origin, records: list[FileRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make(tmp_path)
    cache.fetch(records[0], origin)
    lock = fcntl.flock

    def evict_first(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_SH:
            monkeypatch.undo()
            cache.path(records[0]).unlink()
        lock(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", evict_first)

    assert len(read(cache, records[0], origin)) == SIZE
    assert cache.holds(records[0])
    assert cache.fetched_bytes == 2 * SIZE


def test_a_limit_below_what_is_open_at_once_is_told(
    tmp_path: Path, origin: Origin, records: list[FileRecord]
) -> None:
    cache = make(tmp_path, files=2)
    held = [cache.open(record, origin) for record in records[:2]]

    with pytest.raises(NoRoomError, match=r"loader.cache_bytes=2000 is too small for .* 1000 bytes beside"):
        cache.open(records[2], origin)
    os.close(held.pop())
    read(cache, records[2], origin)
    os.close(held.pop())


def test_corpora_share_what_they_have_in_common(tmp_path: Path, records: list[FileRecord]) -> None:
    again = tmp_path / "again"
    assert write_origin(again, 5, SIZE) == records
    cache = make(tmp_path)

    for root in (tmp_path / "origin", again):
        for record in records:
            read(cache, record, Origin(root=str(root), attempts=1))

    assert cache.fetched_bytes == 5 * SIZE


def test_a_file_that_was_taken_out_comes_again(
    tmp_path: Path, origin: Origin, records: list[FileRecord]
) -> None:
    cache = make(tmp_path)
    cache.fetch(records[0], origin)
    cache.discard(records[0])

    assert not cache.holds(records[0])
    read(cache, records[0], origin)
    assert cache.fetched_bytes == 2 * SIZE


@dataclass(frozen=True, kw_only=True)
class Damaging(Origin):
    """Flips a bit in the first files that are copied."""

    times: int
    done: list[str] = field(default_factory=list)

    def copy(self, file: str, sink: int) -> str:
        checksum = super().copy(file, sink)
        if len(self.done) < self.times:
            self.done.append(file)
            return checksum[::-1]
        return checksum


def test_a_file_that_comes_damaged_is_fetched_again_once(
    tmp_path: Path, folder: Path, records: list[FileRecord]
) -> None:
    cache = make(tmp_path)

    assert (
        read(cache, records[0], Damaging(root=str(folder), attempts=1, times=1))
        == (folder / records[0].file).read_bytes()
    )
    assert cache.refetched == 1

    with pytest.raises(DataError, match=rf"{records[1].file}: damaged, .* also when fetched again"):
        cache.open(records[1], Damaging(root=str(folder), attempts=1, times=2))
    assert names(cache) == {records[0].checksum}


class Shaky(LocalFileSystem):
    """Fails a number of times, then works."""

    protocol = "shaky"
    failures = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("shaky://")))

    def open(self, path: str, *args: object, **kwargs: object) -> object:
        if Shaky.failures:
            Shaky.failures -= 1
            raise OSError(errno.ECONNRESET, "connection reset\nby peer")
        return super().open(path, *args, **kwargs)


@pytest.fixture
def shaky(folder: Path) -> Origin:
    fsspec.register_implementation("shaky", Shaky, clobber=True)
    return Origin(root=f"shaky://{folder}", attempts=3, first_wait_seconds=0.001)


def test_a_fetch_is_tried_as_often_as_was_asked_for(
    tmp_path: Path, shaky: Origin, records: list[FileRecord]
) -> None:
    cache = make(tmp_path)
    Shaky.failures = 2
    assert len(read(cache, records[0], shaky)) == SIZE

    Shaky.failures = 3
    with pytest.raises(StorageError) as told:
        read(cache, records[1], shaky)
    assert "cannot be read after 3 attempts (ConnectionResetError" in str(told.value)
    assert "loader.fetch_attempts" in str(told.value)
    assert "\n" not in str(told.value)
    assert Shaky.failures == 0


def test_what_is_not_there_is_not_asked_for_again(tmp_path: Path, origin: Origin) -> None:
    missing = FileRecord(file="shards/none.arrow", checksum="0" * 32, bytes=3)

    with pytest.raises(DataError, match=r"shards/none.arrow: missing; run `metier prepare`"):
        make(tmp_path).open(missing, origin)


def test_a_url_that_nobody_reads_is_told(tmp_path: Path, records: list[FileRecord]) -> None:
    with pytest.raises(ConfigError, match=r"nosuch://there/.*: fsspec cannot read it"):
        make(tmp_path).open(records[0], Origin(root="nosuch://there", attempts=3))


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")

    with pytest.raises(StorageError, match=r"cache: cannot be written .* loader.cache_path"):
        make(tmp_path)
