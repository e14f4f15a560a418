"""Prepares a corpus: sources -> token ids -> shards, once per data configuration and tokenizer."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from training.config.sources import DataConfig
from training.data.documents import Document, Provenance
from training.data.encode import Encoded, encode_batch
from training.data.manifest import (
    FORMAT,
    SPLITS,
    Manifest,
    SourceRecord,
    Split,
    read_manifest,
    write_manifest,
)
from training.data.read import read_documents, trace_source
from training.data.reader import Corpus
from training.data.shards import SplitWriter
from training.data.staging import stage_folder
from training.errors import DataError
from training.layout import CorpusLayout

DOCUMENTS_PER_BATCH = 512

OnProgress = Callable[[int, int], None]
"""Called with the documents and tokens that were added since the last call."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What ``prepare_corpus`` found or made."""

    manifest: Manifest
    is_new: bool
    """False when a complete corpus with the same fingerprint was there already."""


def prepare_corpus(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_fingerprint: str,
    on_progress: OnProgress = lambda documents, tokens: None,
) -> Prepared:
    """Write the corpus to ``data.path``, complete or not at all; keep one that is there already.

    The same input gives the same bytes.

    Raises:
        DataError: A source is missing or damaged, or a split is empty.
        ModelError: The tokenizer does not fit the documents.
        StorageError: The disk is full or refuses, or another process is writing the same corpus.
    """
    root = Path(data.path)
    traces = {name: trace_source(name, source) for name, source in data.sources.items()}
    fingerprint = find_fingerprint(data, traces, tokenizer_fingerprint)
    if (known := _find_whole(root)) is not None and known.fingerprint == fingerprint:
        return Prepared(known, is_new=False)
    with stage_folder(root) as staging:
        layout = CorpusLayout(staging)
        writers = {split: SplitWriter(layout, split, data.documents_per_shard) for split in SPLITS}
        seen, without = _write_documents(data, tokenizer, writers, on_progress)
        _check_splits(data, writers, seen)
        manifest = Manifest(
            format=FORMAT,
            fingerprint=fingerprint,
            tokenizer=tokenizer_fingerprint,
            padding_id=find_padding(tokenizer),
            sources={
                name: SourceRecord(
                    provenance=trace.content,
                    licence=trace.licence,
                    notes=trace.notes,
                    documents=seen[name],
                    without_targets=without[name],
                )
                for name, trace in traces.items()
            },
            splits={split: writer.finish() for split, writer in writers.items()},
        )
        write_manifest(layout, manifest)
    return Prepared(manifest, is_new=True)


def find_fingerprint(data: DataConfig, traces: dict[str, Provenance], tokenizer_fingerprint: str) -> str:
    """Hash whatever the shards' bytes depend on; hexadecimal.

    Not ``long_documents``: it is decided when rows are packed, and never means tokenising again.
    """
    parts: dict[str, Any] = {
        "format": FORMAT,
        "data": data.model_dump(mode="json", exclude={"long_documents", "path"}),
        "sources": {name: trace.content for name, trace in traces.items()},
        "tokenizer": tokenizer_fingerprint,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def find_split(family: str, held_out_fraction: float, seed: int) -> Split:
    """Choose a family's split by its hash alone: data that is added later moves no family."""
    digest = hashlib.blake2b(f"{seed}/{family}".encode(), digest_size=8).digest()
    return "held_out" if int.from_bytes(digest, "big") < held_out_fraction * 2**64 else "train"


def find_padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """Choose the id that fills a row's rest; any would do, as padding is never seen nor learnt."""
    padding = tokenizer.pad_token_id
    return padding if isinstance(padding, int) else 0


def _write_documents(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    writers: dict[Split, SplitWriter],
    on_progress: OnProgress,
) -> tuple[Counter[str], Counter[str]]:
    seen: Counter[str] = Counter()
    without_targets: Counter[str] = Counter()
    for document, encoded in _encode_all(data, tokenizer, on_progress):
        seen[document.source] += 1
        if not encoded.is_target.any():
            without_targets[document.source] += 1
            continue
        writers[find_split(document.family, data.held_out_fraction, data.split_seed)].add(document, encoded)
    return seen, without_targets


def _encode_all(
    data: DataConfig, tokenizer: PreTrainedTokenizerBase, on_progress: OnProgress
) -> Iterator[tuple[Document, Encoded]]:
    for name, source in data.sources.items():
        documents = read_documents(name, source)
        while batch := list(islice(documents, DOCUMENTS_PER_BATCH)):
            encoded = encode_batch(batch, tokenizer)
            on_progress(len(batch), sum(len(item.input_ids) for item in encoded))
            yield from zip(batch, encoded, strict=True)


def _check_splits(data: DataConfig, writers: dict[Split, SplitWriter], seen: Counter[str]) -> None:
    for name in data.sources:
        if not seen[name]:
            raise DataError(f"data.sources.{name}: no documents; nothing can be learnt from an empty source")
    kept = {split: writer.documents for split, writer in writers.items()}
    if not sum(kept.values()):
        raise DataError(
            f"data.sources: none of {seen.total()} documents holds a target; nothing could be learnt"
        )
    for split, documents in kept.items():
        if not documents:
            families = sum(writer.families for writer in writers.values())
            raise DataError(
                f"the {split} split is empty: data.held_out_fraction={data.held_out_fraction} and "
                f"data.split_seed={data.split_seed} put none of {families} families there; change one of them"
            )


def _find_whole(root: Path) -> Manifest | None:
    layout = CorpusLayout(root)
    if root.exists() and not layout.manifest.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"data.path={root} is there already and holds no corpus; choose another folder")
    try:
        manifest = read_manifest(root)
        for split in SPLITS:
            Corpus(root, split, manifest).verify()
    except DataError:
        return None
    return manifest
