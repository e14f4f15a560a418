"""CSV with a header: every value a string, as it stands there.

pandas, which `datasets` reads CSV with, would guess types block by block: the answer ``007`` becomes a number
and the answer ``None`` becomes no answer. The csv module guesses nothing and says at which line it is.
"""

import csv
from collections.abc import Iterator
from typing import BinaryIO

from training.data.sources.formats.lines import read_lines, too_long
from training.data.sources.pieces import BadRecordError, Row, RowRange
from training.errors import DataError


def read_csv(stream: BinaryIO, rows: RowRange) -> Iterator[Row]:
    """Yield the rows as objects of the header's fields; a place is the line in which the row ends.

    Raises:
        DataError: The header is missing or names a field twice.
    """
    feed = _Feed(stream, rows)
    # Process-wide, and 128 KiB by default: less than many a document.
    csv.field_size_limit(rows.most_bytes + 1)
    reader = csv.reader(feed, strict=True)
    header = _read_header(reader, rows.name)
    skip = rows.skip
    if header is None:
        return
    while True:
        feed.begin_row()
        record: dict[str, str] | BadRecordError
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            record = BadRecordError(
                "broken CSV", f"broken CSV ({error}); wanted quotes doubled inside quotes"
            )
        except BadRecordError as fault:
            record = fault
        else:
            if not values:
                continue
            record = _name_values(header, values)
        if skip:
            skip -= 1
            continue
        yield f"{rows.name}:{feed.line}", record


class _Feed:
    """Lines for the csv module, checked and measured before it joins them to rows."""

    def __init__(self, stream: BinaryIO, rows: RowRange) -> None:
        self._lines = read_lines(stream, 0, None, rows.most_bytes)
        self._limit = rows.most_bytes
        self._row_bytes = 0
        self.line = 0

    def begin_row(self) -> None:
        """Measure from here."""
        self._row_bytes = 0

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        _, line = next(self._lines)
        self.line += 1
        if line is not None:
            self._row_bytes += len(line)
        if line is None or self._row_bytes > self._limit:
            raise too_long(self._limit)
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise BadRecordError(
                "invalid UTF-8", f"not UTF-8 at byte {error.start} of the line; convert the file to UTF-8"
            ) from None


def _read_header(reader: Iterator[list[str]], name: str) -> list[str] | None:
    try:
        header = next(reader, None)
    except (csv.Error, BadRecordError) as error:
        raise DataError(f"{name}:1: no readable header ({error})") from None
    if header is not None and len(set(header)) < len(header):
        twice = next(field for field in header if header.count(field) > 1)
        raise DataError(f'{name}:1: the header names the field "{twice}" twice; rename one')
    return header


def _name_values(header: list[str], values: list[str]) -> dict[str, str] | BadRecordError:
    if len(values) != len(header):
        return BadRecordError(
            "broken CSV",
            f"the row has {len(values)} values and the header {len(header)} fields; quote commas",
        )
    return dict(zip(header, values, strict=True))
