"""A small corpus of notes for tests: 100 texts of a few dozen bytes, three to a family."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.config.sources import DataConfig
from training.data.corpus.build import Prepared, describe_tokenizer, prepare_corpus
from training.data.corpus.segments import Job, encode_part
from training.data.encoding.encode import Encoder
from training.model.byte_tokenizer import build_byte_tokenizer

TOKENIZER = build_byte_tokenizer()


class Silent:
    """Hears how far preparing is, and says nothing."""

    def begin(self, *, total_bytes: int, done_bytes: int) -> None: ...

    def advance(self, documents: int, tokens: int, read_bytes: int) -> None: ...

    def enter(self, phase: str) -> None: ...


def write_notes(path: Path, count: int, *, first: int = 0) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as lines:
        for number in range(first, first + count):
            record = {"text": f"Note {number}: " + "word " * (number % 13), "family": f"f{number // 3}"}
            lines.write(json.dumps(record) + "\n")


def files_source(*paths: Path | str, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "files",
        "paths": [str(path) for path in paths],
        "format": "auto",
        "documents": "text",
        "fields": {},
        "templates": {},
        "family_field": "family",
        "train_on": "assistant",
        "bad_records": "refuse",
        "max_line_bytes": 1 << 25,
        "max_documents": None,
        "licence": "unstated",
        "provenance": {},
        **changes,
    }


def configure(folder: Path, **changes: Any) -> DataConfig:
    values: dict[str, Any] = {
        "path": str(folder / "corpus"),
        "upload_to": None,
        "sources": {"notes": files_source(folder / "in" / "*.jsonl")},
        "mixture": {"by": "documents", "shares": {}, "replay": None},
        "held_out_fraction": 0.2,
        "split_seed": 0,
        "tokens_per_shard": 640,
        "long_documents": "refuse",
        "control_tokens": "refuse",
        "personal_data": {"action": "keep", "detectors": ["email"]},
        "duplicates": {"near_threshold": None},
    }
    return DataConfig.model_validate({**values, **changes})


def encode_here(data: DataConfig, jobs: Sequence[Job]) -> None:
    encoder = Encoder(TOKENIZER, control_tokens=data.control_tokens)
    for job in jobs:
        encode_part(job, encoder, Silent())


def prepare(data: DataConfig, tokenizer: str = "t") -> Prepared:
    facts = describe_tokenizer(TOKENIZER, tokenizer)
    return prepare_corpus(data, facts, lambda jobs: encode_here(data, jobs), Silent())


def bytes_of(folder: Path) -> dict[str, str]:
    """Hash each file of a corpus; what `metier prepare` remembers for itself (parts) is no part of it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != "parts"
    }


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
