"""The data order: complete, the same on any number of ranks, resumable anywhere, cheap to fetch."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.batch import plan_batch
from training.config.schema import BatchConfig
from training.config.sources import MixtureConfig
from training.data.corpus.manifest import Counts, FileRecord, ShardRecord, SplitRecord
from training.data.order.order import Lanes, SampleOrder, SampleRef, Samples, build_order
from training.data.order.packing import PackingCounts, add_counts
from training.data.order.plan import RowPlan
from training.data.order.shuffle import hash_keys, permute, spread_order

WORLD_SIZES = (1, 2, 3, 4, 6, 8)
NODES = (1, 2, 3, 4, 8)


def build(
    shards: Iterable[tuple[str, int]],
    mixture: dict[str, Any] | None = None,
    *,
    size: int = 8,
    seed: int = 17,
) -> SampleOrder:
    """Build the order over shards of (source, rows)."""
    shards = list(shards)
    nothing = Counts(documents=1, tokens=1, targets=0)
    record = SplitRecord(
        counts=nothing,
        by_source={},
        by_task={},
        length_percentiles={},
        lengths=FileRecord(file="l", checksum="l", bytes=1),
        shards=[
            ShardRecord(file="s", checksum="s", bytes=1, source=source, documents=1, tokens=1, targets=0)
            for source, _ in shards
        ],
    )
    rows = Counter[str]()
    for source, count in shards:
        rows[source] += count
    by_source = {
        source: PackingCounts(
            documents=count,
            rows=count,
            tokens=count,
            split=0,
            truncated=0,
            dropped=0,
            tokens_left_out=0,
            sequence_length=1,
        )
        for source, count in rows.items()
    }
    plan = RowPlan(
        shard_rows=np.asarray([count for _, count in shards]),
        counts=add_counts(by_source.values(), 1),
        by_source=by_source,
        first_rows=[],
        row_bounds=np.empty(0, dtype=np.int64),
        begins=np.empty(0, dtype=np.int32),
        ends=np.empty(0, dtype=np.int32),
    )
    config = MixtureConfig.model_validate(
        {"by": "documents", "shares": {}, "replay": None, **(mixture or {})}
    )
    return build_order(record, plan, config, seed=seed, global_batch_size=size, max_steps=1000)


def references(samples: Samples) -> list[tuple[int, int, int]]:
    columns = (samples.epochs, samples.shards, samples.rows)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def read(order: SampleOrder, steps: int, *, first: int = 0) -> list[tuple[int, int, int]]:
    size = order.global_batch_size
    return [sample for step in range(first, first + steps) for sample in references(order.batch(step * size))]


def law(*rows: int) -> list[tuple[str, int]]:
    return [("law", count) for count in rows]


SIZES = (5, 1, 8, 3, 40, 0, 29)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    rows=st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any),
    size=st.integers(1, 40),
    seed=st.integers(0, 5),
)
def test_an_epoch_reads_every_sample_once(rows: list[int], size: int, seed: int) -> None:
    order = build(law(*rows), size=size, seed=seed)
    epochs = 3

    seen = Counter(read(order, epochs * sum(rows) // size + 2))

    for epoch in range(epochs):
        wanted = {(epoch, shard, row) for shard, count in enumerate(rows) for row in range(count)}
        assert {sample for sample in seen if sample[0] == epoch} == wanted
    assert set(seen.values()) == {1}


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    law_rows=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    general_rows=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    share=st.integers(1, 99),
    size=st.integers(1, 24),
)
def test_each_source_of_a_mixture_is_read_once_an_epoch_of_its_own(
    law_rows: list[int], general_rows: list[int], share: int, size: int
) -> None:
    shards = [("law", count) for count in law_rows] + [("general", count) for count in general_rows]
    order = build(shards, {"by": "weights", "shares": {"law": share, "general": 100 - share}}, size=size)
    steps = 200 // size + 1

    seen = Counter(read(order, steps))

    assert set(seen.values()) == {1}
    for name, wanted in (("law", share), ("general", 100 - share)):
        mine = {number for number, (source, _) in enumerate(shards) if source == name}
        samples = [sample for sample in seen if sample[1] in mine]
        assert abs(len(samples) - steps * size * wanted / 100) < 1
        per_epoch = sum(shards[number][1] for number in mine)
        for epoch in range(len(samples) // per_epoch):
            assert sum(sample[0] == epoch for sample in samples) == per_epoch


def test_a_schedule_of_replay_keeps_every_stream_exact() -> None:
    shards = [("law", 300), ("general", 50), ("general", 31), ("law", 77)]
    phases = [{"from_step": 0, "ratio": 0.1}, {"from_step": 20, "ratio": 0.5}, {"from_step": 50, "ratio": 0}]
    order = build(shards, {"replay": {"source": "general", "phases": phases}}, size=10)

    for first, steps, replayed in ((0, 20, 20), (20, 30, 150), (50, 40, 0)):
        samples = read(order, steps, first=first)
        assert sum(shard in {1, 2} for _, shard, _ in samples) == replayed
    seen = Counter(read(order, 90))
    assert set(seen.values()) == {1}
    assert sum(sample[0] == 0 and sample[1] in {1, 2} for sample in seen) == 81


@pytest.mark.parametrize(
    "mixture",
    [
        pytest.param(None, id="one stream"),
        pytest.param({"by": "weights", "shares": {"law": 0.7, "general": 0.3}}, id="mixture"),
    ],
)
@settings(deadline=None, derandomize=True, max_examples=25)
@given(changes=st.lists(st.tuples(st.sampled_from(WORLD_SIZES), st.integers(1, 5)), min_size=1, max_size=5))
def test_any_ranks_and_any_change_between_read_the_same_global_batches(
    mixture: dict[str, Any] | None, changes: list[tuple[int, int]]
) -> None:
    size = 24
    shards = [("law", 90), ("general", 41), ("law", 33)]
    wanted = read(build(shards, mixture, size=size), sum(steps for _, steps in changes))
    dealt: list[tuple[int, int, int]] = []
    for world_size, steps in changes:
        # A new process each time: all that it is told is how many samples were seen.
        order, samples_seen = build(shards, mixture, size=size), len(dealt)
        config = BatchConfig(sequence_length=1, micro_batch_size=1, global_batch_size=size)
        plan = plan_batch(config, world_size)
        for position in range(samples_seen, samples_seen + steps * size, size):
            batch = references(order.batch(position))
            for rank in range(world_size):
                for micro in range(plan.gradient_accumulation_steps):
                    dealt.append(batch[plan.first_sample(rank, micro)])

    assert dealt == wanted


@pytest.mark.parametrize("size", [1, 5, 8])
def test_several_steps_at_once_are_the_same_steps(size: int) -> None:
    shards = [("law", 9), ("general", 5), ("law", 4)]
    order = build(shards, {"by": "weights", "shares": {"law": 0.7, "general": 0.3}}, size=size)

    for position in (0, 3 * size):
        one_by_one = [references(order.batch(position + step * size)) for step in range(20)]
        assert references(order.batch(position, 20)) == [sample for step in one_by_one for sample in step]


def test_at_names_the_samples_of_the_batch_in_dealt_order() -> None:
    order = build(law(*SIZES))

    assert [order.at(position) for position in range(80)] == [SampleRef(*one) for one in read(order, 10)]


def test_a_position_far_into_the_run_is_found_as_if_it_were_the_first() -> None:
    read_before, fresh = build(law(*SIZES)), build(law(*SIZES))
    read(read_before, 30)

    assert references(fresh.batch(8 * 10**12)) == references(read_before.batch(8 * 10**12))


def test_epochs_and_seeds_differ() -> None:
    order, other = build(law(64, 64)), build(law(64, 64), seed=18)
    first, second = ([place[1:] for place in read(order, 16, first=16 * epoch)] for epoch in (0, 1))

    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10
    assert sum(a == b for a, b in zip(first, [p[1:] for p in read(other, 16)], strict=True)) < 10


def test_neighbours_in_a_batch_are_from_all_over_the_corpus() -> None:
    order = build(law(*[100] * 64), size=16)

    for step in range(50):
        samples = references(order.batch(step * 16))
        assert len({shard for _, shard, _ in samples}) == 16


def test_neighbours_in_time_are_rows_far_apart() -> None:
    # One shard: all that mixes is the permutation of its rows.
    rows = np.asarray([row for _, _, row in read(build(law(4096)), 512)])

    assert 0.28 < np.abs(np.diff(rows)).mean() / 4096 < 0.38  # two places at random: 1/3
    assert np.corrcoef(rows, np.arange(4096))[0, 1] < 0.05


def test_the_order_is_pinned() -> None:
    # A change here breaks the resumption of every run that was started before it.
    order = build(law(*SIZES), size=4)
    mixed = build(
        [("law", 50), ("general", 20)], {"by": "weights", "shares": {"law": 0.75, "general": 0.25}}, size=4
    )

    assert references(order.batch(0)) == [(0, 0, 1), (0, 4, 19), (0, 4, 39), (0, 6, 16)]
    assert references(order.batch(88)) == [(1, 3, 0), (1, 4, 12), (1, 6, 10), (1, 6, 8)]
    assert references(mixed.batch(0)) == [(0, 0, 7), (0, 0, 17), (0, 1, 19), (0, 0, 41)]
    assert references(mixed.batch(4000)) == [(60, 0, 43), (60, 0, 19), (50, 1, 18), (60, 0, 6)]


def fetched(order: SampleOrder, steps: range, nodes: int) -> list[set[int]]:
    """Give the shards that each node needs for some steps."""
    share = order.global_batch_size // nodes
    shards = np.stack([order.batch(step * order.global_batch_size).shards for step in steps])
    return [set(np.unique(shards[:, node * share : (node + 1) * share]).tolist()) for node in range(nodes)]


SHARDS = 240
RAGGED = [("law", 20 + number % 41) for number in range(SHARDS)]
RAGGED_ROWS = sum(rows for _, rows in RAGGED)
BIGGEST = max(rows for _, rows in RAGGED)


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("size", [24, 96])
def test_a_node_fetches_its_part_of_an_epoch_and_two_shards_at_most(nodes: int, size: int) -> None:
    order = build(RAGGED, size=size)

    needed = fetched(order, range(RAGGED_ROWS // size), nodes)

    for shards in needed:
        # A row stands for a row's bytes. At both ends of a node's piece of the line a shard is cut.
        assert sum(RAGGED[shard][1] for shard in shards) <= RAGGED_ROWS / nodes + 2 * BIGGEST
    assert set().union(*needed) == set(range(SHARDS))


@pytest.mark.parametrize(("before", "after"), [(8, 3), (1, 4), (3, 8), (4, 2), (2, 1)])
def test_after_a_change_of_nodes_in_mid_epoch_a_node_fetches_no_more_than_its_new_part(
    before: int, after: int
) -> None:
    size = 24
    order = build(RAGGED, size=size)
    steps = RAGGED_ROWS // size

    for nodes, part in ((before, range(steps // 2)), (after, range(steps // 2, steps))):
        for shards in fetched(order, part, nodes):
            assert sum(RAGGED[shard][1] for shard in shards) <= RAGGED_ROWS / nodes + 2 * BIGGEST


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("epoch", [1, 2])
def test_later_epochs_begin_in_the_middle_of_a_batch_and_are_dealt_as_well(nodes: int, epoch: int) -> None:
    size = 24
    order = build(RAGGED, size=size)
    first, last = epoch * RAGGED_ROWS // size + 1, (epoch + 1) * RAGGED_ROWS // size - 1

    for shards in fetched(order, range(first, last), nodes):
        assert sum(RAGGED[shard][1] for shard in shards) <= RAGGED_ROWS / nodes + 2 * BIGGEST


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_a_mixture_costs_each_node_a_few_sections_more(nodes: int, share: float) -> None:
    size, streams = 96, 2
    shards = RAGGED + [("general", rows) for _, rows in RAGGED]
    order = build(shards, {"by": "weights", "shares": {"law": share, "general": 1 - share}}, size=size)
    spreads = [max(1, round(size * part)) for part in (share, 1 - share)]

    # As long as the stream that is read faster takes for an epoch.
    steps = range(int(RAGGED_ROWS / size / max(share, 1 - share)))
    for node in fetched(order, steps, nodes):
        for number, spread in enumerate(spreads):
            mine = [shard for shard in node if shard // SHARDS == number]
            # A batch has one sample more or less than usual of each stream: its neighbours move by one.
            bound = RAGGED_ROWS * (1 / nodes + 2 * streams / spread) + 2 * BIGGEST
            assert sum(shards[shard][1] for shard in mine) <= min(bound, RAGGED_ROWS)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(samples=st.integers(1, 700), spread=st.integers(1, 80))
def test_the_lanes_visit_every_place_of_the_line_once(samples: int, spread: int) -> None:
    lanes = Lanes(samples, spread)

    places, sections = lanes.visit(np.arange(samples))

    assert sorted(places.tolist()) == list(range(samples))
    by_place = sections[np.argsort(places)]
    assert all(earlier <= later for earlier, later in pairwise(by_place.tolist())), "sections are contiguous"
    for begin in range(0, samples - lanes.spread + 1, 3):
        assert len(set(sections[begin : begin + lanes.spread].tolist())) == lanes.spread


@settings(deadline=None, derandomize=True, max_examples=60)
@given(count=st.integers(1, 500), number=st.integers(0, 2**40))
def test_a_computed_permutation_has_every_row_once(count: int, number: int) -> None:
    keys = hash_keys("rows", np.full(count, number))

    found = permute(np.arange(count), np.full(count, count), keys)

    assert sorted(found.tolist()) == list(range(count))


@pytest.mark.parametrize("count", [50, 1000])
def test_computed_permutations_are_uniform(count: int) -> None:
    # Where the first goes, and how far from it the second, over many keys: every value as often.
    many = 100 * count
    keys, counts = hash_keys("rows", np.arange(many)), np.full(many, count)
    first, second = (permute(np.full(many, index), counts, keys) for index in (0, 1))

    for found, values in ((first, count), ((second - first) % count - 1, count - 1)):
        seen, wanted = np.bincount(found, minlength=values), many / values
        chi_square = ((seen - wanted) ** 2 / wanted).sum()
        assert abs(chi_square - (values - 1)) < 5 * np.sqrt(2 * (values - 1))


@pytest.mark.parametrize("count", [1, 2, 5, 8, 96])
def test_any_run_of_the_spread_order_lies_evenly(count: int) -> None:
    order = spread_order(count)

    assert sorted(order.tolist()) == list(range(count))
    for length in range(1, count + 1):
        below_half = int((order[:length] < count / 2).sum())
        assert abs(below_half - length / 2) <= 1
