"""Small model folders on the disk, and how a model built in shares is compared with the whole one."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from training.model.byte_tokenizer import build_byte_tokenizer


def write_llama(folder: Path, *, shard_bytes: int | None = None, **changes: Any) -> Path:
    """Write a Llama of random bf16 weights with the tokenizer of bytes, in one file or in several."""
    torch.manual_seed(3)
    tokenizer = build_byte_tokenizer()
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": True,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).to(torch.bfloat16)
    if shard_bytes is None:
        model.save_pretrained(folder)
    else:
        model.save_pretrained(folder, max_shard_size=shard_bytes)
    tokenizer.save_pretrained(folder)
    return folder


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Compare bits: packed 4-bit blocks may well be NaN in the dtype that stores them."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def describe(parameter: Any) -> tuple[object, ...]:
    """Say what of a parameter is beside its values: what it is for the training, how it was quantised."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return type(parameter).__name__, parameter.requires_grad
    packed = [
        (key, value.tolist() if isinstance(value, Tensor) else value)
        for key, value in state.as_dict().items()
    ]
    return type(parameter).__name__, parameter.requires_grad, *packed


def compare_models(shared: Any, whole: Any, values: Any) -> list[str]:
    """List what differs between two models in names, parameters, ties and buffers.

    Args:
        shared: The model under test.
        whole: The model that it should be.
        values: Gives a parameter's whole tensor, however it lies.
    """
    found = dict(shared.named_parameters(remove_duplicate=False))
    wanted = dict(whole.named_parameters(remove_duplicate=False))
    if list(found) != list(wanted):
        return [f"names: {sorted(found.keys() ^ wanted.keys())}"]
    odd = []
    for name, parameter in found.items():
        if describe(parameter) != describe(wanted[name]):
            odd.append(f"{name}: {describe(parameter)} and not {describe(wanted[name])}")
        if not same_bits(values(parameter), wanted[name].data):
            odd.append(f"{name}: other values")
    if _ties(found) != _ties(wanted):
        odd.append("other parameters are tied")
    buffers, others = (dict(model.named_buffers()) for model in (shared, whole))
    if buffers.keys() != others.keys():
        return [*odd, f"buffers: {sorted(buffers.keys() ^ others.keys())}"]
    return odd + [
        f"{name}: other values" for name, each in buffers.items() if not same_bits(each, others[name])
    ]


def _ties(named: dict[str, Any]) -> list[int]:
    """Give for each name the place of the first that has the same parameter."""
    numbers = [id(each) for each in named.values()]
    return [numbers.index(number) for number in numbers]
