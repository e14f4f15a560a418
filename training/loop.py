"""The training loop. It knows no model, no GPU and no file: only the order of things."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar

from training.config.schema import LoopConfig
from training.engine.step import SourceLoss, StepResult
from training.errors import NumericError
from training.metrics.record import StepRecord
from training.progress import Progress

Batch = TypeVar("Batch")
Batch_contra = TypeVar("Batch_contra", contravariant=True)
Batch_co = TypeVar("Batch_co", covariant=True)


class StopReason(Enum):
    """Why the loop returned."""

    FINISHED = "finished"
    STOPPED = "stopped"


class Engine(Protocol[Batch_contra]):
    """Runs forward, backward and the optimizer."""

    def train_step(
        self, micro_batches: Sequence[Batch_contra], *, learning_rate: float, samples_seen: int
    ) -> StepResult:
        """Do one optimizer step on this rank's micro-batches."""


class BatchStream(Protocol[Batch_co]):
    """Gives this rank's micro-batches of one step after the other."""

    data_wait_seconds: float
    """How long the last ``next`` had to wait."""

    def __iter__(self) -> Iterator[Sequence[Batch_co]]:
        """Start at the run's position."""


class Checkpoints(Protocol):
    """Keeps the run's progress on disk."""

    def save(self, progress: Progress, *, final: bool) -> None:
        """Begin to write engine and progress; a final save returns once a crash could not lose them."""

    def settle(self) -> None:
        """Tell what became of the save on its way, if that is known by now. Collective."""


class Metrics(Protocol):
    """Where numbers and events go."""

    def log(self, record: StepRecord) -> None:
        """Record one step."""

    def event(self, kind: str, **facts: object) -> None:
        """Record something that happened."""


class StopFlag(Protocol):
    """The wish that we end soon."""

    def is_set(self) -> bool:
        """Give the same answer on every rank."""


@dataclass(frozen=True, slots=True)
class Parts(Generic[Batch]):
    """What the loop drives; the worker builds it, tests fake it."""

    batches: BatchStream[Batch]
    engine: Engine[Batch]
    checkpoints: Checkpoints
    metrics: Metrics
    stop: StopFlag
    sources: Sequence[str]
    """Names of the corpus' sources, in the order of their numbers."""

    learning_rate_at: Callable[[int], float]
    memory_peak_bytes: Callable[[], int]


def train(parts: Parts[Batch], config: LoopConfig, progress: Progress) -> tuple[StopReason, Progress]:
    """Step until ``max_steps`` or a stop request; the last step is always saved.

    Returns:
        Why it ended, and how far the run is.

    Raises:
        NumericError: The loss is not finite.
        StorageError: The last checkpoint could not be written.
    """
    batches = iter(parts.batches)
    stall = 0.0
    while progress.step < config.max_steps:
        started = time.perf_counter()
        rate = parts.learning_rate_at(progress.step)
        result = parts.engine.train_step(
            next(batches), learning_rate=rate, samples_seen=progress.samples_seen
        )
        progress = Progress(step=progress.step + 1, samples_seen=progress.samples_seen + result.samples)
        _check_finite(result, progress.step)
        parts.metrics.log(
            StepRecord(
                step=progress.step,
                samples_seen=progress.samples_seen,
                loss=result.loss,
                loss_by_source=name_losses(parts.sources, result.by_source),
                learning_rate=rate,
                grad_norm=result.grad_norm,
                tokens=result.tokens,
                targets=result.targets,
                step_seconds=time.perf_counter() - started,
                data_wait_seconds=parts.batches.data_wait_seconds,
                checkpoint_stall_seconds=stall,
                memory_peak_bytes=parts.memory_peak_bytes(),
            )
        )
        stopping = parts.stop.is_set()
        ending = stopping or progress.step == config.max_steps
        parts.checkpoints.settle()
        stall = 0.0
        if ending or progress.step % config.checkpoint_every_steps == 0:
            stall = _save(parts, progress, final=ending)
        if stopping and progress.step < config.max_steps:
            parts.metrics.event("preempted", step=progress.step)
            return StopReason.STOPPED, progress
    return StopReason.FINISHED, progress


def name_losses(names: Sequence[str], losses: Sequence[SourceLoss]) -> dict[str, float]:
    """Give each source's mean nats per target; one without targets in the step has none."""
    return {name: loss.nats / loss.targets for name, loss in zip(names, losses, strict=True) if loss.targets}


def _check_finite(result: StepResult, step: int) -> None:
    if not math.isfinite(result.loss) or not math.isfinite(result.grad_norm):
        raise NumericError(
            f"step {step}: loss={result.loss}, grad_norm={result.grad_norm}; lower optimizer.learning_rate "
            "or look at the documents of this step; the last checkpoint is untouched"
        )


def _save(parts: Parts[Batch], progress: Progress, *, final: bool) -> float:
    """Save, and give the seconds for which the training stood still."""
    started = time.perf_counter()
    parts.checkpoints.save(progress, final=final)
    return time.perf_counter() - started
