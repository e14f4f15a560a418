"""Shards on the disk: Arrow IPC streams of one record batch, one row per document.

The same documents give the same bytes; the files open in pyarrow and as `datasets.Dataset.from_file`.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from training.data.documents import Document
from training.data.encode import Encoded
from training.data.manifest import Counts, ShardRecord, Split, SplitRecord
from training.errors import StorageError
from training.files import file_sha256, sync_file, sync_folder
from training.layout import CorpusLayout

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "family": pa.string(),
        "task": pa.string(),
        "input_ids": pa.list_(pa.int32()),
        "is_target": pa.list_(pa.bool_()),
    }
)
PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)

_QUANTITIES = ("documents", "tokens", "targets")
_COUNTED = [f"{key} {quantity}" for key in ("all", "source", "task") for quantity in _QUANTITIES]


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a refusing disk into one line.

    Raises:
        StorageError: The disk is full or cannot be written.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StorageError(
            f"{path}: cannot be written ({reason}); free some space or set data.path to another disk"
        ) from error


@dataclass(slots=True)
class SplitWriter:
    """Collects the documents of one split and writes them out shard by shard."""

    layout: CorpusLayout
    split: Split
    documents_per_shard: int
    _pending: list[tuple[Document, Encoded]] = field(default_factory=list)
    _shards: list[ShardRecord] = field(default_factory=list)
    _lengths: list[int] = field(default_factory=list)
    _families: set[str] = field(default_factory=set)
    _counts: dict[str, Counter[str]] = field(default_factory=lambda: {key: Counter() for key in _COUNTED})

    @property
    def documents(self) -> int:
        """Documents added so far."""
        return len(self._lengths)

    @property
    def families(self) -> int:
        """Different families added so far."""
        return len(self._families)

    def add(self, document: Document, encoded: Encoded) -> None:
        """Append one document.

        Raises:
            StorageError: The disk is full or cannot be written.
        """
        self._pending.append((document, encoded))
        self._families.add(document.family)
        self._lengths.append(len(encoded.input_ids))
        targets = int(encoded.is_target.sum())
        for key, name in (("all", ""), ("source", document.source), ("task", document.task)):
            self._counts[f"{key} documents"][name] += 1
            self._counts[f"{key} tokens"][name] += len(encoded.input_ids)
            self._counts[f"{key} targets"][name] += targets
        if len(self._pending) == self.documents_per_shard:
            self._write_shard()

    def finish(self) -> SplitRecord:
        """Write what is left and say what the split holds; there must be at least one document.

        Raises:
            StorageError: The disk is full or cannot be written.
        """
        if self._pending:
            self._write_shard()
        lengths = np.asarray(self._lengths, dtype=np.int32)
        path = self.layout.lengths(self.split)
        with storage_errors(path):
            np.save(path, lengths)
            sync_file(path)
            sync_folder(path.parent)
        percentiles = np.percentile(lengths, PERCENTILES, method="lower")
        return SplitRecord(
            counts=self._tell("all")[""],
            families=len(self._families),
            by_source=self._tell("source"),
            by_task=self._tell("task"),
            length_percentiles={
                str(percent): int(length) for percent, length in zip(PERCENTILES, percentiles, strict=True)
            },
            lengths_sha256=file_sha256(path),
            shards=self._shards,
        )

    def _tell(self, key: str) -> dict[str, Counts]:
        documents, tokens, targets = (self._counts[f"{key} {what}"] for what in _QUANTITIES)
        return {
            name: Counts(documents=documents[name], tokens=tokens[name], targets=targets[name])
            for name in sorted(documents)
        }

    def _write_shard(self) -> None:
        path = self.layout.shard(self.split, len(self._shards))
        batch = _to_arrow(self._pending)
        with storage_errors(path):
            path.parent.mkdir(exist_ok=True)
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
                writer.write_batch(batch)
            sync_file(path)
        self._shards.append(
            ShardRecord(
                file=path.name,
                sha256=file_sha256(path),
                documents=len(self._pending),
                tokens=sum(len(encoded.input_ids) for _, encoded in self._pending),
            )
        )
        self._pending.clear()


def _to_arrow(rows: list[tuple[Document, Encoded]]) -> pa.RecordBatch:
    ends = np.cumsum([0, *(len(encoded.input_ids) for _, encoded in rows)], dtype=np.int32)
    return pa.RecordBatch.from_arrays(
        [
            pa.array([document.id for document, _ in rows], pa.string()),
            pa.array([document.source for document, _ in rows], pa.string()),
            pa.array([document.family for document, _ in rows], pa.string()),
            pa.array([document.task for document, _ in rows], pa.string()),
            pa.ListArray.from_arrays(ends, np.concatenate([encoded.input_ids for _, encoded in rows])),
            pa.ListArray.from_arrays(ends, np.concatenate([encoded.is_target for _, encoded in rows])),
        ],
        schema=SCHEMA,
    )
