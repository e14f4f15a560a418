"""Names the documents behind a loss that went wrong: ids of the corpus, never their text."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from training.batch import BatchPlan
from training.collectives import gather_over_ranks
from training.data.reading.ahead import Order
from training.data.reading.reader import Corpus
from training.data.reading.rows import RowPlan
from training.model.inputs import Batch

MOST_NAMED = 8


def name_worst_documents(
    micro_batches: Sequence[Batch],
    names: Sequence[Sequence[str]],
    nats_by_document: Callable[[Batch], Sequence[float]],
) -> list[str]:
    """Name the documents of all ranks whose loss is not finite; where there are none, those of the highest.

    Collective: every rank must bring as many batches.

    Args:
        micro_batches: This rank's.
        names: The ids of the documents of each batch; a row's padding has one as well, which is not used.
        nats_by_document: Runs the model, dropout off.

    Returns:
        ``MOST_NAMED`` ids at most, the worst first; the same on every rank.
    """
    mine: list[tuple[float, str]] = []
    for batch, ids in zip(micro_batches, names, strict=True):
        targets = np.add.reduceat(
            (batch.labels[0].numpy() >= 0).astype(np.int64), np.asarray(batch.document_bounds[:-1])
        )
        for nats, count, name in zip(nats_by_document(batch), targets.tolist(), ids, strict=True):
            if count:
                mine.append((nats / count, name))
    losses = [pair for pairs in gather_over_ranks(mine) for pair in pairs]
    bad = [name for loss, name in losses if not math.isfinite(loss)]
    ranked = bad or [name for _, name in sorted(losses, key=lambda pair: (-pair[0], pair[1]))]
    return list(dict.fromkeys(ranked))[:MOST_NAMED]


def find_names(
    corpus: Corpus, rows: RowPlan, order: Order, plan: BatchPlan, *, rank: int, position: int
) -> list[list[str]]:
    """Give the ids of the documents in each of a rank's batches of the step that begins at ``position``.

    They come in the order of the batch's ``document_bounds``; a row's padding is called that.
    """
    samples = order.batch(position)
    names = []
    for micro in range(plan.gradient_accumulation_steps):
        first = plan.first_sample(rank, micro)
        here: list[str] = []
        for sample in range(first, first + plan.micro_batch_size):
            shard, row = int(samples.shards[sample]), int(samples.rows[sample])
            here += _names_in_row(corpus, rows, shard, row, plan.sequence_length)
        names.append(here)
    return names


def _names_in_row(corpus: Corpus, rows: RowPlan, shard: int, row: int, sequence_length: int) -> list[str]:
    opened = corpus.shard(shard)
    index = rows.first_rows[shard] + row
    pieces = slice(*rows.row_bounds[index : index + 2].tolist())
    begins, ends = rows.begins[pieces], rows.ends[pieces]
    documents = np.searchsorted(opened.offsets, begins, side="right") - 1
    names = [opened.text("id", int(document)) for document in documents]
    return names if int((ends - begins).sum()) == sequence_length else [*names, "padding"]
