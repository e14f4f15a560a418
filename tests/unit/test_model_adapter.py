"""What is trained: an adapter of any kind, whole modules beside it, all but the frozen parts, new tokens."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from training.config.learning import AdapterConfig
from training.config.schema import RunConfig
from training.errors import ModelError
from training.model.adapter import attach_adapter, freeze_parts
from training.model.load import build_model
from training.model.source import prepare_model
from training.model.tokenizer import load_tokenizer, tokenizer_fingerprint
from training.model.vocabulary import fit_embeddings

CPU = torch.device("cpu")
WORDS = [f"word{number}" for number in range(70)]


@functools.cache
def adapter(*changes: str) -> AdapterConfig:
    return compose_run(["experiment=tiny_smoke", *changes], ConfigTree.open(None)).config.adapter


def make_base(*, tied: bool = True) -> PreTrainedModel:
    torch.manual_seed(2)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=64,
            tie_word_embeddings=tied,
        )
    )


def attach(base: PreTrainedModel, *changes: str) -> Any:
    return attach_adapter(base, adapter(*changes), dtype=torch.float32, seed=1)


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_rank_stabilized_adapters_are_scaled_by_the_root_of_the_rank() -> None:
    changes = ["adapter=lora", "adapter.rank=16", "adapter.alpha=8"]
    plain = attach(make_base(), *changes)
    stabilized = attach(make_base(), *changes, "adapter.rank_stabilized=true")
    layer = "base_model.model.model.layers.0.mlp.up_proj"
    assert plain.get_submodule(layer).scaling == {"default": 0.5}
    assert stabilized.get_submodule(layer).scaling == {"default": 2.0}


def test_dora_begins_as_the_base_and_trains_directions_and_lengths() -> None:
    base, ids = make_base(), torch.arange(20)[None]
    wanted = base(input_ids=ids).logits
    model = attach(base, "adapter=dora")
    assert torch.allclose(model(input_ids=ids).logits, wanted, atol=1e-5)
    kinds = {name.split(".")[-3] for name in trained_names(model)}
    assert kinds == {"lora_A", "lora_B", "lora_magnitude_vector"}


@pytest.mark.parametrize("tied", [True, False])
def test_a_module_that_is_trained_whole_is_a_copy_and_the_base_stays(tied: bool) -> None:
    base = make_base(tied=tied)
    model = attach(base, "adapter=lora", "adapter.trained_modules=[embed_tokens]")
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    assert embedding.weight.requires_grad
    assert embedding.weight is not embedding.original_module.weight
    assert (head.weight is embedding.weight) == tied
    whole = {name for name in trained_names(model) if "lora_" not in name}
    assert whole == {"base_model.model.model.embed_tokens.modules_to_save.default.weight"}


def test_frozen_parts_are_found_by_pattern_and_the_rest_is_trained() -> None:
    base = make_base()
    freeze_parts(base, ["*.layers.0.*", "*norm.weight"])
    assert trained_names(base) == {
        "model.embed_tokens.weight",
        *(f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkvo"),
        *(f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    }


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["*.layers.7.*"], r"adapter\.frozen: \*\.layers\.7\.\* matches no parameter.*whole name"),
        (["layers.0"], r"adapter\.frozen: layers\.0 matches no parameter"),
        (["*"], r"adapter\.frozen covers every parameter; leave some to train"),
    ],
)
def test_a_pattern_that_freezes_nothing_or_all_is_refused(patterns: list[str], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        freeze_parts(make_base(), patterns)


def test_a_trained_module_that_is_none_lists_those_there_are() -> None:
    with pytest.raises(
        ModelError, match=r"trained_modules names embeddings, .* has .*embed_tokens, gate_proj"
    ):
        attach(make_base(), "adapter=lora", "adapter.trained_modules=[embeddings]")


def test_embeddings_grow_by_rows_that_are_the_mean_of_the_others() -> None:
    base = make_base(tied=False)
    old = base.get_input_embeddings().weight.detach().clone()
    assert not fit_embeddings(base, 60)
    assert fit_embeddings(base, 70)
    for module in (base.get_input_embeddings(), base.get_output_embeddings()):
        assert module.weight.shape == (128, 32)
        assert torch.equal(module.weight[64], module.weight[127])
    assert torch.equal(base.get_input_embeddings().weight[:64], old)
    assert torch.allclose(base.get_input_embeddings().weight[64], old.mean(0))
    assert base.config.vocab_size == 128


def make_run(folder: Path, *changes: str) -> RunConfig:
    config = compose_run(
        ["experiment=tiny_smoke", f"model.folder={folder / 'tiny'}", *changes], ConfigTree.open(None)
    ).config
    prepare_model(config.model, config.seed)
    return config


def build(config: RunConfig) -> Any:
    return build_model(
        config.model,
        config.adapter,
        precision="fp32",
        device=CPU,
        seed=1,
        activation_checkpointing="none",
    )


def test_extra_tokens_are_one_token_each_in_another_tokenizer_with_a_row_each(tmp_path: Path) -> None:
    plain = make_run(tmp_path)
    config = make_run(tmp_path, f"model.extra_tokens=[{','.join(WORDS)}]")
    tokenizer = load_tokenizer(config.model)
    ids = tokenizer("see word3 and word69", add_special_tokens=False)["input_ids"]
    assert len(ids) == len("see  and ") + 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == "see word3 and word69"
    assert tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(load_tokenizer(plain.model))
    assert build(config).get_input_embeddings().num_embeddings > max(ids)
    assert build(plain).get_input_embeddings().num_embeddings <= max(ids)


def test_a_token_that_is_there_already_is_refused(tmp_path: Path) -> None:
    config = make_run(tmp_path, "model.extra_tokens=[new,new]")
    with pytest.raises(
        ModelError, match=r"model\.extra_tokens\.1='new' is empty or in the vocabulary already"
    ):
        load_tokenizer(config.model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["adapter=lora", "adapter.trained_modules=[norm]"], "add embed_tokens to adapter.trained_modules"),
        (["adapter=none", "adapter.frozen=[*embed*]"], "take it out of adapter.frozen"),
    ],
)
def test_new_rows_that_would_stay_guesses_are_refused(changes: list[str], words: str, tmp_path: Path) -> None:
    config = make_run(tmp_path, f"model.extra_tokens=[{','.join(WORDS)}]", *changes)
    with pytest.raises(ModelError, match=r"embed_tokens had no row for some .*model\.extra_tokens") as raised:
        build(config)
    assert words in str(raised.value)
