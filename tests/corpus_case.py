"""A small corpus of notes for tests: 100 texts of a few dozen bytes, three to a family."""

import hashlib
import json
from pathlib import Path
from typing import Any

from training.config.sources import DataConfig
from training.data.corpus import Prepared, prepare_corpus
from training.model.byte_tokenizer import build_byte_tokenizer

TOKENIZER = build_byte_tokenizer()


def write_notes(path: Path, count: int, *, first: int = 0) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as lines:
        for number in range(first, first + count):
            record = {"text": f"Note {number}: " + "word " * (number % 13), "family": f"f{number // 3}"}
            lines.write(json.dumps(record) + "\n")


def configure(folder: Path, **changes: Any) -> DataConfig:
    source = {
        "kind": "files",
        "paths": [str(folder / "in" / "*.jsonl")],
        "documents": "text",
        "family_field": "family",
        "max_documents": None,
    }
    values: dict[str, Any] = {
        "path": str(folder / "corpus"),
        "sources": {"notes": source},
        "held_out_fraction": 0.2,
        "split_seed": 0,
        "documents_per_shard": 16,
        "long_documents": "refuse",
    }
    return DataConfig.model_validate({**values, **changes})


def prepare(data: DataConfig, tokenizer: str = "t") -> Prepared:
    return prepare_corpus(data, TOKENIZER, tokenizer)


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
