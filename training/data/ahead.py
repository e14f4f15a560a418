"""What one rank reads next: its samples of the coming steps, and the shards that they will need."""

import queue
import threading
from collections import Counter, deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from training.batch import BatchPlan
from training.data.access import CachedFiles, Files
from training.data.manifest import FileRecord
from training.data.reader import Corpus

FETCH_THREADS = 4
CACHE_SHARE = 16
"""A process fetches no more ahead than 1 / CACHE_SHARE of the cache: others of the node share it."""

Numbers = npt.NDArray[np.integer]


class Samples(Protocol):
    """The samples of one global batch."""

    @property
    def shards(self) -> Numbers:
        """int [global_batch_size]."""

    @property
    def rows(self) -> Numbers:
        """int [global_batch_size]: rows of these shards."""


class Order(Protocol):
    """The order of samples over the whole run."""

    def batch(self, position: int) -> Samples:
        """Give the global batch that begins at ``position``."""


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    shards: Numbers
    rows: Numbers
    distinct: list[int]


class Upcoming:
    """The steps of one rank from a position on, looked at as far ahead as their shards are fetched."""

    def __init__(  # noqa: PLR0913 - what a place in the order is made of
        self, corpus: Corpus, order: Order, plan: BatchPlan, *, rank: int, position: int, ahead_steps: int
    ) -> None:
        """Begin at ``position``; nothing is fetched yet."""
        self._corpus = corpus
        self._order = order
        self._size = plan.global_batch_size
        first = plan.first_sample(rank, 0)
        self._mine = slice(first, first + plan.samples_per_rank)
        self._position = position
        self._steps: deque[_Step] = deque()
        self._needed: Counter[int] = Counter()
        self._fetchers: Fetchers | None = None
        self._ahead_steps = 0
        if isinstance(corpus.files, CachedFiles):
            self._fetchers = Fetchers(corpus.files, FETCH_THREADS)
            self._ahead_steps = ahead_steps
            self._ahead_bytes = corpus.files.cache.limit_bytes // CACHE_SHARE

    def take(self, most: int) -> tuple[Numbers, Numbers]:
        """Give the samples of the next steps: shards and rows, int [steps x samples_per_rank].

        At least one step; further ones, ``most`` in all, only where no shard has to be waited for.
        """
        self._look_ahead(most)
        taken = [self._pop()]
        while self._steps and len(taken) < most and self._is_here(self._steps[0]):
            taken.append(self._pop())
        self._look_ahead(0)
        return np.concatenate([s.shards for s in taken]), np.concatenate([s.rows for s in taken])

    def close(self) -> None:
        """Fetch nothing more."""
        if self._fetchers is not None:
            self._fetchers.close()

    def _look_ahead(self, steps: int) -> None:
        while len(self._steps) < max(1, steps if self._fetchers is None else self._ahead_steps):
            if self._steps and self._fetchers is not None and self._bytes() > self._ahead_bytes:
                return
            self._push()

    def _push(self) -> None:
        samples = self._order.batch(self._position)
        self._position += self._size
        shards, rows = samples.shards[self._mine], samples.rows[self._mine]
        distinct = [] if self._fetchers is None else np.unique(shards).tolist()
        self._steps.append(_Step(shards, rows, distinct))
        for shard in distinct:
            if not self._needed[shard] and self._fetchers is not None:
                self._fetchers.request(self._corpus.record.shards[shard])
            self._needed[shard] += 1

    def _pop(self) -> _Step:
        step = self._steps.popleft()
        for shard in step.distinct:
            self._needed[shard] -= 1
            if not self._needed[shard]:
                del self._needed[shard]
        return step

    def _is_here(self, step: _Step) -> bool:
        records = self._corpus.record.shards
        return all(self._corpus.files.is_here(records[shard]) for shard in step.distinct)

    def _bytes(self) -> int:
        return sum(self._corpus.record.shards[shard].bytes for shard in self._needed)


class Fetchers:
    """A few threads that bring files here before they are needed."""

    def __init__(self, files: Files, count: int) -> None:
        """Start them. They are daemons: a fetch that hangs keeps no process from ending."""
        self._files = files
        self._wanted: queue.SimpleQueue[FileRecord | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._count = count
        for _ in range(count):
            threading.Thread(target=self._work, name="fetch", daemon=True).start()

    def request(self, record: FileRecord) -> None:
        """Fetch a file when a thread is free."""
        self._wanted.put(record)

    def close(self) -> None:
        """Begin no further fetch."""
        self._closed.set()
        for _ in range(self._count):
            self._wanted.put(None)

    def _work(self) -> None:
        while (record := self._wanted.get()) is not None and not self._closed.is_set():
            try:
                self._files.fetch(record)
            except Exception:  # noqa: S112 - whoever needs the file tries again, and tells
                continue
