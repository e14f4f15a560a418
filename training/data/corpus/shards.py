"""Shards on the disk: Arrow IPC streams of one record batch, one row per document, one source and one split.

A shard is named by the checksum of its bytes and never rewritten with others: the same documents give the
same file, whoever writes it. The files open in pyarrow and as `datasets.Dataset.from_file`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from training.data.corpus.manifest import FileRecord, ShardRecord
from training.data.documents import Document
from training.data.encoding.encode import Encoded
from training.errors import DataError
from training.files import write_atomically
from training.layout import CorpusLayout

TokenBytes = Literal[2, 4]

MAX_TOKENS = 1 << 30
"""More than this in one shard would come near what Arrow's int32 offsets can count."""

_TOKEN_TYPES = {2: pa.uint16(), 4: pa.uint32()}
_TEXTS = ("id", "source", "family", "task")


def shard_schema(token_bytes: TokenBytes) -> pa.Schema:
    """Give the columns of a shard: four strings, the token ids, and 1 where a token is a target."""
    texts = [(name, pa.string()) for name in _TEXTS]
    ids, is_target = pa.list_(_TOKEN_TYPES[token_bytes]), pa.list_(pa.uint8())
    return pa.schema([*texts, ("input_ids", ids), ("is_target", is_target)])


def write_shard(
    root: Path, documents: Sequence[tuple[Document, Encoded]], token_bytes: TokenBytes
) -> ShardRecord:
    """Write documents of one source into ``root``/shards, durable before it returns.

    Args:
        root: The corpus folder.
        documents: At least one, all of one source and one split.
        token_bytes: Width of a stored token id.

    Returns:
        The shard's name, checksum and counts.

    Raises:
        StorageError: The disk is full or refuses; nothing is left behind.
    """
    buffer = _serialise(documents, token_bytes)
    checksum = xxhash.xxh3_128_hexdigest(buffer)
    path = CorpusLayout(root).shards / f"{checksum}.arrow"

    def write(partial: Path) -> None:
        partial.write_bytes(buffer)

    write_atomically(path, write)
    return ShardRecord(
        file=f"{path.parent.name}/{path.name}",
        checksum=checksum,
        bytes=len(buffer),
        source=documents[0][0].source,
        documents=len(documents),
        tokens=sum(len(encoded.input_ids) for _, encoded in documents),
        targets=sum(int(encoded.is_target.sum()) for _, encoded in documents),
    )


def map_shard(root: Path, record: FileRecord) -> pa.RecordBatch:
    """Map a shard of the corpus in ``root`` into memory, unverified.

    Raises:
        DataError: It is missing or no Arrow stream.
    """
    path = root / record.file
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            return stream.read_next_batch()
    except (OSError, pa.ArrowInvalid, StopIteration) as error:
        reason = str(error).partition("\n")[0] or "cut short"
        raise DataError(
            f"{path}: cannot be read ({reason}); remove it and run `metier prepare` again"
        ) from None


def shard_tokens(batch: pa.RecordBatch) -> tuple[npt.NDArray[np.unsignedinteger], npt.NDArray[np.int32]]:
    """View a mapped shard's token ids, uint16 or uint32 [T], and its documents' bounds, int32 [D + 1]."""
    column = batch.column("input_ids")
    return column.values.to_numpy(), column.offsets.to_numpy()


def _serialise(documents: Sequence[tuple[Document, Encoded]], token_bytes: TokenBytes) -> pa.Buffer:
    schema = shard_schema(token_bytes)
    bounds = np.cumsum([0, *(len(encoded.input_ids) for _, encoded in documents)], dtype=np.int32)
    ids = np.concatenate([encoded.input_ids for _, encoded in documents])
    is_target = np.concatenate([encoded.is_target for _, encoded in documents])
    columns = [
        *(pa.array([getattr(document, name) for document, _ in documents], pa.string()) for name in _TEXTS),
        pa.ListArray.from_arrays(bounds, ids.astype(f"u{token_bytes}")),
        pa.ListArray.from_arrays(bounds, is_target.astype(np.uint8)),
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return sink.getvalue()
