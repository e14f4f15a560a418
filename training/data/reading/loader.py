"""One rank's share of the samples, as batches, one optimizer step ahead of the loop.

A thread and no worker processes: tokens lie ready on the disk, so that there is nothing to compute that a
second core is needed for, and no process that could die unnoticed, with its own copy of everything.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import torch

from training.batch import BatchPlan
from training.config.schema import RunConfig
from training.data.order.order import build_order
from training.data.order.plan import open_plan
from training.data.reading.ahead import Order, Upcoming
from training.data.reading.reader import Corpus
from training.data.reading.rows import RowPlan, RowReader, cut_batch
from training.model.inputs import Batch

BLOCK_TOKENS = 1 << 19
"""Steps are read together up to about this many tokens: each shard is visited once for all of them."""

LUMP_TOKENS = 1 << 16
"""Small steps are handed over together up to this many tokens (1.5 MB): threads that take turns at every
step of 4,096 tokens spend half of their time on it."""

CLOSE_TIMEOUT_SECONDS = 10.0
POLL_SECONDS = 0.1


_Lump = list[list[Batch]]
"""Steps that are handed over together; of each, its batches."""


class BatchStream:
    """Yields, per optimizer step, ``gradient_accumulation_steps`` batches for one rank; never ends.

    The samples of a step are those of ``order.batch(samples_seen)``, whatever the number of ranks. Pass m of
    a rank takes the ``micro_batch_size`` of them from ``plan.first_sample(rank, m)`` on.
    """

    def __init__(  # noqa: PLR0913 - what a stream is made of
        self,
        corpus: Corpus,
        plan: BatchPlan,
        rows: RowPlan,
        order: Order,
        *,
        rank: int,
        samples_seen: int = 0,
        ahead_steps: int = 0,
        notes: Sequence[str] = (),
    ) -> None:
        """Start reading at position ``samples_seen``, in a thread."""
        self.notes = notes
        """What the user should know of the order, in one line each."""

        self.rows = rows
        self.order = order
        self.samples_seen = samples_seen
        """The state: the position that the next step begins with."""

        self.data_wait_seconds = 0.0
        """How long the last step had to wait for its batches."""

        self._plan = plan
        self._reader = RowReader(corpus=corpus, plan=rows, sequence_length=plan.sequence_length)
        self._upcoming = Upcoming(
            corpus, order, plan, rank=rank, position=samples_seen, ahead_steps=ahead_steps
        )
        self._pin = torch.cuda.is_available()
        self._step_tokens = plan.samples_per_rank * plan.sequence_length
        self._taken: deque[list[Batch]] = deque()
        self._ready: queue.Queue[_Lump | BaseException] = queue.Queue(maxsize=1)
        self._closing = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[list[Batch]]:
        """Iterate from where the stream is."""
        return self

    def __next__(self) -> list[Batch]:
        """Give the next step's batches.

        Raises:
            DataError: A shard is missing or damaged (raised in the thread, handed over here).
            StorageError: A shard cannot be fetched, or the cache's disk is full.
            StopIteration: The stream was closed.
        """
        self.data_wait_seconds = 0.0
        if not self._taken or self._closing.is_set():
            self._take()
        self.samples_seen += self._plan.global_batch_size
        return self._taken.popleft()

    def close(self) -> None:
        """End the thread; safe to call twice, and while another thread waits in ``next``."""
        self._closing.set()
        self._upcoming.close()
        with contextlib.suppress(queue.Empty):  # the thread may be waiting for this place
            self._ready.get_nowait()
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSE_TIMEOUT_SECONDS)

    def __enter__(self) -> Self:
        """Use the stream in a with statement, which closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the stream."""
        self.close()

    def _take(self) -> None:
        if self._failure is not None:
            raise self._failure
        begin = time.monotonic()
        item = self._wait()
        self.data_wait_seconds = time.monotonic() - begin
        if isinstance(item, BaseException):
            self._failure = item
            raise item
        self._taken.extend(item)

    def _wait(self) -> _Lump | BaseException:
        while not self._closing.is_set():
            alive = self._thread.is_alive()  # asked first: what it put before its end is found below
            try:
                return self._ready.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if not alive:
                    return RuntimeError("the loader's thread ended without a word; please report this")
        raise StopIteration

    def _read(self) -> None:
        try:
            steps = 1  # the first step is wanted now, the others when it is being trained on
            while not self._closing.is_set():
                self._read_block(steps)
                steps = max(1, BLOCK_TOKENS // self._step_tokens)
        except BaseException as error:
            self._put(error)

    def _read_block(self, most_steps: int) -> None:
        plan = self._plan
        shards, rows = self._upcoming.take(most_steps)
        block = self._reader.read(shards, rows)
        lump: _Lump = []
        for first in range(0, len(rows), plan.samples_per_rank):
            if self._closing.is_set():
                return
            passes = range(first, first + plan.samples_per_rank, plan.micro_batch_size)
            lump.append([cut_batch(block, start, plan.micro_batch_size, pin=self._pin) for start in passes])
            if len(lump) * self._step_tokens >= LUMP_TOKENS:
                self._put(lump)
                lump = []
        if lump:
            self._put(lump)

    def _put(self, item: _Lump | BaseException) -> None:
        while not self._closing.is_set():
            try:
                self._ready.put(item, timeout=POLL_SECONDS)
            except queue.Full:
                continue
            return


def build_stream(
    corpus: Corpus, plan: BatchPlan, config: RunConfig, *, rank: int, samples_seen: int
) -> BatchStream:
    """Pack the corpus, order its rows, and stream this rank's share from ``samples_seen`` on.

    Args:
        corpus: The training split.
        plan: How a global batch is cut.
        config: Of it, what happens to long documents, the mixture, the seed, the steps, and the loader.
        rank: Whose share.
        samples_seen: A multiple of the global batch size.

    Raises:
        DataError: A document is longer than a row and ``data.long_documents`` is ``refuse``, or the mixture
            names what the corpus does not have.
        StorageError: The plan cannot be kept.
    """
    rows = open_plan(corpus, plan.sequence_length, config.data.long_documents)
    order = build_order(
        corpus.record,
        rows,
        config.data.mixture,
        seed=config.seed,
        global_batch_size=plan.global_batch_size,
        max_steps=config.loop.max_steps,
    )
    return BatchStream(
        corpus,
        plan,
        rows,
        order,
        rank=rank,
        samples_seen=samples_seen,
        ahead_steps=config.loader.ahead_steps,
        notes=order.mixture.notes,
    )
