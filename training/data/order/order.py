"""The order in which samples are read: a pure function of seed and position.

A *position* counts samples over the whole run, across all ranks and epochs. The order does
not depend on the number of ranks, so the state of the data stream is one integer, and a run
resumes on another number of GPUs without repeating or skipping a sample.

A *stream* is all shards, or those of one source; the mixture says how many samples of each are in a
global batch. An epoch of a stream is a line: its shards in a shuffled order, the rows shuffled within each,
both anew every epoch. The line is cut into sections, as many as a global batch takes samples of the stream;
the batch takes one from each and lists them by section. A node reads the same contiguous piece of each
global batch, so the same contiguous piece of the line: with N nodes, about 1/N of the shards.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from training.config.sources import MixtureConfig
from training.data.corpus.manifest import SplitRecord
from training.data.order.mixture import EVERYTHING, Mixture, build_mixture
from training.data.order.plan import RowPlan
from training.data.order.shuffle import Integers, hash_keys, permute, shuffled, spread_order

MIN_LANES = 64
"""Lanes of a stream, at least: a batch of few samples still mixes much of the line within a few steps."""

LAYOUTS_KEPT = 4
"""Orders of the shards, one per epoch, that are kept for the next batch."""


@dataclass(frozen=True, slots=True)
class SampleRef:
    """Where one sample lies: the ``row``-th row of shard number ``shard``."""

    epoch: int
    shard: int
    row: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Samples:
    """The samples of one global batch, in the order in which they are dealt to the ranks."""

    shards: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]
    epochs: npt.NDArray[np.int32]
    """int32 [global_batch_size] each; the epoch is that of the sample's stream."""


