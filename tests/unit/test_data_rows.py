"""Laying pieces side by side: bounds, positions, and labels that never cross from one piece to the next."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from training.data.reading.rows import Piece, build_batch, pack_batch
from training.model.inputs import IGNORE_INDEX


def pieces(*lengths: int) -> list[Piece]:
    ids = np.arange(1000, dtype=np.int32)
    ends = np.cumsum([0, *lengths])
    targets = np.arange(1000) % 3 != 0
    return [(ids[a:b], targets[a:b]) for a, b in pairwise(ends)]


def test_documents_are_bounded_and_their_positions_restart() -> None:
    batch = build_batch([pieces(3, 4), pieces(8), pieces(2)], 8, padding_id=7)

    assert batch.document_bounds == (0, 3, 7, 8, 16, 18, 24)
    expected = torch.cat([torch.arange(b - a) for a, b in pairwise(batch.document_bounds)])
    assert torch.equal(batch.position_ids[0], expected)
    assert batch.input_ids[0, 7] == 7
    assert batch.tokens == 17
    assert len(batch.source_ids) == 6
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
    with pytest.raises(ValueError, match="row 2 holds more than 8 tokens"):
        build_batch([pieces(8), pieces(5, 4)], 8, 0)
