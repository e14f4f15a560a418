"""A process of a node, for tests of the cache that they share.

    python -m tests.cache_worker read ORIGIN CACHE LIMIT_BYTES SEED ROUNDS
    python -m tests.cache_worker hang ORIGIN CACHE LIMIT_BYTES
    python -m tests.cache_worker fill ORIGIN CACHE LIMIT_BYTES HELD

``read`` opens every file of the origin in its own order, several times, holds some open, and looks at each
byte; it prints how many bytes it fetched. ``hang`` dies, or rather waits to be killed, in the middle of a
fetch. ``fill`` opens all files and holds the last HELD open; it prints how many it could open, and the error.
"""

import mmap
import os
import random
import sys
from pathlib import Path

import xxhash

from training.data.corpus.manifest import FileRecord
from training.data.reading.cache import FileCache
from training.data.reading.remote import Origin
from training.errors import MetierError


def records_of(origin: Path) -> list[FileRecord]:
    return [
        FileRecord(file=path.name, checksum=path.name, bytes=path.stat().st_size)
        for path in sorted(origin.iterdir())
    ]


def write_origin(folder: Path, count: int, size: int, *, seed: int = 0) -> list[FileRecord]:
    """Make files of random bytes, each named by its checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for _ in range(count):
        content = rng.randbytes(size)
        (folder / xxhash.xxh3_128_hexdigest(content)).write_bytes(content)
    return records_of(folder)


class Hanging(Origin):
    """Its files come half, and then nothing."""

    def copy(self, file: str, sink: int) -> str:
        os.pwrite(sink, b"half", 0)
        print("half", flush=True)
        sys.stdin.read()
        raise AssertionError("killed before")


def read(origin: Origin, cache: FileCache, records: list[FileRecord], seed: int, rounds: int) -> None:
    rng = random.Random(seed)
    held: list[mmap.mmap] = []
    for _ in range(rounds):
        for record in rng.sample(records, len(records)):
            descriptor = cache.open(record, origin)
            mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
            os.close(descriptor)
            held = [*held[-1:], mapped]
            assert all(xxhash.xxh3_128_hexdigest(one) in {r.checksum for r in records} for one in held)
            assert xxhash.xxh3_128_hexdigest(mapped) == record.checksum
    print(cache.fetched_bytes)


def fill(origin: Origin, cache: FileCache, records: list[FileRecord], count: int) -> None:
    held: list[int] = []
    opened = 0
    try:
        for record in records:
            held.append(cache.open(record, origin))
            opened += 1
            if len(held) > count:
                os.close(held.pop(0))
    except MetierError as error:
        print(opened, type(error).__name__, error)
    else:
        print(opened)


def main() -> None:
    action, root, folder, limit, *rest = sys.argv[1:]
    kind = Hanging if action == "hang" else Origin
    origin = kind(root=root, attempts=1)
    cache = FileCache(Path(folder), int(limit))
    records = records_of(Path(root))
    if action == "hang":
        cache.open(records[0], origin)
    elif action == "fill":
        fill(origin, cache, records, int(rest[0]))
    else:
        read(origin, cache, records, int(rest[0]), int(rest[1]))


if __name__ == "__main__":
    main()
