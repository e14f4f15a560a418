"""Lays pieces of documents side by side into the tensors of forward passes, many rows at a time.

Nothing here is done token by token or piece by piece in Python: for a block of rows one index says which
token of its shard stands in each slot, and numpy gathers them.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from training.data.reading.mapped import Shard, Tokens, give_back, keep_small_pages
from training.model.inputs import IGNORE_INDEX, Batch

MOST_PLAN_BYTES = 16 << 20
"""A larger plan does not stay in this process's memory: it is looked up in small parts and given back."""

LARGE_PLAN_ROWS = 64
"""A row touches 3 pages of its plan, and the kernel maps 16 around each (fault_around_bytes): 12 MB."""

Numbers = npt.NDArray[np.integer]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.uint8]
Piece = tuple[npt.NDArray[np.integer], npt.NDArray[np.bool_]]
"""A document's tokens, or a part of them: ids [L], and which are targets bool [L]."""


class RowPlan(Protocol):
    """Says what each row of each shard is made of, in arrays that are mapped from a file."""

    @property
    def first_rows(self) -> Sequence[int]:
        """Where each shard's rows begin among all."""

    @property
    def row_bounds(self) -> Indices:
        """int64 [rows + 1]: where each row begins among the pieces."""

    @property
    def begins(self) -> npt.NDArray[np.int32]:
        """int32 [pieces]: where each piece begins among its shard's tokens."""

    @property
    def ends(self) -> npt.NDArray[np.int32]:
        """int32 [pieces]: one past its last token."""


class Shards(Protocol):
    """Where the tokens are."""

    @property
    def source_numbers(self) -> Indices:
        """int64 [shards]: the number of each shard's source."""

    @property
    def token_bytes(self) -> int:
        """Width of a stored token id: 2 or 4."""

    @property
    def padding_id(self) -> int:
        """The token id that fills a row's rest."""

    def shard(self, index: int) -> Shard:
        """Open one."""

    def give_back(self) -> None:
        """Called after each shard that was read."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Layout:
    """Where the pieces of R rows of T slots lie. A row's padding is its last piece, of length 0 at times."""

    places: Indices
    """int64 [R, T]: the token of the row's shard that stands in each slot; anything in padding."""

    starts: Indices
    """int64 [P]: the slot in R x T at which each piece begins; pieces of no length are left out."""

    lengths: Indices
    """int64 [P]: tokens of each piece."""

    first_piece: Indices
    """int64 [R + 1]: the first piece of each row, and P."""

    is_padding: npt.NDArray[np.bool_]
    """bool [P]."""

    padding: Indices
    """int64 [R]: slots of each row that hold no token."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """R rows of T tokens, read and laid out; ``cut_batch`` makes tensors of them."""

    input_ids: Tokens
    """uint16 or uint32 [R, T]."""

    is_target: Mask
    """uint8 [R, T]; 0 at the first token of each piece, which no token of the same piece foretells."""

    starts: Indices
    lengths: Indices
    first_piece: list[int]
    padding: list[int]
    """As in the layout."""

    sources: list[int]
    """Of each piece, P in all: its source's number, 0 for padding."""