class Lanes:
    """Cuts an epoch's line of ``samples`` places into lanes, and says in which order places are visited.

    ``spread`` samples that follow each other come from ``spread`` different sections of the line; a
    section is ``depth`` lanes that take turns. Place and section of any sample in closed form, none stored.
    """

    def __init__(self, samples: int, spread: int) -> None:
        """Choose the number of lanes: at least ``MIN_LANES`` where there are as many samples."""
        self.spread = min(spread, samples)
        depth = max(1, -(-MIN_LANES // self.spread))
        self.depth = max(1, min(depth, samples // self.spread))
        self.lanes = self.spread * self.depth
        self._section_of = spread_order(self.spread)
        self._size, rest = divmod(samples, self.lanes)
        # The first `rest` lanes to be visited have one place more.
        self._long_turns, self._long_sections = divmod(rest, self.spread)
        is_long = np.argsort(self._section_of) < self._long_sections
        self._long_before: Integers = np.cumsum(is_long) - is_long

    def visit(self, offsets: Integers) -> tuple[Integers, Integers]:
        """Find the place in the line and the section, int64 [n] each, of the epoch's samples ``offsets``."""
        first, number = np.divmod(offsets, self.spread)
        index, turn = np.divmod(first, self.depth)
        section = self._section_of[number]
        longer_before = (
            section * self._long_turns
            + self._long_before[section]
            + np.minimum(turn, self._long_turns)
            + ((turn > self._long_turns) & (number < self._long_sections))
        )
        lane = section * self.depth + turn
        return lane * self._size + longer_before + index, section


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """One epoch's line, shard by shard."""

    slots: Integers  # which of the stream's shards
    begins: Integers
    ends: Integers
    keys: npt.NDArray[np.uint64]  # of the permutation of its rows


class SampleStream:
    """The samples of some shards, epoch after epoch."""

    def __init__(self, name: str, shards: Integers, rows: Integers, *, seed: int, spread: int) -> None:
        """Take ``shards`` int64 [s] and the rows of each, int64 [s], all positive."""
        self.samples = int(rows.sum())
        self.lanes = Lanes(self.samples, spread)
        self._shards, self._rows = shards, rows
        self._key = f"{seed}/{name}"
        self._layout = lru_cache(maxsize=LAYOUTS_KEPT)(self._lay_out)

    def find(self, numbers: Integers) -> tuple[Integers, Integers, Integers, npt.NDArray[np.float64]]:
        """Find samples int64 [n]: epoch, shard, row of each, and its section as a place in the line, 0..1."""
        epochs, offsets = np.divmod(numbers, self.samples)
        places, sections = self.lanes.visit(offsets)
        slots, keys = np.empty_like(places), np.empty(len(places), dtype=np.uint64)
        first, last = int(epochs[0]), int(epochs[-1])
        for epoch in range(first, last + 1):
            here = slice(None) if first == last else epochs == epoch
            layout = self._layout(epoch)
            found = np.searchsorted(layout.ends, places[here], side="right")
            slots[here], keys[here] = layout.slots[found], layout.keys[found]
            places[here] -= layout.begins[found]
        rows = permute(places, self._rows[slots], keys)
        return epochs, self._shards[slots], rows, (sections + 0.5) / self.lanes.spread

    def _lay_out(self, epoch: int) -> _Layout:
        slots = shuffled(len(self._rows), f"{self._key}/{epoch}")
        rows = self._rows[slots]
        ends = np.cumsum(rows)
        return _Layout(slots, ends - rows, ends, hash_keys(f"rows/{self._key}/{epoch}", self._shards[slots]))


class SampleOrder:
    """The samples of every global batch of a run. Memory grows with the shards, not with the samples."""

    def __init__(self, streams: tuple[SampleStream, ...], mixture: Mixture, global_batch_size: int) -> None:
        """Take one stream for each of ``mixture.streams``."""
        self.mixture = mixture
        self.global_batch_size = global_batch_size
        self._streams = streams

    @property
    def samples_per_epoch(self) -> int:
        """Rows of the streams together: a whole pass where there is one, a measure where they are mixed."""
        return sum(stream.samples for stream in self._streams)

    def batch(self, position: int, steps: int = 1) -> Samples:
        """Find the samples of the global batch that begins at ``position``, a multiple of its size.

        With ``steps``, of so many global batches one after the other, int32 [steps x global_batch_size]: the
        same samples, many times faster than one by one where batches are small.
        """
        ends = range(position, position + (steps + 1) * self.global_batch_size, self.global_batch_size)
        counts = np.array([self.mixture.counts(end) for end in ends], dtype=np.int64)
        parts, numbers = [], []
        for stream, seen in zip(self._streams, counts.T, strict=True):
            if seen[-1] > seen[0]:
                parts.append(stream.find(np.arange(seen[0], seen[-1], dtype=np.int64)))
                numbers.append(np.repeat(np.arange(steps), np.diff(seen)))
        epochs, shards, rows, sections = (np.concatenate(column) for column in zip(*parts, strict=True))
        # Within a step by section; equal sections stay in the order of streams and of samples.
        dealt = np.lexsort((sections, np.concatenate(numbers)))
        return Samples(
            shards=shards[dealt].astype(np.int32),
            rows=rows[dealt].astype(np.int32),
            epochs=epochs[dealt].astype(np.int32),
        )

    def at(self, position: int) -> SampleRef:
        """Find the sample at ``position``."""
        place = position % self.global_batch_size
        samples = self.batch(position - place)
        columns = (samples.epochs, samples.shards, samples.rows)
        return SampleRef(*(int(column[place]) for column in columns))


def build_order(
    record: SplitRecord,
    plan: RowPlan,
    mixture: MixtureConfig,
    *,
    seed: int,
    global_batch_size: int,
    max_steps: int,
) -> SampleOrder:
    """Build the order of a run over the packed rows of ``record``'s shards.

    Raises:
        DataError: A source of the mixture has no row.
    """
    mixed = build_mixture(mixture, plan.by_source, global_batch_size=global_batch_size, max_steps=max_steps)
    sources = np.asarray([shard.source for shard in record.shards])
    replayed = mixture.replay.source if mixture.replay else None
    streams: list[SampleStream] = []
    for name, spread in zip(mixed.streams, mixed.most_per_batch(global_batch_size), strict=True):
        chosen = sources != replayed if name == EVERYTHING else sources == name
        shards = np.flatnonzero(chosen & (plan.shard_rows > 0))
        streams.append(SampleStream(name, shards, plan.shard_rows[shards], seed=seed, spread=spread))
    return SampleOrder(tuple(streams), mixed, global_batch_size)
