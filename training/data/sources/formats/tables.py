"""Parquet by row groups, Arrow by record batches: a few hundred rows in memory at a time."""

from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from training.data.sources.formats.tail import Tail
from training.data.sources.pieces import BadRecordError, Record, Row, RowRange
from training.data.sources.values import drop_nulls

ROWS_PER_BATCH = 512
BUFFER_BYTES = 1 << 20

_ARROW_FILE = b"ARROW1"
_ARROW_MARK = bytes.fromhex("ffffffff00000000")
"""What ends a stream since Arrow 0.15 (columnar format, IPC streaming format)."""


def list_row_groups(stream: BinaryIO) -> list[int]:
    """List the bytes of a Parquet file's row groups, as they are once decompressed."""
    metadata = pq.ParquetFile(stream).metadata
    return [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]


def read_parquet(stream: BinaryIO, rows: RowRange) -> Iterator[Row]:
    """Yield the rows of the row groups [start, stop)."""
    # Columns are read in blocks and not at once: a row group can be larger than the memory.
    file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=BUFFER_BYTES)
    metadata = file.metadata
    skip = rows.skip
    row = sum(metadata.row_group(group).num_rows for group in range(rows.start))
    stop = metadata.num_row_groups if rows.stop is None else rows.stop
    for group in range(rows.start, stop):
        size = metadata.row_group(group).num_rows
        if skip >= size:
            skip -= size
            row += size
            continue
        for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, row_groups=[group]):
            taken = min(skip, batch.num_rows)
            skip -= taken
            yield from list_rows(rows.name, row + taken, batch.slice(taken))
            row += batch.num_rows


def read_arrow(stream: BinaryIO, rows: RowRange) -> Iterator[Row]:
    """Yield the rows of an Arrow IPC file or stream."""
    peek: Any = stream
    is_file = peek.peek(len(_ARROW_FILE)).startswith(_ARROW_FILE)
    batches = _read_file(stream) if is_file else _read_stream(stream)
    skip, row = rows.skip, 0
    for batch in batches:
        taken = min(skip, batch.num_rows)
        skip -= taken
        for start in range(taken, batch.num_rows, ROWS_PER_BATCH):
            yield from list_rows(rows.name, row + start, batch.slice(start, ROWS_PER_BATCH))
        row += batch.num_rows


def list_rows(name: str, before: int, batch: Any) -> Iterator[Row]:
    """Yield a batch's or table's rows; ``before`` rows of the file lie before them, places count from 1."""
    for row, record in enumerate(_list_records(batch), start=before + 1):
        yield f"{name}:{row}", record


def _read_file(stream: BinaryIO) -> Iterator[Any]:
    reader = pa.ipc.open_file(stream)
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)


def _read_stream(stream: BinaryIO) -> Iterator[Any]:
    tail = Tail(stream, len(_ARROW_MARK))
    yield from pa.ipc.open_stream(tail)
    # Arrow takes a stream that was cut between two batches for a whole one.
    if tail.last != _ARROW_MARK:
        raise pa.ArrowInvalid("cut off, or its writer was not closed: Arrow's end-of-stream mark is missing")


def _list_records(batch: Any) -> list[Record | BadRecordError]:
    try:
        records: list[Any] = batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [
                BadRecordError(
                    "invalid UTF-8", f"a string that is not UTF-8 at byte {error.start}; mend the file"
                )
            ]
        return [record for row in range(batch.num_rows) for record in _list_records(batch.slice(row, 1))]
    if "tool" in str(batch.schema):
        # The arguments of one tool would otherwise show, as nulls, in the calls of every other.
        return [drop_nulls(record) for record in records]
    return records
