"""Packing: nothing lost, nothing twice, no row overfull, hardly any room wasted."""

import numpy as np
import numpy.typing as npt
import pytest

from training.data.packing import LongDocuments, Packing, plan_packing
from training.errors import DataError


def draw_lengths(count: int, seed: int = 0) -> npt.NDArray[np.int32]:
    generator = np.random.default_rng(seed)
    return np.clip(generator.lognormal(4.3, 0.8, count), 2, 3000).astype(np.int32)


def tokens_of(packing: Packing) -> list[tuple[int, int]]:
    return sorted(
        (document, token)
        for document, start, stop in zip(packing.documents, packing.starts, packing.stops, strict=True)
        for token in range(start, stop)
    )


def test_split_keeps_every_token_exactly_once() -> None:
    lengths = draw_lengths(500)

    packing = plan_packing(lengths, 128, "split")

    assert tokens_of(packing) == [(d, t) for d, length in enumerate(lengths) for t in range(length)]
    assert packing.counts.split == (lengths > 128).sum()
    assert packing.counts.tokens == lengths.sum()


@pytest.mark.parametrize("policy", ["truncate", "drop"])
def test_what_is_left_out_is_counted(policy: LongDocuments) -> None:
    lengths = draw_lengths(500)

    packing = plan_packing(lengths, 128, policy)

    kept = int((packing.stops - packing.starts).sum())
    counts = packing.counts
    assert kept == counts.tokens
    assert kept + counts.tokens_left_out == lengths.sum()
    assert counts.truncated + counts.dropped == (lengths > 128).sum()
    assert (packing.starts == 0).all()


@pytest.mark.parametrize("sequence_length", [64, 512, 2048])
def test_no_row_is_overfull_and_none_is_empty(sequence_length: int) -> None:
    packing = plan_packing(draw_lengths(3000), sequence_length, "split")

    used = [sum(stop - start for _, start, stop in packing.row(row)) for row in range(packing.counts.rows)]
    assert max(used) <= sequence_length
    assert min(used) > 0
    assert sum(packing.block_rows) == packing.counts.rows


@pytest.mark.parametrize("sequence_length", [512, 2048])
def test_rows_of_a_realistic_corpus_are_full(sequence_length: int) -> None:
    assert plan_packing(draw_lengths(20_000), sequence_length, "split").counts.density > 0.99


def test_rows_of_questions_much_of_a_length_are_full() -> None:
    lengths = np.random.default_rng(0).integers(40, 101, 20_000).astype(np.int32)

    assert plan_packing(lengths, 512, "refuse").counts.density > 0.99


def test_a_row_that_is_nearly_full_takes_no_longer_piece() -> None:
    # Lengths far apart: no pair fills the rest, and what comes next in the mixture is too long for it.
    lengths = np.asarray([500, 500, 3, 3, 500, 3, 500, 3] * 50, dtype=np.int32)

    packing = plan_packing(lengths, 512, "refuse")

    assert (
        max(sum(stop - start for _, start, stop in packing.row(r)) for r in range(packing.counts.rows)) <= 512
    )
    assert len(tokens_of(packing)) == lengths.sum()


def test_blocks_are_packed_apart_and_together_hold_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.packing.BLOCK_PIECES", 100)
    lengths = draw_lengths(450)

    packing = plan_packing(lengths, 4096, "refuse")

    ends = np.cumsum(packing.block_rows)
    for block, (first, last) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        documents = {piece[0] for row in range(first, last) for piece in packing.row(row)}
        assert documents == set(range(block * 100, min(block * 100 + 100, 450)))


def test_the_plan_depends_on_its_arguments_only() -> None:
    lengths = draw_lengths(9000)
    one, two = (plan_packing(lengths, 256, "split") for _ in range(2))

    assert all(
        np.array_equal(getattr(one, name), getattr(two, name))
        for name in ("documents", "starts", "stops", "row_bounds")
    )


def test_a_long_document_is_refused_by_its_name_with_both_lengths() -> None:
    lengths = np.asarray([10, 700, 900], dtype=np.int32)

    with pytest.raises(DataError) as caught:
        plan_packing(lengths, 512, "refuse", name_of=lambda index: f"notes.jsonl:{index}")

    words = str(caught.value)
    assert "document notes.jsonl:1 has 700 tokens" in words
    assert "batch.sequence_length=512" in words
    assert "data.long_documents" in words
    assert "\n" not in words


def test_dropping_everything_is_refused() -> None:
    with pytest.raises(DataError, match=r"all 2 documents are longer than batch\.sequence_length=8"):
        plan_packing(np.asarray([9, 10], dtype=np.int32), 8, "drop")
