"""What is done to the repeated layers of a model before DeepSpeed takes it."""

from deepspeed.utils import set_z3_leaf_module
from torch import nn

from training.model.attention import compile_around_attention
from training.model.kind import AnyModel, base_of
from training.model.shape import find_layers

_SHARDED = 3


def prepare_layers(model: AnyModel, *, zero_stage: int, compile_layers: bool) -> None:
    """Let ZeRO-3 gather a layer as one, and compile layers where that is wanted.

    DeepSpeed hooks each module that holds a parameter: about ten in a layer, each of which costs the host
    a quarter of a millisecond forward and backward. Ahead of its use it gathers a layer at a time anyway.

    A layer whose input needs no gradient, as the first one over a frozen embedding, is left to be gathered
    in parts: the hook that frees a whole layer would take the gradient of its output for the end of its
    backward, and free the weights before they are used.
    """
    layers = find_layers(model)
    if zero_stage == _SHARDED:
        input_has_gradient = _is_trained(base_of(model).get_input_embeddings())
        for layer in layers:
            if input_has_gradient:
                set_z3_leaf_module(layer, True)
            input_has_gradient = input_has_gradient or _is_trained(layer)
    if compile_layers:
        compile_around_attention(layers)


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
