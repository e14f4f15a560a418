"""The kernels that keep packed documents apart on a GPU, against plain attention document by document."""

import importlib.util
import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.ranks.spawn import on_ranks
from training.model.attention import attend_documents, attend_varlen, build_attention_inputs
from training.model.inputs import lay_documents
from training.model.packed import PackedLanguageModel

LENGTHS = (1, 300, 7, 64, 65, 511)
BF16 = 2**-7
"""Of the largest value: two roundings of 2^-8 each, of the probabilities and of the result."""


def attend_plainly(query: Any, key: Any, value: Any, bounds: list[int]) -> Any:
    """Causal attention of each document on its own, in fp64: [1, N, heads, head_dim]."""
    repeats = query.shape[1] // key.shape[1]
    outputs = []
    for first, last in itertools.pairwise(bounds):
        q, k, v = (tensor[:, :, first:last].double() for tensor in (query, key, value))
        k, v = (tensor.repeat_interleave(repeats, dim=1) for tensor in (k, v))
        outputs.append(functional.scaled_dot_product_attention(q, k, v, is_causal=True))
    return torch.cat(outputs, dim=2).transpose(1, 2)


def measure_kernel(name: str, key_heads: int) -> dict[str, float]:
    """Give how far output and gradients are from plain attention, in parts of the largest value."""
    device, bounds = torch.device("cuda"), [0, *itertools.accumulate(LENGTHS)]
    torch.manual_seed(1)
    shapes = ((1, 8, bounds[-1], 64), (1, key_heads, bounds[-1], 64), (1, key_heads, bounds[-1], 64))
    tensors = [torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in shapes]
    attend = {"varlen": attend_varlen, "documents": attend_documents}[name]
    inputs = build_attention_inputs(f"metier_{name}", bounds, device)
    found, wanted = ([tensor.clone().requires_grad_() for tensor in tensors] for _ in range(2))
    output, _ = attend(nn.Identity(), *found, None, **inputs)
    expected = attend_plainly(*wanted, bounds)
    slope = torch.randn_like(expected)
    output.backward(slope.to(output.dtype))
    expected.backward(slope)
    pairs = {"output": (output, expected)}
    pairs |= {name: (a.grad, b.grad) for name, a, b in zip("qkv", found, wanted, strict=True)}
    return {
        name: float((one.double() - other.double()).abs().max() / other.double().abs().max())
        for name, (one, other) in pairs.items()
    }


@pytest.mark.parametrize("key_heads", [8, 2, 1])
@pytest.mark.parametrize("name", ["varlen", "documents"])
def test_documents_are_attended_as_if_each_were_alone(name: str, key_heads: int) -> None:
    [far] = on_ranks(1, measure_kernel, name, key_heads, accelerator="cuda")
    assert set(far) == {"output", "q", "k", "v"}
    assert all(distance <= 2 * BF16 for distance in far.values()), far


def compare_packed_with_alone(attention: str) -> float:
    """Give how far a packed model's logits are from those of each document alone, in parts of the largest."""
    import numpy as np

    from tests.ranks.training_case import make_model
    from training.model.attention import choose_attention

    device = torch.device("cuda")
    model = make_model(adapter=False, dtype=torch.bfloat16).to(device)
    model.set_attn_implementation(choose_attention(attention, device, torch.bfloat16))
    packed = PackedLanguageModel(model).eval()
    dice = np.random.default_rng(3)
    documents = [dice.integers(0, 256, length) for length in LENGTHS]
    blank = [np.full(document.size, -100) for document in documents]
    together = packed.logits(lay_documents(documents, blank).to(device))
    alone = torch.cat(
        [
            packed.logits(lay_documents([document], [nothing]).to(device))
            for document, nothing in zip(documents, blank, strict=True)
        ]
    )
    return float((together - alone).abs().max() / alone.abs().max())


@pytest.mark.parametrize("attention", ["varlen", "documents", "flash_attention_2"])
def test_a_packed_models_logits_are_those_of_each_document_alone(attention: str) -> None:
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed here")
    [far] = on_ranks(1, compare_packed_with_alone, attention, accelerator="cuda")
    assert far <= 4 * BF16
