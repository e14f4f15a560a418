"""A tokenizer's chat template, compiled once and rendered cheaply.

What is rendered is what transformers renders, with two differences. A context is made once, not for each
chat, which halves the time. And ``strftime_now`` (Llama 3.2 writes today's date into the system prompt) is
a fixed day: the same documents must give the same shards tomorrow.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from training.data.documents import Message, Messages
from training.data.encoding.template_plain import only_copies
from training.errors import ModelError
from training.model.tokenizer import find_chat_template, name_chat_template

Span = tuple[int, int]
"""[start, stop): characters of a rendered chat, or tokens of an encoded one."""

Chat = list[dict[str, Any]]
"""Messages as a template takes them."""

TODAY = datetime(2024, 7, 26, tzinfo=UTC)
"""The date that Meta's own templates write where there is no clock:
https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct, chat_template."""

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_FAILURES = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What a template that meets an unforeseen chat raises: its own refusal, or Python's."""


class TemplateRefusalError(Exception):
    """The template fails on a chat, or hides where an answer lies; the message completes "the template ...".

    Never seen by a user: whoever knows the document turns it into a ``DataError``.
    """


class ChatTemplate:
    """Renders chats."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Compile the template.

        Raises:
            ModelError: The tokenizer has none, or it is no Jinja.
        """
        self.name = name_chat_template(tokenizer)
        source = find_chat_template(tokenizer)
        if source is None:
            raise ModelError(
                f"the tokenizer {tokenizer.name_or_path} has no chat template, and the documents are chats; "
                "set model.chat_template to a Jinja file"
            )
        self.has_marks = _GENERATION_MARK.search(source) is not None
        """Whether answers are marked with ``{% generation %}``."""
        self._variables = {**tokenizer.special_tokens_map, "strftime_now": TODAY.strftime}
        try:
            self._compiled = _compile_jinja_template(source)
        except TemplateError as error:
            raise ModelError(f"{self.name} is no valid Jinja: {error}; mend it") from None
        self.only_copies = only_copies(self._compiled.environment.parse(source))
        """Whether the text of a chat without tools is its filled skeleton; see ``template_plain``."""
        self._context = self._compiled.new_context({"tools": None, "documents": None, **self._variables})

    @contextmanager
    def offering(self, tools: Sequence[Mapping[str, Any]]) -> Iterator[None]:
        """Render with these definitions of functions, as long as the block lasts."""
        before = self._context.parent["tools"]
        self._context.parent["tools"] = list(tools) or None
        try:
            yield
        finally:
            self._context.parent["tools"] = before

    def render(self, chat: Chat, *, prompt: bool = False) -> str:
        """Write a chat as text; with ``prompt`` also what opens the next answer.

        Raises:
            TemplateRefusalError: The template fails on it.
        """
        return "".join(self._write(chat, [], prompt=prompt))

    def render_marked(self, chat: Chat) -> tuple[str, list[Span]]:
        """Write a chat as text, and give the characters that ``{% generation %}`` marks.

        Raises:
            TemplateRefusalError: The template fails on it.
        """
        blocks: list[str] = []
        marks: list[Span] = []
        # The tracker measures a mark by the blocks written before it.
        with self._compiled.environment.activate_tracker(blocks, marks):
            self._write(chat, blocks, prompt=False)
        return "".join(blocks), marks

    def _write(self, chat: Chat, blocks: list[str], *, prompt: bool) -> list[str]:
        context = self._context
        context.parent["messages"] = chat
        context.parent["add_generation_prompt"] = prompt
        try:
            for block in self._compiled.root_render_func(context):
                blocks.append(block)  # at once: the tracker looks at them while the template runs
        except _FAILURES as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise TemplateRefusalError(f"fails: {first}") from None
        finally:
            # What the template set at its top level must not be seen by the next chat.
            context.vars.clear()
            context.exported_vars.clear()
        return blocks


def to_chat(content: Messages) -> Chat:
    """Put a chat into the form that chat templates take."""
    return [
        _add_extra(message) if message.extra else {"role": message.role, "content": message.content}
        for message in content.messages
    ]


def _add_extra(message: Message) -> dict[str, Any]:
    extra = {key: value for key, value in message.extra.items() if value is not None}
    if isinstance(calls := extra.get("tool_calls"), list | tuple):
        extra["tool_calls"] = [_open_call(call) for call in calls]
    return {"role": message.role, "content": message.content, **extra}


def _open_call(call: Any) -> Any:
    """Give a call's arguments as an object.

    OpenAI writes them as JSON text, and templates turn objects into JSON: text would be quoted twice.
    """
    if not isinstance(call, Mapping):
        return call
    if isinstance(function := call.get("function"), Mapping):
        return {**call, "function": _open_call(function)}
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            opened = json.loads(arguments)
        except ValueError:
            return call
        return {**call, "arguments": opened} if isinstance(opened, dict) else call
    return call
