"""The documents that are blamed are those that the batch really holds."""

import math
from collections import defaultdict
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.synthetic_corpus import NextFitPlan, ShuffledOrder, write_corpus
from training.batch import BatchPlan
from training.data.reading.loader import BatchStream
from training.data.reading.reader import Corpus, open_corpus
from training.model.inputs import Batch
from training.worker.blame import MOST_NAMED, find_names, name_worst_documents

PLAN = BatchPlan(
    global_batch_size=12,
    micro_batch_size=2,
    gradient_accumulation_steps=3,
    world_size=2,
    sequence_length=64,
)
LENGTHS = np.random.default_rng(1).integers(3, 60, 400)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder: Path = tmp_path_factory.mktemp("data")
    sources = {"law": LENGTHS[:250], "code": LENGTHS[250:]}
    write_corpus(folder, sources, tokens_per_shard=2000, vocabulary=60_000)
    return open_corpus(folder, "train")


def read(corpus: Corpus, rank: int, step: int) -> tuple[list[Batch], list[list[str]]]:
    packed = NextFitPlan(corpus, PLAN.sequence_length)
    order = ShuffledOrder(packed, PLAN.global_batch_size)
    with BatchStream(corpus, PLAN, packed, order, rank=rank) as stream:
        batches = list(islice(stream, step + 1))[step]
    position = step * PLAN.global_batch_size
    return batches, find_names(corpus, packed, order, PLAN, rank=rank, position=position)


def pieces(batch: Batch) -> list[list[int]]:
    ids = batch.input_ids[0].tolist()
    bounds = batch.document_bounds
    return [ids[begin:end] for begin, end in pairwise(bounds)]


def is_within(piece: list[int], whole: list[int]) -> bool:
    return any(whole[begin : begin + len(piece)] == piece for begin in range(len(whole)))


@pytest.mark.parametrize(("rank", "step"), [(0, 0), (1, 0), (1, 2)])
def test_each_piece_of_a_batch_is_named_by_the_document_that_it_was_cut_from(
    rank: int, step: int, corpus: Corpus
) -> None:
    by_id = defaultdict(list)  # each shard of the case counts anew
    for place in range(len(corpus)):
        document = corpus.document(place)
        by_id[document.id].append(document.input_ids.tolist())
    batches, names = read(corpus, rank, step)
    assert len(batches) == len(names) == 3
    for batch, ids in zip(batches, names, strict=True):
        for piece, name in zip(pieces(batch), ids, strict=True):
            if name != "padding":
                assert any(is_within(piece, whole) for whole in by_id[name])


def test_documents_without_a_finite_loss_are_named_and_no_others(corpus: Corpus) -> None:
    batches, names = read(corpus, 0, 0)
    bad = next(number for number, name in enumerate(names[1]) if name != "padding")

    def nats(batch: Batch) -> list[float]:
        values = [1.0] * len(batch.source_ids)
        if batch is batches[1]:
            values[bad] = math.nan
        return values

    assert name_worst_documents(batches, names, nats) == [names[1][bad]]


def test_where_all_are_finite_those_of_the_highest_mean_loss_come_first(corpus: Corpus) -> None:
    batches, names = read(corpus, 0, 0)

    def nats(batch: Batch) -> list[float]:
        bounds = batch.document_bounds
        targets = [int((batch.labels[0, begin:end] >= 0).sum()) for begin, end in pairwise(bounds)]
        return [count * (9.0 if number == 1 else 2.0) for number, count in enumerate(targets)]

    named = name_worst_documents(batches, names, nats)
    assert set(named[:3]) == {ids[1] for ids in names}
    assert len(named) == MOST_NAMED
    assert "padding" not in named
