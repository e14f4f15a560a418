"""Which checkpoint to read: the newest that verifies."""

import re
from pathlib import Path

from training.checkpoint.manifest import FileRecord, list_checkpoints, read_manifest, verify_files
from training.config.freeze import read_run_id
from training.errors import CheckpointError
from training.files import sync_folder
from training.layout import RunLayout

_DAMAGED = "damaged_"
_SET_ASIDE = re.compile(rf"{_DAMAGED}step_(\d+)")


def find_checkpoint(layout: RunLayout, step: int | None) -> Path:
    """Find the newest complete checkpoint, or that of ``step``, and verify it.

    Raises:
        CheckpointError: There is none, or the one asked for does not verify.
    """
    damaged = _name_damaged(layout.checkpoints)
    run = read_run_id(layout.config)
    if step is not None:
        folder = layout.checkpoint(step)
        if not folder.is_dir():
            known = ", ".join(str(read_step(path)) for path in list_checkpoints(layout.checkpoints))
            raise CheckpointError(f"{folder} does not exist; checkpoints: {known or 'none'}{damaged}")
        verify_checkpoint(folder, run)
        return folder
    reasons = []
    for folder in reversed(list_checkpoints(layout.checkpoints)):
        try:
            verify_checkpoint(folder, run)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        return folder
    if reasons:
        raise CheckpointError(f"no checkpoint of {layout.root} verifies: {reasons[0]}{damaged}")
    if damaged:
        raise CheckpointError(
            f"{layout.root} has no checkpoint that can be read{damaged}; events.jsonl says why; put one "
            "back, or begin anew after `metier checkpoints RUN prune damaged=all`"
        )
    raise CheckpointError(f"{layout.root} has no checkpoint yet; run `metier train` first")


def read_step(folder: Path) -> int:
    """Read the step from a checkpoint folder's name."""
    return int(folder.name.removeprefix("step_"))


def verify_checkpoint(folder: Path, run: str) -> None:
    """Make sure that every file of a checkpoint is what its manifest says, and that it is of this run.

    Raises:
        CheckpointError: One is not, or the manifest is missing, damaged or of another step or run.
    """
    verify_files(folder, read_files(folder, run))


def read_files(folder: Path, run: str) -> list[FileRecord]:
    """List the files of a checkpoint.

    Raises:
        CheckpointError: The manifest is missing, damaged or of another step or run.
    """
    manifest = read_manifest(folder)
    if manifest.run != run:
        raise CheckpointError(
            f"{folder} is of another run, whose run.json has the id {manifest.run} and not {run}: it was put "
            "there from elsewhere"
        )
    if manifest.step != read_step(folder):
        raise CheckpointError(f"{folder} holds step {manifest.step}: it was put there from elsewhere")
    return manifest.files


def check_corpus(folder: Path, fingerprint: str) -> None:
    """Make sure that a checkpoint was trained on the corpus of this fingerprint.

    Raises:
        CheckpointError: It was another one: its position, and what counts as held out, mean nothing here.
    """
    if read_manifest(folder).corpus != fingerprint:
        raise CheckpointError(
            f"{folder} was trained on another corpus than the one that data.path holds now; prepare the "
            "former one again, or start under another name"
        )


def check_optimizer(folder: Path, kind: str) -> None:
    """Make sure that a checkpoint was trained by this kind of optimizer.

    Raises:
        CheckpointError: It was another one, whose moments mean nothing to this one.
    """
    saved = read_manifest(folder).optimizer
    if saved != kind:
        raise CheckpointError(
            f"{folder} was trained with optimizer.kind={saved}, and run.json says {kind}; set it back, or "
            "start under another name"
        )


def check_base(folder: Path, fingerprint: str) -> None:
    """Make sure that a checkpoint was trained from the weights of this fingerprint.

    Raises:
        CheckpointError: It was trained from others, of which frozen parts would be taken now.
    """
    if read_manifest(folder).base != fingerprint:
        raise CheckpointError(
            f"{folder} was trained from other weights than those that the model's folder holds now; put the "
            "former ones back, or start under another name"
        )


def list_damaged(checkpoints: Path) -> list[Path]:
    """List what ``set_aside`` moved out of the way."""
    return sorted(path for path in checkpoints.glob(f"{_DAMAGED}*") if _SET_ASIDE.match(path.name))


def _name_damaged(checkpoints: Path) -> str:
    names = ", ".join(folder.name for folder in list_damaged(checkpoints))
    return f"; set aside as damaged: {names}" if names else ""


def read_damaged_step(folder: Path) -> int:
    """Read the step from the name that ``set_aside`` gave."""
    return int(_SET_ASIDE.findall(folder.name)[0])


def set_aside(folder: Path) -> Path:
    """Move a damaged checkpoint out of the way, keeping it for inspection."""
    target = folder.with_name(f"{_DAMAGED}{folder.name}")
    number = 1
    while target.exists():
        number += 1
        target = folder.with_name(f"{_DAMAGED}{folder.name}_{number}")
    folder.rename(target)
    sync_folder(folder.parent)
    return target
