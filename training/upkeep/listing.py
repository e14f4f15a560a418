"""The table of a run's checkpoints, their check, and the dropping of those that are not to be kept."""

import sys
from pathlib import Path

from training.checkpoint.load import (
    find_checkpoint,
    list_damaged,
    read_damaged_step,
    read_files,
    read_step,
    verify_checkpoint,
)
from training.checkpoint.manifest import list_checkpoints, read_manifest
from training.checkpoint.retention import STAGING, Retention, choose_surplus, drop, prune
from training.config.freeze import read_frozen, read_run_id
from training.errors import CheckpointError
from training.layout import RunLayout
from training.metrics.lines import read_lines

_HEAD = ("step", "samples", "loss", "score", "ranks", "stage", "size", "state")


def show_checkpoints(layout: RunLayout) -> bool:
    """Print one line per checkpoint, also of those set aside and those never finished.

    Reads manifests and sizes; the bytes themselves are read by ``verify``. False when one is damaged.
    """
    losses = {line["step"]: line.get("loss") for line in read_lines(layout.metrics)}
    best = _find_best(layout)
    folders = list_checkpoints(layout.checkpoints)
    run = read_run_id(layout.config)
    rows = [_describe(folder, run, losses.get(read_step(folder)), best) for folder in folders]
    is_whole = not any(row[-1].startswith("damaged") for row in rows)
    rows += [_unknown(f"set aside: {folder.name}") for folder in list_damaged(layout.checkpoints)]
    unfinished = sorted(layout.checkpoints.glob(f"{STAGING}*"))
    rows += [_unknown(f"not finished: {folder.name}") for folder in unfinished]
    if rows:
        _print_table([_HEAD, *rows])
    else:
        sys.stdout.write(f"{layout.root} has no checkpoint yet\n")
    return is_whole


def verify_all(layout: RunLayout, step: int | None) -> bool:
    """Read every byte of each checkpoint, or of that of ``step``; say which are what they were.

    Names those that were set aside as well.
    """
    folders = list_checkpoints(layout.checkpoints)
    if step is not None:
        folders = [folder for folder in folders if read_step(folder) == step]
    if not folders:
        find_checkpoint(layout, step)  # raises, and says which there are
    whole, run = True, read_run_id(layout.config)
    for folder in folders:
        try:
            verify_checkpoint(folder, run)
        except CheckpointError as error:
            whole = False
            sys.stdout.write(f"{folder.name}  damaged: {error}\n")
        else:
            sys.stdout.write(f"{folder.name}  verified, {_size(read_manifest(folder).size)}\n")
    for folder in list_damaged(layout.checkpoints) if step is None else ():
        sys.stdout.write(f"{folder.name}  set aside as damaged\n")
    return whole


def prune_run(layout: RunLayout, *, all_damaged: bool = False) -> bool:
    """Drop what the run's settings do not keep, and what was set aside and has been saved anew or passed.

    Args:
        layout: The run.
        all_damaged: All that was set aside goes.

    Raises:
        CheckpointError: One is damaged: to count it among the newest could cost the last good one.
    """
    if all_damaged:
        _drop_damaged(layout, None)
        if not list_checkpoints(layout.checkpoints):
            return True
    newest, run = read_step(find_checkpoint(layout, None)), read_run_id(layout.config)
    for folder in list_checkpoints(layout.checkpoints):
        try:
            verify_checkpoint(folder, run)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; nothing was dropped; remove {folder.name} first") from None
    loop = read_frozen(layout.config).loop
    keep = Retention(newest=loop.keep_checkpoints, every_steps=loop.keep_every_steps)
    steps = ", ".join(map(str, prune(layout.checkpoints, keep))) or "none"
    sys.stdout.write(f"dropped: {steps}\n")
    _drop_damaged(layout, newest)
    return True


def _drop_damaged(layout: RunLayout, newest: int | None) -> None:
    """Drop what was set aside of steps up to ``newest``; None: all."""
    for folder in list_damaged(layout.checkpoints):
        if newest is None or read_damaged_step(folder) <= newest:
            drop(folder)
            sys.stdout.write(f"dropped: {folder.name}, set aside as damaged\n")
        else:
            sys.stdout.write(f"kept: {folder.name}, with nothing later that verifies; see damaged=all\n")


def _find_best(layout: RunLayout) -> int | None:
    scores = {}
    for folder in list_checkpoints(layout.checkpoints):
        try:
            scores[read_step(folder)] = read_manifest(folder).score
        except CheckpointError:
            continue
    if not any(score is not None for score in scores.values()):
        return None
    # What stays when only one of them may, beside the newest.
    newest = max(scores)
    kept = set(scores) - set(choose_surplus(scores, Retention(newest=1, every_steps=None)))
    return next(iter(kept - {newest}), newest)


def _unknown(state: str) -> tuple[str, ...]:
    return (*["-"] * (len(_HEAD) - 1), state)


def _describe(folder: Path, run: str, loss: float | None, best: int | None) -> tuple[str, ...]:
    step = read_step(folder)
    try:
        manifest = read_manifest(folder)
    except CheckpointError:
        return (str(step), "-", _number(loss), "-", "-", "-", "-", "damaged: no manifest")
    state = "complete, best" if step == best else "complete"
    try:
        records = read_files(folder, run)
    except CheckpointError:
        records, state = [], "damaged: of another step or run"
    for record in records:
        path = folder / record.path
        if not path.is_file() or path.stat().st_size != record.size:
            state = f"damaged: {record.path}"
    return (
        str(step),
        f"{manifest.samples_seen:,}",
        _number(loss),
        _number(manifest.score),
        str(manifest.world_size),
        str(manifest.zero_stage),
        _size(manifest.size),
        state,
    )


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        sys.stdout.write("  ".join([*cells, row[-1]]) + "\n")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"  # noqa: PLR2004
