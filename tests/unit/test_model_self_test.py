"""The self-test: it passes where documents are kept apart, and fails where a single token leaks."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from training.config.learning import AdapterConfig
from training.errors import ModelError
from training.model.activations import checkpoint_activations
from training.model.adapter import attach_adapter
from training.model.attention import DOCUMENTS, attend_documents, group_documents, register_attention
from training.model.packed import PackedLanguageModel
from training.model.self_test import (
    CUTS,
    LIMITS,
    MOVED_LIMITS,
    Isolation,
    find_difference,
    measure_isolation,
    refuse_leak,
)

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_implementation": DOCUMENTS,
}
ADAPTER = AdapterConfig(
    kind="lora",
    base_bits=16,
    rank=2,
    alpha=4,
    rank_stabilized=False,
    dropout=0.5,
    targets="all-linear",
    trained_modules=[],
    frozen=[],
)
DICE = np.random.default_rng(0)
TEXTS = [DICE.integers(0, 96, length).astype(np.int32) for length in (60, 25, 44)]


@pytest.fixture(autouse=True)
def _one_thread_and_our_kernels() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    register_attention()
    yield
    register_attention()  # whatever a test put in their place
    torch.set_num_threads(threads)


def check_isolation(model: Any, texts: list[Any]) -> Isolation:
    """Measure and judge, as a run does before its first step."""
    isolation = measure_isolation(model, texts, PackedLanguageModel(model))
    refuse_leak([isolation])
    return isolation


def build_llama(**extra: object) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, **extra))


def build_gpt2() -> PreTrainedModel:
    """Make a model whose positions are absolute: it sees where a row's numbering does not restart."""
    config = GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, attn_implementation=DOCUMENTS, initializer_range=0.2
    )
    return GPT2LMHeadModel(config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": build_llama,
    "llama tied": lambda: build_llama(tie_word_embeddings=True),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES)),
    "gpt2": build_gpt2,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", MODELS)
def test_documents_that_are_kept_apart_pass_in_every_family_and_precision(
    name: str, adapter: bool, dtype: torch.dtype
) -> None:
    model: Any = MODELS[name]().to(dtype)
    if adapter:
        model = attach_adapter(model, ADAPTER, dtype=dtype, seed=1)

    isolation = check_isolation(model, TEXTS)

    assert isolation.holds
    assert isolation.attention == "documents"
    assert (isolation.limit, isolation.moved_limit) == (LIMITS[dtype], MOVED_LIMITS[dtype])
    # Far below the limit, or the next machine's arithmetic would be refused.
    assert isolation.difference < isolation.limit / 3


def forget_documents(*args: Any, documents: object = None, **kwargs: Any) -> tuple[Tensor, None]:
    """Attend to the whole row before a token: what plain sdpa does to a packed row."""
    return sdpa_attention_forward(*args, **kwargs)[0], None


def move_bounds(*args: Any, documents: Any = None, **kwargs: Any) -> tuple[Tensor, None]:
    """Let every document but the first see the last token of the one before."""
    if documents is not None:
        bounds = (0, CUTS[0] - 1, CUTS[0] + CUTS[1], sum(CUTS))
        if documents.scatter.numel() == sum(CUTS):
            documents = group_documents(bounds, documents.scatter.device)
    return attend_documents(*args, documents=documents, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kernel", [forget_documents, move_bounds])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_a_kernel_that_lets_one_document_see_another_is_refused_in_one_line(
    adapter: bool, kernel: Callable[..., Any], dtype: torch.dtype
) -> None:
    model: Any = build_llama().to(dtype)
    if adapter:
        model = attach_adapter(model, ADAPTER, dtype=dtype, seed=1)
    AttentionInterface.register(DOCUMENTS, kernel)

    with pytest.raises(ModelError, match="attention documents lets packed documents see each") as caught:
        check_isolation(model, TEXTS)

    assert "\n" not in str(caught.value)


def test_another_kernel_is_told_what_to_use_instead() -> None:
    model = build_llama()
    AttentionInterface.register("metier_varlen", forget_documents)
    model.set_attn_implementation("metier_varlen")
    with pytest.raises(ModelError, match=r"attention varlen lets .*; use model\.attention=documents$"):
        check_isolation(model, TEXTS)


def test_a_kernel_that_does_not_run_is_one_line_too() -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("only fp16 and bf16\nand a long trace")

    model = build_llama()
    AttentionInterface.register("metier_varlen", fail)
    model.set_attn_implementation("metier_varlen")
    with pytest.raises(ModelError, match=r"varlen does not run .*\(only fp16 and bf16\); use model"):
        check_isolation(model, TEXTS)


def test_plain_sdpa_which_knows_no_documents_is_refused() -> None:
    model = build_llama()
    model.set_attn_implementation("sdpa")
    with pytest.raises(ModelError, match="see each other"):
        check_isolation(model, TEXTS)


def test_positions_that_do_not_restart_are_refused() -> None:
    model = build_gpt2()

    def drop_positions(_: object, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "position_ids": None}

    model.get_decoder().register_forward_pre_hook(drop_positions, with_kwargs=True)
    with pytest.raises(ModelError, match=r"documents .* differ from those of the document alone"):
        check_isolation(model, TEXTS)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_model_and_the_random_state_are_left_as_they_were(training: bool) -> None:
    base = build_llama(attention_dropout=0.5)
    checkpoint_activations(base, "full")
    model = attach_adapter(base, ADAPTER, dtype=torch.float32, seed=1).train(training)
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cached, state = base.config.use_cache, torch.get_rng_state()

    first, second = check_isolation(model, TEXTS), check_isolation(model, TEXTS)

    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert base.config._attn_implementation == DOCUMENTS
    assert base.config.use_cache == cached
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS[:2], [text[:1] for text in TEXTS]])
def test_few_or_very_short_documents_are_enough(texts: list[Any]) -> None:
    assert check_isolation(build_llama(), texts).holds


def test_a_difference_is_a_fraction_of_the_logits_and_does_not_see_a_tokens_mean() -> None:
    wanted = torch.randn(5, 50)
    assert find_difference(wanted + torch.randn(5, 1), wanted) < 1e-6
    found = wanted.clone()
    found[3] += 0.1 * (torch.arange(50) % 2 * 2 - 1)
    assert find_difference(found, wanted) == pytest.approx(0.1, rel=0.2)
    assert find_difference(7 * found, 7 * wanted) == pytest.approx(find_difference(found, wanted), rel=1e-5)


def test_logits_that_are_no_numbers_are_no_agreement() -> None:
    model = build_llama()
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        check_isolation(model, TEXTS)


def test_weights_that_are_no_numbers_are_not_blamed_on_the_attention() -> None:
    model = build_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")

    with pytest.raises(ModelError, match=r"logits are not finite .*its weights are damaged") as caught:
        check_isolation(model, TEXTS)

    assert "attention" not in str(caught.value)


def test_a_leak_on_one_rank_is_refused_on_all() -> None:
    good = check_isolation(build_llama(), TEXTS)
    with pytest.raises(ModelError, match="see each other"):
        refuse_leak([good, replace(good, moved=0.5), good])
