"""Reads a prepared corpus: memory-mapped shards, each verified once, documents by their number."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.data.manifest import Manifest, ShardRecord, Split, SplitRecord, read_manifest
from training.errors import DataError
from training.files import file_sha256
from training.layout import CorpusLayout


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StoredDocument:
    """One document as it lies in its shard; the arrays are views into the mapped file."""

    id: str
    source: str
    family: str
    task: str
    input_ids: npt.NDArray[np.int32]
    """int32 [L]."""

    is_target: npt.NDArray[np.bool_]
    """bool [L]."""


class Corpus:
    """One split of a prepared corpus. Documents are numbered through all shards, in manifest order."""

    def __init__(self, root: Path, split: Split, manifest: Manifest) -> None:
        """Map nothing yet: a shard is opened and verified when its first document is read."""
        self.manifest = manifest
        self.split = split
        self.root = root
        self.record: SplitRecord = manifest.splits[split]
        self._layout = CorpusLayout(root)
        self._ends = np.cumsum([shard.documents for shard in self.record.shards])
        self._shards: dict[int, _Shard] = {}

    def __len__(self) -> int:
        """Documents in the split."""
        return self.record.counts.documents

    @property
    def padding_id(self) -> int:
        """The token id that fills a row's rest."""
        return self.manifest.padding_id

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each document, int32 [len(self)].

        Raises:
            DataError: The file is missing or damaged.
        """
        path = self._layout.lengths(self.split)
        _verify(path, self.record.lengths_sha256)
        lengths: npt.NDArray[np.int32] = np.load(path, allow_pickle=False)
        return lengths

    def encoded(self, index: int) -> StoredDocument:
        """Read document ``index`` with its names.

        Raises:
            DataError: Its shard is missing or damaged.
            IndexError: There is no such document.
        """
        shard, row = self._find(index)
        input_ids, is_target = shard.tokens(row, 0, None)
        source, family, task = (shard.text(name, row) for name in ("source", "family", "task"))
        return StoredDocument(
            id=shard.text("id", row),
            source=source,
            family=family,
            task=task,
            input_ids=input_ids,
            is_target=is_target,
        )

    def tokens(
        self, index: int, start: int = 0, stop: int | None = None
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Read the tokens [start, stop) of document ``index``: ids int32 [L] and targets bool [L].

        Raises:
            DataError: Its shard is missing or damaged.
            IndexError: There is no such document.
        """
        shard, row = self._find(index)
        return shard.tokens(row, start, stop)

    def verify(self) -> None:
        """Read every file once and compare it with the manifest.

        Raises:
            DataError: One is missing or damaged.
        """
        _verify(self._layout.lengths(self.split), self.record.lengths_sha256)
        for shard in self.record.shards:
            _verify(self._layout.split(self.split) / shard.file, shard.sha256)

    def _find(self, index: int) -> tuple["_Shard", int]:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        place = int(np.searchsorted(self._ends, index, side="right"))
        record = self.record.shards[place]
        if place not in self._shards:
            self._shards[place] = _Shard(self._layout.split(self.split) / record.file, record)
        return self._shards[place], index - int(self._ends[place]) + record.documents


def open_corpus(path: Path | str, split: Split) -> Corpus:
    """Open one split of the corpus in the folder ``path``.

    Raises:
        DataError: There is no complete corpus there.
    """
    root = Path(path)
    return Corpus(root, split, read_manifest(root))


class _Shard:
    def __init__(self, path: Path, record: ShardRecord) -> None:
        _verify(path, record.sha256)
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            self._batch = stream.read_next_batch()
        ids, targets = self._batch.column("input_ids"), self._batch.column("is_target")
        self._ends = ids.offsets.to_numpy()
        self._ids = ids.values.to_numpy()
        # Arrow keeps one bit per boolean; only the piece that is read is ever unpacked.
        self._bits = np.frombuffer(targets.values.buffers()[1], dtype=np.uint8)

    def tokens(
        self, row: int, start: int, stop: int | None
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        begin, end = int(self._ends[row]), int(self._ends[row + 1])
        first = begin + start
        last = end if stop is None else min(begin + stop, end)
        skipped = first % 8
        bits = np.unpackbits(self._bits[first // 8 : (last + 7) // 8], bitorder="little")
        return self._ids[first:last], bits[skipped : skipped + last - first].view(np.bool_)

    def text(self, column: str, row: int) -> str:
        return str(self._batch.column(column)[row].as_py())


def _verify(path: Path, sha256: str) -> None:
    try:
        found = file_sha256(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); run `metier prepare` to write it again"
        ) from None
    if found != sha256:
        raise DataError(
            f"{path}: damaged, its checksum is not the manifest's; run `metier prepare` to write it again"
        )


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
