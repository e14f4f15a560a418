"""A model's numbers against the models themselves and what their makers publish."""

import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from training.errors import ModelError
from training.model.arithmetic import (
    check_heads,
    check_tensor_cut,
    count_parameters,
    flops_per_token,
    peak_flops,
)

SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
LLAMA3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


@pytest.mark.parametrize(("architecture", "parameters"), [(SMOLLM2, 134_515_008), (LLAMA3_8B, 8_030_261_248)])
def test_counts_equal_the_published_ones(architecture: dict[str, object], parameters: int) -> None:
    count = count_parameters(architecture)
    assert count is not None
    assert count.total == parameters


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "smollm3", "ministral"])
@pytest.mark.parametrize(
    "extra", [{}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}]
)
def test_counts_equal_the_real_model(family: str, extra: dict[str, object]) -> None:
    if family in {"mistral", "ministral", "qwen2"}:
        extra = {key: value for key, value in extra.items() if key == "tie_word_embeddings"}
    if family == "qwen3":
        extra = {key: value for key, value in extra.items() if key != "mlp_bias"}
    architecture = {
        "model_type": family,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 100,
        "pad_token_id": 0,
        **extra,
    }
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture))
    count = count_parameters(architecture)
    assert count is not None
    assert count.total == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("heads", "key_heads"), [(8, 8), (8, 2), (12, 4), (14, 2), (32, 1)])
def test_heads_are_shared_out_evenly_or_refused_with_sizes_that_go(heads: int, key_heads: int) -> None:
    architecture = {"num_attention_heads": heads, "num_key_value_heads": key_heads}
    for size in range(1, heads + 2):
        try:
            check_heads(architecture, size)
        except ModelError as error:
            offered = [int(number) for number in re.findall(r"\d+", str(error).rpartition("use ")[2])]
            assert size not in offered
            assert heads in offered
            for choice in offered:
                check_heads(architecture, choice)
        else:
            # A rank's queries all look at keys that it has.
            each, shared = heads // size, heads // key_heads
            assert heads % size == 0
            assert each % shared == 0 or shared % each == 0


@pytest.mark.parametrize(
    ("heads", "key_heads", "inner"), [(32, 8, 14336), (4, 2, 9), (9, 3, 1536), (2, 2, 2)]
)
def test_matrices_are_shared_out_where_each_rank_gets_as_many_heads_and_inner_features(
    heads: int, key_heads: int, inner: int
) -> None:
    architecture = {
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "intermediate_size": inner,
    }
    for size in range(1, heads + 2):
        divides = all(number % size == 0 for number in (heads, key_heads, inner))
        try:
            check_tensor_cut(architecture, size)
        except ModelError as error:
            assert not divides
            for choice in re.findall(r"\d+", str(error).rpartition("use ")[2]):
                check_tensor_cut(architecture, int(choice))
        else:
            assert divides


def test_a_family_that_is_not_known_has_no_count() -> None:
    assert count_parameters({"model_type": "gpt2"}) is None
    assert flops_per_token({"model_type": "gpt2"}, 1, frozen_base=False) is None


def test_arithmetic_per_token_follows_palm() -> None:
    # N in matrix products = 8,030,261,248 - embedding 525,336,576 - norms are counted, as PaLM does.
    full = flops_per_token(LLAMA3_8B, 0, frozen_base=False)
    assert full == 6 * (8_030_261_248 - 128256 * 4096 - 4096)
    assert flops_per_token(LLAMA3_8B, 0, frozen_base=True) == full * 4 / 6
    attention = flops_per_token(LLAMA3_8B, 8192, frozen_base=False) - full
    assert attention == 12 * 32 * 4096 * 8192


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 311.9),
        ("Tesla V100-SXM2-32GB", 125.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA L4", 121.0),
    ],
)
def test_a_device_is_known_by_its_name(name: str, teraflops: float) -> None:
    assert peak_flops(name) == teraflops * 1e12


@pytest.mark.parametrize("name", ["AMD EPYC 9B14", "NVIDIA GeForce RTX 4090", "NVIDIA H1000"])
def test_no_peak_is_guessed(name: str) -> None:
    assert peak_flops(name) is None


def test_heads_are_found_by_any_of_their_names_and_missing_ones_are_told() -> None:
    check_heads({"model_type": "gpt2", "n_head": 12}, 4)
    check_heads({"model_type": "odd"}, 1)
    with pytest.raises(ModelError, match=r"\(odd\) does not say how many attention heads it has"):
        check_heads({"model_type": "odd"}, 2)
