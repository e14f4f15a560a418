"""What the loop drives: the worker builds these parts, tests fake them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from training.early_stop import HeldOutLoss
from training.engine.step import Accept, StepResult
from training.metrics.record import StepRecord
from training.progress import Progress
from training.pulse.beat import Pulse
from training.pulse.pace import Pace

Batch = TypeVar("Batch")
Batch_contra = TypeVar("Batch_contra", contravariant=True)
Batch_co = TypeVar("Batch_co", covariant=True)


class Engine(Protocol[Batch_contra]):
    """Runs forward, backward and the optimizer."""

    def train_step(
        self,
        micro_batches: Sequence[Batch_contra],
        *,
        learning_rate: float,
        samples_seen: int,
        accept: Accept,
    ) -> StepResult:
        """Do one optimizer step on this rank's micro-batches, unless ``accept`` refuses what came out."""


class BatchStream(Protocol[Batch_co]):
    """Gives this rank's micro-batches of one step after the other."""

    data_wait_seconds: float
    """How long the last ``next`` had to wait."""

    def __iter__(self) -> Iterator[Sequence[Batch_co]]:
        """Start at the run's position."""


class Checkpoints(Protocol):
    """Keeps the run's progress on disk."""

    def save(self, progress: Progress, *, final: bool, score: float | None) -> None:
        """Begin to write engine and progress; a final save returns once a crash could not lose them.

        ``score`` is the held-out loss at this very step, where it was measured: lower is better.
        """

    def wait_until_copied(self) -> None:
        """Return once the engine's state may change, of which a save on its way may still take a copy."""

    def settle(self) -> None:
        """Tell what became of the save on its way, if that is known by now. Collective."""

    def resume(self, *, every: int = 1) -> Progress:
        """Load the newest checkpoint of a step that ``every`` divides; step 0 where there is none."""


class Metrics(Protocol):
    """Where numbers and events go."""

    def log(self, record: StepRecord) -> None:
        """Record one step."""

    def rewind(self, progress: Progress) -> None:
        """Take back what was recorded of steps that the weights do not remember any more."""

    def event(self, kind: str, **facts: object) -> None:
        """Record something that happened."""


class StopFlag(Protocol):
    """The wish that we end soon."""

    def is_set(self) -> bool:
        """Give the same answer on every rank."""


@dataclass(frozen=True, slots=True)
class Parts(Generic[Batch]):
    """All of them."""

    batches: BatchStream[Batch]
    engine: Engine[Batch]
    checkpoints: Checkpoints
    metrics: Metrics
    stop: StopFlag
    pulse: Pulse
    pace: Pace
    sources: Sequence[str]
    """Names of the corpus' sources, in the order of their numbers."""

    learning_rate_at: Callable[[int], float]
    memory_peak_bytes: Callable[[], int]
    blame: Callable[[Sequence[Batch], int], list[str]]
    """Names the documents of this step's batches, at a position, that look worst. Collective."""

    tell_memory: Callable[[], None]
    """Says what the tensors of each rank hold, once an update has made them all. Collective."""

    measure_held_out: Callable[[Progress], HeldOutLoss]
    """Measures the loss of held-out documents, and has some of them answered. Collective."""

    take_blocked_seconds: Callable[[], float]
    """Gives the seconds spent in our own collectives since it was asked last."""
