"""Products of bf16 matrices on CPUs that have no instructions for them."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def widen_products(model: nn.Module) -> None:
    """Let the linear layers of a bf16 model on such a CPU multiply in fp32, and round what comes out to bf16.

    That is what bf16 instructions do: exact products of bf16 numbers, summed in fp32. torch's own way without
    them takes about four times as long.
    """
    for module in model.modules():
        if type(module) is nn.Linear and is_slow(module.weight):
            module.__class__ = WideLinear


def is_slow(tensor: Tensor) -> bool:
    """Whether products with ``tensor`` are better done in fp32."""
    return tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" and not _multiplies_bf16()


class WideLinear(nn.Linear):
    """A linear layer whose products are summed in fp32."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiply: [..., in] to [..., out]."""
        output: Tensor = _Wide.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return output


class _Wide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        product = rows.float() @ weight.float().T
        return (product if bias is None else product + bias.float()).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        wide = upstream.float().flatten(0, -2)
        of_rows = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_rows = (wide @ weight.float()).view_as(rows).to(rows.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = (wide.T @ rows.float().flatten(0, -2)).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = wide.sum(0).to(upstream.dtype)
        return of_rows, of_weight, of_bias


@functools.cache
def _multiplies_bf16() -> bool:
    # What torch itself asks; where a version or a machine that is no x86 has no answer, nothing is changed.
    asked = [
        getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    answers = [bool(ask()) for ask in asked if ask is not None]
    return any(answers) or not answers or torch.backends.cpu.get_cpu_capability() not in {"AVX2", "AVX512"}
