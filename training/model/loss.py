"""Cross-entropy fused with the output layer: logits of a few rows at a time, gradients taken in forward."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.model.products import is_slow

_CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**26}
"""Logits held at once: 32 MiB in fp32 on a CPU, 256 MiB on a GPU; more where these are too few rows."""

_LEAST_ROWS = 256
"""Rows multiplied at once: each chunk adds to the whole gradient of the output layer, which must pay."""

_TILE_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
"""Logits whose softmax is taken at once: 4 MiB stay in a CPU's cache from the first reading to the last."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Which of several sums each row belongs to."""

    numbers: Tensor
    """int64 [T], each 0..count-1."""

    count: int


@dataclass(frozen=True, slots=True)
class Terms:
    """What is minimised beside the cross-entropy."""

    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over the vocabulary (arXiv:1512.00567, section 7)."""

    z_loss: float = 0.0
    """Factor of the squared log of the softmax's sum, which keeps logits small (PaLM, arXiv:2204.02311)."""


PLAIN = Terms()


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    groups: Groups | None = None,
    terms: Terms = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy of ``hidden @ weight.T + bias`` over its rows, never holding all logits.

    The gradients are computed chunk by chunk together with the loss, as in Liger-Kernel's
    fused_linear_cross_entropy (arXiv:2410.10989, section 3.2), so that backward multiplies only. Products
    run in the tensors' dtype, softmax and sums in fp32, or fp64 for fp64 inputs.

    Args:
        hidden: [T, H].
        weight: [V, H], the output layer's.
        bias: [V], or None.
        targets: int64 [T], every one a valid id.
        groups: Into which sums the rows go; None: all into one.
        terms: What is minimised with it.

    Returns:
        Nats with ``terms``, fp32 (fp64 for fp64 inputs), a scalar; 0 where T is 0, still connected to the
        graph. And the nats of each group without them, fp64 [groups.count], without gradient: both come
        of one pass, and nothing here waits for the device.
    """
    wants_gradient = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)
    )
    total, sums = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, groups, terms, wants_gradient
    )
    return total, sums


@torch.no_grad()
def linear_cross_entropy_per_row(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> Tensor:
    """Give each row's own cross-entropy, [T]; shapes and dtypes as above. No gradient."""
    rows = _rows_per_tile(weight)
    losses = [
        _log_softmax(torch.nn.functional.linear(hidden_rows, weight, bias), target_rows[:, None])[1]
        for hidden_rows, target_rows in zip(
            torch.split(hidden, rows), torch.split(targets, rows), strict=True
        )
    ]
    return torch.cat(losses)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - autograd takes no keywords
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        groups: Groups | None,
        terms: Terms,
        wants_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        wanted = [wants_gradient and needed for needed in ctx.needs_input_grad[:3]]
        grad_hidden = torch.empty_like(hidden) if wanted[0] else None
        # Many chunks are summed: in bf16 the small ones would be lost.
        wide = _wide(weight.dtype)
        grad_weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
        grad_bias = torch.zeros_like(weight[:, 0], dtype=wide) if wanted[2] else None
        sums = torch.zeros(1 if groups is None else groups.count, dtype=torch.float64, device=hidden.device)
        beside = torch.zeros((), dtype=torch.float64, device=hidden.device)
        rows, tile = _rows_per_chunk(weight), _rows_per_tile(weight)
        room = weight.new_empty(min(rows, hidden.shape[0]), weight.shape[0])
        for start in range(0, hidden.shape[0], rows):
            part = hidden[start : start + rows]
            logits = _multiply(part, weight, bias, room[: part.shape[0]])
            for first in range(0, part.shape[0], tile):
                chosen = targets[start + first : start + min(first + tile, rows), None]
                log_chances, losses, log_sums = _log_softmax(logits[first : first + tile], chosen)
                sums += _sum_by_group(losses, groups, start + first)
                if terms != PLAIN:
                    beside += _sum_terms(losses, log_chances, log_sums, terms)
                if any(wanted):
                    slope = _slope(log_chances, log_sums, chosen, terms)
                    logits[first : first + tile] = slope
                    if grad_bias is not None:
                        grad_bias += slope.sum(0)
            # Of the logits nothing is left by now but their gradient.
            if grad_hidden is not None:
                grad_hidden[start : start + rows] = _product(logits, weight)
            if grad_weight is not None:
                _add_product(grad_weight, logits, part)
        # Kept here and not among the saved tensors: backward scales them where they lie.
        ctx.gradients = (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        ctx.mark_non_differentiable(sums)
        return (sums.sum() + beside).to(_wide(hidden.dtype)), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of this loss were handed out by an earlier backward")
        scaled = [None if part is None else part.mul_(upstream.to(part.dtype)) for part in gradients]
        return (*scaled, None, None, None, None)


def _sum_by_group(losses: Tensor, groups: Groups | None, start: int) -> Tensor:
    """Sum losses [rows], those from row ``start`` on, in fp64: [groups.count]."""
    if groups is None:
        return losses.sum(dtype=torch.float64)[None]
    numbers = groups.numbers[start : start + losses.shape[0]]
    # A product and no index_add: on a GPU that adds in whatever order its threads come.
    chosen = numbers == torch.arange(groups.count, device=numbers.device)[:, None]
    return chosen.double() @ losses.double()


def _multiply(hidden: Tensor, weight: Tensor, bias: Tensor | None, room: Tensor) -> Tensor:
    """Fill ``room`` with the logits of some rows, [rows, V]."""
    if is_slow(weight):
        room.copy_(hidden.float() @ weight.float().T)
    else:
        torch.mm(hidden, weight.T, out=room)
    return room if bias is None else room.add_(bias)


def _product(slope: Tensor, weight: Tensor) -> Tensor:
    return slope.float() @ weight.float() if is_slow(weight) else slope @ weight


def _log_softmax(logits: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give log softmax [rows, V], -log softmax at ``chosen`` [rows, 1]: [rows]; log of the sum [rows, 1].

    torch's own reads each row while it lies in the cache; built of its parts, every part reads all rows.
    """
    log_chances = torch.log_softmax(logits, dim=-1, dtype=_wide(logits.dtype))
    log_chance = log_chances.gather(1, chosen)
    return log_chances, -log_chance[:, 0], logits.gather(1, chosen) - log_chance


def _sum_terms(losses: Tensor, log_chances: Tensor, log_sums: Tensor, terms: Terms) -> Tensor:
    """Sum what ``terms`` add to the cross-entropy of some rows, in fp64.

    Smoothed: (1 - s) x loss + s x the mean over the vocabulary of -log softmax.
    """
    added = terms.z_loss * log_sums[:, 0].double().square()
    if terms.label_smoothing:
        even = -log_chances.mean(dim=-1)
        added += terms.label_smoothing * (even.double() - losses.double())
    return added.sum()


def _slope(log_chances: Tensor, log_sums: Tensor, chosen: Tensor, terms: Terms) -> Tensor:
    """Turn log softmax, in place, into d(what is minimised) / d(logits)."""
    slope = log_chances.exp_()
    if terms.z_loss:
        slope *= 1 + 2 * terms.z_loss * log_sums
    if terms.label_smoothing:
        slope -= terms.label_smoothing / slope.shape[1]
    return slope.scatter_add_(1, chosen, torch.full_like(log_sums, terms.label_smoothing - 1))


def _add_product(total: Tensor, slope: Tensor, part: Tensor) -> None:
    """Add slope.T @ part to ``total`` [V, H]."""
    if total.dtype == slope.dtype:
        total.addmm_(slope.T, part)
    elif is_slow(slope):
        total.addmm_(slope.T.float(), part.float())
    else:
        total += slope.T @ part


def _rows_per_chunk(weight: Tensor) -> int:
    return max(_LEAST_ROWS, _elements(_CHUNK_ELEMENTS, weight) // weight.shape[0])


def _rows_per_tile(weight: Tensor) -> int:
    return max(1, _elements(_TILE_ELEMENTS, weight) // weight.shape[0])


def _elements(table: dict[str, int], weight: Tensor) -> int:
    return table.get(weight.device.type, table["cuda"])


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
