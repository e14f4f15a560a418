"""Saves and resumes a run, so that a checkpoint is complete or it is not there.

The protocol: every rank writes its share into a staging folder and makes it durable; sizes and hashes go
to the lead through a collective, never through a shared disk's directory cache; the lead writes the
manifest, looks at the fence, renames the folder (the commit) and makes the rename durable; all learn the
verdict. Whatever dies in between leaves a staging folder that the next save removes.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from training.checkpoint.fence import FencedError, check_fence
from training.checkpoint.load import check_corpus, list_damaged, read_step, set_aside
from training.checkpoint.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    list_checkpoints,
    read_manifest,
    record_file,
    verify_files,
)
from training.checkpoint.weights import write_weights
from training.collectives import from_lead, gather_over_ranks
from training.errors import CheckpointError, StorageError
from training.files import sync_file, sync_folder, write_json
from training.layout import RunLayout
from training.progress import Memory, Progress
from training.ranks import Ranks


class SavedEngine(Protocol):
    """What a checkpoint needs of an engine; all of it collective."""

    model: torch.nn.Module

    def state(self) -> dict[str, Any]:
        """Give this rank's state."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Take this rank's state up again."""

    def trained_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each whole trained tensor."""


class Reporter(Protocol):
    """Where the store says what it did."""

    def event(self, kind: str, **facts: object) -> None:
        """Record one event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Which run, which start of it, and how it is cut."""

    layout: RunLayout
    ranks: Ranks
    zero_stage: int
    incarnation: int
    corpus: str
    """The corpus's fingerprint: a position means nothing in another corpus."""

    keep: int
    versions: dict[str, str]


