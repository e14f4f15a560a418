"""5-grams of token ids as 64-bit numbers, and a table that says which of them are in a large set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.data.corpus.manifest import ShardRecord
from training.data.corpus.shards import map_shard, shard_tokens

GRAM = 5
"""Tokens of a shingle; a document of fewer has none."""

CHUNK_TOKENS = 1 << 18
"""Tokens hashed at once: their arrays stay in the processor's cache."""

ABSENT, PRESENT, IGNORED = 0, 1, 2

Hashes = npt.NDArray[np.uint64]

# Random odd numbers: multilinear hashing modulo 2^64 (Dietzfelbinger et al., J. Algorithms 25, 1997), over
# two pairs of tokens and one token, each a 64-bit word.
_FACTORS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))
# MurmurHash3's first finalising step, https://github.com/aappleby/smhasher: the upper half, which is all
# that is used, depends on every bit.
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_HALF = np.uint64(32)

_LEAST_BITS, _MOST_BITS = 20, 28
_SLOTS_PER_GRAM = 8


def hash_grams(ids: npt.NDArray[np.unsignedinteger]) -> Hashes:
    """Hash the 5-gram that begins at each token: uint64 [T - 4], in order; empty below five tokens."""
    count = max(0, len(ids) - GRAM + 1)
    if not count:
        return np.empty(0, dtype=np.uint64)
    values = ids.astype(np.uint64)
    pairs = values[1:] << _HALF
    pairs |= values[:-1]
    # In place: these arrays are the greater part of the work.
    hashes = pairs[:count] * _FACTORS[0]
    part = pairs[2 : 2 + count] * _FACTORS[1]
    hashes += part
    hashes += np.multiply(values[4:], _FACTORS[2], out=part)
    hashes ^= np.right_shift(hashes, _HALF, out=part)
    hashes *= _MIX
    return hashes


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Some neighbouring documents of a split."""

    first: int
    """Number of the first one in its split."""

    ids: npt.NDArray[np.unsignedinteger]
    """Token ids of all, [T]."""

    bounds: npt.NDArray[np.int64]
    """Document d of the chunk has the tokens [bounds[d], bounds[d + 1])."""

    def grams(self) -> tuple[Hashes, npt.NDArray[np.bool_]]:
        """Hash all 5-grams, uint64 [T], and say which of them lie in one document, bool [T]."""
        hashes = np.zeros(len(self.ids), dtype=np.uint64)
        found = hash_grams(self.ids)
        hashes[: len(found)] = found
        whole = np.ones(len(self.ids), dtype=np.bool_)
        for back in range(1, GRAM):
            ends = self.bounds[1:] - back
            whole[ends[ends >= self.bounds[:-1]]] = False
        return hashes, whole


class Documents:
    """The documents of one split, numbered through its shards in order, read in place."""

    def __init__(self, root: Path, shards: Sequence[ShardRecord]) -> None:
        """Map nothing yet."""
        self.shards = shards
        self._root = root
        self._ends = np.cumsum([shard.documents for shard in shards], dtype=np.int64)
        self._last = -1
        self._tokens: tuple[npt.NDArray[np.unsignedinteger], npt.NDArray[np.int32]] | None = None

    def __len__(self) -> int:
        """Documents in the split."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def first(self, shard: int) -> int:
        """Number of the first document of a shard."""
        return int(self._ends[shard]) - self.shards[shard].documents

    def find_shards(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Say in which shard each document lies."""
        return np.searchsorted(self._ends, numbers, side="right")

    def tokens(self, number: int) -> npt.NDArray[np.unsignedinteger]:
        """Give the token ids of one document; quick where the last one was in the same shard."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        if self._tokens is None or shard != self._last:
            self._last, self._tokens = shard, shard_tokens(map_shard(self._root, self.shards[shard]))
        ids, bounds = self._tokens
        row = number - self.first(shard)
        return ids[bounds[row] : bounds[row + 1]]

    def chunks(self) -> Iterator[Chunk]:
        """Go through all documents, some ``CHUNK_TOKENS`` tokens or one document at a time."""
        for place, shard in enumerate(self.shards):
            ids, bounds = shard_tokens(map_shard(self._root, shard))
            row = 0
            while row < shard.documents:
                end = int(np.searchsorted(bounds, bounds[row] + CHUNK_TOKENS, side="right")) - 1
                end = min(max(end, row + 1), shard.documents)
                part = bounds[row : end + 1].astype(np.int64)
                yield Chunk(self.first(place) + row, ids[part[0] : part[-1]], part - part[0])
                row = end


class GramTable:
    """A set of 5-grams, one byte for each of 2^20 to 2^28 slots.

    A gram that was added is always found. One that was not is found by mistake where it shares a slot: at
    most one in ``_SLOTS_PER_GRAM``. What would fill more than that keeps only grams with zeros in some
    bits of the hash, one in ``2 ** sampled_bits``; all others are told as IGNORED.
    """

    def __init__(self, most: int) -> None:
        """Make room for ``most`` grams."""
        wanted = max(1, most * _SLOTS_PER_GRAM - 1).bit_length()
        bits = min(max(wanted, _LEAST_BITS), _MOST_BITS)
        self.sampled_bits = max(0, wanted - bits)
        self._shift = np.uint64(64 - bits)
        self._sample = np.uint64(((1 << self.sampled_bits) - 1) << 32)
        self._slots = np.zeros(1 << bits, dtype=np.uint8)

    def add(self, hashes: Hashes) -> None:
        """Put grams into the set."""
        self._slots[self._kept(hashes) >> self._shift] = PRESENT

    def ignore(self, hashes: Hashes) -> None:
        """Have grams told as IGNORED, whether they are in the set or not."""
        self._slots[hashes >> self._shift] = IGNORED

    def find(self, hashes: Hashes) -> npt.NDArray[np.uint8]:
        """Say of each gram whether it is ABSENT, PRESENT or IGNORED; uint8, in the shape of ``hashes``."""
        # As signed numbers: numpy would convert them first, and take twice as long.
        states = self._slots.take((hashes >> self._shift).view(np.int64))
        if self.sampled_bits:
            states[(hashes & self._sample) != 0] = IGNORED
        return states

    def _kept(self, hashes: Hashes) -> Hashes:
        return hashes[(hashes & self._sample) == 0] if self.sampled_bits else hashes
