"""What one rank reads next: its samples of the coming steps, and the shards that they will need."""

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np
import numpy.typing as npt

from training.batch import BatchPlan
from training.data.corpus.manifest import FileRecord
from training.data.reading.access import CachedFiles
from training.data.reading.reader import Corpus
from training.errors import MetierError

FETCH_THREADS = 4
CACHE_SHARE = 16
"""A process fetches no more ahead than 1 / CACHE_SHARE of the cache: others of the node share it."""

Numbers = npt.NDArray[np.integer]


class Samples(Protocol):
    """The samples of some global batches, one after the other."""

    @property
    def shards(self) -> Numbers:
        """Which shard each lies in, int [steps x global_batch_size]."""

    @property
    def rows(self) -> Numbers:
        """Which row of its shard each is, int [steps x global_batch_size]."""


class Order(Protocol):
    """The order of samples over the whole run."""

    def batch(self, position: int, steps: int = 1) -> Samples:
        """Give the global batch that begins at ``position``, and those of the steps that follow."""


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    shards: Numbers
    rows: Numbers


class Upcoming:
    """The steps of one rank from a position on, looked at as far ahead as their shards are fetched."""

    def __init__(
        self, corpus: Corpus, order: Order, plan: BatchPlan, *, rank: int, position: int, ahead_steps: int
    ) -> None:
        """Begin at ``position``; nothing is fetched yet."""
        self._order = order
        self._size = plan.global_batch_size
        first = plan.first_sample(rank, 0)
        self._mine = slice(first, first + plan.samples_per_rank)
        self._position = position
        self._steps: deque[_Step] = deque()
        self._prefetch: Prefetch | None = None
        self._ahead_steps = ahead_steps
        if isinstance(corpus.files, CachedFiles):
            self._prefetch = Prefetch(corpus.files, corpus.record.shards)

    def take(self, most: int) -> tuple[Numbers, Numbers]:
        """Give the samples of the next steps: shards and rows, int [steps x samples_per_rank].

        At least one step; further ones, ``most`` in all, only where no shard has to be waited for.
        """
        prefetch = self._prefetch
        self._learn(most if prefetch is None else 1)
        taken = [self._steps.popleft()]
        while self._steps and len(taken) < most and (prefetch is None or prefetch.has(self._steps[0].shards)):
            taken.append(self._steps.popleft())
        if prefetch is not None:
            self._learn(self._ahead_steps)
            prefetch.want([taken[0].shards, *(step.shards for step in self._steps)])
        return np.concatenate([s.shards for s in taken]), np.concatenate([s.rows for s in taken])

    def close(self) -> None:
        """Fetch nothing more."""
        if self._prefetch is not None:
            self._prefetch.close()

    def _learn(self, steps: int) -> None:
        missing = steps - len(self._steps)
        if missing < 1:
            return
        samples = self._order.batch(self._position, missing)
        self._position += missing * self._size
        shape = (missing, self._size)
        for shards, rows in zip(samples.shards.reshape(shape), samples.rows.reshape(shape), strict=True):
            self._steps.append(_Step(shards[self._mine], rows[self._mine]))


class Prefetch:
    """A few threads that bring the shards of coming steps here before they are needed."""

    def __init__(
        self, files: CachedFiles, records: Sequence[FileRecord], threads: int = FETCH_THREADS
    ) -> None:
        """Start them. They are daemons: a fetch that hangs keeps no process from ending."""
        self._files = files
        self._records = records
        self._most_bytes = files.cache.limit_bytes // CACHE_SHARE
        self._wanted: set[int] = set()
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._threads = threads
        for _ in range(threads):
            threading.Thread(target=self._work, name="fetch", daemon=True).start()

    def has(self, shards: Numbers) -> bool:
        """Whether all of these are here."""
        return all(self._files.is_here(self._records[shard]) for shard in np.unique(shards).tolist())

    def want(self, steps: Iterable[Numbers]) -> None:
        """Fetch the shards of the first ``steps``, as many as this process' share of the cache can hold.

        A shard is asked for once while it stays wanted: should it fail, or be evicted before its use, then it
        is fetched when it is read.
        """
        wanted: set[int] = set()
        total = 0
        for shard in dict.fromkeys(chain.from_iterable(np.unique(shards).tolist() for shards in steps)):
            total += self._records[shard].bytes
            if total > self._most_bytes and wanted:
                break
            wanted.add(shard)
            if shard not in self._wanted:
                self._queue.put(shard)
        self._wanted = wanted

    def close(self) -> None:
        """Begin no further fetch."""
        self._closed.set()
        for _ in range(self._threads):
            self._queue.put(None)

    def _work(self) -> None:
        while (shard := self._queue.get()) is not None and not self._closed.is_set():
            # Whoever reads the shard tries again, and tells.
            with contextlib.suppress(MetierError):
                self._files.fetch(self._records[shard])
