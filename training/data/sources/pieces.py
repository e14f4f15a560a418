"""What the readers of sources hand to each other: pieces, rows, and records that are left out."""

from dataclasses import dataclass
from typing import Any, Literal

from training.errors import DataError

Reason = Literal[
    "broken JSON",
    "broken CSV",
    "invalid UTF-8",
    "line too long",
    "missing field",
    "wrong type",
    "wrong roles",
    "empty answer",
    "empty text",
    "template failed",
    "empty file",
]
"""Why a record cannot be used; the manifest counts by these words."""

Record = dict[str, Any]
"""A record's fields, as they were read."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The smallest part of a source that can be read on its own, by any process, in any order."""

    name: str
    """Path or URL of the file; the source's own name where the piece is the whole source."""

    start: int
    """First byte (JSON lines), row group (Parquet) or shard (hub) of the piece; 0 elsewhere."""

    stop: int | None
    """One past the last; None: to the end."""

    identity: dict[str, Any]
    """JSON values that change when what is to be read does: size and time or version of the file."""

    bytes: int
    """About how much there is to read, for progress and for grouping; 0 where nobody says."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A bad record that was left out under ``bad_records=skip``."""

    place: str
    reason: str
    """One of `Reason`."""


class BadRecordError(DataError):
    """A record that cannot be used. Its message lacks the place, which whoever catches it puts before."""

    def __init__(self, reason: Reason, message: str) -> None:
        """Keep the countable ``reason`` beside the ``message`` for people."""
        super().__init__(message)
        self.reason: Reason = reason


Row = tuple[str, Record | BadRecordError]
"""Where a record lies (``file:line``), and what it holds or what is wrong with it.

A reader yields the fault instead of raising it, so that reading can go on behind a bad record."""


@dataclass(frozen=True, slots=True)
class RowRange:
    """Which rows of a file a reader is asked for."""

    name: str
    """Of the file, for the rows' places."""

    start: int = 0
    stop: int | None = None
    """As in `Piece`."""

    skip: int = 0
    """Rows at the beginning of the range that were read before."""

    most_bytes: int = 1 << 25
    """A longer line, row or text is a bad record; the memory of a reader is bounded by it."""
