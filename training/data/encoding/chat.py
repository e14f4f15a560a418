"""Chats through the tokenizer's chat template, with targets exactly on the assistant's turns.

A chat is rendered and tokenised as it is for generation (the template writes every special token itself).
Where the answers lie in the text is known from the template's skeleton (``template_skeleton``), which is
filled instead of rendering where the template only copies contents (``template_plain``). Their tokens are
then found

1. by the control tokens: the answer begins so many tokens behind the n-th, with the m-th it ends; no
   character offsets are needed, and tokenising without them is a quarter faster; else
2. by character offsets; else, where one token holds the end of the prompt and the beginning of the answer (a
   line break after a line break), by tokenising prompt and answer apart, so that the prompt has the very ids
   that it has in generation.

Whatever a template does, targets are an answer with the token that ends its turn, or the document is refused
by name: an answer learnt without its end, or a prompt learnt as an answer, is the kind of error that nobody
sees in a loss curve.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from training.data.documents import Document, Message, Messages
from training.data.encoding.control_tokens import ControlTokens
from training.data.encoding.template import Chat, ChatTemplate, Span, TemplateRefusalError, to_chat
from training.data.encoding.template_answers import find_answers
from training.data.encoding.template_plain import TOOL_ROLES
from training.data.encoding.template_skeleton import Skeleton, build_skeleton, mask, study_template
from training.data.encoding.template_tokens import Anchors, Row, SpanTokenizer, find_by_anchors
from training.errors import DataError, ModelError

_MOST_SHAPES = 4096
"""Skeletons kept: chats without tool calls have few sequences of roles."""

_PROBES = (("user", "assistant"), ("user", "assistant") * 2, ("system", *("user", "assistant") * 2))
_PROBE_WORDS = ("What is a stroke?", "Which code has it?", "A part of the brain dies.", "It is I63.")


@dataclass(frozen=True, slots=True, eq=False)
class EncodedChat:
    """A chat as the model reads it."""

    input_ids: npt.NDArray[np.int32]
    """int32 [L]."""

    is_target: npt.NDArray[np.bool_]
    """bool [L]."""

    turns: int
    """Answers to be learnt."""

    turns_ended: int
    """Those of them whose end token is a target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What is known of chats with one sequence of roles."""

    skeleton: Skeleton
    anchors: Anchors | None
    copied: bool
    """The template only copies contents: the filled skeleton is the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """A rendered chat, and how its answers are found among its tokens."""

    text: str
    anchors: Anchors | None
    """Null: by ``spans``."""

    spans: Callable[[], Mapping[int, Span]]
    """Turn -> characters of the answer; only asked for when it is needed."""


