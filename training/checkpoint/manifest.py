"""A checkpoint's manifest: what belongs to it, with sizes and checksums. Without it there is none."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from training.config.base import Section
from training.errors import CheckpointError
from training.files import file_checksum

MANIFEST = "manifest.json"
STEP_FOLDERS = "step_*"


class FileRecord(Section):
    """One file of a checkpoint."""

    path: str
    """Relative to the checkpoint's folder."""

    size: int
    checksum: str
    """XXH3-128."""


class Manifest(Section):
    """All of one checkpoint but its tensors, which index.json names."""

    step: int
    samples_seen: int
    """Together with the run's seed all that data order and dropout depend on: no random state is kept."""

    memory: dict[str, Any]
    """What the loop's decisions look back on."""

    world_size: int
    zero_stage: int
    tensor_parallel_size: int = 1
    run: str
    """The id in the run.json of the run that wrote it: a folder can be copied anywhere."""

    incarnation: int
    optimizer: str
    """Its kind: another one's moments mean nothing to it."""

    corpus: str
    """Fingerprint of the corpus whose samples were seen."""

    base: str = ""
    """Fingerprint of the weights that the run began with."""

    score: float | None
    """Held-out loss at this step, where it was measured: less is better."""

    files: list[FileRecord]
    versions: dict[str, str]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files)


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
        CheckpointError: The first file that is missing, too short, changed or unreadable, by name.
    """
    for record in records:
        path = folder / record.path
        try:
            if not path.is_file():
                raise CheckpointError(f"{path} is missing")
            size = path.stat().st_size
            if size != record.size:
                raise CheckpointError(f"{path} has {size:,} bytes, its manifest says {record.size:,}")
            if file_checksum(path) != record.checksum:
                raise CheckpointError(f"{path} has changed since it was written (its checksum differs)")
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from None


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """List the committed checkpoints, oldest first; staging and discarded folders are not among them."""
    return sorted(path for path in checkpoints.glob(STEP_FOLDERS) if path.is_dir())
