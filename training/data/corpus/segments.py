"""Encodes one part of the input, segment by segment; a segment is committed before the next begins.

A segment is cut behind the document that fills a shard of either split, whatever the batches were. So a
part that was killed and continued has the same segments, and the same bytes, as one that was not.

Memory of a process: one segment (its token ids and targets, 5 bytes a token, twice while it is written), one
batch (``BATCH_CHARACTERS`` or one document, whichever is longer, as text and as the tokenizer's result, about
100 bytes a token), and the tokenizer. None of it grows with the corpus.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from training.config.sources import PersonalDataConfig, SourceConfig
from training.data.corpus.manifest import SPLITS, Counts, Split
from training.data.corpus.parts import Encoding, Part, PartRecord, read_record, write_record
from training.data.corpus.shards import MAX_TOKENS, write_shard
from training.data.corpus.tally import Tally, add_tallies
from training.data.documents import Document, Messages, PromptCompletion, Text
from training.data.encoding.encode import Encoded
from training.data.personal.find import redact_document
from training.data.read import Skipped, read_piece
from training.files import hold_lock
from training.layout import CorpusLayout

BATCH_DOCUMENTS = 512
BATCH_CHARACTERS = 1 << 20

SHARD_DOCUMENTS = 1 << 17
"""A shard is closed at this number too: short documents weigh more than their tokens."""

_DROPPED = "dropped"
_NO_TEXT = Text("")


class BatchEncoder(Protocol):
    """From documents to token ids; see ``training.data.encoding.encode.Encoder``."""

    def strip(self, document: Document) -> Document:
        """Take control tokens out where they are to be removed; the same object when there are none."""

    def encode_batch(self, documents: Sequence[Document]) -> list[Encoded]:
        """Encode documents of any kinds, in their order."""


class Listener(Protocol):
    """Who is told how far preparing is."""

    def begin(self, *, total_bytes: int, done_bytes: int) -> None:
        """Hear how much there is to read, and how much of it earlier calls have done."""

    def advance(self, documents: int, tokens: int, read_bytes: int) -> None:
        """Hear what was just encoded."""

    def enter(self, phase: str) -> None:
        """Hear what is done next, once all is encoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that a process needs to know to encode a part."""

    root: Path
    part: Part
    source: SourceConfig
    encoding: Encoding


def encode_part(job: Job, encoder: BatchEncoder, listener: Listener) -> None:
    """Encode what is not yet committed of a part, and commit it segment by segment.

    Raises:
        DataError: The source is missing or damaged, or a document is not what it should be.
        ModelError: The tokenizer does not fit the documents.
        StorageError: The disk is full or refuses.
    """
    layout = CorpusLayout(job.root)
    busy = f"{job.root}: another `metier prepare` encodes the same part of the input; wait for it to end"
    with hold_lock(layout.parts / f"{job.part.key}.lock", busy=busy):
        record = read_record(layout, job.part)
        if not record.is_finished:
            _encode_rest(job, record, encoder, listener)


def _encode_rest(job: Job, record: PartRecord, encoder: BatchEncoder, listener: Listener) -> None:
    segment = _Segment(job.encoding)
    for place in range(record.piece, len(job.part.pieces)):
        piece = job.part.pieces[place]
        items = record.items if place == record.piece else 0
        meter = _Meter(piece.bytes, listener)
        for item in _encode_items(read_piece(job.part.source, job.source, piece, skip=items), job, encoder):
            items += 1
            segment.add(item)
            meter.add(item)
            if segment.is_full:
                record = _commit(job, record, segment, place, items)
                segment = _Segment(job.encoding)
        meter.close()
        record = record.model_copy(update={"bytes_done": record.bytes_done + piece.bytes})
    _commit(job, record, segment, len(job.part.pieces), 0)


def find_split(family: str, held_out_fraction: float, seed: int) -> Split:
    """Choose a family's split by its hash alone: data that is added later moves no family."""
    digest = hashlib.blake2b(f"{seed}/{family}".encode(), digest_size=8).digest()
    return "held_out" if int.from_bytes(digest, "big") < held_out_fraction * 2**64 else "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """What became of one document or record."""

    encoded: tuple[Document, Encoded] | None = None
    skipped: str | None = None
    found: Counter[str] = field(default_factory=Counter)
    size: int = 0


class _Segment:
    """The documents since the last commit, and what is counted of them."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._limit = min(encoding.tokens_per_shard, MAX_TOKENS)
        self._tokens: Counter[Split] = Counter()
        self._sums: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._found: Counter[str] = Counter()
        self._tasks: Counter[tuple[Split, str, str]] = Counter()
        self.rows: dict[Split, list[tuple[Document, Encoded]]] = {split: [] for split in SPLITS}

    @property
    def is_full(self) -> bool:
        return any(
            self._tokens[split] >= self._limit or len(self.rows[split]) >= SHARD_DOCUMENTS for split in SPLITS
        )

    def add(self, item: _Item) -> None:
        self._found.update(item.found)
        if item.skipped is not None:
            self._skipped[item.skipped] += 1
        if item.encoded is None:
            return
        document, encoded = item.encoded
        targets = int(encoded.is_target.sum())
        self._sums["documents"] += 1
        self._sums["without_targets"] += not targets
        self._sums["control_tokens"] += encoded.control_tokens
        self._sums["turns"] += encoded.turns
        self._sums["turns_ended"] += encoded.turns_ended
        if targets:
            self._keep(document, encoded, targets)

    def tally(self) -> Tally:
        tasks = sorted({(split, task) for split, task, _ in self._tasks})
        by_task: dict[Split, dict[str, Counts]] = {split: {} for split in SPLITS}
        for split, task in tasks:
            by_task[split][task] = Counts(
                documents=self._tasks[split, task, "documents"],
                tokens=self._tasks[split, task, "tokens"],
                targets=self._tasks[split, task, "targets"],
            )
        return Tally(
            **self._sums, skipped=dict(self._skipped), personal_data=dict(self._found), by_task=by_task
        )

    def _keep(self, document: Document, encoded: Encoded, targets: int) -> None:
        encoding = self._encoding
        split = find_split(document.family, encoding.held_out_fraction, encoding.split_seed)
        # The text is no longer needed, and may be larger than its tokens.
        self.rows[split].append((replace(document, content=_NO_TEXT), encoded))
        tokens = len(encoded.input_ids)
        self._tokens[split] += tokens
        for quantity, number in (("documents", 1), ("tokens", tokens), ("targets", targets)):
            self._tasks[split, document.task, quantity] += number


