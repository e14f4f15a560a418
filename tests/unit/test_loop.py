"""The loop, with fakes for all it drives."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from training.config.schema import LoopConfig
from training.engine.step import SourceLoss, StepResult
from training.errors import NumericError, StorageError
from training.loop import Parts, StopReason, train
from training.metrics.record import StepRecord
from training.progress import Progress

START = Progress(step=0, samples_seen=0)
CONFIG = LoopConfig(
    max_steps=7, log_every_steps=2, checkpoint_every_steps=3, keep_checkpoints=2, keep_every_steps=None
)


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
    logged: list[StepRecord] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    data_wait_seconds: float = 0.0

    def __iter__(self) -> Iterator[list[int]]:
        position = self.start
        while True:
            yield [position]
            position += 1

    def train_step(
        self, micro_batches: Sequence[int], *, learning_rate: float, samples_seen: int
    ) -> StepResult:
        self.trained.extend(micro_batches)
        self.rates.append(learning_rate)
        assert samples_seen == 8 * micro_batches[0]
        loss = self.losses.get(micro_batches[0], 1.0)
        parts = (SourceLoss(8 * loss, 8), SourceLoss(0.0, 0), SourceLoss(48 * loss, 24))
        return StepResult(loss=loss, grad_norm=1.0, samples=8, tokens=64, targets=32, by_source=parts)

    def save(self, progress: Progress, *, final: bool) -> None:
        if progress.step in self.failing_saves and final:
            raise StorageError("no space")
        self.saved.append(progress)
        self.final.append(final)

    def settle(self) -> None:
        self.settled += 1

    def log(self, record: StepRecord) -> None:
        self.logged.append(record)

    def event(self, kind: str, **facts: object) -> None:
        self.events.append(kind)

    def is_set(self) -> bool:
        return len(self.trained) >= self.stop_after

    def parts(self) -> Parts[int]:
        return Parts(
            batches=self,
            engine=self,
            checkpoints=self,
            metrics=self,
            stop=self,
            sources=["law", "medicine", "replay"],
            learning_rate_at=float,
            memory_peak_bytes=lambda: 0,
        )


def test_every_step_is_logged_and_checkpoints_come_when_due_and_at_the_end() -> None:
    fake = Fake()

    reason, progress = train(fake.parts(), CONFIG, START)

    assert reason is StopReason.FINISHED
    assert progress == Progress(step=7, samples_seen=56)
    assert [record.step for record in fake.logged] == [1, 2, 3, 4, 5, 6, 7]
    assert [saved.step for saved in fake.saved] == [3, 6, 7]
    assert fake.final == [False, False, True]
    assert fake.settled == 7, "what became of a save is asked for at every step"
    assert fake.rates == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_the_loss_of_each_source_is_logged_by_name_where_it_has_targets() -> None:
    fake = Fake(losses={1: 3.0})

    train(fake.parts(), CONFIG, START)

    assert fake.logged[0].loss_by_source == {"law": 1.0, "replay": 2.0}
    assert fake.logged[1].loss_by_source == {"law": 3.0, "replay": 6.0}


@pytest.mark.parametrize("interrupted_at", range(1, 7))
def test_an_interrupted_run_trains_what_an_uninterrupted_one_does(interrupted_at: int) -> None:
    first = Fake(stop_after=interrupted_at)

    reason, progress = train(first.parts(), CONFIG, START)
    second = Fake(start=progress.step)
    train(second.parts(), CONFIG, progress)

    assert reason is StopReason.STOPPED
    assert first.saved[-1] == progress
    assert first.trained + second.trained == list(range(7))
    assert first.rates + second.rates == [float(step) for step in range(7)]
    assert second.saved[-1] == Progress(step=7, samples_seen=56)


def test_a_run_whose_last_save_fails_does_not_end_as_finished() -> None:
    fake = Fake(failing_saves={7})

    with pytest.raises(StorageError, match="no space"):
        train(fake.parts(), CONFIG, START)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(value: float) -> None:
    fake = Fake(losses={2: value})

    with pytest.raises(NumericError, match="step 3: loss="):
        train(fake.parts(), CONFIG, START)
    assert fake.saved == []


def test_a_finished_run_trains_no_further() -> None:
    fake = Fake(start=7)

    assert train(fake.parts(), CONFIG, Progress(step=7, samples_seen=56)) == (
        StopReason.FINISHED,
        Progress(step=7, samples_seen=56),
    )
    assert fake.trained == []
