"""Documents as they are printed: their text cut where targets begin and end, control tokens apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.audit.choose import Documents, choose_documents
from training.data.reading.mapped import StoredDocument

SHOWN_TOKENS = 300
"""Of a longer document, so many tokens of its beginning and as many of its end are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A run of tokens that are alike."""

    text: str
    is_target: bool
    is_control: bool
    """Special tokens of the tokenizer, an end of turn for instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrintedDocument:
    """A document, ready to be printed."""

    id: str
    source: str
    task: str
    tokens: int
    targets: int
    head: tuple[Piece, ...]
    left_out: int
    """Tokens between ``head`` and ``tail`` that are not shown."""

    tail: tuple[Piece, ...]


def print_documents(
    corpus: Documents, sources: Sequence[str], count: int, tokenizer: Any
) -> list[PrintedDocument]:
    """Choose ``count`` documents over all sources, as evenly as it goes, and cut them into pieces.

    Raises:
        DataError: A shard is missing or damaged.
    """
    controls = frozenset(tokenizer.all_special_ids) | frozenset(
        token for token, added in tokenizer.added_tokens_decoder.items() if added.special
    )
    chosen = []
    for place, source in enumerate(sources):
        # The first sources have one more where the count cannot be dealt out evenly.
        share = count // len(sources) + (place < count % len(sources))
        (choice,) = choose_documents([corpus], source, share)
        chosen += list(choice.documents)
    return [_cut(corpus.document(number), tokenizer, controls) for number in chosen]


def _cut(document: StoredDocument, tokenizer: Any, controls: frozenset[int]) -> PrintedDocument:
    ids = np.asarray(document.input_ids, dtype=np.int64)
    targets = np.asarray(document.is_target, dtype=np.bool_)
    left_out = max(0, len(ids) - 2 * SHOWN_TOKENS)
    head = len(ids) if not left_out else SHOWN_TOKENS
    tail = slice(head + left_out, None)
    return PrintedDocument(
        id=document.id,
        source=document.source,
        task=document.task,
        tokens=len(ids),
        targets=int(targets.sum()),
        head=tuple(_pieces(ids[:head].tolist(), targets[:head].tolist(), tokenizer, controls)),
        left_out=left_out,
        tail=tuple(_pieces(ids[tail].tolist(), targets[tail].tolist(), tokenizer, controls)),
    )


def _pieces(ids: list[int], targets: list[bool], tokenizer: Any, controls: frozenset[int]) -> Iterator[Piece]:
    kinds = [(target, token in controls) for token, target in zip(ids, targets, strict=True)]
    begin, before = 0, ""
    for end in range(1, len(ids) + 1):
        if end < len(ids) and kinds[end] == kinds[begin]:
            continue
        # Decoded from the beginning each time: some tokenizers drop the space in front of a first word.
        whole = _decode(tokenizer, ids[:end])
        text = whole[len(before) :] if whole.startswith(before) else _decode(tokenizer, ids[begin:end])
        is_target, is_control = kinds[begin]
        yield Piece(text=text, is_target=bool(is_target), is_control=is_control)
        begin, before = end, whole


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
