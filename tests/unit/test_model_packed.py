"""Packed documents: the same loss and gradient as each document alone, and never a dense mask."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from training.config.learning import AdapterConfig
from training.errors import ModelError
from training.model.activations import checkpoint_activations
from training.model.adapter import attach_adapter
from training.model.attention import (
    DOCUMENTS,
    FLASH,
    FLASH_3,
    FLEX,
    VARLEN,
    build_attention_inputs,
    choose_attention,
    generating,
    group_documents,
    register_attention,
)
from training.model.inputs import IGNORE_INDEX, Batch, count_targets_by_source
from training.model.packed import PackedLanguageModel, document_losses

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
}
ADAPTER = AdapterConfig(
    kind="lora",
    base_bits=16,
    rank=2,
    alpha=4,
    rank_stabilized=False,
    dropout=0.0,
    targets="all-linear",
    trained_modules=[],
    frozen=[],
)
LENGTHS = [17, 40, 1, 33, 39, 5, 64, 2, 70]


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    register_attention()
    yield
    torch.set_num_threads(threads)


def build(kind: str, **extra: object) -> PreTrainedModel:
    classes = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "llama_tied": (LlamaConfig, LlamaForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
    }
    config_class, model_class = classes[kind]
    extra = {"tie_word_embeddings": kind == "llama_tied", **extra}
    if kind == "qwen3":
        extra["head_dim"] = 16
    model: PreTrainedModel = model_class(config_class(**{**SIZES, **extra}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def make_batch(lengths: list[int], target_share: float = 0.5) -> Batch:
    bounds = [0]
    for length in lengths:
        bounds.append(bounds[-1] + length)
    ids = torch.randint(0, SIZES["vocab_size"], (1, bounds[-1]))
    labels = torch.full_like(ids, IGNORE_INDEX)
    for begin, end in itertools.pairwise(bounds):
        labels[0, begin : end - 1] = ids[0, begin + 1 : end]
    labels[torch.rand(labels.shape) > target_share] = IGNORE_INDEX
    return Batch(
        input_ids=ids,
        labels=labels,
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        document_bounds=tuple(bounds),
        source_ids=(0,) * len(lengths),
        tokens=bounds[-1],
        targets=int((labels != IGNORE_INDEX).sum()),
    )


def plain_losses(model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    """Each document alone through the plain model: the oracle."""
    model.set_attn_implementation("eager")
    losses = []
    for begin, end in itertools.pairwise(batch.document_bounds):
        logits = model(input_ids=batch.input_ids[:, begin:end]).logits[0]
        losses.append(F.cross_entropy(logits, batch.labels[0, begin:end], reduction="sum"))
    model.set_attn_implementation(DOCUMENTS)
    return losses


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "qwen3", "mistral"])
def test_packed_losses_and_gradients_equal_each_document_alone(kind: str) -> None:
    model = build(kind)
    batch = make_batch(LENGTHS)
    wanted = plain_losses(model, batch)
    torch.stack(wanted).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    packed = PackedLanguageModel(model)
    sums, targets = document_losses(packed, batch)
    torch.testing.assert_close(sums.float(), torch.stack(wanted).detach(), rtol=1e-5, atol=1e-5)
    assert int(targets.sum()) == batch.targets
    loss, _ = packed(batch)
    torch.testing.assert_close(loss, torch.stack(wanted).sum().detach(), rtol=1e-5, atol=1e-5)
    loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-4, msg=name)


def test_the_nats_of_a_source_are_those_of_its_documents() -> None:
    model = build("llama")
    model.set_attn_implementation(DOCUMENTS)
    batch = replace(make_batch(LENGTHS), source_ids=(2, 0, 2, 0, 0, 2, 0, 3, 2))
    documents, targets = document_losses(PackedLanguageModel(model), batch)

    loss, by_source = PackedLanguageModel(model, sources=5)(batch)

    numbers = torch.tensor(batch.source_ids)
    wanted = [float(documents[numbers == source].sum()) for source in range(5)]
    assert by_source.tolist() == pytest.approx(wanted, rel=1e-6)
    assert loss.item() == pytest.approx(sum(wanted), rel=1e-6)
    counted = [int(targets[numbers == source].sum()) for source in range(5)]
    assert count_targets_by_source(batch, 5) == counted
    assert sum(counted) == batch.targets


def test_a_source_that_the_model_was_not_told_of_is_refused() -> None:
    model = build("llama")
    model.set_attn_implementation(DOCUMENTS)
    batch = replace(make_batch([3, 4]), source_ids=(0, 2))
    with pytest.raises(ValueError, match="source 2 among 2 sources"):
        PackedLanguageModel(model, sources=2)(batch)


def test_a_batch_keeps_its_bounds_and_sources_on_its_way_to_a_device() -> None:
    batch = replace(make_batch([3, 4]), source_ids=(0, 2))
    moved = batch.to(torch.device("meta"))
    assert moved.input_ids.device.type == moved.labels.device.type == moved.position_ids.device.type == "meta"
    for name in ("document_bounds", "source_ids", "tokens", "targets"):
        assert getattr(moved, name) == getattr(batch, name)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_document_bounds_are_worked_out_once_for_all_layers(checkpointing: bool) -> None:
    model = build("llama")
    model.set_attn_implementation(DOCUMENTS)
    if checkpointing:
        checkpoint_activations(model, "full")
    seen: list[object] = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, __, kwargs: seen.append(kwargs["documents"]), with_kwargs=True
        )

    PackedLanguageModel(model).train()(make_batch(LENGTHS))[0].backward()

    assert len(seen) == (4 if checkpointing else 2)  # computed again in backward
    assert all(groups is seen[0] for groups in seen)


@pytest.mark.parametrize("implementation", [VARLEN, FLASH, FLASH_3])
def test_a_varlen_kernel_is_given_int32_bounds_and_the_longest_as_a_number(implementation: str) -> None:
    inputs = build_attention_inputs(implementation, (0, 3, 3, 10, 12), torch.device("cpu"))
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert inputs[name].dtype == torch.int32
        assert inputs[name].tolist() == [0, 3, 10, 12]
    assert inputs["max_length_q"] == inputs["max_length_k"] == 7
    assert type(inputs["max_length_q"]) is int


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_keeps_documents_apart_as_sdpa_by_document_does() -> None:
    model = build("llama")
    batch, found = make_batch(LENGTHS), []
    for kernel in (DOCUMENTS, FLEX):
        model.set_attn_implementation(kernel)
        found.append(document_losses(PackedLanguageModel(model), batch)[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [VARLEN, FLEX])
def test_a_kernel_without_dropout_refuses_a_model_that_has_it(kernel: str) -> None:
    model = build("llama", attention_dropout=0.5)
    model.set_attn_implementation(kernel)
    with pytest.raises(ModelError, match=r"has no dropout.*use model\.attention=documents"):
        PackedLanguageModel(model).train()(make_batch(LENGTHS))


@pytest.mark.parametrize(
    ("name", "device", "words"),
    [
        ("varlen", "cpu", "model.attention=varlen needs a GPU; use model.attention=documents or auto"),
        ("flex", "cpu", "model.attention=flex needs a GPU; use model.attention=documents or auto"),
        ("flash_attention_3", "cuda", "needs the package flash-attn-3; install it, or use"),
    ],
)
def test_a_kernel_that_cannot_run_here_is_refused_with_what_to_use(
    name: str, device: str, words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        choose_attention(name, torch.device(device), torch.bfloat16)


@pytest.mark.parametrize(("choice", "passes"), [("none", 3), ("full", 6), (2, 5), (3, 4), ("offload", 6)])
def test_layers_are_computed_again_as_chosen_and_no_gradient_changes(choice: str | int, passes: int) -> None:
    model = build("llama", num_hidden_layers=3)
    model.set_attn_implementation(DOCUMENTS)
    batch, packed = make_batch(LENGTHS), PackedLanguageModel(model)
    packed(batch)[0].backward()
    plain = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    seen: list[object] = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(lambda *_: seen.append(None))

    checkpoint_activations(model, choice)
    packed.train()(batch)[0].backward()

    assert len(seen) == passes
    for parameter, wanted in zip(model.parameters(), plain, strict=True):
        assert torch.equal(parameter.grad, wanted)


def test_inputs_of_layers_wait_in_the_hosts_memory_where_that_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied: list[Tensor] = []

    class Recorded(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self, *, pin_memory: bool) -> None:
            super().__init__(lambda tensor: copied.append(tensor) or tensor, lambda tensor: tensor)

    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", Recorded)
    model = build("llama")
    model.set_attn_implementation(DOCUMENTS)
    checkpoint_activations(model, "offload")

    PackedLanguageModel(model).train()(make_batch(LENGTHS))

    hidden = [tensor.shape for tensor in copied if tensor.dim() == 3]
    assert hidden == [(1, sum(LENGTHS), model.config.hidden_size)] * 2


def test_a_batch_without_targets_is_zero_and_still_reaches_every_trained_parameter() -> None:
    model = build("llama")
    model.set_attn_implementation(DOCUMENTS)
    loss, _ = PackedLanguageModel(model)(make_batch(LENGTHS, target_share=-1.0))
    loss.backward()
    assert loss.item() == 0.0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) == 0.0, name


def test_only_the_adapter_gets_gradients_when_one_is_attached() -> None:
    base = build("llama")
    base.set_attn_implementation(DOCUMENTS)
    model = attach_adapter(base, ADAPTER, dtype=torch.float32, seed=1)
    PackedLanguageModel(model)(make_batch(LENGTHS))[0].backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in model.named_parameters() if "lora_" in name}


def test_a_long_packed_row_needs_no_dense_mask() -> None:
    # A dense boolean mask of 16,384 x 16,384 is 256 MiB and its attention 16 GFLOP a layer and head.
    model = build("llama")
    model.set_attn_implementation(DOCUMENTS)
    seen: list[Tensor | None] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(
            lambda _, __, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
        )
    start = time.process_time()
    with torch.no_grad():
        PackedLanguageModel(model)(make_batch([128] * 128, target_share=0.01))
    assert seen == [None, None]
    assert time.process_time() - start < 5


def test_documents_of_like_length_share_one_call_and_every_token_has_one_place() -> None:
    bounds = [0]
    for length in LENGTHS:
        bounds.append(bounds[-1] + length)
    groups = group_documents(bounds, torch.device("cpu"))
    assert torch.equal(groups.gather[groups.scatter], torch.arange(bounds[-1]))
    assert len(groups.shapes) < len(LENGTHS)
    assert sum(count for count, _ in groups.shapes) == len(LENGTHS)
    assert groups.longest == 70


def test_a_document_longer_than_the_sliding_window_is_refused() -> None:
    model = build("mistral", sliding_window=32)
    model.set_attn_implementation(DOCUMENTS)
    with pytest.raises(ModelError, match=r"70 tokens is longer .* sliding window of 32"):
        PackedLanguageModel(model)(make_batch(LENGTHS))


def test_a_model_that_would_let_documents_see_each_other_is_refused() -> None:
    model = build("llama")
    model.set_attn_implementation("sdpa")
    with pytest.raises(ModelError, match="see each other"):
        PackedLanguageModel(model)(make_batch(LENGTHS))


@pytest.mark.parametrize("through_context", [True, False])
def test_generation_from_left_padded_prompts_equals_plain_sdpa(through_context: bool) -> None:
    model = build("llama").eval()
    ids = torch.randint(1, 96, (2, 12))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    model.set_attn_implementation("sdpa")
    wanted = model.generate(ids, **options)
    model.set_attn_implementation(DOCUMENTS)
    model.config.use_cache = False
    if through_context:
        with generating(model) as lent:
            answers = lent.generate(ids, **options)
    else:
        answers = model.generate(ids, **options)
    assert torch.equal(answers, wanted)
    assert model.config._attn_implementation == DOCUMENTS
    assert model.config.use_cache is False
