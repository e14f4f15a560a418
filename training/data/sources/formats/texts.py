"""A plain text file: one document."""

from collections.abc import Iterator
from typing import BinaryIO

from training.data.sources.formats.lines import too_long
from training.data.sources.pieces import BadRecordError, Row, RowRange


def read_text(stream: BinaryIO, rows: RowRange) -> Iterator[Row]:
    """Yield the whole file as the field ``text``; nothing where it holds only white space."""
    content = stream.read(rows.most_bytes + 1)
    if rows.skip or not content.strip():
        return
    if len(content) > rows.most_bytes:
        yield rows.name, too_long(rows.most_bytes)
        return
    try:
        yield rows.name, {"text": content.decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        yield (
            rows.name,
            BadRecordError("invalid UTF-8", f"not UTF-8 at byte {error.start}; convert the file to UTF-8"),
        )
