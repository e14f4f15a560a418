"""What the loop knows about one step, and the line that the journal keeps of it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from training.metrics.rates import find_mfu, find_tokens_per_second
from training.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer step, reduced over all ranks."""

    step: int
    """Optimizer steps done, this one included."""

    samples_seen: int
    """Samples consumed over the whole run, all ranks."""

    loss: float
    """Mean nats per target token."""

    loss_by_source: dict[str, float]
    """The same of each source that has targets in this step."""

    learning_rate: float
    """The rate this step was taken with."""

    grad_norm: float
    """Global L2 norm before clipping."""

    tokens: int
    """Tokens of all ranks in this step, padding not counted."""

    targets: int
    """Target tokens of all ranks in this step."""

    step_seconds: float
    """Wall time of the whole step, waiting for data included, saving a checkpoint and compiling not."""

    data_wait_seconds: float
    """Part of ``step_seconds`` spent waiting for the next batch."""

    checkpoint_stall_seconds: float
    """Wall time that saving took from the training since the last step; not part of ``step_seconds``."""

    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    optimizer_seconds: float = 0.0
    """Parts of ``step_seconds``, as ``training.engine.step.StepSeconds`` explains them."""

    compile_seconds: float = 0.0
    """Wall time that the lead rank spent compiling in this step; not part of ``step_seconds``. Where it waits
    for another rank that compiles longer, that is part of it."""

    collectives_seconds: float = 0.0
    """Time since the last step in the collectives that we call ourselves (counts, norms, verdicts, the stop
    signal), the slowest rank's delay included. Gradients and gathered parameters are not among them."""

    evaluation_seconds: float = 0.0
    """Wall time of measuring the held-out loss after this step; not part of ``step_seconds``."""

    logging_seconds: float = 0.0
    """Wall time of keeping and showing the step before this one; not part of ``step_seconds``."""

    skipped: str | None = None
    """Why the step's update was not applied; None: it was."""

    skipped_steps: int = 0
    """Steps of the run so far whose update was not applied."""

    held_out_loss: float | None = None
    """Mean nats per target of held-out documents after this step; None: not measured."""

    held_out_loss_by_source: dict[str, float] | None = None

    slowest_rank: int | None = None
    """At the end of each window of cluster.watch.slow_window_steps: whose own share of steps took longest."""

    slowest_rank_factor: float | None = None
    """Its median over the window, as a multiple of that of the other ranks."""

    memory_peak_bytes: int
    """Highest memory of the lead rank's device, or of its process on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What turns tokens per second into rates per GPU and a fraction of the peak."""

    world_size: int
    flops_per_token: float | None
    peak_flops: float | None
    """Dense peak of one device, FLOP/s; None when unknown, and then there is no mfu."""


class MetricsSink(Protocol):
    """Where the loop's numbers go. Nothing here ever raises or blocks the training."""

    def log(self, record: StepRecord) -> None:
        """Keep one step."""

    def answer(self, progress: Progress, facts: Mapping[str, object]) -> None:
        """Keep what the model answered to a held-out question after a step."""

    def rewind(self, progress: Progress) -> None:
        """Take back what was kept of steps that the weights do not remember: the run goes on from here."""

    def event(self, kind: str, **facts: object) -> None:
        """Keep something that happened beside the steps, with its facts."""

    def close(self) -> None:
        """Write out what is pending, within a bounded time."""


def journal_line(record: StepRecord, hardware: Hardware, *, time: float, incarnation: int) -> dict[str, Any]:
    """Lay out one step in the words of metrics.jsonl; a number that is not finite becomes null.

    Args:
        record: The step.
        hardware: What the rates refer to; ``mfu`` is absent when the device's peak is unknown.
        time: Seconds since 1970.
        incarnation: Which start of the run took this step.
    """
    tokens_per_second = find_tokens_per_second(record.tokens, record.step_seconds)
    mfu = find_mfu(tokens_per_second, hardware.flops_per_token, hardware.peak_flops, hardware.world_size)
    # What most steps do not have is left out of their lines.
    told = {key: value for key, value in asdict(record).items() if value is not None}
    line = told | {
        "tokens_per_second": tokens_per_second,
        "tokens_per_second_per_gpu": tokens_per_second / hardware.world_size,
        **({} if mfu is None else {"mfu": mfu}),
        "time": round(time, 3),
        "incarnation": incarnation,
    }
    return {key: _plain(value) for key, value in line.items()}


def _plain(value: Any) -> Any:
    # JSON knows neither NaN nor infinity.
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
