"""From the characters of answers to their tokens."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from training.data.encoding.template import Span, TemplateRefusalError
from training.data.encoding.template_skeleton import WORD

Ids = npt.NDArray[np.int32]

Row = tuple[Ids, Mapping[int, Span]]
"""Token ids of a chat, and turn -> tokens [first, stop) of its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """Where one answer's tokens lie, told by the control tokens around it."""

    before: int
    """The number of the control token that stands before the answer."""

    header: list[int]
    """The ids between that token and the answer."""

    end: int
    """The number of the control token that ends the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """Where the answers of all chats with one sequence of roles lie."""

    control_ids: list[int]
    """The control tokens that the template writes, in their order."""

    answers: Mapping[int, Anchor]
    """By turn."""


def find_by_anchors(
    ids: Ids, anchors: Anchors, is_control: npt.NDArray[np.bool_]
) -> Mapping[int, Span] | None:
    """Find the answers' tokens; None when the tokens around one are not the template's own.

    That is so when a token holds both the header's end and the answer's beginning.
    """
    found = is_control[ids].nonzero()[0]
    if ids[found].tolist() != anchors.control_ids:
        return None
    places = found.tolist()
    spans = {}
    for turn, anchor in anchors.answers.items():
        begin = places[anchor.before] + 1
        first = begin + len(anchor.header)
        if ids[begin:first].tolist() != anchor.header:
            return None
        spans[turn] = first, places[anchor.end] + 1
    return spans


class SpanTokenizer:
    """Tokenises rendered chats and finds characters among their tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: Sequence[str]) -> None:
        """Prepare; ``control`` are the control tokens."""
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._exact = _keep_offsets(self._backend)
        added = self._backend.get_added_tokens_decoder()
        self.is_control = np.zeros(max([len(tokenizer) - 1, *added]) + 1, dtype=np.bool_)
        """bool [vocabulary]: whether a token is a control token."""
        known = [number for token in control if (number := self._backend.token_to_id(token)) is not None]
        self.is_control[known] = True
        self.swallows = any(
            self.is_control[number] and (token.lstrip or token.rstrip) for number, token in added.items()
        )
        """Whether a control token takes in the white space beside it."""
        self._newline: list[int] = self._encode("\n")
        self._opens_alike = self._encode("\nx")[len(self._newline) :] == self._encode("x")

    def encode_fast(self, texts: list[str]) -> list[Ids]:
        """Tokenise without offsets."""
        if not texts:
            return []
        free_of_limits(self._backend)
        rows = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(row.ids, dtype=np.int32) for row in rows]

    def encode_spans(self, rows: Sequence[tuple[str, Mapping[int, Span]]]) -> list[Row]:
        """Tokenise texts and find the tokens of the characters ``spans``; each ends with a control token.

        Where a token reaches over the edge of a span, the text is tokenised in pieces that end there.
        """
        if not rows:
            return []
        free_of_limits(self._exact)
        encodings = self._exact.encode_batch([text for text, _ in rows], add_special_tokens=False)
        found: list[Row] = []
        for (text, spans), encoding in zip(rows, encodings, strict=True):
            tokens = {turn: self._find_tokens(encoding, text, span) for turn, span in spans.items()}
            exact = {turn: span for turn, span in tokens.items() if span is not None}
            whole = len(exact) == len(spans)
            found.append(
                (np.array(encoding.ids, dtype=np.int32), exact) if whole else self._encode_pieces(text, spans)
            )
        return found

    def find_anchors(self, text: str, spans: Mapping[int, Span]) -> Anchors | None:
        """Learn by which control tokens answers can be told in all chats with the constants of this one.

        Args:
            text: A skeleton, filled with words that have no white space around them.
            spans: Turn -> characters of the answer.

        Returns:
            None when no control token stands between the content before some answer and that answer.
        """
        encoding = self._exact.encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        places = np.flatnonzero(self.is_control[ids]).tolist()
        answers = {}
        for turn, span in spans.items():
            tokens = self._find_tokens(encoding, text, span)
            if tokens is None:
                return None
            numbers = [number for number, place in enumerate(places) if place < tokens[0]]
            if not numbers:
                return None
            begin = places[numbers[-1]]
            edges = encoding.token_to_chars(begin)
            if edges is None or WORD.search(text[edges[1] : span[0]]):
                return None
            answers[turn] = Anchor(
                before=numbers[-1],
                header=ids[begin + 1 : tokens[0]],
                end=places.index(tokens[1] - 1),
            )
        return Anchors(control_ids=[ids[place] for place in places], answers=answers)

    def _find_tokens(self, encoding: Any, text: str, span: Span) -> Span | None:
        start, stop = span
        last = encoding.char_to_token(stop - 1)
        if last is None or not self.is_control[encoding.ids[last]]:
            return None
        end = stop - len(self._backend.id_to_token(encoding.ids[last]) or "")
        # Some tokenizers drop white space: its characters are in no token.
        first = next(
            (token for place in range(start, stop) if (token := encoding.char_to_token(place)) is not None),
            last,
        )
        if encoding.token_to_chars(first)[0] < start or encoding.token_to_chars(last)[0] != end:
            return None
        return first, last + 1

    def _encode_pieces(self, text: str, spans: Mapping[int, Span]) -> Row:
        ids: list[int] = []
        tokens: dict[int, Span] = {}
        cursor = 0
        for turn, (start, stop) in sorted(spans.items()):
            end = stop - self._measure_end(text[start:stop])
            ids += self._encode(text[cursor:start])
            first = len(ids)
            ids += self._continue(text[start:end])
            tokens[turn] = first, len(ids) + 1
            cursor = end
        ids += self._encode(text[cursor:])
        if not all(self.is_control[ids[stop - 1]] for _, stop in tokens.values()):
            raise TemplateRefusalError("ends an answer with a token that the tokenizer does not know")
        return np.array(ids, dtype=np.int32), tokens

    def _measure_end(self, answer: str) -> int:
        """Give the length of the control token that ends an answer."""
        return len(self._backend.id_to_token(self._encode(answer)[-1]) or "")

    def _continue(self, text: str) -> list[int]:
        """Tokenise what is not the beginning of a text: SentencePiece puts a space before every beginning."""
        if self._opens_alike:
            return self._encode(text)
        ids, size = self._encode("\n" + text), len(self._newline)
        if ids[:size] != self._newline:
            raise TemplateRefusalError("writes a prompt that shares a token with its answer")
        return ids[size:]

    def _encode(self, text: str) -> list[int]:
        return list(self._exact.encode(text, add_special_tokens=False).ids)


def free_of_limits(backend: Tokenizer) -> None:
    """Switch off truncation and padding, which another call may have left on."""
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()


def _keep_offsets(backend: Tokenizer) -> Tokenizer:
    """Give a tokenizer whose offsets count every character.

    Those of GPT-2's kind may leave a word's leading space out, and then no offset shows where a word begins.
    """
    processor = backend.post_processor
    if processor is None or not _trims(json.loads(processor.__getstate__())):
        return backend
    # It only adds special tokens, and chats are tokenised without.
    parts = json.loads(backend.to_str())
    parts["post_processor"] = None
    return Tokenizer.from_str(json.dumps(parts))


def _trims(processor: Any) -> bool:
    if not isinstance(processor, dict):
        return False
    return bool(processor.get("trim_offsets")) or any(
        _trims(part) for part in processor.get("processors", [])
    )
