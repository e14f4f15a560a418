"""Lays pieces of documents side by side into the tensors of one forward pass."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from training.model.inputs import IGNORE_INDEX, Batch

Piece = tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]
"""A document's tokens, or a part of them: ids int32 [L], which are targets bool [L]."""


def pack_batch(pieces: Sequence[Piece], sequence_length: int, padding_id: int = 0) -> Batch:
    """Lay ``pieces`` into one row; document i of the batch is piece i, padding comes last."""
    return build_batch([pieces], sequence_length, padding_id)


def build_batch(rows: Sequence[Sequence[Piece]], sequence_length: int, padding_id: int) -> Batch:
    """Lay rows of pieces end to end, N = len(rows) x sequence_length.

    A row's rest is padding, a document of its own without labels. The label at a piece's last token is
    IGNORE_INDEX: what follows it belongs to another document, or to a part that does not see this one.

    Raises:
        ValueError: A row's pieces are longer than ``sequence_length``; packing never plans that.
    """
    total = len(rows) * sequence_length
    input_ids = np.full(total, padding_id, dtype=np.int64)
    is_target = np.zeros(total, dtype=np.bool_)
    bounds = [0]
    padding = 0
    for number, row in enumerate(rows, start=1):
        for ids, targets in row:
            begin, end = bounds[-1], bounds[-1] + len(ids)
            if end > number * sequence_length:
                raise ValueError(f"row {number} holds more than {sequence_length} tokens")
            input_ids[begin:end] = ids
            is_target[begin:end] = targets
            bounds.append(end)
        if bounds[-1] < number * sequence_length:
            padding += number * sequence_length - bounds[-1]
            bounds.append(number * sequence_length)
    labels = np.full(total, IGNORE_INDEX, dtype=np.int64)
    labels[:-1] = np.where(is_target[1:], input_ids[1:], IGNORE_INDEX)
    edges = np.asarray(bounds, dtype=np.int64)
    labels[edges[1:] - 1] = IGNORE_INDEX
    positions = np.arange(total, dtype=np.int64) - np.repeat(edges[:-1], np.diff(edges))
    return Batch(
        input_ids=torch.from_numpy(input_ids)[None],
        labels=torch.from_numpy(labels)[None],
        position_ids=torch.from_numpy(positions)[None],
        document_bounds=tuple(bounds),
        tokens=total - padding,
        targets=int((labels != IGNORE_INDEX).sum()),
    )
