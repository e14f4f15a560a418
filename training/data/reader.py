"""Reads a prepared corpus: memory-mapped shards, each verified once, in place or through a node's cache."""

import mmap
import os
import tempfile
import threading
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from training.config.schema import LoaderConfig
from training.data.cache import FileCache, NoRoomError
from training.data.manifest import FileRecord, Manifest, Split, SplitRecord, parse_manifest, read_manifest
from training.data.remote import Origin, is_url
from training.data.shard import Shard, StoredDocument
from training.errors import ConfigError, DataError
from training.layout import CorpusLayout

MOST_OPEN_SHARDS = 128
MOST_OPEN_BYTES = 1 << 30
"""Of mapped files: addresses, no memory."""
MOST_RESIDENT_BYTES = 48 << 20
"""Pages of shards that stay in this process's memory; then they are given back to the page cache."""
CACHE_SHARE = 64
"""A process holds open, and so keeps from eviction, 1 / CACHE_SHARE of the cache and the shard it reads."""

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


class Corpus:
    """One split of a prepared corpus. Documents are numbered through all shards, in manifest order."""

    def __init__(self, path: str, split: Split, manifest: Manifest, files: Files, plans_folder: Path) -> None:
        """Map nothing yet: a shard is opened and verified when it is first read."""
        self.path = path
        self.split = split
        self.manifest = manifest
        self.record: SplitRecord = manifest.splits[split]
        self.files = files
        self.plans_folder = plans_folder
        """Where packing plans are kept."""

        self._ends = np.cumsum([shard.documents for shard in self.record.shards], dtype=np.int64)
        numbers = {name: number for number, name in enumerate(manifest.sources)}
        self.source_numbers = np.array([numbers[s.source] for s in self.record.shards], dtype=np.int64)
        """int64 [shards]: the place of each shard's source in ``manifest.sources``."""

        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._opening = threading.RLock()
        self._most_bytes = MOST_OPEN_BYTES
        if isinstance(files, CachedFiles):
            self._most_bytes = min(MOST_OPEN_BYTES, files.cache.limit_bytes // CACHE_SHARE)

    def __len__(self) -> int:
        """Documents in all shards, removed ones as well."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def padding_id(self) -> int:
        """The token id that fills a row's rest."""
        return self.manifest.padding_id

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each document, int32 [len(self)], mapped; negative: removed, not to be read.

        Raises:
            DataError: The file is missing or damaged.
            StorageError: It cannot be fetched.
        """
        record = self.record.lengths
        with self._opening, os.fdopen(self.files.open(record), "rb") as stream:
            shape, _, dtype = _read_npy_header(stream)
            begin = stream.tell()
            mapped = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
        lengths: npt.NDArray[np.int32] = np.frombuffer(mapped, dtype, count=int(np.prod(shape)), offset=begin)
        return lengths

    def shard(self, index: int) -> Shard:
        """Open shard ``index``; it stays open while it is among those used last.

        Raises:
            DataError: It is missing or damaged.
            StorageError: It cannot be fetched, or not be kept.
        """
        with self._opening:
            if index in self._open:
                self._open.move_to_end(index)
                return self._open[index]
            record = self.record.shards[index]
            try:
                shard = Shard(self.files.open(record), self.files.place(record))
            except NoRoomError:
                # Those that this process holds open may be what is in the way.
                self._open.clear()
                shard = Shard(self.files.open(record), self.files.place(record))
            self._open[index] = shard
            self._close_oldest()
            return shard

    def give_back(self) -> None:
        """Keep what was read of the shards' pages from adding up: the page cache has them, we need not."""
        with self._opening:
            touched = [shard for shard in self._open.values() if shard.touched]
            if sum(shard.bytes for shard in touched) > MOST_RESIDENT_BYTES:
                for shard in touched:
                    shard.give_back()

    def document(self, index: int) -> StoredDocument:
        """Read document ``index`` with its names.

        Raises:
            DataError: Its shard is missing or damaged.
            StorageError: Its shard cannot be fetched.
            IndexError: There is no such document.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        place = int(np.searchsorted(self._ends, index, side="right"))
        row = index - int(self._ends[place]) + self.record.shards[place].documents
        stored = self.shard(place).document(row)
        self.give_back()
        return stored

    def verify(self) -> None:
        """Read every file once and compare it with the manifest.

        Raises:
            DataError: One is missing or damaged.
            StorageError: One cannot be fetched.
        """
        for record in (self.record.lengths, *self.record.shards):
            os.close(self.files.open(record))

    def _close_oldest(self) -> None:
        total = sum(shard.bytes for shard in self._open.values())
        while len(self._open) > 1 and (len(self._open) > MOST_OPEN_SHARDS or total > self._most_bytes):
            _, shard = self._open.popitem(last=False)
            total -= shard.bytes


def open_corpus(path: str | Path, split: Split, loader: LoaderConfig | None = None) -> Corpus:
    """Open one split of a corpus.

    Args:
        path: The folder that `metier prepare` wrote, or the URL it was uploaded to.
        split: ``train`` or ``held_out``.
        loader: How its shards reach this process. None: a folder is read in place.

    Raises:
        DataError: There is no complete corpus there.
        StorageError: It cannot be read, or the cache's folder not be made.
        ConfigError: A URL without ``loader``.
    """
    root = str(path)
    if not is_url(root) and (loader is None or loader.cache_path is None):
        folder = Path(root)
        layout = CorpusLayout(folder)
        manifest = read_manifest(folder)
        plans = layout.plans if _may_write(layout) else _default_cache() / "plans" / manifest.fingerprint
        return Corpus(root, split, manifest, FilesInPlace(folder), plans)
    if loader is None:
        raise ConfigError(f"data.path={root} is a URL; it is read through a cache, so `loader` is needed")
    origin = Origin(root=root, attempts=loader.fetch_attempts)
    cache = FileCache(
        Path(loader.cache_path) if loader.cache_path else _default_cache(), limit_bytes=loader.cache_bytes
    )
    name = CorpusLayout(Path()).manifest.name
    manifest = parse_manifest(origin.read_bytes(name), root)
    plans = cache.folder / "plans" / manifest.fingerprint
    if not is_url(root) and _may_write(CorpusLayout(Path(root))):
        plans = CorpusLayout(Path(root)).plans
    return Corpus(root, split, manifest, CachedFiles(cache, origin), plans)


def check_tokenizer(manifest: Manifest, fingerprint: str, path: str) -> None:
    """Make sure that the corpus at ``path`` was encoded with the tokenizer of this fingerprint.

    Raises:
        DataError: It was another one, so the token ids mean something else.
    """
    if manifest.tokenizer != fingerprint:
        raise DataError(
            f"data.path={path} was prepared with another tokenizer or chat template than the model's; "
            "run `metier prepare` again"
        )


def _default_cache() -> Path:
    return Path(tempfile.gettempdir()) / f"metier-cache-{os.getuid()}"
