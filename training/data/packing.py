"""Packs documents into rows of ``sequence_length`` tokens, from their lengths alone.

Best-fit decreasing over windows: the documents of a window go, longest first, each into the fullest row
that still has room (Ding et al. 2024, arXiv:2404.10830, show that fewer cut documents also mean a better
model). Rows that are not full stay open for the next window.

Documents are shuffled, within blocks, before the windows are cut: neighbours in a source are about the same
thing, and a row should not be. The plan depends on lengths, ``sequence_length`` and policy only.
"""

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from training.data.order import shuffled
from training.errors import DataError

LongDocuments = Literal["refuse", "split", "truncate", "drop"]

BLOCK_PIECES = 65_536
"""Pieces that are shuffled among each other: bounds what a reader must have at hand at once."""

WINDOW_PIECES = 4_096
"""Pieces sorted by length at once; twice as many fill the rows no better."""

OPEN_ROWS = 64
"""Rows with room left that one window hands to the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingCounts:
    """What became of the documents; nothing is lost silently."""

    documents: int
    rows: int
    tokens: int
    """Tokens in the rows."""

    split: int
    truncated: int
    dropped: int
    """Documents longer than a row, by what was done with them."""

    tokens_left_out: int
    """Tokens of truncated and dropped documents that are in no row."""

    density: float
    """Share of the rows' slots that hold a token, 0..1."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Packing:
    """Which pieces of which documents make up each row."""

    sequence_length: int
    documents: npt.NDArray[np.int64]
    """int64 [P]: each piece's document, row by row."""

    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]
    """int64 [P]: the piece is the document's tokens [start, stop)."""

    row_bounds: npt.NDArray[np.int64]
    """int64 [R + 1]: where each row begins among the pieces."""

    block_rows: tuple[int, ...]
    """Rows of each block, in order."""

    counts: PackingCounts

    def row(self, index: int) -> list[tuple[int, int, int]]:
        """Give the pieces of one row: document, start, stop."""
        pieces = slice(int(self.row_bounds[index]), int(self.row_bounds[index + 1]))
        columns = (self.documents[pieces], self.starts[pieces], self.stops[pieces])
        return list(zip(*(column.tolist() for column in columns), strict=True))


def plan_packing(
    lengths: npt.NDArray[np.int32],
    sequence_length: int,
    long_documents: LongDocuments,
    name_of: Callable[[int], str] = str,
) -> Packing:
    """Pack documents of ``lengths`` int32 [D] tokens; ``name_of`` names a document in an error.

    Raises:
        DataError: A document is longer than a row and the policy is ``refuse``, or no document is left.
    """
    documents, starts, stops = _cut(lengths, sequence_length, long_documents, name_of)
    if not len(documents):
        raise DataError(
            f"all {len(lengths)} documents are longer than batch.sequence_length={sequence_length} and "
            "dropped; raise it or set data.long_documents=split"
        )
    sizes = stops - starts
    order: list[npt.NDArray[np.int64]] = []
    rows: list[npt.NDArray[np.int64]] = []
    block_rows: list[int] = []
    for block, begin in enumerate(range(0, len(sizes), BLOCK_PIECES)):
        count = min(BLOCK_PIECES, len(sizes) - begin)
        mixed = begin + shuffled(count, f"packing/{block}")
        placed, opened = _pack_block(sizes[mixed], sequence_length)
        grouped = np.argsort(placed, kind="stable")
        order.append(mixed[grouped])
        rows.append(placed[grouped] + sum(block_rows))
        block_rows.append(opened)
    pieces, row_of = np.concatenate(order), np.concatenate(rows)
    return Packing(
        sequence_length=sequence_length,
        documents=documents[pieces],
        starts=starts[pieces],
        stops=stops[pieces],
        row_bounds=np.searchsorted(row_of, np.arange(sum(block_rows) + 1)),
        block_rows=tuple(block_rows),
        counts=_count(lengths, sequence_length, long_documents, sum(block_rows)),
    )


Pieces = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _cut(
    lengths: npt.NDArray[np.int32],
    sequence_length: int,
    long_documents: LongDocuments,
    name_of: Callable[[int], str],
) -> Pieces:
    wide = lengths.astype(np.int64)
    documents = np.arange(len(wide), dtype=np.int64)
    zeros = np.zeros_like(documents)
    long = np.flatnonzero(wide > sequence_length)
    if not len(long):
        return documents, zeros, wide
    match long_documents:
        case "refuse":
            worst = int(long[0])
            raise DataError(
                f"document {name_of(worst)} has {wide[worst]} tokens, more than "
                f"batch.sequence_length={sequence_length} (as have {len(long)} in all, the longest "
                f"{wide.max()}); set data.long_documents to split, truncate or drop, or raise the length"
            )
        case "drop":
            kept = documents[wide <= sequence_length]
            return kept, np.zeros_like(kept), wide[kept]
        case "truncate":
            return documents, zeros, np.minimum(wide, sequence_length)
        case "split":
            cuts = -(-wide // sequence_length)
            owners = np.repeat(documents, cuts)
            first = np.repeat(np.cumsum(cuts) - cuts, cuts)
            starts = (np.arange(len(owners)) - first) * sequence_length
            return owners, starts, np.minimum(starts + sequence_length, wide[owners])


def _pack_block(sizes: npt.NDArray[np.int64], room: int) -> tuple[npt.NDArray[np.int64], int]:
    # Rows are numbered as they are opened. `open_rows` is sorted by (room left, row).
    placed = np.empty(len(sizes), dtype=np.int64)
    open_rows: list[tuple[int, int]] = []
    opened = 0
    for begin in range(0, len(sizes), WINDOW_PIECES):
        window = sizes[begin : begin + WINDOW_PIECES]
        for piece in np.argsort(-window, kind="stable").tolist():
            size = int(window[piece])
            fit = bisect_left(open_rows, (size, -1))
            if fit == len(open_rows):
                left, row = room, opened
                opened += 1
            else:
                left, row = open_rows.pop(fit)
            placed[begin + piece] = row
            if left > size:
                insort(open_rows, (left - size, row))
        del open_rows[:-OPEN_ROWS]
    return placed, opened


def _count(
    lengths: npt.NDArray[np.int32], sequence_length: int, long_documents: LongDocuments, rows: int
) -> PackingCounts:
    wide = lengths.astype(np.int64)
    long = wide > sequence_length
    many, total = int(long.sum()), int(wide.sum())
    match long_documents:
        case "drop":
            left_out = int(wide[long].sum())
        case "truncate":
            left_out = int((wide[long] - sequence_length).sum())
        case _:
            left_out = 0
    return PackingCounts(
        documents=len(lengths),
        rows=rows,
        tokens=total - left_out,
        split=many if long_documents == "split" else 0,
        truncated=many if long_documents == "truncate" else 0,
        dropped=many if long_documents == "drop" else 0,
        tokens_left_out=left_out,
        density=(total - left_out) / (rows * sequence_length),
    )
