"""What of a model tensor parallelism cuts: transformers' own plan for its layers, or a refusal."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from training.errors import ModelError
from training.model.tensor_parallel import Cut, plan_cuts

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


def build(model_type: str, **more: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES, **more))


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "smollm3", "granite"])
def test_all_matrices_of_the_layers_are_cut_and_nothing_else(model_type: str) -> None:
    model = build(model_type, pad_token_id=0)
    cuts = plan_cuts(model, 2).cuts
    for name, parameter in model.named_parameters():
        is_projection = ".layers." in name and "proj" in name and (parameter.ndim > 1 or "o_proj" not in name)
        assert (name in cuts) == is_projection, name
        if name in cuts:
            assert cuts[name].shape == tuple(parameter.shape)
            assert cuts[name].dimension == int(name.endswith(("o_proj.weight", "down_proj.weight")))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("cut", [Cut((8, 12), 0), Cut((8, 12), 1), Cut((8,), 0)])
def test_the_elements_of_a_part_are_where_torch_puts_them(cut: Cut, size: int) -> None:
    whole = torch.arange(torch.Size(cut.shape).numel()).view(cut.shape)
    for index, part in enumerate(whole.chunk(size, cut.dimension)):
        assert tuple(part.shape) == cut.shape_of_part(size)
        first, last = 1, part.numel() - 1
        start, stop, runs = cut.find(first, last, index, size)
        places = torch.arange(start, stop)
        if runs is not None:
            places = runs.first + places // runs.run * runs.stride + places % runs.run
        assert torch.equal(part.flatten()[first:last], places)


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("gpt2", r"GPT2LMHeadModel has no plan in transformers for cutting its layers over ranks"),
        (
            "phi3",
            r"Phi3ForCausalLM cannot be cut over ranks: its layers\.\*\.self_attn\.qkv_proj is colwise_",
        ),
        (
            "olmo2",
            r"Olmo2ForCausalLM cannot be cut over ranks: its layers\.\*\.self_attn\.q_proj is colwise_",
        ),
    ],
)
def test_a_model_without_such_a_plan_is_refused_with_what_to_use_instead(model_type: str, words: str) -> None:
    with pytest.raises(
        ModelError, match=words + r".*; use strategy.tensor_parallel_size=1 with strategy=zero3"
    ):
        plan_cuts(build(model_type, pad_token_id=0), 2)


def test_a_layer_that_is_no_linear_one_is_refused() -> None:
    model = build("llama")
    model.model.layers[1].mlp.up_proj = nn.Bilinear(2, 2, 2)
    with pytest.raises(
        ModelError, match=r"^model\.layers\.1\.mlp\.up_proj is no linear layer that .* divides"
    ):
        plan_cuts(model, 2)


def test_a_parameter_between_cut_layers_that_the_plan_forgets_is_refused() -> None:
    model = build("llama")
    model.model.layers[0].self_attn.scale = nn.Parameter(torch.ones(1, device="meta"))
    words = r"its plan does not name model\.layers\.0\.self_attn\.scale; use strategy.tensor_parallel_size=1"
    with pytest.raises(ModelError, match=words):
        plan_cuts(model, 2)


def test_norms_of_heads_are_summed() -> None:
    summed = plan_cuts(build("qwen3"), 2).summed
    assert summed == tuple(f"model.layers.{n}.self_attn.{x}_norm.weight" for x in "qk" for n in range(2))
