"""One rank's share of the samples, as batches, one optimizer step ahead of the loop."""

import queue
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from training.batch import BatchPlan
from training.config.schema import RunConfig
from training.data.order import SampleOrder
from training.data.packing import LongDocuments, Packing, plan_packing
from training.data.reader import Corpus, open_corpus
from training.data.rows import build_batch
from training.model.inputs import Batch
from training.ranks import Ranks

CLOSE_TIMEOUT_SECONDS = 10.0
POLL_SECONDS = 0.1


class BatchStream:
    """Yields, per optimizer step, ``gradient_accumulation_steps`` batches for one rank; never ends.

    The samples of a step are the ``global_batch_size`` positions from ``samples_seen``, whatever the
    number of ranks: pass m of rank r reads ``samples_seen + (m * world_size + r) * micro_batch_size``
    and the micro_batch_size - 1 that follow.
    """

    def __init__(
        self,
        corpus: Corpus,
        plan: BatchPlan,
        packing: Packing,
        order: SampleOrder,
        *,
        rank: int,
        samples_seen: int = 0,
    ) -> None:
        """Start reading at position ``samples_seen``, in a thread."""
        self._corpus = corpus
        self._plan = plan
        self._order = order
        self._rank = rank
        self.packing = packing
        self.samples_seen = samples_seen
        """The state: the position that the next step begins with."""

        self.data_wait_seconds = 0.0
        """How long the last step had to wait for its batches."""

        self._block_starts = [sum(packing.block_rows[:block]) for block in range(len(packing.block_rows))]
        self._ahead: queue.Queue[list[Batch] | BaseException] = queue.Queue(maxsize=1)
        self._closing = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._read, args=(samples_seen,), name="loader", daemon=True)
        self._thread.start()

    @property
    def samples_per_epoch(self) -> int:
        """Rows in one pass over the corpus."""
        return self._order.samples_per_epoch

    def __iter__(self) -> Iterator[list[Batch]]:
        """Iterate from where the stream is."""
        return self

    def __next__(self) -> list[Batch]:
        """Give the next step's batches.

        Raises:
            DataError: A shard is missing or damaged (raised in the thread, handed over here).
            StopIteration: The stream was closed.
        """
        if self._failure is not None:
            raise self._failure
        if self._closing.is_set():
            raise StopIteration
        begin = time.monotonic()
        item = self._ahead.get()
        self.data_wait_seconds = time.monotonic() - begin
        if isinstance(item, BaseException):
            self._failure = item
            raise item
        self.samples_seen += self._plan.global_batch_size
        return item

    def close(self) -> None:
        """End the thread; safe to call twice."""
        self._closing.set()
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

    def _read(self, position: int) -> None:
        try:
            while not self._closing.is_set():
                self._put(self._build_step(position))
                position += self._plan.global_batch_size
        except BaseException as error:
            self._put(error)

    def _put(self, item: list[Batch] | BaseException) -> None:
        while not self._closing.is_set():
            try:
                self._ahead.put(item, timeout=POLL_SECONDS)
            except queue.Full:
                continue
            return

    def _build_step(self, position: int) -> list[Batch]:
        plan = self._plan
        size = plan.micro_batch_size
        batches = []
        for micro in range(plan.gradient_accumulation_steps):
            first = position + (micro * plan.world_size + self._rank) * size
            rows = [
                [self._corpus.tokens(*piece) for piece in self.packing.row(self._find_row(first + index))]
                for index in range(size)
            ]
            batches.append(build_batch(rows, plan.sequence_length, self._corpus.padding_id))
        return batches

    def _find_row(self, position: int) -> int:
        sample = self._order.at(position)
        return self._block_starts[sample.block] + sample.row


def plan_rows(corpus: Corpus, sequence_length: int, long_documents: LongDocuments) -> Packing:
    """Pack a corpus into rows; the same plan on every rank.

    Raises:
        DataError: A document is longer than a row and ``long_documents`` is ``refuse``.
    """
    return plan_packing(
        corpus.lengths, sequence_length, long_documents, name_of=lambda index: corpus.encoded(index).id
    )


def build_stream(
    corpus: Corpus,
    plan: BatchPlan,
    *,
    long_documents: LongDocuments,
    seed: int,
    rank: int,
    samples_seen: int,
) -> BatchStream:
    """Pack the corpus, order its rows by ``seed``, and stream this rank's share from ``samples_seen`` on.

    Raises:
        DataError: As ``plan_rows``.
    """
    packing = plan_rows(corpus, plan.sequence_length, long_documents)
    order = SampleOrder(block_sizes=packing.block_rows, seed=seed)
    return BatchStream(corpus, plan, packing, order, rank=rank, samples_seen=samples_seen)


def open_batches(config: RunConfig, plan: BatchPlan, ranks: Ranks, *, samples_seen: int) -> BatchStream:
    """Stream this rank's share of the run's corpus from position ``samples_seen`` on.

    Raises:
        DataError: There is no complete corpus, or as ``plan_rows``.
    """
    return build_stream(
        open_corpus(config.data.path, "train"),
        plan,
        long_documents=config.data.long_documents,
        seed=config.seed,
        rank=ranks.rank,
        samples_seen=samples_seen,
    )
