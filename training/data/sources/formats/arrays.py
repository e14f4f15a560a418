"""A ``.json`` file: one array of objects, as Alpaca's, read piece by piece; or JSON lines after all."""

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from training.data.sources.formats.lines import no_object, read_json_lines, too_long
from training.data.sources.pieces import BadRecordError, Row, RowRange
from training.errors import DataError

CHUNK_BYTES = 1 << 20

_SPACE = " \t\r\n\ufeff"
_scan = json.JSONDecoder().raw_decode


def read_json(stream: BinaryIO, rows: RowRange) -> Iterator[Row]:
    """Yield the objects of the array, or of the lines where the file begins with no bracket.

    Raises:
        DataError: The array is broken: where its next object begins cannot be known.
    """
    head = cast_peek(stream).lstrip(_SPACE.encode())
    if not head.startswith(b"["):
        yield from read_json_lines(stream, rows)
        return
    window = _Window(stream, rows)
    window.take("[")
    skip = rows.skip
    while (sign := window.look()) != "]":
        place = f"{rows.name}:{window.line}"
        value = window.take_value()
        sign = window.look()
        if sign == ",":
            window.take(",")
        elif sign != "]":
            raise window.broken(f"found {sign or 'the end of the file'}, wanted , or ]")
        if skip:
            skip -= 1
            continue
        yield place, value if isinstance(value, dict | BadRecordError) else no_object(value)
    window.take("]")
    if window.look():
        raise window.broken("found more behind the array; join the two, or write one object per line")


def cast_peek(stream: BinaryIO) -> bytes:
    """Look at the next bytes of a buffered stream without taking them."""
    peek: Any = stream
    found: bytes = peek.peek(256)
    return found


class _Window:
    """The part of the file's text that is in memory, and where in it we are."""

    def __init__(self, stream: BinaryIO, rows: RowRange) -> None:
        self._stream = stream
        self._rows = rows
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self._ended = False
        self.line = 1

    def look(self) -> str:
        """Move to the next sign that is no white space; empty at the end of the file."""
        while True:
            while self._at < len(self._text):
                sign = self._text[self._at]
                if sign not in _SPACE:
                    return sign
                self.line += sign == "\n"
                self._at += 1
            if not self._grow():
                return ""

    def take(self, sign: str) -> None:
        """Move past a sign that must come next."""
        if self.look() != sign:
            raise self.broken(f"wanted {sign}")
        self._at += 1

    def take_value(self) -> Any:
        """Move past the next JSON value and give it, or what is wrong with it."""
        while True:
            try:
                value, end = _scan(self._text, self._at)
            except json.JSONDecodeError as error:
                # Broken, or only not all here yet; a value that is here ends before what we hold.
                if len(self._text) - self._at > self._rows.most_bytes:
                    raise self.broken(
                        f"{error.msg}, or an object longer than {self._rows.most_bytes:,} bytes"
                    ) from None
                if not self._grow():
                    raise self.broken(error.msg) from None
                continue
            except (RecursionError, ValueError) as error:
                raise self.broken(str(error)) from None
            if end == len(self._text) and self._grow():
                continue  # a number may go on
            longest = self._rows.most_bytes
            self.line += self._text.count("\n", self._at, end)
            length, self._at = end - self._at, end
            return value if length <= longest else too_long(longest)

    def broken(self, reason: str) -> DataError:
        """Name the line at which the array cannot be read."""
        return DataError(
            f"{self._rows.name}:{self.line}: broken JSON array ({reason}); "
            "mend it, or write one JSON object per line into a .jsonl file"
        )

    def _grow(self) -> bool:
        """Read as much again as is still to be read; False at the end of the file."""
        if self._ended:
            return False
        rest = self._text[self._at :]
        block = self._stream.read(max(CHUNK_BYTES, len(rest)))
        self._ended = not block
        try:
            self._text = rest + self._decode.decode(block, final=self._ended)
        except UnicodeDecodeError:
            raise self.broken("not UTF-8; convert the file to UTF-8") from None
        self._at = 0
        return True
