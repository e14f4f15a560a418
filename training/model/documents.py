"""Attention one document at a time: documents of nearly equal length share one sdpa call, without a mask."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from training.errors import ModelError
from training.model.plain import plain_without
from training.model.sequence_parallel import across_team

_SHARED_LENGTH = 0.75
"""Documents at least this long, as a fraction of the longest of their group, share one call."""
_SHORT = 32
"""Documents up to this many tokens share one call whatever they fill of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentGroups:
    """The documents of a batch, sorted by length into groups that one sdpa call each can take.

    N tokens; P >= N of them once every document is padded to the longest of its group.
    """

    gather: Tensor
    """int64 [P]: the token that stands at each padded place."""

    scatter: Tensor
    """int64 [N]: the padded place of each token."""

    shapes: tuple[tuple[int, int], ...]
    """Documents x padded length of each group; their products sum up to P."""

    longest: int
    """Tokens of the longest document."""

    in_place: bool
    """Whether every token stands at its place already, as where each row is one document."""


def group_documents(bounds: Sequence[int], device: torch.device) -> DocumentGroups:
    """Group documents of nearly equal length.

    Args:
        bounds: Where each document begins, and N at the end: ``Batch.document_bounds``.
        device: Where attention runs.
    """
    starts = torch.tensor(bounds[:-1], dtype=torch.int64)
    lengths = torch.tensor(bounds[1:], dtype=torch.int64) - starts
    order = torch.argsort(lengths, descending=True, stable=True)
    order = order[lengths[order] > 0]
    gather, shapes, scatter, place = [], [], torch.empty(bounds[-1], dtype=torch.int64), 0
    for first, last in _cut(lengths[order].tolist()):
        members = order[first:last]
        length = int(lengths[members[0]])
        offsets = torch.arange(length)
        real = offsets < lengths[members, None]
        # A padded place repeats the document's last token. It comes after all real ones, so that causal
        # attention never shows it to them, and nobody reads what it computes.
        tokens = starts[members, None] + torch.minimum(offsets, lengths[members, None] - 1)
        places = place + torch.arange(len(members) * length).view(len(members), length)
        scatter[tokens[real]] = places[real]
        gather.append(tokens.flatten())
        shapes.append((len(members), length))
        place += len(members) * length
    return DocumentGroups(
        gather=torch.cat(gather).to(device, non_blocking=True),
        scatter=scatter.to(device, non_blocking=True),
        shapes=tuple(shapes),
        longest=int(lengths.max()),
        in_place=place == len(scatter) and bool((scatter == torch.arange(place)).all()),
    )


def _cut(lengths: list[int]) -> Iterator[tuple[int, int]]:
    """Cut descending lengths into groups; yields first and one past the last."""
    first = 0
    for index, length in enumerate(lengths):
        longest = lengths[first]
        if longest > _SHORT and length < _SHARED_LENGTH * longest:
            yield first, index
            first = index
    if lengths:
        yield first, len(lengths)


@across_team
@plain_without("documents")
def attend_documents(  # noqa: PLR0913 - the signature is transformers'
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    documents: DocumentGroups,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document: one sdpa call per group of nearly equal lengths.

    Args:
        module: The attention layer.
        query: [1, heads, N, head_dim].
        key: [1, kv_heads, N, head_dim].
        value: [1, kv_heads, N, head_dim].
        attention_mask: None: documents need no mask.
        documents: Where they lie, from ``group_documents``.
        dropout: Of the attention weights.
        scaling: Of the scores; None: 1 / sqrt(head_dim).
        **kwargs: What transformers hands to every attention function.

    Returns:
        [1, N, heads, head_dim], and None in place of the weights.
    """
    check_window(documents.longest, kwargs.get("sliding_window"))
    shared_heads = query.shape[1] // key.shape[1]
    # The CPU's kernel reads a key for several queries; on a GPU not every kernel does, and the one that
    # always can would hold all scores.
    copies = 1 if query.device.type == "cpu" else shared_heads
    outputs = []
    for q, k, v in zip(*(_lay(tensor, documents) for tensor in (query, key, value)), strict=True):
        if copies > 1:
            k, v = (tensor.repeat_interleave(copies, dim=1) for tensor in (k, v))  # noqa: PLW2901
        output = F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=copies < shared_heads
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    laid = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return (laid if documents.in_place else _Collect.apply(laid, documents))[None], None  # type: ignore[no-untyped-call]


def check_window(longest: int, window: int | None) -> None:
    """Refuse a document that a sliding window would cut, which no kernel here does.

    Raises:
        ModelError: It names the sequence length that fits.
    """
    if window is not None and longest > window:
        raise ModelError(
            f"a document of {longest} tokens is longer than the model's sliding window of {window}; "
            f"use batch.sequence_length={window} or less"
        )


def _lay(heads: Tensor, documents: DocumentGroups) -> list[Tensor]:
    """[1, heads, N, head_dim] -> for each group [count, heads, length, head_dim]."""
    tokens = heads[0].transpose(0, 1)
    laid = tokens if documents.in_place else _Spread.apply(tokens, documents)  # type: ignore[no-untyped-call]
    # One split, whose backward is one concatenation; a slice of each would fill zeros of the whole for each.
    parts = laid.split([count * length for count, length in documents.shapes])
    return [
        part.view(count, length, *part.shape[1:]).transpose(1, 2)
        for part, (count, length) in zip(parts, documents.shapes, strict=True)
    ]


class _Spread(torch.autograd.Function):
    """Tokens [N, ...] to their padded places [P, ...].

    Nothing read what a padded place computed, so its gradient is 0: backward takes that of the real places
    and has nothing to add up, as index_select's own would.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, documents: DocumentGroups) -> Tensor:
        ctx.documents = documents
        return tokens.index_select(0, documents.gather)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return upstream.index_select(0, ctx.documents.scatter), None


class _Collect(torch.autograd.Function):
    """Padded places [P, ...] to the tokens [N, ...] that stand there."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, documents: DocumentGroups) -> Tensor:
        ctx.documents, ctx.shape = documents, places.shape
        return places.index_select(0, documents.scatter)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        if ctx.shape == upstream.shape:
            return upstream.index_select(0, ctx.documents.gather), None
        return upstream.new_zeros(ctx.shape).index_copy_(0, ctx.documents.scatter, upstream), None