class _Meter:
    """Tells the listener of one piece, in lumps; the piece's bytes are guessed until it is done."""

    def __init__(self, piece_bytes: int, listener: Listener) -> None:
        self._listener = listener
        self._left = piece_bytes
        self._documents = self._tokens = self._characters = 0

    def add(self, item: _Item) -> None:
        self._documents += item.encoded is not None
        self._tokens += len(item.encoded[1].input_ids) if item.encoded else 0
        self._characters += item.size
        if self._documents >= BATCH_DOCUMENTS or self._characters >= BATCH_CHARACTERS:
            # Compressed files hold more characters than bytes: leave some for the end.
            self._tell(min(self._characters, self._left // 2))

    def close(self) -> None:
        self._tell(self._left)

    def _tell(self, read_bytes: int) -> None:
        self._listener.advance(self._documents, self._tokens, read_bytes)
        self._left -= read_bytes
        self._documents = self._tokens = self._characters = 0


def _commit(job: Job, record: PartRecord, segment: _Segment, piece: int, items: int) -> PartRecord:
    written = {
        split: [write_shard(job.root, rows, job.encoding.token_bytes)]
        for split, rows in segment.rows.items()
        if rows
    }
    committed = record.model_copy(
        update={
            "is_finished": piece == len(job.part.pieces),
            "piece": piece,
            "items": items,
            "shards": {split: record.shards[split] + written.get(split, []) for split in SPLITS},
            "tally": add_tallies([record.tally, segment.tally()]),
        }
    )
    write_record(CorpusLayout(job.root), committed)
    return committed


def _encode_items(items: Iterable[Document | Skipped], job: Job, encoder: BatchEncoder) -> Iterator[_Item]:
    for batch in _cut_batches(items):
        cleaned = [_clean(item, job.encoding.personal_data, encoder) for item in batch]
        documents = [clean.document for clean in cleaned if clean.document is not None]
        encoded = iter(encoder.encode_batch(documents))
        for item, clean in zip(batch, cleaned, strict=True):
            if isinstance(item, Skipped):
                yield _Item(skipped=item.reason)
            elif clean.document is None:
                yield _Item(found=clean.found, size=_count_characters(item))
            else:
                one = next(encoded)
                if clean.had_control_tokens:
                    one = replace(one, control_tokens=True)
                yield _Item(encoded=(clean.document, one), found=clean.found, size=_count_characters(item))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clean:
    """What is left of a document when personal data is taken out."""

    document: Document | None = None
    found: Counter[str] = field(default_factory=Counter)
    had_control_tokens: bool = False
    """It lost control tokens before it was searched: one inside of an address hides it."""


def _clean(item: Document | Skipped, personal: PersonalDataConfig, encoder: BatchEncoder) -> _Clean:
    if isinstance(item, Skipped):
        return _Clean()
    if personal.action == "keep":
        return _Clean(document=item)
    stripped = encoder.strip(item)
    cleaned, found = redact_document(stripped, personal.detectors)
    if personal.action == "redact" or not found:
        return _Clean(document=cleaned, found=found, had_control_tokens=stripped is not item)
    return _Clean(found=Counter({_DROPPED: 1}))


def _cut_batches(items: Iterable[Document | Skipped]) -> Iterator[list[Document | Skipped]]:
    batch: list[Document | Skipped] = []
    characters = 0
    for item in items:
        size = 0 if isinstance(item, Skipped) else _count_characters(item)
        if batch and (len(batch) == BATCH_DOCUMENTS or characters + size > BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(item)
        characters += size
    if batch:
        yield batch


def _count_characters(document: Document) -> int:
    match document.content:
        case Messages(messages):
            return sum(len(message.content) for message in messages)
        case PromptCompletion(prompt, completion):
            return len(prompt) + len(completion)
        case Text(text):
            return len(text)
