"""Chooses documents of a corpus, always the same ones, without reading any."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from training.data.corpus.manifest import SplitRecord
from training.data.documents import sample_evenly
from training.data.reading.mapped import StoredDocument

SHARDS_PER_SPLIT = 64
"""A sample of a source touches no more shards of a split than this: what lies far away is not all fetched."""

Numbers = npt.NDArray[np.int64]


class Documents(Protocol):
    """One split of a corpus; see ``training.data.reading.reader.Corpus``."""

    @property
    def record(self) -> SplitRecord:
        """What the manifest says of the split."""

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """int32 [documents]: tokens of each; negative: removed."""

    def document(self, index: int) -> StoredDocument:
        """Read one."""


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """Documents of one split."""

    corpus: Documents
    documents: Numbers
    """int64: their numbers in the corpus, ascending."""


def choose_documents(corpora: Sequence[Documents], source: str, limit: int | None) -> list[Choice]:
    """Choose up to ``limit`` documents of ``source``, at even distances over the splits in ``corpora``.

    Documents removed from train are not among them. None: all documents.
    """
    numbers = [_documents_of(corpus, source, is_sample=limit is not None) for corpus in corpora]
    total = sum(len(each) for each in numbers)
    if limit is not None and total > limit:
        # Each split gives its share of the limit; what rounding leaves over goes to the first.
        shares = [len(each) * limit // total for each in numbers]
        shares[0] += limit - sum(shares)
        numbers = [
            each[np.arange(share) * len(each) // max(1, share)]
            for each, share in zip(numbers, shares, strict=True)
        ]
    return [Choice(corpus, each) for corpus, each in zip(corpora, numbers, strict=True)]


def _documents_of(corpus: Documents, source: str, *, is_sample: bool) -> Numbers:
    shards = corpus.record.shards
    ends = np.cumsum([shard.documents for shard in shards], dtype=np.int64)
    places = [place for place, shard in enumerate(shards) if shard.source == source]
    numbers = [np.zeros(0, dtype=np.int64)]
    for place in sample_evenly(places, SHARDS_PER_SPLIT) if is_sample else places:
        first = int(ends[place]) - shards[place].documents
        numbers.append(first + np.flatnonzero(corpus.lengths[first : int(ends[place])] > 0))
    return np.concatenate(numbers)
