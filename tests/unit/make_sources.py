"""Sources as a user's configuration makes them, files of every format, and how tests read them."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard

from training.config.sources import FilesSource, HubSource, SourceConfig
from training.data.documents import Document, Text
from training.data.read import Skipped, list_pieces, read_documents, read_piece
from training.errors import DataError

CONFIGS = Path(__file__).parents[2] / "configs" / "source"

RECORDS = [{"text": "one"}, {"text": "zwei — ü,\nneu"}, {"text": '"3"'}]

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}

Q = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"at": "x"}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "42"}


def files(*paths: Path | str, **other: Any) -> FilesSource:
    values = yaml.safe_load((CONFIGS / "files.yaml").read_text(encoding="utf-8"))
    return FilesSource.model_validate({**values, "paths": [str(path) for path in paths], **other})


def hub(dataset: Path | str, **other: Any) -> HubSource:
    values = yaml.safe_load((CONFIGS / "hub.yaml").read_text(encoding="utf-8"))
    return HubSource.model_validate({**values, "dataset": str(dataset), **other})


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read_one(tmp_path: Path, record: object, **other: Any) -> Document:
    (document,) = read_documents("notes", files(write_lines(tmp_path / "a.jsonl", record), **other))
    return document


def read_items(source: SourceConfig) -> list[Document | Skipped]:
    return [item for piece in list_pieces("notes", source) for item in read_piece("notes", source, piece)]


def read_texts(source: FilesSource) -> list[str]:
    contents = [document.content for document in read_documents("notes", source)]
    return [content.text for content in contents if isinstance(content, Text)]


def refusal(source: SourceConfig) -> str:
    with pytest.raises(DataError) as caught:
        read_items(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def as_lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def as_array(records: list[dict[str, Any]]) -> bytes:
    return json.dumps(records, indent=2, ensure_ascii=False).encode()


def as_csv(records: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def as_parquet(records: list[dict[str, Any]], rows: int | None = None) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records).slice(0, rows), sink, row_group_size=2)
    return sink.getvalue()


def as_arrow(records: list[dict[str, Any]], new: Callable[..., Any]) -> bytes:
    table, sink = pa.Table.from_pylist(records), io.BytesIO()
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def as_tar(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def as_webdataset(records: list[dict[str, Any]]) -> bytes:
    return as_tar({f"part/{n:04}.txt": record["text"].encode() for n, record in enumerate(records)})


def zst(content: bytes) -> bytes:
    # In two frames, as tools that work in parallel write.
    half = len(content) // 2
    pack = zstandard.ZstdCompressor().compress
    return pack(content[:half]) + pack(content[half:])
