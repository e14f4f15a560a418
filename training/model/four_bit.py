"""NF4 weights made piece by piece: what bitsandbytes makes of a whole tensor at once, in less memory."""

from typing import Any

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


def quantise(stored: Tensor, empty: Any, device: torch.device) -> nn.Parameter:
    """Quantise a tensor twice: its blocks, then their scales (arXiv:2305.14314, section 3).

    Blocks do not depend on each other, and scales are quantised once all are there.

    Args:
        stored: The values, of any float dtype, also memory-mapped.
        empty: The parameter that they belong to, with its settings.
        device: Where it is done, and where the parameter lies.
    """
    # The library looks for a GPU when it is imported; full fine-tuning does without.
    from bitsandbytes.functional import QuantState, quantize_4bit, quantize_blockwise  # noqa: PLC0415

    settings = {"blocksize": empty.blocksize, "quant_type": empty.quant_type}
    pieces, flat = [], stored.reshape(-1)
    for start in range(0, flat.numel(), AT_ONCE):
        values = flat[start : start + AT_ONCE].to(empty.dtype).to(device)
        pieces.append(quantize_4bit(values, quant_storage=empty.quant_storage, **settings))
    scales = torch.cat([state.absmax for _, state in pieces])
    offset = scales.mean()
    packed_scales, state_of_scales = quantize_blockwise(scales - offset, blocksize=_SCALES_PER_BLOCK)
    state = QuantState(
        absmax=packed_scales,
        shape=stored.shape,
        dtype=empty.dtype,
        code=pieces[0][1].code,
        offset=offset,
        state2=state_of_scales,
        **settings,
    )
    made = vars(empty) | {"quant_state": state, "bnb_quantized": True, "requires_grad": False}
    quantised: nn.Parameter = type(empty)(torch.cat([packed for packed, _ in pieces]), **made)
    empty.module.quant_state = state
    return quantised
