"""Saves and resumes a run, beside the training.

Weights and moments change in the optimizer's update alone. So a save's thread copies them to the host's
memory while the next step goes forward and backward, and only that step's update waits for what is left.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from training.checkpoint.commit import Lineage, Moment, write_checkpoint
from training.checkpoint.load import (
    check_base,
    check_corpus,
    check_optimizer,
    list_damaged,
    read_files,
    read_step,
    set_aside,
)
from training.checkpoint.manifest import Manifest, list_checkpoints, read_manifest, verify_files
from training.checkpoint.share import HostBuffer, Share, mark_ready, plan_share
from training.collectives import Council, from_lead, gather_over_ranks
from training.errors import CheckpointError, MetierError, StorageError, first_line
from training.fence import FencedError, check_fence
from training.fragments.fragment import Fragment
from training.fragments.reader import FragmentReader
from training.progress import Memory, Progress

_PATIENCE_SECONDS = 60


class SavedEngine(Protocol):
    """What a checkpoint needs of an engine."""

    def fragments(self) -> Iterator[Fragment]:
        """Yield what this rank has to write of weights and optimizer state, as views of the live tensors."""

    def load(self, reader: FragmentReader) -> None:
        """Take up the state of a checkpoint, however it was cut. Collective."""


class Reporter(Protocol):
    """Where the store says what it did."""

    def event(self, kind: str, **facts: object) -> None:
        """Record one event; a note is also shown on the screen."""


@dataclass(slots=True)
class _Flight:
    """A save on its way to the disk, in a thread of its own."""

    moment: Moment
    size: int
    thread: threading.Thread | None = None
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    stall_seconds: float = 0.0
    """For which the training stood still."""

    problem: MetierError | None = None
    copied: threading.Event = field(default_factory=threading.Event)
    """The training's state may change."""

    landed: threading.Event = field(default_factory=threading.Event)


