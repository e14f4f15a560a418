"""Packs documents into rows of ``sequence_length`` tokens, from their lengths alone.

Best-fit decreasing over windows of documents (Ding et al. 2024, arXiv:2404.10830), one row after another:
the longest that still fits goes in, until one document or a pair of them fills the row to its last token.
Taken alone, the longest would leave holes wherever documents are much of a length, as questions are.

Documents are shuffled, within blocks, before the windows are cut: neighbours in a source are about the same
thing, and a row should not be. The plan depends on lengths, ``sequence_length`` and policy only.
"""

from bisect import bisect_left, bisect_right
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
"""Pieces that wait for a row at once, at least."""

RESERVE_PIECES = 512
"""Pieces, the shortest, that one window hands to the next: enough lengths to fill its rows exactly."""


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
    # Rows are numbered as they are filled; the pool's leftovers, short ones, fill rows of the next window.
    placed = np.empty(len(sizes), dtype=np.int64)
    pool = _Pool(room)
    opened = 0
    for begin in range(0, len(sizes), WINDOW_PIECES):
        end = min(begin + WINDOW_PIECES, len(sizes))
        pool.add(range(begin, end), sizes[begin:end].tolist())
        reserve = 0 if end == len(sizes) else RESERVE_PIECES
        while pool.pieces > reserve:
            left = room
            while left and (size := pool.choose(left)):
                placed[pool.take(size)] = opened
                left -= size
            opened += 1
    return placed, opened


class _Pool:
    """Pieces that wait for a row, by length."""

    def __init__(self, room: int) -> None:
        self.pieces = 0
        self._room = room
        self._waiting: dict[int, list[int]] = {}
        self._mixed: list[int] = []  # lengths as the pieces came, the latest first; some are gone already
        self._lengths: list[int] = []  # those of _waiting, ascending
        self._is_waiting = np.zeros(room + 1, dtype=np.bool_)

    def add(self, pieces: range, sizes: list[int]) -> None:
        for piece, size in zip(pieces, sizes, strict=True):
            self._waiting.setdefault(size, []).append(piece)
        self._lengths = sorted(self._waiting)
        self._is_waiting[self._lengths] = True
        self.pieces += len(sizes)
        self._mixed = sizes[::-1]

    def choose(self, left: int) -> int:
        """Give the length that goes next into a row with ``left`` tokens of room; 0 when none fits."""
        place = bisect_right(self._lengths, left)
        if not place:
            return 0
        longest = self._lengths[place - 1]
        if left > 2 * longest:
            # Too much room for a pair: any piece, so that the pool keeps its mixture of lengths. The row's
            # first is the longest, which would otherwise be left alone in the end.
            return longest if left == self._room else self._any(longest)
        if longest == left:
            return longest
        # Two pieces that fill the row to the last token; without such a pair, the longest again.
        half = (left + 1) // 2
        pairs = self._is_waiting[half : longest + 1] & self._is_waiting[left - half : left - longest - 1 : -1]
        found = int(pairs[::-1].argmax())
        size = longest - found
        if not pairs[len(pairs) - 1 - found] or (2 * size == left and len(self._waiting[size]) == 1):
            return longest
        return size

    def _any(self, longest: int) -> int:
        while self._mixed:
            size = self._mixed.pop()
            if size <= longest and size in self._waiting:
                return size
        return longest

    def take(self, size: int) -> int:
        waiting = self._waiting[size]
        piece = waiting.pop()
        self.pieces -= 1
        if not waiting:
            del self._waiting[size]
            del self._lengths[bisect_left(self._lengths, size)]
            self._is_waiting[size] = False
        return piece


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
