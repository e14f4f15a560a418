"""Copies a finished corpus to where training reads it: what is there stays, the manifest comes last."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec

from training.data.corpus.manifest import FileRecord, Manifest
from training.errors import DataError, StorageError
from training.files import file_checksum
from training.layout import CorpusLayout


def upload_corpus(root: Path, manifest: Manifest, url: str, say: Callable[[int, int], None]) -> int:
    """Copy the files that ``manifest`` names and the URL does not hold with their size, then the manifest.

    A reader of the URL sees the old corpus or the new one: files are named by what they hold, and the
    manifest, in one piece, decides.

    Args:
        root: The corpus folder.
        manifest: What it holds.
        url: A folder that fsspec writes, for instance ``s3://BUCKET/FOLDER``.
        say: Told after each file how many of how many bytes are there.

    Returns:
        Files copied, the manifest not counted.

    Raises:
        DataError: A file of the corpus is damaged.
        StorageError: The URL cannot be written.
    """
    records = {record.file: record for record in manifest.files()}
    total, done, copied = sum(record.bytes for record in records.values()), 0, 0
    try:
        system, folder = fsspec.core.url_to_fs(url)
        there = _list_sizes(system, folder)
        for file, record in records.items():
            if there.get(file) != record.bytes:
                _check(root / file, record)
                target = f"{folder}/{file}"
                system.makedirs(target.rpartition("/")[0], exist_ok=True)
                system.put_file(str(root / file), target)
                copied += 1
            done += record.bytes
            say(done, total)
        path = CorpusLayout(root).manifest
        system.pipe_file(f"{folder}/{path.name}", path.read_bytes())
    except DataError:
        raise
    # Each storage has errors of its own (botocore's, aiohttp's, gcsfs's); the user sees which and where.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        raise StorageError(
            f"data.upload_to={url}: cannot be written ({reason}); the corpus in {root} is whole: correct "
            "the URL or its credentials and run the same command again"
        ) from error
    return copied


def _check(path: Path, record: FileRecord) -> None:
    if file_checksum(path) != record.checksum:
        raise DataError(
            f"{path}: damaged, its checksum is not the manifest's; remove this file and run `metier prepare` "
            "again"
        )


def _list_sizes(system: Any, folder: str) -> dict[str, int]:
    try:
        found = system.find(folder, detail=True)
    except FileNotFoundError:
        return {}
    prefix = system._strip_protocol(folder).rstrip("/") + "/"
    return {name.removeprefix(prefix): int(entry["size"]) for name, entry in found.items()}
