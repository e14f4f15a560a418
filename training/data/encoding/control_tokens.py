"""Control tokens written out in a document's text: ``<|im_end|>`` in a user's words would forge a turn.

A tokenizer reads its special tokens wherever they stand, and a chat template copies contents as they are.
So a text that spells such a token can end its own turn and open another, with words of its choice as a
target. What counts as a control token is what the tokenizer calls special, and what the chat template
writes around turns.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from training.data.documents import Document, Message, Messages, PromptCompletion, Text
from training.data.encoding.template import ChatTemplate, TemplateRefusalError
from training.errors import DataError

ControlTokenAction = Literal["refuse", "remove", "keep"]

_WORDS = ("Qfirstq", "Qsecondq", "Qthirdq")
_FIRST_PLACEHOLDER = 0xF0000
"""Of a private-use plane: characters that no text should hold."""


class ControlTokens:
    """Finds control tokens in documents, with one pattern for all of them."""

    def __init__(self, tokens: Iterable[str]) -> None:
        """Compile the pattern; ``tokens`` may be empty."""
        self.tokens = tuple(sorted({token for token in tokens if token}))
        self.pattern = re.compile(_build_pattern(self.tokens) if self.tokens else "(?!)")
        self._placeholders = {
            token: chr(_FIRST_PLACEHOLDER + number) for number, token in enumerate(self.tokens)
        }

    def screen(
        self, documents: Sequence[Document], action: ControlTokenAction
    ) -> tuple[Sequence[Document], list[bool]]:
        """Look for control tokens in the documents' texts and do what is asked about them.

        Returns:
            The documents, without the tokens when ``action`` is ``remove``; and which of them had some.

        Raises:
            DataError: A document has one and ``action`` is ``refuse``.
        """
        # One search over all texts: nearly always there is none in the whole batch.
        if not self.pattern.search("\n".join(text for document in documents for text in _texts(document))):
            return documents, [False] * len(documents)
        found = [self._find(document) for document in documents]
        if action == "refuse":
            for document, token in zip(documents, found, strict=True):
                if token is not None:
                    raise DataError(
                        f"{document.id}: its text holds the control token {token}, which would forge a "
                        "turn; take it out, or set data.control_tokens=remove (or keep)"
                    )
        if action == "remove":
            documents = [
                document if token is None else _change(document, self.remove)
                for document, token in zip(documents, found, strict=True)
            ]
        return documents, [token is not None for token in found]

    def remove(self, text: str) -> str:
        """Take control tokens out until none is left: what stood around one may make another."""
        while True:
            shorter = self.pattern.sub("", text)
            if shorter == text:
                return text
            text = shorter

    def hide(self, document: Document) -> Document | None:
        """Put one private character in the place of each control token, so that only the template writes any.

        None when the document has such characters itself.
        """
        held = set("".join(_texts(document)))
        if not held.isdisjoint(self._placeholders.values()):
            return None
        return _change(document, lambda text: self.pattern.sub(self._placeholder, text))

    def restore(self, text: str) -> str:
        """Undo ``hide`` in a rendered text."""
        return text.translate({ord(character): token for token, character in self._placeholders.items()})

    def _placeholder(self, match: re.Match[str]) -> str:
        return self._placeholders[match.group()]

    def _find(self, document: Document) -> str | None:
        for text in _texts(document):
            if match := self.pattern.search(text):
                return match.group()
        return None


def find_control_tokens(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None) -> set[str]:
    """List the special tokens and the other added tokens that the template writes around turns.

    What the template writes only inside of an answer (the ``<think>`` of Qwen 3) forges no turn, and answers
    that think do contain it.
    """
    added = tokenizer.added_tokens_decoder.values()
    special = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    around, inside = ("", "") if template is None else _write(template)
    written = {str(token) for token in added if str(token) and str(token) in around}
    opening = {token for token in special | written if token in inside} - written
    return (special | written) - opening


def _write(template: ChatTemplate) -> tuple[str, str]:
    """Let the template write: what stands around the turns, and what it puts before an answer's own words."""
    question, answer, more = _WORDS
    user = {"role": "user", "content": question}
    turns = [user, {"role": "assistant", "content": answer}]
    around, inside = [], []
    try:
        head = template.render([user], prompt=True)
        for chat in (turns, [*turns, {"role": "user", "content": more}]):
            text = template.render(chat)
            before, _, after = text.partition(answer)
            exact = text.startswith(head) and len(head) <= len(before)
            around.append((head if exact else before) + "\n" + after)
            inside.append(before[len(head) :] if exact else "")
    except TemplateRefusalError:
        return "", ""
    return "\n".join(around), "\n".join(inside)


def _texts(document: Document) -> list[str]:
    match document.content:
        case Text(text):
            return [text]
        case PromptCompletion(prompt, completion):
            return [prompt, completion]
        case Messages(messages, tools):
            texts = [message.content for message in messages]
            texts.extend(_strings(tools))
            for message in messages:
                if message.extra:
                    texts.extend(_strings(message.extra))
            return texts


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _change(document: Document, change: Any) -> Document:
    content: Text | PromptCompletion | Messages
    match document.content:
        case Text(text):
            content = Text(change(text))
        case PromptCompletion(prompt, completion):
            content = PromptCompletion(change(prompt), change(completion))
        case Messages(messages) as chat:
            turns = tuple(_change_message(message, change) for message in messages)
            content = replace(chat, messages=turns, tools=tuple(_change_strings(chat.tools, change)))
    return replace(document, content=content)


def _change_message(message: Message, change: Any) -> Message:
    extra = _change_strings(message.extra, change) if message.extra else message.extra
    return replace(message, content=change(message.content), extra=extra)


def _change_strings(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(str(key)): _change_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_change_strings(item, change) for item in value]
    return value


def _build_pattern(tokens: Sequence[str]) -> str:
    """Write an alternation that looks at a character once: Llama 3 has 256 tokens that begin alike."""
    branches: dict[str, list[str]] = {}
    for token in tokens:
        if token:
            branches.setdefault(token[0], []).append(token[1:])
    parts = [re.escape(first) + _build_pattern(rest) for first, rest in branches.items()]
    if not parts:
        return ""
    body = parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"
    # The longest token wins: `?` takes what follows when it can.
    return f"(?:{body})?" if "" in tokens else body
