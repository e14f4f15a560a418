"""Fakes for all that the loop drives, which remember their calls."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from training.config.schema import LoopConfig
from training.early_stop import HeldOutLoss
from training.engine.step import Accept, SourceLoss, StepResult, StepSeconds
from training.errors import StorageError
from training.metrics.record import StepRecord
from training.parts import Parts
from training.progress import Progress
from training.pulse.heart import Phase
from training.pulse.pace import Slow

START = Progress(step=0, samples_seen=0)
CONFIG = LoopConfig(
    max_steps=7,
    log_every_steps=2,
    checkpoint_every_steps=3,
    keep_checkpoints=2,
    keep_every_steps=None,
    max_skipped_in_a_row=2,
    spike="none",
    spike_measure="loss",
    spike_window_steps=2,
    spike_deviations=10,
    evaluate_every_steps=None,
    held_out_documents=1,
    sample_documents=0,
    sample_tokens=1,
    sample_temperature=0.0,
    sample_top_p=1.0,
    patience=None,
    min_change=0.0,
)


def changed(**settings: object) -> LoopConfig:
    return CONFIG.model_copy(update=settings)


NAN = float("nan")


@dataclass
class Fake:
    """A stream, an engine, a checkpoint store, metrics and a stop flag that remember their calls."""

    start: int = 0
    stop_after: int = 10**9
    failing_saves: set[int] = field(default_factory=set)
    losses: dict[int, float] = field(default_factory=dict)
    trained: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    saved: list[Progress] = field(default_factory=list)
    final: list[bool] = field(default_factory=list)
    settled: int = 0
    phases: list[tuple[Phase, int]] = field(default_factory=list)
    slow: dict[int, Sequence[Slow]] = field(default_factory=dict)
    waited: list[int] = field(default_factory=list)
    slow_copy: float = 0.0
    logged: list[StepRecord] = field(default_factory=list)
    rewound: list[Progress] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    loaded: list[Progress] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    facts: list[dict[str, object]] = field(default_factory=list)
    told_memory: list[int] = field(default_factory=list)
    applied: list[int] = field(default_factory=list)
    data_wait_seconds: float = 0.0
    compiling: dict[int, float] = field(default_factory=dict)
    """Seconds that a step spends compiling, beside the one second that it takes."""

    now: float = 0.0

    def __iter__(self) -> Iterator[list[int]]:
        position = self.start
        while True:
            yield [position]
            position += 1

    def train_step(
        self, micro_batches: Sequence[int], *, learning_rate: float, samples_seen: int, accept: Accept
    ) -> StepResult:
        self.trained.extend(micro_batches)
        self.rates.append(learning_rate)
        assert samples_seen == 8 * micro_batches[0]
        loss = self.losses.get(micro_batches[0], 1.0)
        parts = (SourceLoss(8 * loss, 8), SourceLoss(0.0, 0), SourceLoss(48 * loss, 24))
        result = StepResult(loss=loss, grad_norm=1.0, samples=8, tokens=64, targets=32, by_source=parts)
        compiling = self.compiling.get(micro_batches[0], 0.0)
        result = replace(result, seconds=StepSeconds(forward=0.5, compile=compiling))
        self.now += 1 + compiling
        if accept(result):
            self.applied.extend(micro_batches)
        return result

    def save(self, progress: Progress, *, final: bool, score: float | None) -> None:
        if progress.step in self.failing_saves and final:
            raise StorageError("no space")
        self.saved.append(progress)
        self.final.append(final)
        self.scores.append(score)

    def wait_until_copied(self) -> None:
        self.waited.append(len(self.applied))
        time.sleep(self.slow_copy)

    def settle(self) -> None:
        self.settled += 1

    def resume(self, *, every: int = 1) -> Progress:
        regular = [saved for saved in self.saved if saved.step % every == 0]
        self.loaded.append(regular[-1] if regular else START)
        return self.loaded[-1]

    def measure(self, progress: Progress) -> HeldOutLoss:
        loss = self.held_out.pop(0)
        return HeldOutLoss(loss=loss, by_source={"law": loss}, seconds=0.0)

    def log(self, record: StepRecord) -> None:
        self.logged.append(record)

    def rewind(self, progress: Progress) -> None:
        self.rewound.append(progress)

    def event(self, kind: str, **facts: object) -> None:
        self.events.append(kind)
        self.facts.append(facts)

    def enter(self, phase: Phase, step: int) -> None:
        self.phases.append((phase, step))

    def claim(self, incarnation: int) -> None: ...

    def tell_own(self, seconds: float) -> None: ...

    def close(self) -> None: ...

    def begin_step(self) -> None: ...

    def end_step(self, step: int, seconds: float, device_seconds: float | None) -> Sequence[Slow]:
        return self.slow.get(step, ())

    def is_set(self) -> bool:
        return len(self.trained) >= self.stop_after

    def parts(self) -> Parts[int]:
        return Parts(
            batches=self,
            engine=self,
            checkpoints=self,
            metrics=self,
            stop=self,
            pulse=self,
            pace=self,
            sources=["law", "medicine", "replay"],
            learning_rate_at=float,
            memory_peak_bytes=lambda: 0,
            blame=lambda batches, position: [f"document {batches[0]}", f"at {position}"],
            tell_memory=lambda: self.told_memory.append(len(self.trained)),
            measure_held_out=self.measure,
            take_blocked_seconds=lambda: 0.25,
        )