class ChatEncoder:
    """Encodes chats with one tokenizer and its template."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, control: ControlTokens
    ) -> None:
        """Study the template and try it on chats of one and several turns, with and without a system prompt.

        Raises:
            ModelError: The template does not show where answers begin and end, or the tokenizer cannot.
        """
        if not tokenizer.is_fast:
            raise ModelError(f"the tokenizer {tokenizer.name_or_path} has no tokenizer.json; chats need one")
        self._template = template
        self._control = control
        self._tokens = SpanTokenizer(tokenizer, control.tokens)
        self._habits = study_template(template, control.pattern)
        self._shapes: dict[tuple[tuple[str, bool], ...], _Shape] = {}
        self._try_probes(tokenizer)

    def encode_batch(self, documents: Sequence[Document], forged: Sequence[bool]) -> list[EncodedChat]:
        """Encode chats, in their order.

        Args:
            documents: All with ``Messages``.
            forged: Which of them hold control tokens in their contents.

        Raises:
            DataError: The template fails on a document, leaves a message out, or hides where an answer lies.
        """
        plans = [self._plan(document, held) for document, held in zip(documents, forged, strict=True)]
        rows: list[Row | None] = [None] * len(plans)
        anchored = [place for place, plan in enumerate(plans) if plan.anchors is not None]
        encoded = self._tokens.encode_fast([plans[place].text for place in anchored])
        for place, ids in zip(anchored, encoded, strict=True):
            anchors = plans[place].anchors
            spans = None if anchors is None else find_by_anchors(ids, anchors, self._tokens.is_control)
            rows[place] = None if spans is None else (ids, spans)
        missing = [place for place, row in enumerate(rows) if row is None]
        located = self._tokens.encode_spans([(plans[place].text, plans[place].spans()) for place in missing])
        for place, row in zip(missing, located, strict=True):
            rows[place] = row
        return [
            self._mark(document, row)
            for document, row in zip(documents, rows, strict=True)
            if row is not None
        ]

    def _plan(self, document: Document, forged: bool) -> _Plan:
        tools = _messages(document).tools
        if not tools:
            return self._plan_plain(document, forged)
        with self._template.offering(tools):
            self._check_tools(document)
            return self._plan_plain(document, forged)

    def _plan_plain(self, document: Document, forged: bool) -> _Plan:
        chat = to_chat(_messages(document))
        try:
            shape = self._build_shape(chat) if _messages(document).tools else self._find_shape(chat)
            contents = [message["content"] for message in chat]
            copied = shape.copied and not any(map(_has_edges, contents))
            text = shape.skeleton.fill(contents) if copied else self._template.render(chat)
            for strip in (False, True):
                words = [content.strip() for content in contents] if strip else contents
                if copied or shape.skeleton.fill(words) == text:
                    loose = self._tokens.swallows and any(map(_has_edges, words))
                    return _Plan(
                        text=text,
                        anchors=None if forged or loose else shape.anchors,
                        spans=partial(shape.skeleton.find_spans, words),
                    )
            spans = self._find_spans(document, text, shape.skeleton, forged)
        except TemplateRefusalError as refusal:
            raise self._refuse(document, refusal) from None
        return _Plan(text=text, anchors=None, spans=lambda: spans)

    def _find_shape(self, chat: Chat) -> _Shape:
        if any(len(message) > 2 for message in chat):  # noqa: PLR2004 - more than role and content
            return self._build_shape(chat)
        key = tuple([(message["role"], _has_words(message["content"])) for message in chat])
        shape = self._shapes.get(key)
        if shape is None:
            skeleton = build_skeleton(self._template, chat, self._habits)
            words = [message["content"] for message in mask(chat)]
            anchors = self._tokens.find_anchors(skeleton.fill(words), skeleton.find_spans(words))
            tools = any(role in TOOL_ROLES for role, _ in key)
            shape = _Shape(
                skeleton=skeleton, anchors=anchors, copied=self._template.only_copies and not tools
            )
            if len(self._shapes) >= _MOST_SHAPES:
                self._shapes.clear()
            self._shapes[key] = shape
        return shape

    def _build_shape(self, chat: Chat) -> _Shape:
        """Learn what a chat with tools looks like: for this one alone."""
        skeleton = build_skeleton(self._template, chat, self._habits)
        return _Shape(skeleton=skeleton, anchors=None, copied=False)

    def _check_tools(self, document: Document) -> None:
        """Refuse a template that has no place for definitions of functions: they would be lost."""
        chat = to_chat(_messages(document))
        try:
            offered = self._template.render(chat)
            with self._template.offering(()):
                lost = self._template.render(chat) == offered
        except TemplateRefusalError as refusal:
            raise self._refuse(document, refusal) from None
        if lost:
            raise self._refuse(document, TemplateRefusalError("leaves out the tools"))

    def _find_spans(
        self, document: Document, text: str, skeleton: Skeleton, forged: bool
    ) -> Mapping[int, Span]:
        """Find the answers of a chat into whose contents the template looks."""
        hidden = self._control.hide(document) if forged else document
        if hidden is None:
            raise TemplateRefusalError("meets control tokens beside private characters")
        chat = to_chat(_messages(hidden))
        masked = self._template.render(chat) if forged else text
        openings = skeleton.find_openings([message["content"] for message in chat])
        spans = find_answers(self._template, chat, masked, self._habits, openings)
        if not forged:
            return spans
        if self._control.restore(masked) != text:
            raise TemplateRefusalError("changes control tokens in the contents")
        length = {
            place: len(self._control.restore(masked[:place])) for span in spans.values() for place in span
        }
        return {turn: (length[start], length[stop]) for turn, (start, stop) in spans.items()}

    def _mark(self, document: Document, row: Row) -> EncodedChat:
        ids, spans = row
        messages = _messages(document).messages
        wanted = _choose(document, messages, spans)
        is_target = (np.ones if document.train_on == "all" else np.zeros)(ids.size, np.bool_)
        for turn, (first, stop) in spans.items():
            is_target[first:stop] = turn in wanted
        ended = sum([self._tokens.is_control.item(ids.item(spans[turn][1] - 1)) for turn in wanted])
        return EncodedChat(ids, is_target, len(wanted), ended)

    def _refuse(self, document: Document, refusal: TemplateRefusalError) -> DataError:
        return DataError(
            f"{document.id}: {self._template.name} {refusal}; set model.chat_template to a template that "
            "takes this chat, or change the chat"
        )

    def _try_probes(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Encode chats with known answers and read the targets back.

        A template may refuse a system prompt or a second turn; documents with those are then refused by name.
        """
        for roles in _PROBES:
            chat = _build_probe(roles)
            try:
                shape = self._find_shape(to_chat(_messages(chat)))
            except TemplateRefusalError:
                continue
            contents = [message.content for message in _messages(chat).messages]
            text = shape.skeleton.fill(contents)
            if shape.copied and text != self._template.render(to_chat(_messages(chat))):
                raise ModelError(f"{self._template.name} was misread: {text!r}; please report it")
            ids, spans = self._tokens.encode_spans([(text, shape.skeleton.find_spans(contents))])[0]
            for turn, (start, stop) in shape.skeleton.find_spans(contents).items():
                first, last = spans[turn][0], spans[turn][1] - 1
                found = tokenizer.decode(ids[first:last]) + tokenizer.convert_ids_to_tokens(int(ids[last]))
                # Decoders of SentencePiece tokenizers drop a leading space, normalisers may fold case.
                if "".join(found.split()).lower() != "".join(text[start:stop].split()).lower():
                    raise ModelError(
                        f"{self._template.name}: what is learnt of a test chat reads {found!r}, wanted "
                        f"{text[start:stop]!r}: the tokenizer's character offsets are wrong; use another"
                    )


def _has_edges(content: str) -> bool:
    """Whether white space stands around a content: some tokens swallow what stands beside them."""
    return bool(content) and (content[0].isspace() or content[-1].isspace())


def _has_words(content: str) -> bool:
    return bool(content) and not content.isspace()


def _messages(document: Document) -> Messages:
    if not isinstance(document.content, Messages):
        raise TypeError(f"{document.id} is no chat")
    return document.content


def _choose(document: Document, messages: Sequence[Message], spans: Mapping[int, Span]) -> set[int]:
    """Choose the answers to be learnt."""
    wanted = {turn for turn in spans if messages[turn].weight}
    if document.train_on != "last_assistant":
        return wanted
    last = max((turn for turn, message in enumerate(messages) if message.role == "assistant"), default=-1)
    return wanted & {last}


def _build_probe(roles: Sequence[str]) -> Document:
    user, assistant = iter(_PROBE_WORDS[:2]), iter(_PROBE_WORDS[2:])
    words = {"user": user, "assistant": assistant, "system": iter(["You code diagnoses."])}
    messages = tuple(Message(role, next(words[role])) for role in roles)
    return Document(id="test chat", family="", source="", task="", content=Messages(messages))
