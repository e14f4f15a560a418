"""The loader: every row exactly once an epoch, however many ranks read it and however often they stop."""

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from tests.synthetic_corpus import PADDING_ID, FakeSamples, NextFitPlan, ShuffledOrder, write_corpus
from training.batch import BatchPlan
from training.config.schema import LoaderConfig
from training.data.order.plan import open_plan
from training.data.reading import loader, reader, rows
from training.data.reading.loader import BatchStream, build_stream
from training.data.reading.reader import Corpus, open_corpus
from training.data.reading.rows import RowReader, cut_batch
from training.errors import DataError
from training.model.inputs import IGNORE_INDEX, Batch

LENGTH = 64
GLOBAL = 12
LENGTHS = np.random.default_rng(1).integers(3, 60, 400)

Row = tuple[int, ...]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    sources = {"law": LENGTHS[:250], "code": LENGTHS[250:]}
    write_corpus(folder, sources, tokens_per_shard=2000, vocabulary=60_000)
    return folder


@pytest.fixture
def corpus(folder: Path) -> Corpus:
    return open_corpus(folder, "train")


def plan(world_size: int, *, global_batch_size: int = GLOBAL, micro_batch_size: int = 1) -> BatchPlan:
    return BatchPlan(
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=global_batch_size // micro_batch_size // world_size,
        world_size=world_size,
        sequence_length=LENGTH,
    )


def open_stream(corpus: Corpus, cut: BatchPlan, rank: int = 0, samples_seen: int = 0) -> BatchStream:
    packed = NextFitPlan(corpus, LENGTH)
    order = ShuffledOrder(packed, cut.global_batch_size)
    return BatchStream(corpus, cut, packed, order, rank=rank, samples_seen=samples_seen, ahead_steps=3)


def rows_of(batches: list[Batch]) -> list[Row]:
    return [tuple(row) for batch in batches for row in batch.input_ids.view(-1, LENGTH).tolist()]


def read_steps(corpus: Corpus, cut: BatchPlan, steps: int, samples_seen: int = 0) -> list[list[Row]]:
    """Give the rows of each global batch, in the order in which it lists them."""
    by_rank = []
    for rank in range(cut.world_size):
        with open_stream(corpus, cut, rank, samples_seen) as stream:
            by_rank.append(list(islice(stream, steps)))
    return [[row for rank in by_rank for row in rows_of(rank[step])] for step in range(steps)]


def lay_out_by_hand(corpus: Corpus, packed: NextFitPlan, shard: int, row: int) -> dict[str, list[int]]:
    """One row, token by token."""
    stored = corpus.shard(shard)
    told: dict[str, list[int]] = {"ids": [], "labels": [], "positions": [], "bounds": [], "sources": []}
    for begin, end in packed.rows[shard][row]:
        told["bounds"].append(len(told["ids"]))
        told["sources"].append(int(corpus.source_numbers[shard]))
        for place in range(begin, end):
            told["ids"].append(int(stored.ids[place]))
            told["positions"].append(place - begin)
            known = place + 1 < end and stored.targets[place + 1]
            told["labels"].append(int(stored.ids[place + 1]) if known else IGNORE_INDEX)
    if len(told["ids"]) < LENGTH:
        told["bounds"].append(len(told["ids"]))
        told["sources"].append(0)
    rest = LENGTH - len(told["ids"])
    told["ids"] += [PADDING_ID] * rest
    told["labels"] += [IGNORE_INDEX] * rest
    told["positions"] += range(rest)
    return told


def test_a_batch_is_what_laying_it_out_token_by_token_gives(corpus: Corpus) -> None:
    packed = NextFitPlan(corpus, LENGTH)
    order = ShuffledOrder(packed, GLOBAL)
    with open_stream(corpus, plan(1, micro_batch_size=4)) as stream:
        steps = list(islice(stream, 40))  # more than an epoch, and more than a block

    for step, batches in enumerate(steps):
        samples = order.batch(step * GLOBAL)
        for micro, batch in enumerate(batches):
            part = slice(micro * 4, micro * 4 + 4)
            wanted = [
                lay_out_by_hand(corpus, packed, shard, row)
                for shard, row in zip(samples.shards[part], samples.rows[part], strict=True)
            ]
            assert batch.input_ids[0].tolist() == [i for row in wanted for i in row["ids"]]
            assert batch.labels[0].tolist() == [i for row in wanted for i in row["labels"]]
            assert batch.position_ids[0].tolist() == [i for row in wanted for i in row["positions"]]
            starts = [LENGTH * number + b for number, row in enumerate(wanted) for b in row["bounds"]]
            assert batch.document_bounds == (*starts, 4 * LENGTH)
            assert batch.source_ids == tuple(i for row in wanted for i in row["sources"])
            assert batch.targets == int((batch.labels != IGNORE_INDEX).sum())
            assert batch.tokens == 4 * LENGTH - int((batch.input_ids == PADDING_ID).sum())


