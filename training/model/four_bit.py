"""NF4 weights made piece by piece: what bitsandbytes makes of a whole tensor at once, in less memory."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers import AutoHfQuantizer

from training.model.load import four_bit_config
from training.model.quiet import quiet_upstream

AT_ONCE = 1 << 20
"""Elements quantised at once, whole blocks of any size; on a CPU each takes 20 bytes meanwhile."""

_SCALES_PER_BLOCK = 256
"""As bitsandbytes has it in ``quantize_4bit``."""


def make_four_bit(base: PreTrainedModel, dtype: torch.dtype) -> None:
    """Put bitsandbytes' layers in the place of linear ones, as transformers does when it loads.

    Args:
        base: The empty model.
        dtype: That of its weights before they are quantised, and of the arithmetic.
    """
    quantizer = AutoHfQuantizer.from_config(four_bit_config(dtype), pre_quantized=False)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # the new layers are made in it, their biases too
    try:
        with quiet_upstream():
            quantizer.preprocess_model(model=base, device_map=None, dtype=dtype)
            quantizer.postprocess_model(base)
    finally:
        torch.set_default_dtype(usual)
    base.hf_quantizer = quantizer


def is_four_bit(parameter: nn.Parameter) -> bool:
    """Whether bitsandbytes packs it; its library is not loaded for the question."""
    return type(parameter).__name__ == "Params4bit"


class Sharers(Protocol):
    """Those who quantise a tensor together."""

    device: torch.device
    """Where this one works."""

    def stretches(self, elements: int) -> Sequence[tuple[int, int]]:
        """Say which elements [start, stop) this one keeps of a parameter of so many."""

    def greatest(self, values: Tensor) -> Tensor:
        """Give the greatest of each value that one of them has. Collective."""


def quantise(stored: Tensor, empty: Any, sharers: Sharers) -> nn.Parameter:
    """Quantise a tensor twice: its blocks, then their scales (arXiv:2305.14314, section 3).

    Blocks do not depend on each other, so each of the sharers looks at those alone of which it keeps a part;
    the others of its parameter are undefined. Scales are quantised once all are there, from everyone.
    Collective.

    Args:
        stored: The values, of any float dtype, also memory-mapped.
        empty: The parameter that they belong to, with its settings.
        sharers: Who does it.
    """
    # The library looks for a GPU when it is imported; full fine-tuning does without.
    from bitsandbytes.functional import (  # noqa: PLC0415
        QuantState,
        get_4bit_type,
        quantize_4bit,
        quantize_blockwise,
    )

    settings = {"blocksize": empty.blocksize, "quant_type": empty.quant_type}
    flat, per_item = stored.reshape(-1), 2 * empty.quant_storage.itemsize
    packed = torch.empty((flat.numel() + 1) // per_item, 1, dtype=empty.quant_storage, device=sharers.device)
    scales = torch.zeros(-(-flat.numel() // empty.blocksize), device=sharers.device)
    for start, stop in _whole_blocks(sharers.stretches(len(packed)), per_item, empty.blocksize, flat.numel()):
        values = flat[start:stop].to(empty.dtype).to(sharers.device)
        found, made_of = quantize_4bit(values, quant_storage=empty.quant_storage, **settings)
        packed[start // per_item :][: len(found)] = found
        scales[start // empty.blocksize :][: len(made_of.absmax)] = made_of.absmax
    scales = sharers.greatest(scales)
    offset = scales.mean()
    packed_scales, state_of_scales = quantize_blockwise(scales - offset, blocksize=_SCALES_PER_BLOCK)
    state = QuantState(
        absmax=packed_scales,
        shape=stored.shape,
        dtype=empty.dtype,
        code=get_4bit_type(empty.quant_type, device=sharers.device),
        offset=offset,
        state2=state_of_scales,
        **settings,
    )
    made = vars(empty) | {"quant_state": state, "bnb_quantized": True, "requires_grad": False}
    quantised: nn.Parameter = type(empty)(packed, **made)
    empty.module.quant_state = state
    return quantised


def _whole_blocks(
    stretches: Sequence[tuple[int, int]], per_item: int, block: int, elements: int
) -> Iterator[tuple[int, int]]:
    """Give the elements of all blocks that stretches of packed items touch, a few at a time."""
    for first, last in stretches:
        begin, end = first * per_item // block * block, min(-(-last * per_item // block) * block, elements)
        for start in range(begin, end, AT_ONCE):
            yield start, min(start + AT_ONCE, end)
