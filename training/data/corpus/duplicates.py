"""Train documents that are held out as well, word for word or nearly, and copies within train.

Exact copies have the same XXH3-64 of their token ids. Two different documents have it with a chance of 2^-64
a pair: for 10^9 train and 10^8 held-out documents, one in two hundred that one document is removed wrongly.

Near copies have a Jaccard similarity J of their sets of token 5-grams of at least ``near_threshold`` t with
one held-out document. Grams that more than half of a source's documents of one task share (its chat template,
system prompt and question) are left out of all sets: they say how it asks, not what. They are told from an
even sample of some ``SAMPLE`` documents a task. Documents of which nothing else is left, and those of fewer
than five tokens, are compared exactly only.

1. Of J(A, B) >= t follows that t of A's grams are in the union of all held-out documents' grams; that is
   cheap to know (``GramTable``) and drops nearly all of train. The same, the other way round, drops held-out
   documents.
2. What is left is compared by MinHash with banded LSH (Broder 1997; Leskovec et al., Mining of Massive
   Datasets, ch. 3; package ``datasketch``), and each pair found is judged by its exact J: nothing is removed
   wrongly.

What is missed: a pair at exactly J = t, with a chance of at most ``MISSED`` (1e-4; more below t = 0.07, where
128 permutations do not suffice), falling fast above it; pairs whose estimate is four standard errors below t
(3e-5); grams that share a slot with an ignored one count for nothing in step 1 (less than one in 1,000).
Where the held-out split has more than 2^25 tokens, step 1 knows a sample of its grams only, and allows three
standard errors (1e-3).

Memory: at most 256 MB for the table, some 30 bytes for each document, one shard, and for each document left
after step 1 about 1 KB and its grams. Time: tens of millions of tokens a second and core.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import xxhash

from training.data.corpus.manifest import ShardRecord, Split
from training.data.corpus.shards import map_shard, shard_tokens
from training.data.corpus.shingles import (
    ABSENT,
    GRAM,
    PRESENT,
    Chunk,
    Documents,
    GramTable,
    Hashes,
    hash_grams,
)

SAMPLE = 1024
"""Documents of each task of a source that say which grams all share."""

LEAST_SAMPLE = 4
"""Fewer say nothing about what is common."""

MISSED = 1e-4
PERMUTATIONS = 128

_ESTIMATE_ERRORS = 4.0
_SAMPLING_ERRORS = 3.0
_HALF = np.uint64(32)
_BIT_PLACE = np.uint64(26)

Numbers = npt.NDArray[np.int64]
"""Document numbers of one split, ascending."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Duplicates:
    """Train documents, by number."""

    exact: Numbers
    """Held out as well, word for word."""

    near: Numbers
    """Held out as well, nearly."""

    repeated: Numbers
    """Copies of earlier train documents, among those that are neither of the above."""


def find_duplicates(
    root: Path, shards: dict[Split, list[ShardRecord]], near_threshold: float | None
) -> Duplicates:
    """Compare the two splits of the corpus in ``root``.

    Args:
        root: The corpus folder.
        shards: The shards of each split, in order.
        near_threshold: Jaccard similarity of 5-grams from which on two documents are the same; None: only
            exact copies.

    Raises:
        DataError: A shard is missing or damaged.
    """
    train, held_out = (Documents(root, shards[split]) for split in ("train", "held_out"))
    known = np.unique(_hash_documents(held_out))
    hashes = _hash_documents(train)
    is_exact = np.isin(hashes, known)
    is_near = np.zeros(len(train), dtype=np.bool_)
    if near_threshold is not None:
        common = _find_common(root, shards)
        is_near[_find_near(train, held_out, common, near_threshold)] = True
    is_near &= ~is_exact
    is_repeated = _find_repeated(hashes) & ~is_exact & ~is_near
    return Duplicates(
        exact=np.flatnonzero(is_exact), near=np.flatnonzero(is_near), repeated=np.flatnonzero(is_repeated)
    )


