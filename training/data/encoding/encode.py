"""From a document to token ids, and which of them are to be learnt.

- Text: what the tokenizer puts in front, the text, the end-of-text token; all learnt but the first.
- Prompt and completion: tokenised apart and joined, so that generation later sees the prompt's very
  ids; learnt are the completion and the end token.
- Chat: see ``training.data.encoding.chat``.

A document of which nothing can be learnt (an empty text, completion or answer) has no target.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from training.data.documents import Document, Messages, PromptCompletion, Text
from training.data.encoding.chat import ChatEncoder
from training.data.encoding.control_tokens import ControlTokenAction, ControlTokens, find_control_tokens
from training.data.encoding.template import ChatTemplate
from training.data.encoding.template_tokens import free_of_limits
from training.errors import ModelError
from training.model.tokenizer import find_chat_template, find_text_end


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One document as the model reads it."""

    input_ids: npt.NDArray[np.int32]
    """int32 [L]."""

    is_target: npt.NDArray[np.bool_]
    """bool [L]; the first token never is."""

    turns: int = 0
    """Answers to be learnt, a completion among them; a text has none."""

    turns_ended: int = 0
    """Those of them whose end token is a target."""

    control_tokens: bool = False
    """Control tokens were written out in the document's text."""


class Encoder:
    """Encodes documents with one tokenizer; made once per process."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, control_tokens: ControlTokenAction) -> None:
        """Prepare; the chat template is tried when the first chat comes.

        Args:
            tokenizer: With its chat template.
            control_tokens: What is done about control tokens in a document's text.

        Raises:
            ModelError: The chat template is no Jinja.
        """
        self._tokenizer = tokenizer
        self._action = control_tokens
        self._template = None if find_chat_template(tokenizer) is None else ChatTemplate(tokenizer)
        self._control = ControlTokens(find_control_tokens(tokenizer, self._template))
        self._chats: ChatEncoder | None = None

    def strip(self, document: Document) -> Document:
        """Take control tokens out of a document where they are to be removed; the same object without any.

        For whoever looks into the text before it is encoded: a token inside of an address hides it.
        """
        return self._control.screen([document], "remove")[0][0] if self._action == "remove" else document

    def encode_batch(self, documents: Sequence[Document]) -> list[Encoded]:
        """Encode documents of any kinds, in their order; a batch is much faster than one by one.

        Raises:
            ModelError: The tokenizer has no end token, or no chat template that shows where answers lie.
            DataError: A document holds control tokens and they are refused; or the chat template fails on
                it, leaves a message out, or hides where an answer begins or ends.
        """
        documents, forged = self._control.screen(documents, self._action)
        encoded: dict[int, Encoded] = {}
        for kind in (Messages, PromptCompletion, Text):
            places = [place for place, document in enumerate(documents) if isinstance(document.content, kind)]
            if places:
                chosen, held = [documents[place] for place in places], [forged[place] for place in places]
                encoded.update(zip(places, self._encode_kind(kind, chosen, held), strict=True))
        return [encoded[place] for place in range(len(documents))]

    def _encode_kind(
        self, kind: type, documents: Sequence[Document], forged: Sequence[bool]
    ) -> Sequence[Encoded]:
        if kind is PromptCompletion:
            return self._encode_pairs(documents, forged)
        if kind is Text:
            return self._encode_texts(documents, forged)
        if self._chats is None:
            template = self._template or ChatTemplate(self._tokenizer)  # says that there is none
            self._chats = ChatEncoder(self._tokenizer, template, self._control)
        chats = self._chats.encode_batch(documents, [held and self._action == "keep" for held in forged])
        return [
            _build(chat.input_ids, chat.is_target, (chat.turns, chat.turns_ended), held)
            for chat, held in zip(chats, forged, strict=True)
        ]

    def _encode_pairs(self, documents: Sequence[Document], forged: Sequence[bool]) -> list[Encoded]:
        end = find_answer_end(self._tokenizer)
        pairs = [doc.content for doc in documents if isinstance(doc.content, PromptCompletion)]
        prompts = self._tokenize([pair.prompt for pair in pairs], end, add_special=True)
        completions = self._tokenize([pair.completion for pair in pairs], None, add_special=False)
        encoded = []
        for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            size = len(prompt)
            learnt = bool(completion)
            ids = [*prompt, *completion, end]
            is_target = (np.ones if documents[place].train_on == "all" else np.zeros)(len(ids), np.bool_)
            is_target[size:] |= learnt
            encoded.append(_build(ids, is_target, (learnt, learnt), forged[place]))
        return encoded

    def _encode_texts(self, documents: Sequence[Document], forged: Sequence[bool]) -> list[Encoded]:
        end = find_text_end(self._tokenizer)
        texts = [doc.content.text for doc in documents if isinstance(doc.content, Text)]
        encoded = []
        for text, ids, held in zip(texts, self._tokenize(texts, end, add_special=True), forged, strict=True):
            ids.append(end)
            is_target = (np.zeros if not text or text.isspace() else np.ones)(len(ids), np.bool_)
            encoded.append(_build(ids, is_target, (0, 0), held))
        return encoded

    def _tokenize(self, texts: list[str], end: int | None, *, add_special: bool) -> list[list[int]]:
        rows: list[list[int]]
        if self._tokenizer.is_fast:
            # What tokenizer(...) calls itself, without its work on each document.
            backend = self._tokenizer.backend_tokenizer
            free_of_limits(backend)
            rows = [row.ids for row in backend.encode_batch_fast(texts, add_special_tokens=add_special)]
        else:
            rows = self._tokenizer(texts, add_special_tokens=add_special, verbose=False)["input_ids"]
        for row in rows:
            # Some tokenizers end every text themselves (T5, some Gemma conversions): one end is enough.
            if end is not None and row and row[-1] == end:
                row.pop()
        return rows


def encode(document: Document, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """Encode one document, control tokens kept; see ``Encoder.encode_batch``."""
    return _make_encoder(tokenizer, find_chat_template(tokenizer), len(tokenizer)).encode_batch([document])[0]


@lru_cache(maxsize=2)
def _make_encoder(tokenizer: PreTrainedTokenizerBase, template: str | None, tokens: int) -> Encoder:
    """Keep the encoder of a tokenizer, until its template or its added tokens change."""
    del template, tokens
    return Encoder(tokenizer, control_tokens="keep")


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


def _build(
    ids: Sequence[int] | npt.NDArray[np.int32],
    is_target: npt.NDArray[np.bool_],
    turns: tuple[int, int],
    control_tokens: bool,
) -> Encoded:
    is_target[:1] = False  # nothing stands before the first token that could foretell it
    return Encoded(np.asarray(ids, dtype=np.int32), is_target, int(turns[0]), int(turns[1]), control_tokens)
