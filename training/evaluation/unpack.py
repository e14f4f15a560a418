"""4-bit layers on a CPU, unpacked once instead of in every forward pass."""

from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import nn


def unpack_layers(model: nn.Module) -> int:
    """Replace every 4-bit layer by an ordinary one of the same values; give how many there were.

    bitsandbytes unpacks a layer's weights each time it is called and then multiplies as usual
    (bitsandbytes/autograd/_functions.py, MatMul4Bit.forward): doing so once changes no result. It costs the
    memory that 4 bits saved, which a CPU has and a GPU has not; greedy generation, one token per
    pass, is bound by the unpacking.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        # peft's own Linear4bit, which wraps this one, is another class.
        if type(child) is Linear4bit
    ]
    for parent, name, child in found:
        setattr(parent, name, _unpack(child))
    return len(found)


def _unpack(packed: Linear4bit) -> nn.Linear:
    weight = dequantize_4bit(packed.weight.data, packed.weight.quant_state)
    plain = nn.Linear(packed.in_features, packed.out_features, bias=packed.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight.to(packed.compute_dtype or weight.dtype), requires_grad=False)
    plain.bias = packed.bias
    return plain