class CheckpointStore:
    """The checkpoints of one run. ``save`` and ``resume`` are collective."""

    def __init__(self, engine: SavedEngine, lineage: Lineage, reporter: Reporter) -> None:
        """Save and load the state of ``engine``."""
        self._engine = engine
        self._lineage = lineage
        self._reporter = reporter

    def save(self, progress: Progress, *, score: float | None = None) -> None:
        """Write a checkpoint; returns once a crash or a power cut could not lose it.

        Args:
            progress: How far the run is.
            score: The held-out loss at this step, where it was measured.

        Raises:
            StorageError: A rank could not write; nothing is left behind, older checkpoints are untouched.
            FencedError: A newer start has taken the run over.
        """
        layout, ranks = self._lineage.layout, self._lineage.ranks
        staging = layout.checkpoints / f".staging_{progress.step:08d}_{self._lineage.incarnation}"
        if ranks.is_lead:
            self._sweep(staging)
        gather_over_ranks(None)
        records, failure = self._write_share(staging)
        answers = gather_over_ranks((records, failure))
        failures = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(answers) if text]
        files = [record for shares, _ in answers for record in shares]
        verdict = None
        if ranks.is_lead:
            verdict = self._commit(staging, progress, files, failures)
        verdict = from_lead(verdict)
        if isinstance(verdict, Exception):
            raise verdict
        self._reporter.event("saved", step=progress.step)
        if ranks.is_lead:
            self._prune()

    def resume(self, *, every: int = 1) -> Progress:
        """Load the newest checkpoint that verifies on every rank; the beginning when there is none.

        Args:
            every: Only those of steps that it divides: a run that is rolled back goes to a checkpoint that it
                would have without interruptions as well, not to one that a stop left.

        Raises:
            CheckpointError: There are checkpoints but none can be read, or they were cut for another
                number of ranks or another ZeRO stage, or belong to another corpus.
        """
        folders = from_lead(list_checkpoints(self._lineage.layout.checkpoints))
        folders = [folder for folder in folders if read_step(folder) % every == 0]
        for folder in reversed(folders):
            problems = [text for text in gather_over_ranks(self._verify_share(folder)) if text]
            if problems:
                if self._lineage.ranks.is_lead:
                    kept = set_aside(folder)
                    self._reporter.event(
                        "checkpoint_rejected", checkpoint=folder.name, reason=problems[0], kept=kept.name
                    )
                gather_over_ranks(None)
                continue
            manifest = read_manifest(folder)
            self._check_cut(folder, manifest)
            check_corpus(folder, self._lineage.corpus)
            # The file was written by this run and its hash was just verified.
            state = torch.load(self._rank_file(folder), map_location="cpu", weights_only=False)
            self._engine.load_state(state)
            return Progress(
                step=manifest.step,
                samples_seen=manifest.samples_seen,
                memory=Memory.from_json(manifest.memory),
            )
        damaged = from_lead(list_damaged(self._lineage.layout.checkpoints))
        if damaged:
            raise CheckpointError(
                f"{self._lineage.layout.checkpoints}: {len(damaged)} checkpoints and none can be read (see "
                "events.jsonl); put one back, remove them to begin anew, or start under another name"
            )
        return Progress(step=0, samples_seen=0)

    def _write_share(self, staging: Path) -> tuple[list[FileRecord], str | None]:
        paths: list[Path] = []
        failure = None
        try:
            path = self._rank_file(staging)
            torch.save(self._engine.state(), path)
            sync_file(path)
            paths.append(path)
        except (OSError, RuntimeError) as error:
            failure = _reason(error)
        # Walked by every rank whatever happened above: gathering ZeRO-3's tensors is collective.
        tensors = self._engine.trained_tensors()
        try:
            if self._lineage.ranks.is_lead:
                paths += write_weights(staging / "weights", self._engine.model, tensors)
        except (OSError, RuntimeError, StorageError) as error:
            failure = failure or _reason(error)
        for _ in tensors:
            pass
        if failure:
            return [], failure
        return [record_file(staging, path) for path in paths], None

    def _commit(
        self, staging: Path, progress: Progress, files: list[FileRecord], failures: list[str]
    ) -> Exception | None:
        lineage = self._lineage
        target = lineage.layout.checkpoint(progress.step)
        try:
            if failures:
                raise StorageError(f"checkpoint of step {progress.step} could not be written ({failures[0]})")
            manifest = Manifest(
                step=progress.step,
                samples_seen=progress.samples_seen,
                memory=progress.memory.as_json(),
                world_size=lineage.ranks.world_size,
                zero_stage=lineage.zero_stage,
                incarnation=lineage.incarnation,
                corpus=lineage.corpus,
                files=files,
                versions=lineage.versions,
            )
            write_json(staging / MANIFEST, manifest.model_dump())
            sync_folder(staging / "weights")
            sync_folder(staging)
            check_fence(lineage.layout.incarnations, lineage.incarnation)
            if target.exists():
                # Left by an earlier start that was ahead of the checkpoint this one resumed from.
                set_aside(target)
            staging.rename(target)
            sync_folder(lineage.layout.checkpoints)
        except (OSError, StorageError, FencedError) as error:
            shutil.rmtree(staging, ignore_errors=True)
            if isinstance(error, OSError):
                return StorageError(f"checkpoint of step {progress.step}: {_reason(error)}")
            return error
        return None

    def _verify_share(self, folder: Path) -> str | None:
        """Verify this rank's file, the lead also the weights; the reason when they do not."""
        try:
            manifest = read_manifest(folder)
            if manifest.world_size != self._lineage.ranks.world_size:
                return None  # said by _check_cut, in its own words
            mine = self._rank_file(folder).name
            lead = self._lineage.ranks.is_lead
            verify_files(
                folder,
                [r for r in manifest.files if r.path == mine or (lead and r.path.startswith("weights/"))],
            )
        except CheckpointError as error:
            return str(error)
        return None

    def _check_cut(self, folder: Path, manifest: Manifest) -> None:
        now = (self._lineage.ranks.world_size, self._lineage.zero_stage)
        if (manifest.world_size, manifest.zero_stage) != now:
            raise CheckpointError(
                f"{folder} was cut for {manifest.world_size} processes at ZeRO stage {manifest.zero_stage}, "
                f"this start has {now[0]} at stage {now[1]}; use the same cluster and strategy"
            )

    def _rank_file(self, folder: Path) -> Path:
        return folder / f"rank_{self._lineage.ranks.rank:05d}.pt"

    def _sweep(self, staging: Path) -> None:
        """Remove what died half-written, and make the new staging folder; a failure shows when writing."""
        checkpoints = self._lineage.layout.checkpoints
        for pattern in (".staging_*", ".trash_*"):
            for leftover in checkpoints.glob(pattern):
                shutil.rmtree(leftover, ignore_errors=True)
        try:
            staging.mkdir(parents=True, exist_ok=True)
        except OSError:
            return

    def _prune(self) -> None:
        """Drop all but the newest; only after a commit, and by a rename first: never half a checkpoint."""
        for folder in list_checkpoints(self._lineage.layout.checkpoints)[: -self._lineage.keep]:
            trash = folder.with_name(f".trash_{folder.name}")
            folder.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)


def _reason(error: Exception) -> str:
    text = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
    return f"{text}; free some space on the disk"