class CheckpointStore:
    """The checkpoints of one run. ``save``, ``settle`` and ``resume`` are collective."""

    def __init__(self, engine: SavedEngine, lineage: Lineage, reporter: Reporter) -> None:
        """Save and load the state of ``engine``. Collective."""
        self._engine = engine
        self._lineage = lineage
        self._reporter = reporter
        self._buffer = HostBuffer()
        self._flight: _Flight | None = None
        # The writing threads talk within a process group of their own. In the training's group their
        # collectives would mingle with its gradients, in an order that differs from rank to rank; and to
        # commit in the training's thread instead would make every step edge wait for the slowest disk.
        self._council = Council.open()

    def save(self, progress: Progress, *, final: bool = False, score: float | None = None) -> None:
        """Begin to write a checkpoint; ``settle`` tells what became of it. At most one is on its way.

        Before the state changes, ``wait_until_copied`` must return.

        Args:
            progress: How far the run is.
            final: Return only once a crash or a power cut could not lose it.
            score: The held-out loss at this step, where it was measured.

        Raises:
            StorageError: Only of a final save: a rank could not write; older checkpoints are untouched.
            FencedError: A newer start has taken the run over.
        """
        started = time.perf_counter()
        self._land()
        share = self._plan()
        size = 0 if isinstance(share, StorageError) else share.size
        flight = self._flight = _Flight(Moment(progress=progress, score=score), size)
        if final:
            # Straight from the live tensors: the training waits for the writing anyway.
            self._write(flight, share)
        else:
            ready = None if isinstance(share, StorageError) else mark_ready(share)
            flight.thread = threading.Thread(
                target=self._copy_and_write, args=(flight, share, ready), daemon=True
            )
            flight.thread.start()
        flight.stall_seconds = time.perf_counter() - started
        if final:
            self._land(must_succeed=True)

    def wait_until_copied(self) -> None:
        """Return once weights and moments may change; not collective."""
        flight = self._flight
        if flight is not None and flight.thread is not None and not flight.copied.is_set():
            started = time.perf_counter()
            flight.copied.wait()
            flight.stall_seconds += time.perf_counter() - started

    def settle(self) -> None:
        """Tell what became of the save on its way, once all ranks know it; at the same step on all.

        Raises:
            FencedError: A newer start has taken the run over.
        """
        if self._flight is not None and all(gather_over_ranks(self._flight.landed.is_set())):
            self._land()

    def resume(self, *, every: int = 1) -> Progress:
        """Load the newest checkpoint that verifies on every rank; the beginning when there is none.

        The number of ranks, the ZeRO stage and offload may differ from those that wrote it.

        Args:
            every: Only those of steps that it divides: a run that is rolled back goes to a checkpoint that it
                would have without interruptions as well, not to one that a stop left.

        Raises:
            CheckpointError: There are checkpoints but none can be read, or they belong to another corpus
                or model.
            FencedError: A newer start has taken the run over.
        """
        self._land()
        folders = from_lead(list_checkpoints(self._lineage.layout.checkpoints))
        folders = [folder for folder in folders if read_step(folder) % every == 0]
        for folder in reversed(folders):
            problems = [text for text in gather_over_ranks(self._verify_share(folder)) if text]
            if problems:
                self._reject(folder, problems[0])
                continue
            manifest = read_manifest(folder)
            check_corpus(folder, self._lineage.corpus)
            check_base(folder, self._lineage.base)
            check_optimizer(folder, self._lineage.optimizer)
            with FragmentReader(folder) as reader:
                self._engine.load(reader)
            self._tell_cut(manifest)
            return Progress(
                step=manifest.step,
                samples_seen=manifest.samples_seen,
                memory=Memory.from_json(manifest.memory),
            )
        damaged = from_lead(list_damaged(self._lineage.layout.checkpoints))
        if damaged:
            raise CheckpointError(
                f"{self._lineage.layout.checkpoints}: {len(damaged)} checkpoints and none can be read (see "
                "events.jsonl); put one back, begin anew after `metier checkpoints RUN prune damaged=all`, "
                "or start under another name"
            )
        return Progress(step=0, samples_seen=0)

    def close(self) -> None:
        """Let a save on its way land when the training has ended by an error; not collective, never raises.

        Bounded: another rank may be gone, and its share with it.
        """
        if self._flight is not None and self._flight.landed.wait(_PATIENCE_SECONDS):
            with contextlib.suppress(MetierError):
                self._land()

    def _plan(self) -> Share | StorageError:
        """Lay out this rank's share."""
        try:
            return plan_share(self._engine.fragments())
        except (RuntimeError, MemoryError) as error:
            return self._explain(error)

    def _copy_and_write(
        self, flight: _Flight, share: Share | StorageError, ready: torch.cuda.Event | None
    ) -> None:
        if not isinstance(share, StorageError) and not share.on_disk:
            try:
                share = self._buffer.copy(share, ready)
            except Exception as error:
                # Whatever it is: the training waits for the copy, and the other ranks for this one's word.
                share = self._explain(error)
        if isinstance(share, StorageError) or not share.on_disk:
            flight.copied.set()
        self._write(flight, share)
        flight.copied.set()

    def _explain(self, error: Exception) -> StorageError:
        return StorageError(f"rank {self._lineage.ranks.rank} cannot copy its state: {first_line(error)}")

    def _write(self, flight: _Flight, share: Share | StorageError) -> None:
        try:
            flight.problem = write_checkpoint(share, flight.moment, self._lineage, self._council)
        except Exception as error:
            # Another rank is gone, or a defect of ours: in a thread it would be lost.
            flight.problem = StorageError(
                f"checkpoint of step {flight.moment.progress.step}: {type(error).__name__}: {error}"
            )
        flight.seconds = time.perf_counter() - flight.started
        flight.landed.set()

    def _land(self, *, must_succeed: bool = False) -> None:
        """Wait for the save on its way, if any, and tell what became of it."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        if flight.thread is not None:
            flight.thread.join()
        step = flight.moment.progress.step
        if flight.problem is None:
            facts = {
                "seconds": round(flight.seconds, 3),
                "stall_seconds": round(flight.stall_seconds, 6),
                "bytes": flight.size,
            }
            self._reporter.event("saved", step=step, **facts)
            return
        if isinstance(flight.problem, FencedError):
            raise flight.problem
        self._reporter.event("save_failed", step=step, reason=str(flight.problem))
        if must_succeed or not isinstance(flight.problem, StorageError):
            raise flight.problem
        self._reporter.event("note", text=f"{flight.problem}; training goes on")

    def _verify_share(self, folder: Path) -> str | None:
        """Verify every so-many-th file, so that the ranks together read each once; say what is wrong."""
        ranks = self._lineage.ranks
        try:
            verify_files(folder, read_files(folder, self._lineage.run)[ranks.rank :: ranks.world_size])
        except CheckpointError as error:
            return str(error)
        return None

    def _reject(self, folder: Path, reason: str) -> None:
        problem = from_lead(self._set_aside(folder, reason) if self._lineage.ranks.is_lead else None)
        if problem is not None:
            raise problem

    def _set_aside(self, folder: Path, reason: str) -> FencedError | None:
        try:
            check_fence(self._lineage.layout.incarnations, self._lineage.incarnation)
        except FencedError as error:
            return error
        kept = set_aside(folder)
        self._reporter.event("checkpoint_rejected", checkpoint=folder.name, reason=reason, kept=kept.name)
        self._reporter.event("note", text=f"{reason}; set aside as {kept.name}")
        return None

    def _tell_cut(self, manifest: Manifest) -> None:
        lineage = self._lineage
        was = (manifest.world_size, manifest.zero_stage, manifest.tensor_parallel_size)
        now = (lineage.ranks.world_size, lineage.zero_stage, lineage.tensor_parallel_size)
        if was != now:
            teams = [f" in teams of {cut[2]}" if cut[2] > 1 else "" for cut in (was, now)]
            self._reporter.event(
                "note",
                text=f"step {manifest.step} was saved by {was[0]} processes{teams[0]} at ZeRO stage {was[1]} "
                f"and is taken up by {now[0]}{teams[1]} at stage {now[1]}: same samples in the same order, "
                "loss within rounding",
            )
