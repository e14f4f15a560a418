"""The byte tokenizer, chat templates and fingerprints."""

from pathlib import Path

import pytest

from training.config.learning import ModelConfig
from training.errors import ModelError
from training.model.byte_tokenizer import build_byte_tokenizer
from training.model.generation import find_stop_tokens
from training.model.tokenizer import (
    chat_template_fingerprint,
    find_text_end,
    find_turn_end,
    load_tokenizer,
    name_chat_template,
    tokenizer_fingerprint,
)

TEXTS = ["", " ", "héllo wörld\n\n\t  x 🙂", "日本語 e\u0301 \u00e9", "a" * 3000, "\x00\x7f\u2028 \r\n"]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_come_back_unchanged_and_one_token_is_one_byte(text: str) -> None:
    tokenizer = build_byte_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == list(text.encode("utf-8"))
    assert tokenizer.decode(ids) == text


def test_special_tokens_lie_after_the_bytes() -> None:
    tokenizer = build_byte_tokenizer()
    assert len(tokenizer) == 260
    assert find_text_end(tokenizer) == 256
    assert find_turn_end(tokenizer) == tokenizer.eos_token_id == 258
    assert tokenizer.pad_token_id == 259
    assert find_stop_tokens(tokenizer) == [258, 256]


def test_the_chat_template_is_chatml() -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    text = build_byte_tokenizer().apply_chat_template(chat, tokenize=False, add_generation_prompt=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"


def test_the_fingerprint_follows_template_and_vocabulary_and_no_call() -> None:
    one, other = build_byte_tokenizer(), build_byte_tokenizer()
    one(["long text", "x"], padding=True, truncation=True, max_length=4)
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)
    other.chat_template = "{{ messages }}"
    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(other)
    more = build_byte_tokenizer()
    more.add_tokens(["new"])
    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(more)


def test_a_templates_fingerprint_is_that_of_its_source_alone() -> None:
    one, other = build_byte_tokenizer(), build_byte_tokenizer()
    other.add_tokens(["new"])
    assert chat_template_fingerprint(one) == chat_template_fingerprint(other)
    other.chat_template = f"{one.chat_template} "
    assert chat_template_fingerprint(one) != chat_template_fingerprint(other)
    other.chat_template = None
    assert chat_template_fingerprint(other) is None


def make_config(tokenizer: str, template: str | None = None) -> ModelConfig:
    return ModelConfig(
        source="huggingface",
        path="unused",
        folder=None,
        architecture=None,
        tokenizer=tokenizer,
        chat_template=template,
        extra_tokens=[],
        attention="auto",
    )


def test_a_template_file_replaces_the_tokenizers_own(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages[0].content }}", encoding="utf-8")
    tokenizer = load_tokenizer(make_config("bytes", str(path)))
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    assert name_chat_template(tokenizer) == f"the chat template {path}"


def test_a_missing_tokenizer_or_template_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer can be read there.*set model\.tokenizer") as caught:
        load_tokenizer(make_config(str(tmp_path)))
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=r"model\.chat_template=.*none\.jinja cannot be read"):
        load_tokenizer(make_config("bytes", str(tmp_path / "none.jinja")))
