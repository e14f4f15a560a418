"""The loader: every row exactly once an epoch, however many ranks read it and however often they stop."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.corpus_case import configure, damage, prepare, write_notes
from training.batch import BatchPlan
from training.data.loader import BatchStream, build_stream
from training.data.reader import Corpus, open_corpus
from training.data.rows import Piece, build_batch, pack_batch
from training.errors import DataError
from training.model.inputs import IGNORE_INDEX, Batch

LENGTH = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_notes(folder / "in" / "a.jsonl", 140)
    prepare(configure(folder))
    return folder


@pytest.fixture
def corpus(folder: Path) -> Corpus:
    return open_corpus(folder / "corpus", "train")


def plan(world_size: int, *, global_batch_size: int = 12, micro_batch_size: int = 1) -> BatchPlan:
    return BatchPlan(
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=global_batch_size // micro_batch_size // world_size,
        world_size=world_size,
        sequence_length=LENGTH,
    )


def open_stream(corpus: Corpus, cut: BatchPlan, rank: int = 0, samples_seen: int = 0) -> BatchStream:
    return build_stream(corpus, cut, long_documents="split", seed=5, rank=rank, samples_seen=samples_seen)


def rows_of(batches: list[Batch]) -> list[tuple[int, ...]]:
    return [tuple(row) for batch in batches for row in batch.input_ids.view(-1, LENGTH).tolist()]


def read_steps(
    corpus: Corpus, cut: BatchPlan, steps: int, samples_seen: int = 0
) -> list[list[tuple[int, ...]]]:
    """Give the rows of each global batch, in order of position."""
    by_rank = []
    for rank in range(cut.world_size):
        with open_stream(corpus, cut, rank, samples_seen) as stream:
            by_rank.append(list(islice(stream, steps)))
    return [
        [
            row
            for micro in range(cut.gradient_accumulation_steps)
            for rank in range(cut.world_size)
            for row in rows_of([by_rank[rank][step][micro]])
        ]
        for step in range(steps)
    ]


@pytest.mark.parametrize(("world_size", "micro"), [(1, 1), (2, 1), (3, 2), (4, 3), (6, 1), (12, 1)])
def test_a_global_batch_is_the_same_however_it_is_cut(corpus: Corpus, world_size: int, micro: int) -> None:
    assert read_steps(corpus, plan(world_size, micro_batch_size=micro), 4) == read_steps(corpus, plan(1), 4)


@pytest.mark.parametrize("ranks", [(1,), (2,), (4,), (2, 4), (4, 1, 3)])
def test_every_row_comes_once_an_epoch_with_any_interruptions(corpus: Corpus, ranks: tuple[int, ...]) -> None:
    with open_stream(corpus, plan(1)) as stream:
        epoch, packing = stream.samples_per_epoch, stream.packing
    seen: list[tuple[int, ...]] = []
    for turn, world_size in enumerate(ranks):
        steps = 2 if turn + 1 < len(ranks) else -(-(epoch - len(seen)) // 12)
        seen += [row for step in read_steps(corpus, plan(world_size), steps, len(seen)) for row in step]

    every = Counter(
        rows_of(
            [build_batch([[corpus.tokens(*piece) for piece in packing.row(row)]], LENGTH, corpus.padding_id)]
        )[0]
        for row in range(epoch)
    )
    assert Counter(seen[:epoch]) == every


def test_an_epoch_holds_every_token_of_every_document(corpus: Corpus) -> None:
    with open_stream(corpus, plan(1, global_batch_size=1)) as stream:
        tokens = sum(batch.tokens for step in islice(stream, stream.samples_per_epoch) for batch in step)

    assert tokens == corpus.record.counts.tokens


def test_a_resumed_stream_goes_on_as_if_it_had_never_stopped(corpus: Corpus) -> None:
    whole = read_steps(corpus, plan(2), 9)

    assert read_steps(corpus, plan(2), 4, samples_seen=5 * 12) == whole[5:]


def test_the_stream_knows_where_it_is(corpus: Corpus) -> None:
    with open_stream(corpus, plan(2), samples_seen=24) as stream:
        next(stream)
        assert stream.samples_seen == 36
        assert stream.data_wait_seconds >= 0


def pieces(*lengths: int) -> list[Piece]:
    ids = np.arange(1000, dtype=np.int32)
    ends = np.cumsum([0, *lengths])
    targets = np.arange(1000) % 3 != 0
    return [(ids[a:b], targets[a:b]) for a, b in pairwise(ends)]


def test_documents_are_bounded_and_their_positions_restart() -> None:
    batch = build_batch([pieces(3, 4), pieces(8), pieces(2)], 8, padding_id=7)

    assert batch.document_bounds == (0, 3, 7, 8, 16, 18, 24)
    starts = batch.document_bounds[:-1]
    expected = torch.cat(
        [torch.arange(b - a) for a, b in zip(starts, batch.document_bounds[1:], strict=True)]
    )
    assert torch.equal(batch.position_ids[0], expected)
    assert batch.input_ids[0, 7] == 7
    assert batch.tokens == 17
    assert batch.input_ids.dtype == batch.labels.dtype == batch.position_ids.dtype == torch.int64


def test_a_label_is_the_next_token_of_the_same_piece_where_that_is_a_target() -> None:
    row = pieces(5, 6, 2)

    batch = pack_batch(row, 16)

    expected = []
    for ids, is_target in row:
        expected += [int(i) if t else IGNORE_INDEX for i, t in zip(ids[1:], is_target[1:], strict=True)]
        expected.append(IGNORE_INDEX)
    assert batch.labels[0].tolist() == expected + [IGNORE_INDEX] * 3
    assert batch.targets == sum(label != IGNORE_INDEX for label in expected)


def test_a_cut_document_loses_one_label_at_each_cut_and_no_more() -> None:
    ids, is_target = np.arange(20, dtype=np.int32), np.ones(20, dtype=np.bool_)
    is_target[0] = False

    batch = build_batch(
        [[(ids[:8], is_target[:8])], [(ids[8:16], is_target[8:16])], [(ids[16:], is_target[16:])]], 8, 0
    )

    assert batch.targets == 19 - 2


def test_a_row_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1 holds more than 8 tokens"):
        pack_batch(pieces(5, 4), 8)


def test_a_damaged_shard_reaches_the_consumer_again_and_again(tmp_path: Path) -> None:
    write_notes(tmp_path / "in" / "a.jsonl", 60)
    prepare(configure(tmp_path))
    for shard in (tmp_path / "corpus" / "train").glob("*.arrow"):
        damage(shard)

    with open_stream(open_corpus(tmp_path / "corpus", "train"), plan(1)) as stream:
        for _ in range(2):
            with pytest.raises(DataError, match=r"\.arrow: damaged"):
                next(stream)


@pytest.fixture
def closed(corpus: Corpus) -> Iterator[BatchStream]:
    stream = open_stream(corpus, plan(1))
    next(stream)
    stream.close()
    return stream


def test_closing_ends_the_thread_and_the_stream(closed: BatchStream) -> None:
    assert not closed._thread.is_alive()
    assert list(closed) == []
    closed.close()


def test_a_long_document_stops_the_run_by_name(corpus: Corpus) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:\d+ has \d+ tokens, more than batch.sequence_length=64"):
        build_stream(corpus, plan(1), long_documents="refuse", seed=0, rank=0, samples_seen=0)
