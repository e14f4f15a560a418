"""Losses and answers of a tiny model, against the plain way of computing them."""

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from training.data.documents import Document, Message, Messages, PromptCompletion, Text
from training.evaluation.answers import Question, ask, find_word_f1, matches_exactly, say
from training.evaluation.generate import answer_questions, cut_batches
from training.evaluation.losses import count_targets, cut_rows, measure_losses
from training.evaluation.material import EvaluationDocument, encode_document
from training.evaluation.unpack import unpack_layers
from training.model.attention import choose_attention, register_attention
from training.model.byte_tokenizer import build_byte_tokenizer
from training.model.generation import find_stop_tokens
from training.model.packed import PackedLanguageModel

CPU = torch.device("cpu")
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_byte_tokenizer()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    register_attention()
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=264, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.6,
    )  # fmt: skip
    config._attn_implementation = choose_attention("documents", CPU)
    return LlamaForCausalLM(config).eval()


def chat(question: str, answer: str) -> Document:
    turns = (Message("system", "ICD-10-CM"), Message("user", question), Message("assistant", answer))
    return Document(id=question, family="f", source="s", task="t", content=Messages(turns))


DOCUMENTS = [
    chat("A00?", "Cholera"),
    chat("What is meant by B01.11?", "Varicella encephalitis"),
    Document(id="p", family="f", source="s", task="t", content=PromptCompletion("Category: ", "Permissive")),
    Document(id="x", family="f", source="s", task="t", content=Text("Plain words, all learnt. " * 4)),
    chat("C?", "Neoplasm"),
]


def plain_losses(model: PreTrainedModel, encoded: EvaluationDocument) -> float:
    """One document alone, all logits, no packing."""
    ids = torch.from_numpy(encoded.input_ids.astype(np.int64))[None]
    former = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1].double()
    model.set_attn_implementation(former)
    nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    return float(nats[torch.from_numpy(encoded.is_target[1:].copy())].sum())


@pytest.mark.parametrize("tokens_per_batch", [1, 100, 10_000])
def test_each_documents_loss_is_that_of_the_document_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens_per_batch: int
) -> None:
    encoded = [encode_document(document, tokenizer) for document in DOCUMENTS]
    told: list[int] = []
    found = measure_losses(
        PackedLanguageModel(model),
        encoded,
        tokens_per_batch=tokens_per_batch,
        device=CPU,
        advance=told.append,
    )
    assert found == pytest.approx([plain_losses(model, document) for document in encoded], rel=1e-5)
    assert sum(told) == len(DOCUMENTS)


def test_only_targets_with_a_token_before_them_are_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode_document(DOCUMENTS[2], tokenizer)
    assert count_targets(encoded) == len("Permissive") + 1  # and the end token


@pytest.mark.parametrize("limit", [1, 7, 30, 1000])
def test_cutting_keeps_every_place_once_and_the_limit(limit: int) -> None:
    lengths = [3, 30, 7, 7, 1, 12, 30, 2]
    rows = cut_rows(lengths, limit)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[place] for place in row) <= limit for row in rows)
    batches = cut_batches(lengths, limit)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert all(
        len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= limit for batch in batches
    )


def as_question(document: Document, tokenizer: PreTrainedTokenizerBase) -> Question:
    return ask(encode_document(document, tokenizer), tokenizer)


def test_batched_answers_are_those_of_transformers_one_by_one(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    questions = [as_question(document, tokenizer) for document in DOCUMENTS if document.id != "x"]
    former = model.config._attn_implementation
    found = answer_questions(
        model,
        tokenizer,
        questions,
        max_new_tokens=NEW_TOKENS,
        tokens_per_batch=10_000,
        advance=lambda done: None,
    )
    assert model.config._attn_implementation == former
    model.set_attn_implementation("eager")
    ends = find_stop_tokens(tokenizer)
    for question, answer in zip(questions, found, strict=True):
        prompt = torch.from_numpy(question.prompt_ids.astype(np.int64))[None]
        output = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, eos_token_id=ends,
            max_new_tokens=NEW_TOKENS, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        assert answer == say(tokenizer, output[0, prompt.shape[1] :].numpy())
    model.set_attn_implementation(former)
    assert len(set(found)) > 1  # the model is not so dull that any answer would do


def test_an_answer_ends_at_its_end_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    question = as_question(DOCUMENTS[0], tokenizer)
    ends = find_stop_tokens(tokenizer)
    head = model.get_output_embeddings().weight
    kept = head.detach().clone()
    prompt = torch.from_numpy(question.prompt_ids.astype(np.int64))[None]
    model.set_attn_implementation("eager")
    hidden = model.get_decoder()(input_ids=prompt).last_hidden_state[0, -1]
    model.set_attn_implementation("metier_documents")
    try:
        with torch.no_grad():
            head[ends[0]] = 100 * hidden  # the end is what the model wants to say first
        (answer,) = answer_questions(
            model,
            tokenizer,
            [question],
            max_new_tokens=NEW_TOKENS,
            tokens_per_batch=99,
            advance=lambda done: None,
        )
    finally:
        with torch.no_grad():
            head.copy_(kept)
    assert answer == ""


def test_a_question_ends_where_the_first_answer_begins(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = (
        Message("user", "A?"),
        Message("assistant", "first"),
        Message("user", "B?"),
        Message("assistant", "second"),
    )
    question = as_question(
        Document(id="m", family="f", source="s", task="t", content=Messages(turns)), tokenizer
    )
    assert question.expected == "first"
    assert question.prompt == "A?"
    assert as_question(DOCUMENTS[2], tokenizer).prompt == "Category:"


@pytest.mark.parametrize(
    ("answer", "expected", "exact", "word_f1"),
    [
        ("  cholera,  UNSPECIFIED\n", "Cholera, unspecified", True, 1.0),
        ("Cholera", "Cholera, unspecified", False, 2 / 3),
        ("fever of unknown origin", "fever of origin", False, 6 / 7),
        ("", "Permissive", False, 0.0),
        ("Permissive Permissive", "Permissive", False, 2 / 3),
    ],
)
def test_answers_are_compared_without_case_and_white_space(
    answer: str, expected: str, exact: bool, word_f1: float
) -> None:
    assert matches_exactly(answer, expected) is exact
    assert find_word_f1(answer, expected) == pytest.approx(word_f1)


def test_a_4_bit_layer_unpacked_once_gives_the_very_same_numbers() -> None:
    torch.manual_seed(0)
    packed = torch.nn.Sequential(
        Linear4bit(64, 64, bias=True, compute_dtype=torch.float32, quant_type="nf4"), torch.nn.Linear(64, 8)
    ).to(CPU)
    inputs = torch.randn(5, 64)
    with torch.no_grad():
        before = packed(inputs)
        assert packed[0].weight.quant_state is not None  # really 4 bits
        assert unpack_layers(packed) == 1
        assert type(packed[0]) is torch.nn.Linear
        assert torch.equal(packed(inputs), before)
