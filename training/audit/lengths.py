"""How long the documents of each source are: a histogram whose bins are even on a logarithmic scale."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.data.corpus.manifest import SplitRecord

MOST_BINS = 16


@dataclass(frozen=True, slots=True)
class Bin:
    """Documents of ``first`` to ``last`` tokens, both included."""

    first: int
    last: int
    documents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """The lengths of one source's train documents, in tokens."""

    bins: tuple[Bin, ...]
    """From the shortest document to the longest; empty where there is none."""

    median: int
    longest: int


def measure_lengths(record: SplitRecord, lengths: npt.NDArray[np.int32]) -> Mapping[str, Lengths]:
    """Draw up the histogram of each source.

    Args:
        record: The split.
        lengths: int32 [documents] in the order of the split's shards; negative: removed, not counted.
    """
    ends = np.cumsum([shard.documents for shard in record.shards], dtype=np.int64)
    pieces: dict[str, list[npt.NDArray[np.int32]]] = {}
    for shard, end in zip(record.shards, ends, strict=True):
        piece = lengths[end - shard.documents : end]
        pieces.setdefault(shard.source, []).append(piece[piece > 0])
    return {source: _measure(np.concatenate(parts)) for source, parts in pieces.items()}


def _measure(lengths: npt.NDArray[np.int32]) -> Lengths:
    if not len(lengths):
        return Lengths(bins=(), median=0, longest=0)
    shortest, longest = int(lengths.min()), int(lengths.max())
    # Short lengths are whole numbers that lie farther apart than the edges would: those fall together.
    edges = np.unique(np.round(np.geomspace(shortest, longest + 1, MOST_BINS + 1)).astype(np.int64))
    counts = np.bincount(np.searchsorted(edges, lengths, side="right") - 1, minlength=len(edges) - 1)
    return Lengths(
        bins=tuple(
            Bin(int(first), int(stop) - 1, int(count))
            for first, stop, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ),
        median=int(np.median(lengths)),
        longest=longest,
    )
