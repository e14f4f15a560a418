"""Chats through the tokenizer's chat template, with targets exactly on the assistant's turns.

The whole chat is rendered and tokenised once, as it would be for generation (the template writes
every special token itself). Where an answer lies in that text is found

1. by the template's ``{% generation %}`` marks where it has them, else
2. by prefixes: the chat before the turn plus the generation prompt ends where the answer begins, and
   the chat up to the turn ends where the answer ends. Both must be prefixes of the whole; templates
   that write a turn differently once it is not the last (Qwen 3 drops its thoughts) are found by the
   answer's own text and the end token behind it.

The token that ends the turn belongs to the answer, white space after it does not. Where neither way is
exact the document is refused: an answer learnt without its end, or a prompt learnt as an answer, is the
kind of error that nobody sees in a loss curve.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from training.data.documents import Document, Messages
from training.errors import DataError, ModelError

Span = tuple[int, int]
"""Characters [start, stop) of the rendered chat."""

Chat = list[dict[str, str]]

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def encode_chats(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[list[int], list[bool]]]:
    """Render, tokenise and mark chats: token ids and whether each is a target.

    Raises:
        ModelError: The tokenizer has no chat template or cannot give character offsets.
        DataError: The template fails on a document, or hides where an answer begins or ends.
    """
    template = _find_template(tokenizer)
    chats = [to_chat(document.content) for document in documents if isinstance(document.content, Messages)]
    if _GENERATION_MARK.search(template):
        texts, spans = _render_marked(documents, chats, tokenizer, template)
    else:
        texts = _render(documents, chats, tokenizer, prompt=False)
        spans = _find_spans(documents, chats, texts, tokenizer)
    encodings = tokenizer(
        texts,
        add_special_tokens=False,  # the template wrote them: a second BOS would be a different prompt
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    rows = zip(encodings["input_ids"], encodings["offset_mapping"], spans, strict=True)
    return [(ids, _mark(offsets, row_spans)) for ids, offsets, row_spans in rows]


def to_chat(content: Messages) -> Chat:
    """Put a chat into the form that chat templates take."""
    return [{"role": message.role, "content": message.content} for message in content.messages]


def _find_template(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer {tokenizer.name_or_path} has no tokenizer.json; chats need one")
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path} has no chat template, and the documents are chats; "
            "set model.chat_template to a Jinja file"
        ) from None


def _render(
    documents: Sequence[Document], chats: list[Chat], tokenizer: PreTrainedTokenizerBase, *, prompt: bool
) -> list[str]:
    if not chats:
        return []
    try:
        return list(tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=prompt))
    except (TemplateError, TypeError, KeyError) as error:
        if len(chats) == 1:
            raise _refusal(documents[0], tokenizer, f"fails: {error}") from None
    # One of them fails: find out which, to name it.
    return [
        text
        for document, chat in zip(documents, chats, strict=True)
        for text in _render([document], [chat], tokenizer, prompt=prompt)
    ]


def _render_marked(
    documents: Sequence[Document], chats: list[Chat], tokenizer: PreTrainedTokenizerBase, template: str
) -> tuple[list[str], list[list[Span]]]:
    texts: list[str] = []
    spans: list[list[Span]] = []
    for document, chat in zip(documents, chats, strict=True):
        try:
            rendered, marks = render_jinja_template(
                [chat],
                chat_template=template,
                return_assistant_tokens_mask=True,
                **tokenizer.special_tokens_map,
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise _refusal(document, tokenizer, f"fails: {error}") from None
        if len(marks[0]) != sum(turn["role"] == "assistant" for turn in chat):
            raise _refusal(document, tokenizer, f"marks {len(marks[0])} answers with {{% generation %}}")
        texts.append(rendered[0])
        spans.append([_close_mark(rendered[0], start, stop, tokenizer) for start, stop in marks[0]])
    return texts, spans


def _close_mark(text: str, start: int, stop: int, tokenizer: PreTrainedTokenizerBase) -> Span:
    # Some templates mark the words only: without the end token behind them no turn would ever end.
    marked = text[start:stop].rstrip()
    special = _special_tokens(tokenizer)
    if special and not marked.endswith(special):
        behind = next((token for token in special if text.startswith(token, stop)), "")
        return start, stop + len(behind)
    return start, start + len(marked)


def _find_spans(
    documents: Sequence[Document], chats: list[Chat], texts: list[str], tokenizer: PreTrainedTokenizerBase
) -> list[list[Span]]:
    turns = [
        (place, turn)
        for place, chat in enumerate(chats)
        for turn, message in enumerate(chat)
        if message["role"] == "assistant"
    ]
    owners = [documents[place] for place, _ in turns]
    heads = _render(owners, [chats[place][:turn] for place, turn in turns], tokenizer, prompt=True)
    earlier = [(place, turn) for place, turn in turns if turn + 1 < len(chats[place])]
    until = dict(
        zip(
            earlier,
            _render(
                [documents[place] for place, _ in earlier],
                [chats[place][: turn + 1] for place, turn in earlier],
                tokenizer,
                prompt=False,
            ),
            strict=True,
        )
    )
    special = _special_tokens(tokenizer)
    spans: list[list[Span]] = [[] for _ in chats]
    for (place, turn), head in zip(turns, heads, strict=True):
        text, answer = texts[place], chats[place][turn]["content"]
        span = _find_span(text, head, until.get((place, turn), text), answer, special)
        if span is None:
            raise _refusal(
                documents[place],
                tokenizer,
                f"does not show where the answer messages[{turn}] begins and ends",
            )
        if answer.strip():
            spans[place].append(span)
    return spans


def _find_span(text: str, head: str, until: str, answer: str, special: tuple[str, ...]) -> Span | None:
    start = len(head)
    answer = answer.strip()
    if not text.startswith(head) or not until.startswith(head):
        return None
    if text.startswith(until) and answer in until[start:]:
        return start, max(start, len(until.rstrip()))
    # The turn is written otherwise than when it was the last: the answer must follow at once, and
    # the first special token that stood behind it.
    behind = until[start:].rpartition(answer)[2] if answer else until[start:]
    ends = [(behind.index(token), token) for token in special if token in behind]
    if not ends:
        return None
    place, token = min(ends)
    turn = answer + behind[:place] + token
    lead = len(text[start:]) - len(text[start:].lstrip())
    return (start, start + lead + len(turn)) if text.startswith(turn, start + lead) else None


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    added = tokenizer.added_tokens_decoder.values()
    return tuple({*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)})


def _mark(offsets: Sequence[Span], spans: list[Span]) -> list[bool]:
    marks = [False] * len(offsets)
    starts = [start for start, _ in offsets]
    for start, stop in spans:
        first, last = bisect_left(starts, start), bisect_left(starts, stop)
        marks[first:last] = [True] * (last - first)
    return marks


def _refusal(document: Document, tokenizer: PreTrainedTokenizerBase, problem: Any) -> DataError:
    return DataError(
        f"{document.id}: the chat template of {tokenizer.name_or_path} {problem}; set model.chat_template to "
        "a template that takes this chat, best one with {% generation %} marks"
    )
