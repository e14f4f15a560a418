"""Searches stored documents for personal data: their tokens are decoded, so it sees what the model will."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from training.audit.choose import Choice
from training.audit.facts import Share
from training.config.sources import Detector
from training.data.personal.find import find_personal
from training.data.reading.mapped import StoredDocument

BATCH_DOCUMENTS = 256
PIECE_TOKENS = 65_536
"""A longer document is decoded in pieces; what lies across their border is not seen."""

NAMED_DOCUMENTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What was found in the documents of one source that were searched."""

    documents: Share
    """Those with findings, of those searched."""

    findings: dict[str, int]
    """Findings by detector, the most frequent first."""

    named: tuple[tuple[str, tuple[str, ...]], ...]
    """The first documents with findings: id and detectors. Never what was found: a report is passed on."""


def scan_documents(
    choices: Sequence[Choice],
    tokenizer: Any,
    detectors: Sequence[Detector],
    advance: Callable[[int], None],
) -> Scan:
    """Search the chosen documents of one source; ``advance`` is told how many are done.

    Raises:
        DataError: A shard is missing or damaged.
    """
    findings: Counter[str] = Counter()
    named: list[tuple[str, tuple[str, ...]]] = []
    searched = found = 0
    for batch in _batches(choices):
        for document, text in zip(batch, _decode(batch, tokenizer), strict=True):
            here = Counter(finding.detector for finding in find_personal(text, detectors))
            findings.update(here)
            found += bool(here)
            if here and len(named) < NAMED_DOCUMENTS:
                named.append((document.id, tuple(sorted(here))))
        searched += len(batch)
        advance(len(batch))
    return Scan(documents=Share(found, searched), findings=dict(findings.most_common()), named=tuple(named))


def _batches(choices: Sequence[Choice]) -> Iterator[list[StoredDocument]]:
    for choice in choices:
        for begin in range(0, len(choice.documents), BATCH_DOCUMENTS):
            numbers = choice.documents[begin : begin + BATCH_DOCUMENTS]
            yield [choice.corpus.document(number) for number in numbers]


def _decode(batch: Sequence[StoredDocument], tokenizer: Any) -> list[str]:
    texts = [""] * len(batch)
    pieces = [
        (place, document.input_ids[begin : begin + PIECE_TOKENS].tolist())
        for place, document in enumerate(batch)
        for begin in range(0, len(document.input_ids), PIECE_TOKENS)
    ]
    # Control tokens stay in the text: without them one turn's last word would run into the next turn's first.
    decoded = tokenizer.batch_decode(
        [ids for _, ids in pieces], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    for (place, _), text in zip(pieces, decoded, strict=True):
        texts[place] += text
    return texts