def choose_bands(threshold: float) -> tuple[int, int]:
    """Choose LSH's bands and rows: the most rows that miss a pair at the threshold at most ``MISSED`` often.

    A pair of similarity s is found with probability 1 - (1 - s^rows)^bands (Mining of Massive Datasets,
    3.4.2).
    """
    for rows in range(PERMUTATIONS // 2, 1, -1):
        bands = PERMUTATIONS // rows
        if (1 - threshold**rows) ** bands <= MISSED:
            return bands, rows
    return PERMUTATIONS, 1


def _hash_documents(documents: Documents) -> Hashes:
    return np.fromiter(
        (
            xxhash.xxh3_64_intdigest(content[width * begin : width * end])
            for content, width, bounds in _contents(documents)
            for begin, end in pairwise(bounds)
        ),
        dtype=np.uint64,
        count=len(documents),
    )


def _contents(documents: Documents) -> Iterable[tuple[memoryview, int, list[int]]]:
    for chunk in documents.chunks():
        yield chunk.ids.data.cast("B"), chunk.ids.itemsize, chunk.bounds.tolist()


def _find_repeated(hashes: Hashes) -> npt.NDArray[np.bool_]:
    order = np.argsort(hashes, kind="stable")
    is_repeated = np.zeros(len(hashes), dtype=np.bool_)
    is_repeated[order[1:]] = hashes[order[1:]] == hashes[order[:-1]]
    return is_repeated


def _find_common(root: Path, shards: dict[Split, list[ShardRecord]]) -> Hashes:
    """Find the grams of more than half of the sampled documents of one task; sorted."""
    samples: dict[tuple[str, str], list[Hashes]] = {}
    every = [shard for split in shards.values() for shard in split]
    shards_of = Counter(shard.source for shard in every)
    for shard in every:
        batch = map_shard(root, shard)
        ids, bounds = shard_tokens(batch)
        tasks = pc.dictionary_encode(batch.column("task"))
        for code, task in enumerate(tasks.dictionary.to_pylist()):
            rows = np.flatnonzero(tasks.indices.to_numpy() == code)
            chosen = rows[:: max(1, len(rows) * shards_of[shard.source] // SAMPLE)]
            samples.setdefault((shard.source, task), []).extend(
                np.unique(hash_grams(ids[bounds[row] : bounds[row + 1]])) for row in chosen
            )
    common = [
        grams[counts > len(documents) / 2]
        for documents in samples.values()
        if len(documents) >= LEAST_SAMPLE
        for grams, counts in [np.unique(np.concatenate(documents), return_counts=True)]
    ]
    return np.unique(np.concatenate(common)) if common else np.empty(0, dtype=np.uint64)


def _find_near(train: Documents, held_out: Documents, common: Hashes, threshold: float) -> Numbers:
    table = GramTable(sum(shard.tokens for shard in held_out.shards))
    for chunk in held_out.chunks():
        hashes, whole = chunk.grams()
        table.add(hashes[whole])
    table.ignore(common)
    suspects = _find_contained(train, table, threshold)
    if not len(suspects):
        return suspects
    grams = [_read_grams(train, number, common) for number in suspects]
    back = GramTable(sum(len(own) for own in grams))
    for own in grams:
        back.add(own)
    back.ignore(common)
    others = [_read_grams(held_out, number, common) for number in _find_contained(held_out, back, threshold)]
    return suspects[_judge(grams, others, threshold)]


def _read_grams(documents: Documents, number: int, common: Hashes) -> Hashes:
    grams = np.unique(hash_grams(documents.tokens(number)))
    return grams[~np.isin(grams, common, assume_unique=True)]


def _find_contained(documents: Documents, table: GramTable, threshold: float) -> Numbers:
    """Find the documents whose grams are to at least ``threshold`` in the table."""
    found = [
        number for chunk in documents.chunks() for number in _find_contained_here(chunk, table, threshold)
    ]
    return np.array(found, dtype=np.int64)


def _find_contained_here(chunk: Chunk, table: GramTable, threshold: float) -> Iterable[int]:
    hashes, whole = chunk.grams()
    states = table.find(hashes)
    starts = chunk.bounds[:-1]
    # A gram may stand in a document many times, but counts once. Counting presences with repetition and
    # absences by 64 bits, which are never too many, passes all that the exact count behind it could.
    present = np.add.reduceat((states == PRESENT) & whole, starts, dtype=np.int32)
    bits = np.left_shift(np.uint64(1), (hashes >> _BIT_PLACE) & np.uint64(63))
    bits *= (states == ABSENT) & whole
    absent = np.bitwise_count(np.bitwise_or.reduceat(bits, starts)).astype(np.int32)
    is_sampled = table.sampled_bits > 0
    for row in np.flatnonzero(_may_be_near(present, absent, threshold, is_sampled=is_sampled)):
        begin, end = chunk.bounds[row], chunk.bounds[row + 1]
        if end - begin < GRAM:
            continue
        own = table.find(np.unique(hashes[begin : end - GRAM + 1]))
        counts = np.count_nonzero(own == PRESENT), np.count_nonzero(own == ABSENT)
        if _may_be_near(np.array(counts[0]), np.array(counts[1]), threshold, is_sampled=is_sampled):
            yield chunk.first + int(row)


def _may_be_near(
    present: npt.NDArray[np.integer], absent: npt.NDArray[np.integer], threshold: float, *, is_sampled: bool
) -> npt.NDArray[np.bool_]:
    total = present + absent
    allowed = (1 - threshold) * total + 1e-9
    if is_sampled:
        allowed += _SAMPLING_ERRORS * np.sqrt(total * threshold * (1 - threshold)) + 1
        return np.asarray(absent <= allowed)
    return np.asarray((absent <= allowed) & (present > 0))


def _judge(grams: list[Hashes], others: list[Hashes], threshold: float) -> npt.NDArray[np.bool_]:
    """Say of each set of grams whether one of the others is similar enough."""
    # Here, not above: it imports scipy, and most corpora have nothing to judge.
    from datasketch import MinHash, MinHashLSH  # noqa: PLC0415

    bands = choose_bands(threshold)
    index = MinHashLSH(num_perm=PERMUTATIONS, params=bands)
    blank = MinHash(num_perm=PERMUTATIONS, hashfunc=int)
    signatures = np.empty((len(others), PERMUTATIONS), dtype=np.uint32)
    for place, other in enumerate(others):
        sketch = blank.copy()
        sketch.update_batch((other >> _HALF).tolist())
        signatures[place] = sketch.hashvalues
        index.insert(place, sketch, check_duplication=False)
    least = threshold - _ESTIMATE_ERRORS * np.sqrt(threshold * (1 - threshold) / PERMUTATIONS)
    verdicts = np.zeros(len(grams), dtype=np.bool_)
    for place, own in enumerate(grams):
        sketch = blank.copy()
        sketch.update_batch((own >> _HALF).tolist())
        found = np.array(sorted(index.query(sketch)), dtype=np.int64)
        estimates = (signatures[found] == sketch.hashvalues).mean(axis=1)
        likely = found[estimates >= least]
        verdicts[place] = any(_is_similar(own, others[other], threshold) for other in likely)
    return verdicts


def _is_similar(one: Hashes, other: Hashes, threshold: float) -> bool:
    shared = len(np.intersect1d(one, other, assume_unique=True))
    total = len(one) + len(other) - shared
    return total > 0 and shared >= threshold * total - 1e-9