@pytest.mark.parametrize(("world_size", "micro"), [(1, 1), (2, 1), (3, 2), (4, 3), (6, 1), (12, 1)])
def test_a_global_batch_is_the_same_however_it_is_cut(corpus: Corpus, world_size: int, micro: int) -> None:
    assert read_steps(corpus, plan(world_size, micro_batch_size=micro), 4) == read_steps(corpus, plan(1), 4)


@pytest.mark.parametrize("ranks", [(1,), (2,), (4,), (2, 4), (4, 1, 3)])
def test_every_row_comes_once_an_epoch_with_any_interruptions(corpus: Corpus, ranks: tuple[int, ...]) -> None:
    packed = NextFitPlan(corpus, LENGTH)
    every = [
        tuple(lay_out_by_hand(corpus, packed, shard, row)["ids"])
        for shard, shard_rows in enumerate(packed.rows)
        for row in range(len(shard_rows))
    ]
    seen: list[Row] = []
    for turn, world_size in enumerate(ranks):
        steps = 2 if turn + 1 < len(ranks) else -(-(len(every) - len(seen)) // GLOBAL)
        seen += [row for step in read_steps(corpus, plan(world_size), steps, len(seen)) for row in step]

    # A global batch lists its samples by shard, so the epoch ends within one: what is over comes next.
    excess = Counter(seen) - Counter(every)
    assert excess.total() == len(seen) - len(every) < GLOBAL
    assert Counter(seen) - excess == Counter(every)


def test_a_resumed_stream_goes_on_as_if_it_had_never_stopped(corpus: Corpus) -> None:
    whole = read_steps(corpus, plan(2), 9)

    assert read_steps(corpus, plan(2), 4, samples_seen=5 * GLOBAL) == whole[5:]


def test_the_stream_knows_where_it_is(corpus: Corpus) -> None:
    with open_stream(corpus, plan(2), samples_seen=24) as stream:
        next(stream)
        assert stream.samples_seen == 36
        assert stream.data_wait_seconds >= 0


def test_steps_are_the_same_however_many_are_read_at_once(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = read_steps(corpus, plan(2), 8)
    for tokens in (1, 3 * 6 * LENGTH):
        monkeypatch.setattr(loader, "BLOCK_TOKENS", tokens)
        assert read_steps(corpus, plan(2), 8) == wanted


def test_giving_memory_back_changes_no_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = open_plan(open_corpus(folder, "train"), LENGTH, "refuse")

    def read() -> list[Row]:
        some = np.arange(30, dtype=np.int32)
        block = RowReader(open_corpus(folder, "train"), packed, LENGTH).read(some % 3, some)
        return rows_of([cut_batch(block, 0, 30)])

    wanted = read()
    monkeypatch.setattr(reader, "MOST_RESIDENT_BYTES", 0)
    monkeypatch.setattr(reader, "MOST_OPEN_SHARDS", 1)
    monkeypatch.setattr(rows, "MOST_PLAN_BYTES", 0)
    monkeypatch.setattr(rows, "LARGE_PLAN_ROWS", 7)
    assert read() == wanted


def make_settings(folder: Path, ahead_steps: int) -> LoaderConfig:
    return LoaderConfig(
        cache_path=str(folder),
        cache_bytes=10**9,
        ahead_steps=ahead_steps,
        fetch_attempts=1,
        model_cache_path=None,
        model_cache_bytes=1,
    )


@pytest.mark.parametrize("ahead_steps", [0, 1, 5])
def test_a_corpus_elsewhere_gives_the_same_batches(
    tmp_path: Path, folder: Path, corpus: Corpus, ahead_steps: int
) -> None:
    settings = make_settings(tmp_path, ahead_steps)
    cached = open_corpus(f"file://{folder}", "train", settings)
    packed = NextFitPlan(corpus, LENGTH)
    order = ShuffledOrder(packed, GLOBAL)

    with BatchStream(cached, plan(1), packed, order, rank=0, ahead_steps=ahead_steps) as stream:
        found = [rows_of(step) for step in islice(stream, 12)]

    assert found == read_steps(corpus, plan(1), 12)


@dataclass(frozen=True, eq=False)
class OneShardAfterTheOther:
    """Step n reads shard n; counts how far it was asked."""

    asked: list[int] = field(default_factory=list)

    def batch(self, position: int, steps: int = 1) -> FakeSamples:
        self.asked.append(position + steps)
        shards = np.arange(position, position + steps, dtype=np.int32)
        return FakeSamples(shards, np.zeros_like(shards))


def test_only_the_shards_of_the_coming_steps_are_fetched(tmp_path: Path, folder: Path) -> None:
    settings = make_settings(tmp_path, ahead_steps=2)
    cached = open_corpus(f"file://{folder}", "train", settings)
    order = OneShardAfterTheOther()
    assert len(cached.record.shards) > 6

    one = plan(1, global_batch_size=1)
    with BatchStream(
        cached, one, NextFitPlan(open_corpus(folder, "train"), LENGTH), order, rank=0, samples_seen=1,
        ahead_steps=2,
    ) as stream:  # fmt: skip
        next(stream)

    # One step was given, one lies ready, one is waiting to be put; two more are looked at from there.
    assert max(order.asked) <= 1 + 3 + 2
    assert not cached.files.is_here(cached.record.shards[0])
    assert not cached.files.is_here(cached.record.shards[6])


def test_a_shard_shorter_than_a_row_and_wide_tokens_are_read(tmp_path: Path) -> None:
    write_corpus(tmp_path, {"a": np.array([5, 4])}, tokens_per_shard=100, token_bytes=4, vocabulary=10**6)
    corpus = open_corpus(tmp_path, "train")

    with open_stream(corpus, plan(1, global_batch_size=1)) as stream:
        batch = next(stream)[0]

    assert batch.input_ids[0].tolist() == corpus.shard(0).ids.tolist() + [PADDING_ID] * 55
    assert batch.document_bounds == (0, 5, 9, 64)


def test_a_damaged_shard_reaches_the_consumer_again_and_again(tmp_path: Path) -> None:
    write_corpus(tmp_path, {"a": LENGTHS}, tokens_per_shard=10**6)
    corpus = open_corpus(tmp_path, "train")
    packed = NextFitPlan(corpus, LENGTH)
    path = tmp_path / corpus.record.shards[0].file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    order = ShuffledOrder(packed, GLOBAL)

    with BatchStream(open_corpus(tmp_path, "train"), plan(1), packed, order, rank=0) as stream:
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


@dataclass(frozen=True, eq=False)
class Stuck:
    """An order that does not answer until it is let go."""

    asked: threading.Event = field(default_factory=threading.Event)
    answer: threading.Event = field(default_factory=threading.Event)

    def batch(self, position: int, steps: int = 1) -> FakeSamples:
        self.asked.set()
        self.answer.wait()
        nothing: npt.NDArray[np.int32] = np.zeros(steps, dtype=np.int32)
        return FakeSamples(nothing, nothing)


def test_a_consumer_that_waits_is_set_free_by_closing(corpus: Corpus) -> None:
    order = Stuck()
    packed = NextFitPlan(corpus, LENGTH)
    stream = BatchStream(corpus, plan(1, global_batch_size=1), packed, order, rank=0)
    assert order.asked.wait(10)
    closer = threading.Thread(target=stream.close)
    closer.start()

    assert list(stream) == []

    order.answer.set()
    closer.join()


@dataclass(frozen=True)
class Leaving:
    """An order that ends its thread in a way that is no Exception."""

    def batch(self, position: int, steps: int = 1) -> FakeSamples:
        raise SystemExit(3)


def test_whatever_ends_the_thread_reaches_the_consumer(corpus: Corpus) -> None:
    with (
        BatchStream(corpus, plan(1), NextFitPlan(corpus, LENGTH), Leaving(), rank=0) as stream,
        pytest.raises(SystemExit),
    ):
        next(stream)


class Mute(BatchStream):
    """Its thread ends and says nothing."""

    def _read(self) -> None:
        return


def test_a_thread_that_is_gone_does_not_keep_its_consumer_waiting(corpus: Corpus) -> None:
    with (
        Mute(corpus, plan(1), NextFitPlan(corpus, LENGTH), Leaving(), rank=0) as stream,
        pytest.raises(RuntimeError, match="the loader's thread ended without a word"),
    ):
        next(stream)


def build(corpus: Corpus, *, rank: int = 0, samples_seen: int = 0, world_size: int = 1) -> BatchStream:
    settings = ["experiment=tiny_smoke", "data.long_documents=refuse"]
    config = compose_run(settings, ConfigTree.open(None)).config
    return build_stream(corpus, plan(world_size), config, rank=rank, samples_seen=samples_seen)


def test_a_run_reads_every_token_of_the_corpus_once_an_epoch(folder: Path, corpus: Corpus) -> None:
    samples = open_plan(corpus, LENGTH, "refuse").counts.rows
    seen: list[Row] = []
    with (
        build(corpus) as one,
        build(corpus, rank=0, world_size=2) as left,
        build(corpus, rank=1, world_size=2) as right,
    ):
        for _ in range(-(-samples // GLOBAL)):
            both = rows_of(next(left)) + rows_of(next(right))
            assert rows_of(next(one)) == both
            seen += both

    tokens = Counter(token for row in seen for token in row)
    every = Counter(token for i in range(len(corpus)) for token in corpus.document(i).input_ids.tolist())
    assert not every - tokens
    assert len(seen) - samples < GLOBAL


def test_a_long_document_stops_the_run_by_name(tmp_path: Path) -> None:
    write_corpus(tmp_path, {"a": np.array([5, 80, 4])}, tokens_per_shard=100)

    with pytest.raises(DataError, match=r"a:1 has 80 tokens, more than batch.sequence_length=64"):
        build(open_corpus(tmp_path, "train"))
