"""The order in which samples are read: a pure function of seed and position.

A *position* counts samples over the whole run, across all ranks and epochs. The order does
not depend on the number of ranks, so the state of the data stream is one integer, and a run
resumes on another number of GPUs without repeating or skipping a sample. An epoch is all samples
once; the next follows at once, in the middle of a global batch where it falls there.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from training.errors import DataError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SampleRef:
    """Where one sample lies: the ``row``-th row of block number ``block``."""

    epoch: int
    block: int
    row: int


@dataclass(frozen=True, slots=True)
class SampleOrder:
    """Blocks in a shuffled order, rows shuffled within each; both anew every epoch.

    Only the permutation of the blocks at hand is held: memory does not grow with the corpus.
    """

    block_sizes: tuple[int, ...]
    """Samples in each block."""

    seed: int

    def __post_init__(self) -> None:
        """An empty block would have no row to find."""
        if not self.block_sizes or min(self.block_sizes) < 1:
            raise DataError(f"every block needs a sample, got block sizes {self.block_sizes}")

    @property
    def samples_per_epoch(self) -> int:
        """Samples in one pass over the corpus."""
        return sum(self.block_sizes)

    def at(self, position: int) -> SampleRef:
        """Find the sample at ``position``."""
        epoch, offset = divmod(position, self.samples_per_epoch)
        blocks, ends = _layout(self.block_sizes, self.seed, epoch)
        slot = int(np.searchsorted(ends, offset, side="right"))
        block = int(blocks[slot])
        size = self.block_sizes[block]
        rows = _shuffled_cached(size, f"{self.seed}/{epoch}/{block}")
        return SampleRef(epoch, block, int(rows[offset - int(ends[slot]) + size]))


def shuffled(count: int, key: str) -> Indices:
    """Permute 0..count-1; the same permutation for the same key on every machine and numpy version.

    Sorts raw Philox words rather than calling Generator.permutation: numpy keeps the raw stream the
    same in every version and Generator's not (NEP 19), and a checkpoint may outlive a numpy release.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    words = np.random.Philox(key=int.from_bytes(digest, "big")).random_raw(count)
    return np.argsort(words, kind="stable")


@lru_cache(maxsize=2)
def _layout(sizes: tuple[int, ...], seed: int, epoch: int) -> tuple[Indices, Indices]:
    blocks = shuffled(len(sizes), f"{seed}/{epoch}")
    return blocks, np.cumsum(np.asarray(sizes, dtype=np.int64)[blocks])


@lru_cache(maxsize=4)
def _shuffled_cached(count: int, key: str) -> Indices:
    return shuffled(count, key)