class RowReader:
    """Reads rows of a plan out of a corpus's shards."""

    def __init__(self, corpus: Shards, plan: RowPlan, sequence_length: int) -> None:
        """Read nothing yet."""
        self._corpus = corpus
        self._plan = plan
        self._sequence_length = sequence_length
        self._first_rows = np.asarray(plan.first_rows, dtype=np.int64)
        self._mapped = (plan.row_bounds, plan.begins, plan.ends)
        self._looked_up_at_once = sys.maxsize
        if sum(array.nbytes for array in self._mapped) > MOST_PLAN_BYTES:
            self._looked_up_at_once = LARGE_PLAN_ROWS
            for array in self._mapped:
                keep_small_pages(array)

    def read(self, shards: Numbers, rows: Numbers) -> Block:
        """Read R rows: row ``rows[i]`` of shard ``shards[i]``, each shard visited once.

        Raises:
            DataError: A shard is missing or damaged.
            StorageError: A shard cannot be fetched, or not be kept.
        """
        corpus, length = self._corpus, self._sequence_length
        layout = _lay_out(*self._look_up(self._first_rows[shards] + rows), length)
        shape = layout.places.shape
        is_target = np.empty(shape, dtype=np.uint8)
        input_ids: Tokens = np.empty(shape, dtype=f"u{corpus.token_bytes}")
        order = np.argsort(shards, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
            shard = corpus.shard(int(shards[members[0]]))
            places = layout.places[members]
            if len(shard.ids) < length:  # its padding reaches past its tokens
                np.minimum(places, len(shard.ids) - 1, out=places)
            input_ids[members], is_target[members] = shard.read(places)
            corpus.give_back()
        return _finish(layout, input_ids, is_target, corpus.source_numbers[shards], corpus.padding_id)

    def _look_up(self, rows: Indices) -> tuple[Indices, Indices, Indices]:
        """Find the pieces of rows: how many each has, int64 [R]; where they begin, and lengths, int64 [P]."""
        parts = []
        for begin in range(0, len(rows), self._looked_up_at_once):
            parts.append(_look_up(self._plan, rows[begin : begin + self._looked_up_at_once]))
            if self._looked_up_at_once < sys.maxsize:
                for array in self._mapped:
                    give_back(array)
        if len(parts) == 1:
            return parts[0]
        counts, begins, lengths = (np.concatenate(column) for column in zip(*parts, strict=True))
        return counts, begins, lengths


def cut_batch(block: Block, first: int, size: int, *, pin: bool = False) -> Batch:
    """Make one forward pass of the rows [first, first + size), N = size x T.

    A row's rest is padding, a document of its own without labels. The label at a piece's last token is
    IGNORE_INDEX: what follows it belongs to another document, or to a part that does not see this one.

    Args:
        block: From ``RowReader.read``.
        first: The first row.
        size: Rows.
        pin: Put the tensors into page-locked memory, from which a GPU copies while the host goes on.
    """
    length = block.input_ids.shape[1]
    total = size * length
    is_target = block.is_target[first : first + size].reshape(total)
    input_ids = block.input_ids[first : first + size].reshape(total).astype(np.int64)
    labels = np.empty(total, dtype=np.int64)
    # (id + 100) x target - 100 is the id, or -100: no branch, so several times as fast as a choice by a mask.
    np.subtract(input_ids[1:], IGNORE_INDEX, out=labels[:-1])
    labels[:-1] *= is_target[1:]
    labels[:-1] += IGNORE_INDEX
    labels[-1] = IGNORE_INDEX
    begin, end = block.first_piece[first], block.first_piece[first + size]
    starts = block.starts[begin:end] - first * length
    positions = np.arange(total, dtype=np.int64)
    positions -= np.repeat(starts, block.lengths[begin:end])
    tensors = [torch.from_numpy(values[None]) for values in (input_ids, labels, positions)]
    if pin:
        tensors = [tensor.pin_memory() for tensor in tensors]
    return Batch(
        input_ids=tensors[0],
        labels=tensors[1],
        position_ids=tensors[2],
        document_bounds=(*starts.tolist(), total),
        source_ids=tuple(block.sources[begin:end]),
        tokens=total - sum(block.padding[first : first + size]),
        targets=int(np.count_nonzero(is_target)),
    )


def pack_batch(pieces: Sequence[Piece], sequence_length: int, padding_id: int = 0) -> Batch:
    """Lay ``pieces`` into one row; document i of the batch is piece i, of source 0; padding comes last."""
    return build_batch([pieces], sequence_length, padding_id)


def build_batch(rows: Sequence[Sequence[Piece]], sequence_length: int, padding_id: int) -> Batch:
    """Lay rows of pieces end to end, as ``cut_batch`` does with those of a corpus; all of source 0.

    Raises:
        ValueError: A row's pieces are longer than ``sequence_length``; packing never plans that.
    """
    pieces = [piece for row in rows for piece in row]
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    lengths = np.array([len(ids) for ids, _ in pieces], dtype=np.int64)
    layout = _lay_out(counts, np.cumsum(lengths) - lengths, lengths, sequence_length)
    places = np.minimum(layout.places, lengths.sum() - 1)
    input_ids = np.concatenate([ids for ids, _ in pieces]).astype(np.uint32)[places]
    is_target = np.concatenate([targets for _, targets in pieces]).astype(np.uint8)[places]
    sources = np.zeros(len(rows), dtype=np.int64)
    return cut_batch(_finish(layout, input_ids, is_target, sources, padding_id), 0, len(rows))


def _look_up(plan: RowPlan, rows: Indices) -> tuple[Indices, Indices, Indices]:
    firsts = plan.row_bounds.take(rows)
    counts = plan.row_bounds.take(rows + 1) - firsts
    before = np.cumsum(counts) - counts
    pieces = np.arange(int(counts.sum()), dtype=np.int64) + np.repeat(firsts - before, counts)
    begins = plan.begins.take(pieces).astype(np.int64)
    return counts, begins, plan.ends.take(pieces) - begins


def _lay_out(counts: Indices, begins: Indices, lengths: Indices, sequence_length: int) -> _Layout:
    """Lay out rows of ``counts`` int64 [R] pieces, which begin at ``begins`` in their shards."""
    stops = np.cumsum(counts)
    before = np.concatenate(([0], np.cumsum(lengths)))
    padding = sequence_length - (before[stops] - before[stops - counts])
    if padding.min() < 0:
        raise ValueError(f"row {int(padding.argmin()) + 1} holds more than {sequence_length} tokens")
    # A last piece for every row fills it up, so that slots and pieces come out even.
    begins, lengths = np.insert(begins, stops, 0), np.insert(lengths, stops, padding)
    starts = np.cumsum(lengths) - lengths
    slots = len(counts) * sequence_length
    places = np.arange(slots, dtype=np.int64)
    places += np.repeat(begins - starts, lengths)
    is_padding = np.zeros(len(lengths), dtype=np.bool_)
    is_padding[stops + np.arange(len(counts))] = True
    kept = lengths > 0
    starts, lengths = starts[kept], lengths[kept]
    return _Layout(
        places=places.reshape(len(counts), sequence_length),
        starts=starts,
        lengths=lengths,
        first_piece=np.searchsorted(starts, np.arange(0, slots + 1, sequence_length)),
        is_padding=is_padding[kept],
        padding=padding,
    )


def _finish(layout: _Layout, input_ids: Tokens, is_target: Mask, sources: Indices, padding_id: int) -> Block:
    """Blank the padding and the first token of each piece; ``sources`` int64 [R] are told by piece."""
    length = input_ids.shape[1]
    for row in np.flatnonzero(layout.padding).tolist():
        begin = length - int(layout.padding[row])
        input_ids[row, begin:] = padding_id
        is_target[row, begin:] = 0
    is_target.reshape(-1)[layout.starts] = 0
    by_piece = np.repeat(sources, np.diff(layout.first_piece))
    by_piece[layout.is_padding] = 0
    return Block(
        input_ids=input_ids,
        is_target=is_target,
        starts=layout.starts,
        lengths=layout.lengths,
        first_piece=layout.first_piece.tolist(),
        padding=layout.padding.tolist(),
        sources=by_piece.tolist(),
    )
