"""Which parameters decay and at which rate each learns; Lion is its paper's, Muon is torch's."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from training.config.learning import OptimizerConfig
from training.errors import ConfigError
from training.optimizers.build import build_optimizer, group_parameters, set_learning_rate
from training.optimizers.lion import Lion
from training.optimizers.muon import MATRICES, Muon, orthogonalize


def make_config(*changes: str) -> OptimizerConfig:
    return compose_run(["experiment=tiny_smoke", *changes], ConfigTree.open(None)).config.optimizer


def make_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.ModuleDict({"embed": nn.Embedding(8, 4), "body": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})


def names_of(group: dict[str, Any], model: nn.Module) -> set[str]:
    members = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in members}


def test_matrices_decay_and_vectors_do_not() -> None:
    model = make_model()
    groups = group_parameters(model, make_config("optimizer.weight_decay=0.1"))
    assert {group["weight_decay"]: names_of(group, model) for group in groups} == {
        0.1: {"embed.weight", "body.weight"},
        0.0: {"body.bias", "norm.weight", "norm.bias"},
    }


def test_the_first_pattern_that_matches_decides_a_parameters_rate() -> None:
    model = make_model()
    optimizer = build_optimizer(model, make_config("+optimizer.rate_factors={embed*: 0.1, *weight: 2}"))
    set_learning_rate(optimizer, 0.5)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in names_of(group, model)}
    assert rates == {
        "embed.weight": 0.05,
        "body.weight": 1.0,
        "norm.weight": 1.0,
        "body.bias": 0.5,
        "norm.bias": 0.5,
    }


def test_frozen_parameters_are_in_no_group_and_a_pattern_for_them_alone_is_refused() -> None:
    model = make_model()
    model["embed"].requires_grad_(False)  # type: ignore[index]
    config = make_config("+optimizer.rate_factors={embed*: 0.1}")
    with pytest.raises(
        ConfigError, match=r"rate_factors\.embed\* matches no trained parameter, the first .* body"
    ):
        build_optimizer(model, config)


def test_a_model_without_a_trained_parameter_is_refused() -> None:
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build_optimizer(make_model().requires_grad_(False), make_config())


def test_lion_steps_along_the_sign_of_its_mean_wherever_zero_cuts_the_parameter() -> None:
    """By hand: two steps with gradients 1 and -0.5, rate 0.1, decay 0.01, betas 0.9 and 0.99."""
    whole = nn.Parameter(torch.full((4,), 2.0))
    cut = [nn.Parameter(torch.full((2,), 2.0)) for _ in range(2)]
    groups = [[whole], cut]
    for parameters in groups:
        optimizer = Lion([{"params": parameters, "weight_decay": 0.01}], lr=0.1, betas=(0.9, 0.99))
        for gradient in (1.0, -0.5):
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, gradient)
            optimizer.step()
    # Step 1: the mean in the step is 0.1, its sign 1. Step 2: 0.9 x 0.01 - 0.1 x 0.5 is negative.
    first = 2.0 * (1 - 0.001) - 0.1
    second = first * (1 - 0.001) + 0.1
    assert whole.tolist() == pytest.approx([second] * 4)
    assert torch.equal(torch.cat([part.detach() for part in cut]), whole.detach())


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (24, 24), (3, 16, 48)])
def test_a_step_of_muon_is_torchs_but_for_the_bf16_in_which_torch_computes_it(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(4)
    start = torch.randn(shape, generator=generator)
    gradients = [torch.randn(shape, generator=generator) for _ in range(3)]
    ours = nn.Parameter(start.clone())
    settings = {"params": [ours], "weight_decay": 0.1, MATRICES: True}
    optimizer = Muon([settings], lr=0.02, momentum=0.95, betas=(0.9, 0.95), eps=1e-8)
    # torch's takes one matrix at a time: experts are a stack of them.
    theirs = [nn.Parameter(matrix.clone()) for matrix in start.view(-1, *shape[-2:])]
    reference = torch.optim.Muon(
        theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for gradient in gradients:
        ours.grad = gradient.clone()
        optimizer.step()
        for matrix, part in zip(theirs, gradient.view(-1, *shape[-2:]), strict=True):
            matrix.grad = part.clone()
        reference.step()
    wanted = torch.stack([matrix.detach() for matrix in theirs]).view(shape)
    moved = (wanted - start).norm()
    assert (ours.detach() - wanted).norm() < 0.02 * moved


def test_muons_steps_are_nearly_orthogonal_and_as_large_as_adamws() -> None:
    direction = torch.randn(32, 64, generator=torch.Generator().manual_seed(4))
    step = orthogonalize(direction)
    values = torch.linalg.svdvals(step) / (0.2 * 64**0.5)
    assert 0.6 < float(values.min()) < float(values.max()) < 1.3
    assert float(step.square().mean().sqrt()) == pytest.approx(0.2, rel=0.25)
    assert torch.equal(orthogonalize(torch.zeros(4, 8)), torch.zeros(4, 8))


def test_muon_steps_the_matrices_of_the_layers_and_adamw_all_else() -> None:
    model = make_model()
    groups = group_parameters(model, make_config("optimizer=muon"))
    stepped_whole = {name for group in groups if group[MATRICES] for name in names_of(group, model)}
    assert stepped_whole == {"body.weight"}
    assert not any(group[MATRICES] for group in group_parameters(model, make_config()))


def test_the_output_layer_and_adapters_of_embeddings_are_no_matrices_for_muon() -> None:
    settings = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    whole = LlamaForCausalLM(settings)
    adapted = get_peft_model(
        LlamaForCausalLM(settings),
        LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], modules_to_save=["lm_head"]),
    )
    for model in (whole, adapted):
        groups = group_parameters(model, make_config("optimizer=muon"))
        names = {name for group in groups if group[MATRICES] for name in names_of(group, model)}
        assert names
        assert all("_proj" in name for name in names)
