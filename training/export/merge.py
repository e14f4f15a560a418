"""Folds an adapter into its base: every weight of the whole model, under its Hugging Face name."""

from collections.abc import Iterator
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

_ADAPTER = "default"


@torch.no_grad()
def merged_tensors(model: PreTrainedModel | PeftModel) -> Iterator[tuple[str, Tensor]]:
    """Give every parameter of the whole model one by one, adapters added and 4-bit blocks unpacked, in fp32.

    A 4-bit base is unpacked and not quantised again after the sum: its values are those that the adapter
    was trained upon, so that the merged model computes what was trained (peft's merge_and_unload would
    round the sum to 4 bits).
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    merged: tuple[str, ...] = ()
    for name, module in base.named_modules():
        if merged and name.startswith(merged):
            continue
        prefix = f"{name}." if name else ""
        if isinstance(module, LoraLayer):
            merged = (*merged, prefix)
            yield from _merge_layer(prefix, module)
        else:
            yield from _plain_tensors(prefix, module)


def _merge_layer(prefix: str, layer: LoraLayer) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in _plain_tensors(prefix, layer.get_base_layer()):
        if name == f"{prefix}weight":
            update = layer.lora_B[_ADAPTER].weight.float() @ layer.lora_A[_ADAPTER].weight.float()
            update = update * layer.scaling[_ADAPTER]
            # Conv1D (GPT-2) stores its weight the other way round.
            yield name, tensor + (update.T if getattr(layer, "fan_in_fan_out", False) else update)
        else:
            yield name, tensor


def _plain_tensors(prefix: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters(recurse=False):
        if isinstance(module, Linear4bit) and name == "weight":
            state: Any = parameter.quant_state  # type: ignore[attr-defined]
            unpacked = dequantize_4bit(parameter.data, state)
            yield f"{prefix}{name}", unpacked.float()
        else:
            yield f"{prefix}{name}", parameter.detach().float()
