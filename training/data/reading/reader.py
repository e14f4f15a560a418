"""Reads a prepared corpus: memory-mapped shards, each verified once, in place or through a node's cache."""

import mmap
import os
import tempfile
import threading
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from training.config.schema import LoaderConfig
from training.data.corpus.manifest import (
    Manifest,
    Split,
    SplitRecord,
    parse_manifest,
    read_manifest,
)
from training.data.reading.access import CachedFiles, Files, FilesInPlace
from training.data.reading.cache import FileCache, NoRoomError
from training.data.reading.mapped import Shard, StoredDocument
from training.data.reading.remote import Origin
from training.errors import ConfigError, DataError, StorageError
from training.files import is_url
from training.layout import CorpusLayout

MOST_OPEN_SHARDS = 128
MOST_OPEN_BYTES = 1 << 30
"""Of mapped files: addresses, no memory."""
MOST_RESIDENT_BYTES = 32 << 20
"""Pages of shards that stay in this process's memory; then they are given back to the page cache."""
CACHE_SHARE = 64
"""A process holds open, and so keeps from eviction, 1 / CACHE_SHARE of the cache and the shard it reads."""


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

    @property
    def token_bytes(self) -> int:
        """Width of a stored token id: 2 or 4."""
        return self.manifest.token_bytes

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each document, int32 [len(self)], mapped; negative: removed, not to be read.

        Raises:
            DataError: The file is missing or damaged.
            StorageError: It cannot be fetched.
        """
        with os.fdopen(self.files.open(self.record.lengths), "rb") as stream:
            begin = _skip_npy_header(stream)
            mapped = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
        return np.frombuffer(mapped, dtype=np.int32, offset=begin)

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
    local = None if is_url(root) else CorpusLayout(Path(root))
    if local is not None and (loader is None or loader.cache_path is None):
        manifest = read_manifest(local.root)
        return Corpus(root, split, manifest, FilesInPlace(local.root), _plans(local, manifest, None))
    if loader is None:
        raise ConfigError(f"data.path={root} is a URL: it is read through a cache, which needs settings")
    cache = FileCache(Path(loader.cache_path) if loader.cache_path else _own_folder(), loader.cache_bytes)
    origin = Origin(root=root, attempts=loader.fetch_attempts)
    manifest = parse_manifest(origin.read_bytes(CorpusLayout(Path()).manifest.name), root)
    return Corpus(root, split, manifest, CachedFiles(cache, origin), _plans(local, manifest, cache.folder))


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


def _plans(local: CorpusLayout | None, manifest: Manifest, cache: Path | None) -> Path:
    """Keep packing plans beside the corpus, else (a URL, a folder that is not ours) on this node."""
    if local is not None and os.access(local.plans if local.plans.exists() else local.root, os.W_OK):
        return local.plans
    return (cache or _own_folder()) / "plans" / manifest.fingerprint


def _own_folder() -> Path:
    """Make this user's folder among the system's temporary ones.

    Raises:
        StorageError: It cannot be made, or somebody else was there first.
    """
    folder = Path(tempfile.gettempdir()) / f"metier-cache-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made ({error.strerror}); set loader.cache_path") from None
    if owner != os.getuid():
        raise StorageError(
            f"{folder}: belongs to another user; set loader.cache_path to a folder of your own"
        )
    return folder


def _skip_npy_header(stream: BinaryIO) -> int:
    """Give the place of an .npy file's first value (numpy.lib.format); what it holds is ours to know."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    read(stream)
    return stream.tell()
