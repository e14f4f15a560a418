"""Which checkpoints stay: the newest, the best, and one every so many steps."""

import contextlib
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training.checkpoint.load import read_step
from training.checkpoint.manifest import list_checkpoints, read_manifest
from training.errors import CheckpointError

_TRASH = ".trash_"
STAGING = ".staging_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What is kept."""

    newest: int
    """So many of the newest, at least one."""

    every_steps: int | None
    """Also each whose step is a multiple of this."""


def choose_surplus(scores: Mapping[int, float | None], keep: Retention) -> list[int]:
    """Name the steps whose checkpoints may go.

    Args:
        scores: By step, the held-out loss where it was measured. The least one stays, of equals the newest.
        keep: What else stays.
    """
    steps = sorted(scores)
    kept = set(steps[-keep.newest :])
    measured = [
        (score, -step) for step, score in scores.items() if score is not None and math.isfinite(score)
    ]
    if measured:
        kept.add(-min(measured)[1])
    if keep.every_steps is not None:
        kept |= {step for step in steps if step % keep.every_steps == 0}
    return [step for step in steps if step not in kept]


def prune(checkpoints: Path, keep: Retention) -> list[int]:
    """Drop the surplus: never half a checkpoint. Give the steps dropped."""
    folders = {read_step(folder): folder for folder in list_checkpoints(checkpoints)}
    surplus = choose_surplus({step: _read_score(folder) for step, folder in folders.items()}, keep)
    for step in surplus:
        drop(folders[step])
    return surplus


def drop(folder: Path) -> None:
    """Remove a checkpoint by a rename first; what cannot be removed stays."""
    trash = folder.with_name(f"{_TRASH}{folder.name}")
    with contextlib.suppress(OSError):
        folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def sweep(checkpoints: Path) -> None:
    """Remove what died half-written or half-removed."""
    for pattern in (f"{STAGING}*", f"{_TRASH}*"):
        for leftover in checkpoints.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def _read_score(folder: Path) -> float | None:
    try:
        return read_manifest(folder).score
    except CheckpointError:
        return None
