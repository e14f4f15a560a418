"""The oracle: a plain single-process PyTorch loop, without packing, sharding, accumulation or fusion.

Every engine, stage and packing is compared with it, so it must stay so simple that it is right at sight.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


@dataclass(frozen=True)
class Document:
    """Token ids and which of them are targets."""

    ids: list[int]
    is_target: list[bool]


@dataclass(frozen=True)
class PlainStep:
    """What one step reports: mean loss per target, and the gradient's norm before clipping."""

    loss: float
    grad_norm: float


def train_plainly(
    model: nn.Module,
    steps: Sequence[Sequence[Document]],
    *,
    learning_rate_at: Callable[[int], float],
    weight_decay: float,
    max_grad_norm: float,
) -> list[float]:
    """Train with AdamW; give each step's mean loss per target."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    reported = walk_plainly(
        model, steps, optimizer, learning_rate_at=learning_rate_at, max_grad_norm=max_grad_norm
    )
    return [step.loss for step in reported]


def walk_plainly(
    model: nn.Module,
    steps: Sequence[Sequence[Document]],
    optimizer: torch.optim.Optimizer,
    *,
    learning_rate_at: Callable[[int], float],
    max_grad_norm: float,
) -> list[PlainStep]:
    """Train on the documents of each step, one document at a time.

    A group of ``optimizer`` may have a ``factor`` of its own to the rate.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = trained[0].device
    reported = []
    for step, documents in enumerate(steps):
        targets = sum(sum(document.is_target[1:]) for document in documents)
        total = 0.0
        for document in documents:
            ids = torch.tensor(document.ids, device=device)
            logits = model(input_ids=ids[None]).logits[0, :-1]
            labels = ids[1:]
            wanted = torch.tensor(document.is_target, device=device)[1:]
            nats = F.cross_entropy(logits[wanted].float(), labels[wanted], reduction="sum")
            (nats / targets).backward()
            total += float(nats.detach())
        grad_norm = float(torch.nn.utils.clip_grad_norm_(trained, max_grad_norm))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step) * group.get("factor", 1.0)
        optimizer.step()
        optimizer.zero_grad()
        reported.append(PlainStep(loss=total / targets, grad_norm=grad_norm))
    return reported
