"""Encoding: targets are exactly the answers with their end token, whatever the template."""

from itertools import groupby

import pytest
from transformers import PreTrainedTokenizerBase

from training.data.documents import Document, Message, Messages, PromptCompletion, Text
from training.data.encode import encode, encode_batch
from training.errors import DataError, ModelError
from training.model.byte_tokenizer import build_byte_tokenizer

LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{{ '<|begin_of_text|>' + content }}{% else %}{{ content }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + '</s>' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
# Adds a system prompt of its own when there is none, as SmolLM2 and Qwen 2.5 do.
QWEN_25 = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Writes an empty thought into the last answer only, as Qwen 3 does.
QWEN_3 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Ends the whole text with a token of its own, as Phi 3 does.
PHI_3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
)
GEMMA = (
    "{{ '<bos>' }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED_WITHOUT_END = MARKED.replace(
    "+ '<|im_end|>\n' }}{% endgeneration %}", "}}{% endgeneration %}<|im_end|>\n"
)
# Moves the instruction to the end: no prefix of the chat is a prefix of its text.
SHUFFLING = "{% for message in messages | reverse %}{{ message['content'] + '<|im_end|>' }}{% endfor %}"

SPECIAL = [
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<s>", "</s>", "[INST]",
    "[/INST]", "<|end|>", "<|user|>", "<|assistant|>", "<bos>", "<start_of_turn>", "<end_of_turn>",
]  # fmt: skip

QUESTION, ANSWER = "Was heißt E11.9?", "Type 2 diabetes — “mellitus” 🩺"
TURNS = (("user", QUESTION), ("assistant", ANSWER), ("user", "And I10?"), ("assistant", "Hypertension."))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = build_byte_tokenizer()
    tokenizer.add_tokens(SPECIAL, special_tokens=True)
    return tokenizer


def chat(*turns: tuple[str, str]) -> Document:
    return build_document(Messages(tuple(Message(role, content) for role, content in turns)))


def build_document(content: Messages | PromptCompletion | Text) -> Document:
    return Document(id="notes.jsonl:7", family="f", source="s", task="t", content=content)


def answers(document: Document, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    encoded = encode(document, tokenizer)
    runs = groupby(
        zip(encoded.is_target.tolist(), encoded.input_ids.tolist(), strict=True), lambda pair: pair[0]
    )
    return [tokenizer.decode([token for _, token in run]) for is_target, run in runs if is_target]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (LLAMA_3, [ANSWER + "<|eot_id|>", "Hypertension.<|eot_id|>"]),
        (MISTRAL, [" " + ANSWER + "</s>", " Hypertension.</s>"]),
        (QWEN_25, [ANSWER + "<|im_end|>", "Hypertension.<|im_end|>"]),
        (QWEN_3, [ANSWER + "<|im_end|>", "<think>\n\n</think>\n\nHypertension.<|im_end|>"]),
        (PHI_3, [ANSWER + "<|end|>", "Hypertension.<|end|>\n<|endoftext|>"]),
        (GEMMA, [ANSWER + "<end_of_turn>", "Hypertension.<end_of_turn>"]),
        (MARKED, [ANSWER + "<|im_end|>", "Hypertension.<|im_end|>"]),
        (MARKED_WITHOUT_END, [ANSWER + "<|im_end|>", "Hypertension.<|im_end|>"]),
    ],
    ids=["llama3", "mistral", "qwen2.5", "qwen3", "phi3", "gemma", "marked", "marked-without-end"],
)
def test_targets_are_the_answers_and_the_ends_of_their_turns(
    tokenizer: PreTrainedTokenizerBase, template: str, expected: list[str]
) -> None:
    tokenizer.chat_template = template

    assert answers(chat(*TURNS), tokenizer) == expected
    assert (
        answers(chat(*TURNS[:2]), tokenizer)[-1]
        .removeprefix("<think>\n\n</think>\n\n")
        .startswith(expected[0].removesuffix("<|end|>"))
    )


