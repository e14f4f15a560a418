"""From a document to token ids, and which of them are to be learnt.

- Text: what the tokenizer puts in front, the text, the end-of-text token; all learnt but the first.
- Prompt and completion: tokenised apart and joined, so that generation later sees the prompt's very
  ids; learnt are the completion and the end token.
- Chat: see ``training.data.chat``.

A document of which nothing can be learnt (an empty text, completion or answer) has no target.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from training.data.chat import encode_chats
from training.data.documents import Document, Messages, PromptCompletion, Text
from training.errors import ModelError
from training.model.tokenizer import find_text_end


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One document as the model reads it."""

    input_ids: npt.NDArray[np.int32]
    """int32 [L]."""

    is_target: npt.NDArray[np.bool_]
    """bool [L]; the first token never is."""


def encode(document: Document, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """Encode one document; see ``encode_batch``."""
    return encode_batch([document], tokenizer)[0]


def encode_batch(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """Encode documents of any kinds, in their order; a batch is much faster than one by one.

    Raises:
        ModelError: The tokenizer has no end token, no chat template, or no character offsets.
        DataError: The chat template fails on a document or hides where an answer begins or ends.
    """
    encoded: dict[int, Encoded] = {}
    for kind, encode_kind in ((Messages, _chats), (PromptCompletion, _pairs), (Text, _texts)):
        places = [place for place, document in enumerate(documents) if isinstance(document.content, kind)]
        if places:
            results = encode_kind([documents[place] for place in places], tokenizer)
            encoded.update(zip(places, results, strict=True))
    return [encoded[place] for place in range(len(documents))]


def find_answer_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """Find the id of the token that ends a completion: the one that generation stops at.

    Raises:
        ModelError: The tokenizer has none.
    """
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise ModelError(
            f'the tokenizer {tokenizer.name_or_path} has no end token; set "eos_token" in its '
            "tokenizer_config.json"
        )
    return end


def _chats(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    return [_build(ids, is_target) for ids, is_target in encode_chats(documents, tokenizer)]


def _pairs(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    end = find_answer_end(tokenizer)
    pairs = [doc.content for doc in documents if isinstance(doc.content, PromptCompletion)]
    prompts = _open(_tokenize(tokenizer, [pair.prompt for pair in pairs], add_special=True), end)
    completions = _tokenize(tokenizer, [pair.completion for pair in pairs], add_special=False)
    return [
        _build(
            [*prompt, *completion, end], [False] * len(prompt) + [bool(completion)] * (len(completion) + 1)
        )
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _texts(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    end = find_text_end(tokenizer)
    texts = [doc.content.text for doc in documents if isinstance(doc.content, Text)]
    return [
        _build([*ids, end], [bool(text.strip())] * (len(ids) + 1))
        for text, ids in zip(texts, _open(_tokenize(tokenizer, texts, add_special=True), end), strict=True)
    ]


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, add_special: bool) -> list[list[int]]:
    options: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": False}
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=add_special, verbose=False, **options)[
        "input_ids"
    ]
    return ids


def _open(rows: list[list[int]], end: int) -> list[list[int]]:
    # Some tokenizers end every text themselves (T5, some Gemma conversions): one end token is enough.
    return [row[:-1] if row and row[-1] == end else row for row in rows]


def _build(ids: Sequence[int], is_target: Sequence[bool]) -> Encoded:
    targets = np.asarray(is_target, dtype=np.bool_)
    targets[:1] = False  # nothing stands before the first token that could foretell it
    return Encoded(np.asarray(ids, dtype=np.int32), targets)
