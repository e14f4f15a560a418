"""JSON lines: read within a byte range, a line at a time, never more of a line than allowed."""

import json
from collections.abc import Iterator
from typing import BinaryIO

from training.data.sources.pieces import BadRecordError, Record, Row, RowRange
from training.data.sources.values import describe

DROP_BYTES = 1 << 20
"""The rest of a line that is too long is read past in pieces of this size."""

_BOM = b"\xef\xbb\xbf"

_decode = json.JSONDecoder().decode


def read_json_lines(stream: BinaryIO, rows: RowRange) -> Iterator[Row]:
    """Yield the records of the lines that begin in the range.

    A row's place is ``file:line`` where the range begins with the file, else ``file@byte``: how many lines
    lie before is known only to those who read them all.
    """
    skip, name, limit = rows.skip, rows.name, rows.most_bytes
    number = 0
    for offset, line in read_lines(stream, rows.start, rows.stop, limit):
        number += 1
        if line is not None and line.isspace():
            continue
        if skip:
            skip -= 1
            continue
        place = f"{name}@{offset}" if rows.start else f"{name}:{number}"
        yield place, too_long(limit) if line is None else parse_line(line)


def read_lines(
    stream: BinaryIO, start: int, stop: int | None, limit: int
) -> Iterator[tuple[int, bytes | None]]:
    """Yield offset and content of the lines that begin in [start, stop); None for one longer than ``limit``.

    A line belongs to the range in which it begins: ranges that meet give every line exactly once.
    """
    position = start
    if start:
        stream.seek(start - 1)
        position = start - 1 + _drop_line(stream, None if stop is None else stop - start + 1)
    readline = stream.readline
    while stop is None or position < stop:
        line = readline(limit + 1)
        if not line:
            return
        offset = position
        position += len(line)
        if len(line) > limit and not line.endswith(b"\n"):
            del line
            position += _drop_line(stream, None if stop is None else stop - position)
            yield offset, None
        else:
            if offset == 0 and line.startswith(_BOM):
                line = line.removeprefix(_BOM) or b"\n"
            yield offset, line


def parse_line(line: bytes) -> Record | BadRecordError:
    """Read one JSON object, or say why it is none."""
    try:
        record = _decode(line.decode())
    except UnicodeDecodeError as error:
        return BadRecordError(
            "invalid UTF-8", f"not UTF-8 at byte {error.start} of the line; convert the file to UTF-8"
        )
    except json.JSONDecodeError as error:
        return BadRecordError(
            "broken JSON",
            f"broken JSON at column {error.colno} ({error.msg}); wanted one JSON object per line",
        )
    except (RecursionError, ValueError) as error:
        # Nested thousands deep, or a number of thousands of digits.
        return BadRecordError("broken JSON", f"JSON that cannot be read ({error}); take the line out")
    if type(record) is not dict:
        return no_object(record)
    return record


def no_object(value: object) -> BadRecordError:
    """Say that a record is JSON of another kind."""
    return BadRecordError("wrong type", f"found {describe(value)}, wanted one JSON object per record")


def too_long(limit: int) -> BadRecordError:
    """Say that a line, row or text is longer than it may be."""
    return BadRecordError(
        "line too long",
        f"longer than {limit:,} bytes; cut it up, or raise the source's max_line_bytes",
    )


def count_lines(stream: BinaryIO, stop: int) -> int:
    """Count the lines that begin before the byte ``stop``."""
    count = 0
    while stop > 0 and (block := stream.read(min(stop, DROP_BYTES))):
        count += block.count(b"\n")
        stop -= len(block)
    return count


def _drop_line(stream: BinaryIO, most: int | None) -> int:
    """Read past the end of a line, or past ``most`` bytes; how many they were."""
    dropped = 0
    while most is None or dropped < most:
        block = stream.readline(DROP_BYTES)
        dropped += len(block)
        if not block or block.endswith(b"\n"):
            break
    return dropped
