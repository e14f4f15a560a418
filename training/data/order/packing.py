"""Packs documents into rows of ``sequence_length`` tokens, from their lengths alone.

Best-fit packing (Ding et al. 2024, arXiv:2404.10830) on the histogram of lengths instead of document by
document: rows are found as patterns of lengths (``training.data.order.patterns``), then the documents of each
length are dealt to the places that ask for it, in a shuffled order: neighbours in a source are about the same
thing, and a row should not be. The result depends on lengths, ``sequence_length`` and policy only.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from training.data.order.patterns import find_patterns
from training.data.order.shuffle import shuffled
from training.errors import DataError

LongDocuments = Literal["refuse", "split", "truncate", "drop"]
Integers = npt.NDArray[np.int64]

PACKER_VERSION = 2
"""Raised when the same lengths would be packed otherwise: cached plans are then made anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingCounts:
    """What became of the documents; nothing is lost silently."""

    documents: int
    """Documents to be packed; those removed as duplicates are not among them."""

    rows: int
    tokens: int
    """Tokens in the rows."""

    split: int
    truncated: int
    dropped: int
    """Documents longer than a row, by what was done with them."""

    tokens_left_out: int
    """Tokens of truncated and dropped documents that are in no row."""

    sequence_length: int

    @property
    def density(self) -> float:
        """Share of the rows' slots that hold a token, 0..1."""
        return self.tokens / (self.rows * self.sequence_length) if self.rows else 0.0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Packing:
    """Which pieces of which documents make up each row."""

    documents: Integers
    """int64 [P]: each piece's document, row by row."""

    starts: Integers
    sizes: Integers
    """int64 [P]: the piece is the document's tokens [start, start + size)."""

    row_bounds: Integers
    """int64 [R + 1]: where each row begins among the pieces, and P."""

    counts: PackingCounts

    def row(self, index: int) -> list[tuple[int, int, int]]:
        """Give the pieces of one row: document, start, stop."""
        pieces = slice(int(self.row_bounds[index]), int(self.row_bounds[index + 1]))
        documents, starts, sizes = (
            column[pieces].tolist() for column in (self.documents, self.starts, self.sizes)
        )
        return [(d, start, start + size) for d, start, size in zip(documents, starts, sizes, strict=True)]


def pack_documents(
    lengths: npt.NDArray[np.int32],
    sequence_length: int,
    long_documents: LongDocuments,
    name_of: Callable[[int], str] = str,
) -> Packing:
    """Pack documents of ``lengths`` int32 [D] tokens; ``name_of`` names a document in an error.

    A document of negative length was removed from the corpus and is in no row. There may be no row at all.

    Raises:
        DataError: A document is longer than a row and the policy is ``refuse``.
    """
    wide = lengths.astype(np.int64)
    kept = np.flatnonzero(wide > 0)
    if long_documents == "refuse":
        _refuse_long(wide, sequence_length, name_of)
    if long_documents == "drop":
        kept = kept[wide[kept] <= sequence_length]
    sizes = wide[kept]
    if long_documents == "truncate":
        sizes = np.minimum(sizes, sequence_length)
    full, rest = np.divmod(sizes, sequence_length)
    # Pieces that fill a row alone, then the rest of each document.
    alone = np.repeat(kept, full)
    first = np.repeat(np.cumsum(full) - full, full)
    ends = kept[rest > 0]
    packed, row_sizes = _pack_rests(rest[rest > 0], sequence_length)
    pieces_per_row = np.concatenate([row_sizes, np.ones(len(alone), dtype=np.int64)])
    return Packing(
        documents=np.concatenate([ends[packed], alone]),
        starts=np.concatenate(
            [(full[rest > 0] * sequence_length)[packed], (np.arange(len(alone)) - first) * sequence_length]
        ),
        sizes=np.concatenate([rest[rest > 0][packed], np.full(len(alone), sequence_length)]),
        row_bounds=np.concatenate([[0], np.cumsum(pieces_per_row)]),
        counts=_count(wide, sequence_length, long_documents, len(pieces_per_row)),
    )


def add_counts(counts: Iterable[PackingCounts], sequence_length: int) -> PackingCounts:
    """Add up what became of several groups of documents."""
    every = list(counts)
    return PackingCounts(
        documents=sum(one.documents for one in every),
        rows=sum(one.rows for one in every),
        tokens=sum(one.tokens for one in every),
        split=sum(one.split for one in every),
        truncated=sum(one.truncated for one in every),
        dropped=sum(one.dropped for one in every),
        tokens_left_out=sum(one.tokens_left_out for one in every),
        sequence_length=sequence_length,
    )


def _refuse_long(lengths: Integers, sequence_length: int, name_of: Callable[[int], str]) -> None:
    long = np.flatnonzero(lengths > sequence_length)
    if len(long):
        first = int(long[0])
        raise DataError(
            f"document {name_of(first)} has {lengths[first]} tokens, more than "
            f"batch.sequence_length={sequence_length} (as have {len(long)} in its shard, the longest "
            f"{lengths.max()}); set data.long_documents to split, truncate or drop, or raise the length"
        )


def _pack_rests(sizes: Integers, sequence_length: int) -> tuple[Integers, Integers]:
    """Pack pieces shorter than a row: their numbers row by row int64 [P], each row's count int64 [R]."""
    if not len(sizes):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    order = shuffled(len(sizes), "packing")
    mixed = sizes[order]
    patterns, times = find_patterns(mixed, sequence_length)
    pattern_sizes = np.fromiter(map(len, patterns), dtype=np.int64, count=len(patterns))
    row_sizes = np.repeat(pattern_sizes, times)
    # A pattern's rows lie one after another, so a place's pattern is told by its row.
    flat = np.fromiter((size for pattern in patterns for size in pattern), dtype=np.int64)
    begins = np.repeat(np.cumsum(pattern_sizes) - pattern_sizes, times)
    row_begins = np.cumsum(row_sizes) - row_sizes
    places = flat[np.repeat(begins - row_begins, row_sizes) + np.arange(len(sizes))]
    packed = np.empty(len(sizes), dtype=np.int64)
    packed[_sort_places(places)] = order[_sort_places(mixed)]
    return packed, row_sizes


def _sort_places(sizes: Integers) -> Integers:
    # numpy sorts integers of 16 bits by radix, many times faster.
    narrow = sizes.astype(np.uint16) if sizes.max() <= np.iinfo(np.uint16).max else sizes
    return np.argsort(narrow, kind="stable")


def _count(
    lengths: Integers, sequence_length: int, long_documents: LongDocuments, rows: int
) -> PackingCounts:
    kept = lengths[lengths > 0]
    long = kept[kept > sequence_length]
    match long_documents:
        case "drop":
            left_out = int(long.sum())
        case "truncate":
            left_out = int((long - sequence_length).sum())
        case _:
            left_out = 0
    return PackingCounts(
        documents=len(kept),
        rows=rows,
        tokens=int(kept.sum()) - left_out,
        split=len(long) if long_documents == "split" else 0,
        truncated=len(long) if long_documents == "truncate" else 0,
        dropped=len(long) if long_documents == "drop" else 0,
        tokens_left_out=left_out,
        sequence_length=sequence_length,
    )
