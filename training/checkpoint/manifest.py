"""A checkpoint's manifest: what belongs to it, with sizes and hashes. Without it there is no checkpoint."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from training.config.base import Section
from training.errors import CheckpointError
from training.files import file_sha256

MANIFEST = "manifest.json"
STEP_FOLDERS = "step_*"


class FileRecord(Section):
    """One file of a checkpoint."""

    path: str
    """Relative to the checkpoint's folder."""

    size: int
    sha256: str


class Manifest(Section):
    """All of one checkpoint."""

    step: int
    samples_seen: int
    memory: dict[str, Any]
    """What the loop's decisions look back on."""

    world_size: int
    zero_stage: int
    incarnation: int
    corpus: str
    """Fingerprint of the corpus whose samples were seen."""

    files: list[FileRecord]
    versions: dict[str, str]


def record_file(folder: Path, path: Path) -> FileRecord:
    """Measure one file below ``folder``."""
    return FileRecord(path=str(path.relative_to(folder)), size=path.stat().st_size, sha256=file_sha256(path))


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest's form.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    try:
        values: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return Manifest.model_validate(values)
    except (OSError, json.JSONDecodeError, ValidationError, UnicodeDecodeError):
        raise CheckpointError(f"{folder}: {MANIFEST} is missing or damaged") from None


def verify_files(folder: Path, records: Iterable[FileRecord]) -> None:
    """Compare files with their records.

    Raises:
        CheckpointError: The first file that is missing, too short or changed, by name.
    """
    for record in records:
        path = folder / record.path
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        size = path.stat().st_size
        if size != record.size:
            raise CheckpointError(f"{path} has {size:,} bytes, its manifest says {record.size:,}")
        if file_sha256(path) != record.sha256:
            raise CheckpointError(f"{path} has changed since it was written (its SHA-256 differs)")


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """List the committed checkpoints, oldest first; staging and discarded folders are not among them."""
    return sorted(path for path in checkpoints.glob(STEP_FOLDERS) if path.is_dir())
