"""What is done to the repeated layers of a model before DeepSpeed takes it."""

from deepspeed.utils import set_z3_leaf_modules
from peft import PeftModel
from transformers import PreTrainedModel

from training.model.attention import compile_around_attention
from training.model.shape import find_layers

_SHARDED = 3


def prepare_layers(model: PreTrainedModel | PeftModel, *, zero_stage: int, compile_layers: bool) -> None:
    """Let ZeRO-3 gather a layer as one, and compile layers where that is wanted.

    DeepSpeed hooks each module that holds a parameter: about ten in a layer, each of which costs the host
    a quarter of a millisecond forward and backward. Ahead of its use it gathers a layer at a time anyway.
    """
    layers = find_layers(model)
    if zero_stage == _SHARDED:
        set_z3_leaf_modules(model, sorted({type(layer) for layer in layers}, key=str))
    if compile_layers:
        compile_around_attention(layers)
