"""Ulysses sequence parallelism (arXiv:2309.14509): a few ranks, a *team*, share the tokens of every pass.

Each rank computes its stretch of the tokens in all layers but attention. There the ranks exchange: what was
all heads of a stretch becomes some heads of all tokens, and back. Attention sees whole rows, so that packed
documents are kept apart as on one rank, and its memory and time are divided by the heads.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.model.inputs import IGNORE_INDEX, Batch


@dataclass(frozen=True, slots=True)
class Team:
    """The ranks that share this rank's passes, and this rank's place among them."""

    group: dist.ProcessGroup
    index: int
    size: int

    def stretch(self, tokens: int) -> slice:
        """Give this rank's part of ``tokens``, which the team's size divides."""
        share = tokens // self.size
        return slice(self.index * share, (self.index + 1) * share)


def found_teams(rank: int, world_size: int, size: int) -> Team | None:
    """Make every ``size`` neighbouring ranks a team; None where each would be alone. Collective."""
    if size == 1:
        return None
    mine = None
    for first in range(0, world_size, size):
        group = dist.new_group(list(range(first, first + size)))
        if first <= rank < first + size:
            mine = Team(group, rank - first, size)
    return mine


def cut_stretch(batch: Batch, team: Team | None) -> Batch:
    """Give the rank's own tokens of a batch; documents and their bounds stay those of all of it.

    ``tokens`` and ``targets`` become those of the stretch; padding inside of it counts as tokens.
    """
    if team is None:
        return batch
    part = team.stretch(batch.input_ids.shape[1])
    labels = batch.labels[:, part]
    return replace(
        batch,
        input_ids=batch.input_ids[:, part],
        labels=labels,
        position_ids=batch.position_ids[:, part],
        first_token=part.start,
        tokens=part.stop - part.start,
        targets=int((labels != IGNORE_INDEX).sum()),
    )


Attend = Callable[..., tuple[Tensor, None]]


def across_team(attend: Attend) -> Attend:
    """Let a function of transformers' attention interface see all tokens of some heads.

    With ``team`` among its keywords the decorated function takes and gives a rank's stretch of the tokens,
    [1, heads, N / size, head_dim] and [1, N / size, heads, head_dim]; without, nothing changes.
    """

    @wraps(attend)
    def attend_across(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        team: Team | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if team is None:
            return attend(module, query, key, value, attention_mask, **kwargs)
        parts = (_share_heads(tensor, team) for tensor in (query, key, value))
        output, _ = attend(module, *parts, attention_mask, **kwargs)
        return _Exchange.apply(output, team, 1, 2), None  # type: ignore[no-untyped-call]

    return attend_across


def _share_heads(tensor: Tensor, team: Team) -> Tensor:
    """[1, heads, N / size, head_dim] -> [1, heads / size, N, head_dim]."""
    heads = tensor.shape[1]
    if heads < team.size:
        # Of neighbouring ranks each gets its own copy of the head that their queries share.
        tensor = tensor.repeat_interleave(team.size // heads, dim=1)
    shared: Tensor = _Exchange.apply(tensor, team, 1, 2)  # type: ignore[no-untyped-call]
    return shared


class _Exchange(torch.autograd.Function):
    """Cut dimension ``cut`` over the team's ranks and join dimension ``join``; backward does the reverse."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, team: Team, cut: int, join: int) -> Tensor:
        ctx.way = (team, join, cut)
        return _exchange(tensor, team, cut, join)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _exchange(gradient, *ctx.way), None, None, None


def _exchange(tensor: Tensor, team: Team, cut: int, join: int) -> Tensor:
    # One contiguous block for each rank, in the order of the ranks.
    sent = torch.stack(tensor.chunk(team.size, dim=cut))
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=team.group)
    return torch.cat(received.unbind(), dim=join)
