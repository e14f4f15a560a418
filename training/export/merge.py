"""Folds an adapter into its base: every weight of the whole model, under its Hugging Face name."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from training.model.kind import AnyModel, base_of

_ADAPTER = "default"
_DORA = "lora_magnitude_vector"


@torch.no_grad()
def merged_tensors(
    model: AnyModel, originals: Mapping[str, Tensor] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Give every parameter of the whole model one by one, adapters added and 4-bit blocks unpacked, in fp32.

    A 4-bit base is unpacked and not quantised again after the sum: its values are those that the adapter
    was trained upon, so that the merged model computes what was trained (peft's merge_and_unload would
    round the sum to 4 bits).

    Args:
        model: As it was trained.
        originals: Weights by name to be used in place of the unpacked ones: to see what that would change.
    """
    base = base_of(model)
    merged: tuple[str, ...] = ()
    for name, module in base.named_modules():
        if merged and name.startswith(merged):
            continue
        prefix = f"{name}." if name else ""
        match module:
            case LoraLayer():
                merged = (*merged, prefix)
                yield from _merge_layer(prefix, module, originals)
            case ModulesToSaveWrapper():
                merged = (*merged, prefix)
                yield from _plain_tensors(prefix, module.modules_to_save[_ADAPTER], None)
            case _:
                yield from _plain_tensors(prefix, module, originals)


def _merge_layer(
    prefix: str, layer: LoraLayer, originals: Mapping[str, Tensor] | None
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in _plain_tensors(prefix, layer.get_base_layer(), originals):
        if name == f"{prefix}weight":
            update = layer.lora_B[_ADAPTER].weight.float() @ layer.lora_A[_ADAPTER].weight.float()
            update = update * layer.scaling[_ADAPTER]
            # Conv1D (GPT-2) stores its weight the other way round.
            turned = bool(getattr(layer, "fan_in_fan_out", False))
            whole = (tensor.T if turned else tensor) + update
            if _ADAPTER in getattr(layer, _DORA, {}):
                # Each row has the length that was trained, whatever the sum's is (arXiv:2402.09353, eq. 5).
                length = getattr(layer, _DORA)[_ADAPTER].weight.float()
                whole = whole * (length / torch.linalg.norm(whole, dim=1))[:, None]
            yield name, whole.T if turned else whole
        else:
            yield name, tensor


def _plain_tensors(
    prefix: str, module: nn.Module, originals: Mapping[str, Tensor] | None
) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters(recurse=False):
        if not (isinstance(module, Linear4bit) and name == "weight"):
            yield f"{prefix}{name}", parameter.detach().float()
        elif originals is not None:
            yield f"{prefix}{name}", originals[f"{prefix}{name}"].detach().float().to(parameter.device)
        else:
            state: Any = parameter.quant_state  # type: ignore[attr-defined]
            yield f"{prefix}{name}", dequantize_4bit(parameter.data, state).float()
