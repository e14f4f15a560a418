"""Packing: nothing lost, nothing twice, no row overfull, hardly any room wasted."""

import hashlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.order.packing import LongDocuments, Packing, add_counts, pack_documents
from training.errors import DataError

Lengths = npt.NDArray[np.int32]


def draw_lengths(count: int, seed: int = 0) -> Lengths:
    generator = np.random.default_rng(seed)
    return np.clip(generator.lognormal(4.3, 0.8, count), 2, 3000).astype(np.int32)


def tokens_of(packing: Packing) -> list[tuple[int, int]]:
    return sorted(
        (document, token)
        for row in range(packing.counts.rows)
        for document, start, stop in packing.row(row)
        for token in range(start, stop)
    )


def row_tokens(packing: Packing) -> list[int]:
    return [sum(stop - start for _, start, stop in packing.row(r)) for r in range(packing.counts.rows)]


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    lengths=st.lists(st.integers(-40, 120).filter(bool), max_size=60),
    sequence_length=st.integers(1, 70),
    policy=st.sampled_from(["split", "truncate", "drop"]),
)
def test_every_token_is_in_one_row_or_counted_as_left_out(
    lengths: list[int], sequence_length: int, policy: LongDocuments
) -> None:
    packing = pack_documents(np.asarray(lengths, dtype=np.int32), sequence_length, policy)

    def keep(length: int) -> int:
        if length < 0 or (policy == "drop" and length > sequence_length):
            return 0
        return length if policy == "split" else min(length, sequence_length)

    assert tokens_of(packing) == [(d, t) for d, length in enumerate(lengths) for t in range(keep(length))]
    assert all(0 < used <= sequence_length for used in row_tokens(packing))
    counts = packing.counts
    there = [length for length in lengths if length > 0]
    long = sum(length > sequence_length for length in there)
    assert counts.documents == len(there)
    assert counts.tokens + counts.tokens_left_out == sum(there)
    assert (counts.split, counts.truncated, counts.dropped) == tuple(
        long * (policy == name) for name in ("split", "truncate", "drop")
    )


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    lengths=st.lists(st.sampled_from([1, 2, 3, 5, 8, 13, 21, 33, 34, 60]), min_size=1, max_size=400),
    sequence_length=st.integers(60, 200),
)
def test_few_lengths_of_many_documents_leave_no_two_rows_that_would_fit_into_one(
    lengths: list[int], sequence_length: int
) -> None:
    packing = pack_documents(np.asarray(lengths, dtype=np.int32), sequence_length, "refuse")

    used = sorted(row_tokens(packing))
    assert sum(used) == sum(lengths)
    assert len(used) == 1 or used[0] + used[1] > sequence_length


@pytest.mark.parametrize("sequence_length", [512, 2048, 4096])
def test_rows_of_a_realistic_corpus_are_full(sequence_length: int) -> None:
    packing = pack_documents(draw_lengths(60_000), sequence_length, "split")

    assert packing.counts.density >= 0.998
    assert max(row_tokens(packing)) <= sequence_length


@pytest.mark.parametrize(("sequence_length", "density"), [(512, 0.995), (2048, 0.995)])
def test_rows_of_questions_much_of_a_length_are_full(sequence_length: int, density: float) -> None:
    lengths = np.random.default_rng(0).integers(40, 101, 20_000).astype(np.int32)

    assert pack_documents(lengths, sequence_length, "refuse").counts.density >= density


def test_documents_that_meet_in_a_row_are_from_all_over_the_shard() -> None:
    # Like a source that is sorted: neighbours are about the same thing, and of a length.
    lengths = np.repeat(np.arange(40, 100), 200).astype(np.int32)

    packing = pack_documents(lengths, 512, "refuse")

    rows = [[document for document, _, _ in packing.row(row)] for row in range(packing.counts.rows)]
    spans = np.asarray([max(row) - min(row) for row in rows if len(row) > 1])
    # Seven documents drawn without regard to their place span 6/8 of the whole on average.
    assert 0.6 < spans.mean() / len(lengths) < 0.9
    neighbours = sum(abs(a - b) == 1 for row in rows for a in row for b in row) / 2
    assert neighbours < 0.01 * len(lengths)


def test_documents_of_one_length_are_mixed_as_well() -> None:
    packing = pack_documents(np.full(4096, 128, dtype=np.int32), 512, "refuse")

    spans = [np.ptp([document for document, _, _ in packing.row(row)]) for row in range(1024)]
    assert 0.5 < float(np.mean(spans)) / 4096 < 0.7  # four places at random: 3/5


def test_the_packing_is_pinned() -> None:
    # A change here needs another PACKER_VERSION, and breaks the resumption of every run begun before it.
    packing = pack_documents(np.arange(1, 3000, dtype=np.int32) % 777 + 1, 512, "split")

    columns = (packing.documents, packing.starts, packing.sizes, packing.row_bounds)
    digest = hashlib.sha256(b"".join(column.astype("<i8").tobytes() for column in columns)).hexdigest()
    assert digest[:16] == "5d9eb086883137af"


def test_a_long_document_is_refused_by_its_name_with_both_lengths() -> None:
    lengths = np.asarray([10, 700, 900], dtype=np.int32)

    with pytest.raises(DataError) as caught:
        pack_documents(lengths, 512, "refuse", name_of=lambda index: f"notes.jsonl:{index}")

    words = str(caught.value)
    assert "document notes.jsonl:1 has 700 tokens" in words
    assert "batch.sequence_length=512" in words
    assert "data.long_documents" in words
    assert "\n" not in words


def test_where_everything_is_dropped_or_removed_there_is_no_row() -> None:
    packing = pack_documents(np.asarray([9, 10, -3], dtype=np.int32), 8, "drop")

    assert (packing.counts.rows, packing.counts.dropped, packing.counts.documents) == (0, 2, 2)
    assert packing.row_bounds.tolist() == [0]


def test_counts_of_two_groups_add_up_to_those_of_both() -> None:
    one, two = draw_lengths(300, seed=1), draw_lengths(400, seed=2)
    parts = [pack_documents(part, 128, "truncate").counts for part in (one, two)]

    total = add_counts(parts, 128)

    whole = pack_documents(np.concatenate([one, two]), 128, "truncate").counts
    for name in ("documents", "tokens", "truncated", "tokens_left_out"):
        assert getattr(total, name) == getattr(whole, name), name
    assert total.rows == parts[0].rows + parts[1].rows
    assert total.density == total.tokens / (total.rows * 128)
