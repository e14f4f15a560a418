"""The user's own files: JSON lines (also .gz), Parquet, and plain text."""

import glob
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.config.sources import FilesSource
from training.data.documents import Document, Provenance
from training.data.sources.records import parse_content
from training.errors import DataError
from training.files import file_sha256

TEXT_ENDINGS = (".txt", ".md")
JSON_ENDINGS = (".jsonl", ".jsonl.gz")
ROWS_PER_BATCH = 1024

Record = tuple[str, dict[str, Any]]
"""Where the record lies (``file:line``), and its fields."""


def read_files(name: str, source: FilesSource) -> Iterator[Document]:
    """Yield the documents of all files, in sorted order of the files and then as they lie in them.

    Raises:
        DataError: A file is missing, empty or unreadable, or a record does not hold what it should.
    """
    paths = find_paths(name, source)
    yield from islice((doc for path in paths for doc in _read_file(name, source, path)), source.max_documents)


def trace_files(name: str, source: FilesSource) -> Provenance:
    """List the files with their sizes, contents' hashes and time stamps.

    Raises:
        DataError: A file is missing.
    """
    paths = find_paths(name, source)
    return Provenance(
        content={str(path): {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in paths},
        licence="unstated",
        notes={"modified_ns": {str(path): path.stat().st_mtime_ns for path in paths}},
    )


def find_paths(name: str, source: FilesSource) -> list[Path]:
    """Resolve globs; each file once, sorted.

    Raises:
        DataError: A pattern matches nothing, or a file's ending is not one of those that are read.
    """
    found: set[Path] = set()
    for pattern in source.paths:
        # Not Path.glob: it refuses absolute patterns.
        matches = [Path(match) for match in glob.glob(pattern, recursive=True)]  # noqa: PTH207
        files = [match for match in matches if match.is_file()]
        if not files:
            raise DataError(
                f"data.sources.{name}.paths: no file {pattern} (seen from {Path.cwd()}); correct the path"
            )
        found.update(files)
    for path in found:
        if not path.name.endswith((*JSON_ENDINGS, *TEXT_ENDINGS, ".parquet")):
            raise DataError(f"{path}: wanted a file ending in .jsonl, .jsonl.gz, .parquet, .txt or .md")
        if path.name.endswith(TEXT_ENDINGS) and source.documents != "text":
            raise DataError(
                f"{path}: a plain text file holds no {source.documents}; "
                f"set data.sources.{name}.documents=text"
            )
    return sorted(found)


def _read_file(name: str, source: FilesSource, path: Path) -> Iterator[Document]:
    empty = True
    for place, record in _read_records(path):
        empty = False
        content = parse_content(record, source.documents, place)
        yield Document(
            id=place,
            family=_find_family(record, source, place),
            source=name,
            task=source.documents,
            content=content,
        )
    if empty:
        raise DataError(
            f"{path}: the file holds no record; fill it or take it out of data.sources.{name}.paths"
        )


def _find_family(record: dict[str, Any], source: FilesSource, place: str) -> str:
    if source.family_field is None:
        # By content and not by place: the split stays as it is when records are put in before this one.
        text = json.dumps(record, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    family = record.get(source.family_field)
    if not isinstance(family, str | int):
        raise DataError(f'{place}: field "{source.family_field}" (family_field) is missing or no string')
    return str(family)


def _read_records(path: Path) -> Iterator[Record]:
    try:
        if path.name.endswith(TEXT_ENDINGS):
            text = path.read_text(encoding="utf-8")
            if text.strip():
                yield str(path), {"text": text}
        elif path.suffix == ".parquet":
            yield from _read_parquet(path)
        elif path.suffix == ".gz":
            with gzip.open(path, "rb") as lines:
                yield from _read_lines(path, lines)
        else:
            with path.open("rb") as plain:
                yield from _read_lines(path, plain)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); fetch it again") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: no readable Parquet file ({str(error).splitlines()[0]})") from None
    except OSError as error:
        reason = str(error.strerror or error).splitlines()[0]
        raise DataError(f"{path}: cannot be read ({reason})") from None


def _read_parquet(path: Path) -> Iterator[Record]:
    row = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS_PER_BATCH):
            for record in batch.to_pylist():
                row += 1
                yield f"{path}:{row}", record


def _read_lines(path: Path, lines: Any) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"{path}:{number}"
            yield place, _parse_line(line, place)


def _parse_line(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not UTF-8 at byte {error.start} of the line; convert the file to UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{place}: broken JSON at column {error.colno} ({error.msg}); wanted one JSON object per line"
        ) from None
    except (RecursionError, ValueError) as error:
        # Nested thousands deep, or a number of thousands of digits.
        raise DataError(f"{place}: JSON that cannot be read ({error}); take the line out") from None
    if not isinstance(record, dict):
        raise DataError(f"{place}: found {type(record).__name__}, wanted one JSON object per line")
    return record
