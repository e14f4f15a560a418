"""The cache of a node among its processes: those that race, those that are killed, and a full disk."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cache_worker import write_origin
from tests.unit.cache_case import SIZE, folder, make, names, origin, read, records
from training.data.corpus.manifest import FileRecord
from training.data.reading.cache import FileCache
from training.data.reading.remote import Origin

__all__ = ["folder", "origin", "records"]


def test_leftovers_of_killed_processes_are_cleaned_and_those_at_work_are_not(
    tmp_path: Path, folder: Path, origin: Origin, records: list[FileRecord]
) -> None:
    cache = make(tmp_path, files=3)
    with hanging(folder, cache) as process:
        partial = next(name for name in names(cache) if name.endswith(".partial"))
        for record in records[1:]:
            read(cache, record, origin)
        assert partial in names(cache)
        assert len(names(cache)) == 3, "what is being fetched counts as well"
        process.send_signal(signal.SIGKILL)
        process.wait()

    read(cache, records[0], origin)  # the dead process' lock on this name is gone
    assert names(cache) == {records[place].checksum for place in (0, 3, 4)}


@contextmanager
def hanging(folder: Path, cache: FileCache) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of fetching the first file."""
    words = [sys.executable, "-m", "tests.cache_worker", "hang", folder, cache.folder, cache.limit_bytes]
    with subprocess.Popen(
        [str(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        try:
            yield process
        finally:
            process.kill()


def run_readers(folder: Path, cache: FileCache, count: int, rounds: int) -> list[int]:
    """Let processes read all files at once; gives what each fetched."""
    words = [sys.executable, "-m", "tests.cache_worker", "read", folder, cache.folder, cache.limit_bytes]
    processes = [
        subprocess.Popen(
            [*(str(word) for word in words), str(seed), str(rounds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(count)
    ]
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, told[0][1]
    return [int(out) for out, _ in told]


def test_processes_of_one_node_fetch_each_file_once_together(tmp_path: Path, folder: Path) -> None:
    write_origin(folder, 40, SIZE)
    cache = make(tmp_path)

    fetched = run_readers(folder, cache, 4, 2)

    assert sum(fetched) == 40 * SIZE


def test_processes_that_evict_each_others_files_still_read_what_they_asked_for(
    tmp_path: Path, folder: Path
) -> None:
    records = write_origin(folder, 30, SIZE)
    cache = make(tmp_path, files=12)  # three processes hold two each, and fetch a third

    fetched = run_readers(folder, cache, 3, 8)

    assert sum(fetched) > 30 * SIZE
    assert len(names(cache)) <= 12
    assert names(cache) <= {record.checksum for record in records}


def fill_tiny_disk(tmp_path: Path, folder: Path, held: int) -> str:
    """Open all files of the origin through a cache on a disk of 64 KB; give what was printed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        'mount -t tmpfs -o size=64k tmpfs "$1" && shift && '
        'exec "$0" -m tests.cache_worker fill "$1" "$2" 1000000000 "$3"'
    )
    words = ["unshare", "-m", "sh", "-c", script, sys.executable, disk, folder, disk / "cache", held]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no disk of our own: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_makes_room_by_eviction(tmp_path: Path, folder: Path) -> None:
    write_origin(folder, 20, 10_000)

    assert fill_tiny_disk(tmp_path, folder, held=2) == "20\n"


def test_a_full_disk_with_everything_in_use_says_what_is_needed(tmp_path: Path, folder: Path) -> None:
    write_origin(folder, 20, 10_000)

    told = fill_tiny_disk(tmp_path, folder, held=20)

    assert "5 NoRoomError" in told
    assert "the disk is full: 10000 bytes are needed, " in told
    assert "set loader.cache_path to another disk" in told
    assert told.count("\n") == 1