@pytest.mark.parametrize("template", [LLAMA_3, MISTRAL, QWEN_25, GEMMA, MARKED])
def test_ids_are_those_of_the_rendered_chat_and_the_prompt_is_what_generation_sees(
    tokenizer: PreTrainedTokenizerBase, template: str
) -> None:
    tokenizer.chat_template = template
    messages = [{"role": role, "content": content} for role, content in TURNS[:2]]

    encoded = encode(chat(*TURNS[:2]), tokenizer)

    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
    assert encoded.input_ids.tolist() == whole
    assert encoded.input_ids[: int(encoded.is_target.argmax())].tolist() == prompt


def test_an_answer_that_repeats_its_question_is_told_from_it(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = QWEN_3
    turns = (("user", "yes"), ("assistant", "yes"), ("user", "yes"), ("assistant", "yes"))

    assert answers(chat(*turns), tokenizer) == ["yes<|im_end|>", "<think>\n\n</think>\n\nyes<|im_end|>"]


def test_an_empty_answer_is_no_target(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = QWEN_25

    assert answers(chat(("user", "Hm?"), ("assistant", " ")), tokenizer) == []
    assert answers(chat(("system", "Be kind."), ("user", "Hm?")), tokenizer) == []


def test_a_template_that_hides_where_answers_lie_is_refused_by_name(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = SHUFFLING

    with pytest.raises(DataError, match=r"notes\.jsonl:7: the chat template .*model\.chat_template"):
        encode(chat(*TURNS), tokenizer)


def test_a_chat_that_the_template_refuses_is_named_among_many(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = MISTRAL
    bad = chat(("system", "Be brief."), *TURNS)

    with pytest.raises(DataError, match=r"notes\.jsonl:7: .*Only user and assistant roles"):
        encode_batch([bad], tokenizer)
    assert [len(encoded.input_ids) for encoded in encode_batch([chat(*TURNS)] * 2, tokenizer)]


def test_a_tokenizer_without_a_template_says_what_to_set() -> None:
    bare = build_byte_tokenizer()
    bare.chat_template = None

    with pytest.raises(
        ModelError, match=r"no chat template, and the documents are chats; set model\.chat_template"
    ):
        encode(chat(*TURNS), bare)


def test_a_completion_is_learnt_with_its_end_and_the_prompt_is_tokenised_as_alone(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    document = build_document(PromptCompletion("Category:\n", "Copyleft"))

    encoded = encode(document, tokenizer)

    assert answers(document, tokenizer) == ["Copyleft<|im_end|>"]
    assert encoded.input_ids[~encoded.is_target].tolist() == tokenizer("Category:\n")["input_ids"]


def test_text_is_learnt_whole_and_ends_the_text(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode(build_document(Text("Every word.")), tokenizer)

    assert tokenizer.decode(encoded.input_ids) == "Every word.<|endoftext|>"
    assert encoded.is_target.tolist() == [False] + [True] * 11


@pytest.mark.parametrize("content", [Text(" \n"), PromptCompletion("Why?", "")])
def test_nothing_to_learn_means_no_target(
    tokenizer: PreTrainedTokenizerBase, content: Text | PromptCompletion
) -> None:
    assert not encode(build_document(content), tokenizer).is_target.any()


def test_a_batch_of_mixed_kinds_is_as_one_by_one(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = QWEN_25
    documents = [
        build_document(Text("a")),
        chat(*TURNS),
        build_document(PromptCompletion("p", "c")),
        chat(*TURNS[:2]),
        build_document(Text("b")),
    ]

    together = encode_batch(documents, tokenizer)

    for document, encoded in zip(documents, together, strict=True):
        alone = encode(document, tokenizer)
        assert encoded.input_ids.tolist() == alone.input_ids.tolist()
        assert encoded.is_target.tolist() == alone.is_target.tolist()
