"""Lays pieces of documents side by side into the tensors of forward passes, many rows at a time.

Nothing here is done token by token or piece by piece in Python: for a block of rows one index says which
token of its shard stands in each slot, and numpy gathers them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from training.data.mapped import Shard, Tokens
from training.model.inputs import IGNORE_INDEX, Batch

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReader:
    """Reads rows of a plan out of a corpus' shards."""

    corpus: Shards
    plan: RowPlan
    sequence_length: int

    def read(self, shards: npt.NDArray[np.integer], rows: npt.NDArray[np.integer]) -> Block:
        """Read R rows: row ``rows[i]`` of shard ``shards[i]``, each shard opened once.

        Raises:
            DataError: A shard is missing or damaged.
            StorageError: A shard cannot be fetched.
        """
        groups = _group(shards)
        layout = _lay_out(*self._find_pieces(shards, rows, groups), self.sequence_length)
        shape = layout.places.shape
        is_target = np.empty(shape, dtype=np.uint8)
        input_ids: Tokens = np.empty(shape, dtype=f"u{self.corpus.token_bytes}")
        for members in groups:
            shard = self.corpus.shard(int(shards[members[0]]))
            places = layout.places[members]
            if len(shard.ids) < self.sequence_length:  # its padding reaches past its tokens
                np.minimum(places, len(shard.ids) - 1, out=places)
            input_ids[members], is_target[members] = shard.read(places)
            self.corpus.give_back()
        sources = self.corpus.source_numbers[shards]
        return _finish(layout, input_ids, is_target, sources, self.corpus.padding_id)

    def _find_pieces(
        self, shards: Numbers, rows: Numbers, groups: Sequence[Indices]
    ) -> tuple[Indices, Indices, Indices]:
        """Look the rows up: pieces of each, int64 [R]; where each piece begins, and its length, int64 [P]."""
        plan = self.plan
        firsts, lasts = np.empty(len(rows), dtype=np.int64), np.empty(len(rows), dtype=np.int64)
        for number, members in enumerate(groups, start=1):
            ...


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
    ends = np.cumsum([len(ids) for ids, _ in pieces]).tolist()
    spans = iter(zip([0, *ends], ends, strict=False))
    layout = _lay_out([[next(spans) for _ in row] for row in rows], sequence_length)
    places = np.minimum(layout.places, ends[-1] - 1)
    input_ids = np.concatenate([ids for ids, _ in pieces]).astype(np.uint32)[places]
    is_target = np.concatenate([targets for _, targets in pieces]).astype(np.uint8)[places]
    sources = np.zeros(len(rows), dtype=np.int64)
    return cut_batch(_finish(layout, input_ids, is_target, sources, padding_id), 0, len(rows))


def _lay_out(rows: Iterable[Sequence[Span]], sequence_length: int) -> _Layout:
    spans = list(rows)
    counts = np.fromiter(map(len, spans), dtype=np.int64, count=len(spans))
    flat = chain.from_iterable(chain.from_iterable(spans))
    edges = np.fromiter(flat, dtype=np.int64, count=2 * int(counts.sum()))
    begins, lengths = edges[::2], edges[1::2] - edges[::2]
    stops = np.cumsum(counts)
    before = np.concatenate(([0], np.cumsum(lengths)))
    padding = sequence_length - (before[stops] - before[stops - counts])
    if padding.min() < 0:
        raise ValueError(f"row {int(padding.argmin()) + 1} holds more than {sequence_length} tokens")
    # A last piece for every row fills it up, so that slots and pieces come out even.
    begins, lengths = np.insert(begins, stops, 0), np.insert(lengths, stops, padding)
    starts = np.cumsum(lengths) - lengths
    slots = len(spans) * sequence_length
    places = np.arange(slots, dtype=np.int64)
    places += np.repeat(begins - starts, lengths)
    is_padding = np.zeros(len(lengths), dtype=np.bool_)
    is_padding[stops + np.arange(len(spans))] = True
    kept = lengths > 0
    starts, lengths = starts[kept], lengths[kept]
    return _Layout(
        places=places.reshape(len(spans), sequence_length),
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
