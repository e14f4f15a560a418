"""The training loop. It knows no model, no GPU and no file: only the order of things."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Generic

from training.config.schema import LoopConfig
from training.early_stop import HeldOutLoss, is_stale, remember_held_out
from training.engine.step import SourceLoss, StepResult
from training.errors import NumericError
from training.guard import Verdict, judge, remember, roll_back_memory
from training.metrics.record import StepRecord
from training.parts import Batch, Parts
from training.progress import Progress
from training.pulse.pace import Slow


class StopReason(Enum):
    """Why the loop returned."""

    FINISHED = "finished"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken(Generic[Batch]):
    """One step, applied or not."""

    micro_batches: Sequence[Batch]
    position: int
    """Of the step's first sample."""

    learning_rate: float
    result: StepResult
    verdict: Verdict
    seconds: float
    """Without what was spent compiling."""

    stall_seconds: float
    """For which the update waited until a save had its copy; not part of ``seconds``."""


@dataclass(slots=True)
class _Beside:
    """Seconds that were spent beside the steps since the last one was told."""

    checkpoint: float = 0.0
    logging: float = 0.0


def train(parts: Parts[Batch], config: LoopConfig, progress: Progress) -> tuple[StopReason, Progress]:
    """Step until ``max_steps``, an early stop or a stop request; the last step is always saved.

    Returns:
        Why it ended, and how far the run is.

    Raises:
        NumericError: Too many steps in a row were not fit to be applied, or a spike shall stop the run.
        StorageError: The last checkpoint could not be written.
    """
    if not _is_finished(progress, config) and parts.stop.is_set():
        return StopReason.STOPPED, progress  # asked while the parts were built: nothing new to save
    batches = iter(parts.batches)
    beside = _Beside()
    memory_told = False
    while not _is_finished(progress, config):
        taken, progress = _take_step(parts, batches, progress, config)
        slowest = _find_slowest(parts, taken, progress)
        if not memory_told and taken.verdict.action == "apply":
            parts.tell_memory()
            memory_told = True
        progress, held_out = _evaluate(parts, progress, config)
        _log(parts, _record(parts, progress, taken, held_out, beside, slowest), beside)
        if taken.verdict.action != "apply":
            earlier = _answer(parts, progress, taken, config)
            if earlier is not None:
                progress = earlier
                continue
        stopping, finished = parts.stop.is_set(), _is_finished(progress, config)
        parts.checkpoints.settle()
        if stopping or finished or progress.step % config.checkpoint_every_steps == 0:
            score = held_out.loss if held_out else None
            beside.checkpoint = _save(parts, progress, score, final=stopping or finished)
        if stopping and not finished:
            return StopReason.STOPPED, progress
    if progress.step < config.max_steps:
        best = progress.memory.best_held_out_loss
        parts.metrics.event("stopped_early", step=progress.step, best_held_out_loss=best)
    return StopReason.FINISHED, progress


def name_losses(names: Sequence[str], losses: Sequence[SourceLoss]) -> dict[str, float]:
    """Give each source's mean nats per target; one without targets in the step has none."""
    return {name: loss.nats / loss.targets for name, loss in zip(names, losses, strict=True) if loss.targets}


def _is_finished(progress: Progress, config: LoopConfig) -> bool:
    return progress.step >= config.max_steps or is_stale(progress.memory, config)


def _take_step(
    parts: Parts[Batch], batches: Iterator[Sequence[Batch]], progress: Progress, config: LoopConfig
) -> tuple[_Taken[Batch], Progress]:
    """Do the next step, and judge it before it is applied."""
    parts.pulse.enter("step", progress.step + 1)
    parts.pace.begin_step()
    started, stalled = time.perf_counter(), 0.0

    def accept(result: StepResult) -> bool:
        nonlocal stalled
        if judge(result, progress.memory, config).action != "apply":
            return False
        before = time.perf_counter()
        parts.checkpoints.wait_until_copied()
        stalled = time.perf_counter() - before
        return True

    micro_batches = next(batches)
    rate = parts.learning_rate_at(progress.step)
    result = parts.engine.train_step(
        micro_batches, learning_rate=rate, samples_seen=progress.samples_seen, accept=accept
    )
    taken = _Taken(
        micro_batches=micro_batches,
        position=progress.samples_seen,
        learning_rate=rate,
        result=result,
        verdict=judge(result, progress.memory, config),
        seconds=time.perf_counter() - started - stalled - result.seconds.compile,
        stall_seconds=stalled,
    )
    step = progress.step + 1
    return taken, Progress(
        step=step,
        samples_seen=progress.samples_seen + result.samples,
        memory=remember(progress.memory, step, result, taken.verdict, config),
    )


def _evaluate(
    parts: Parts[Batch], progress: Progress, config: LoopConfig
) -> tuple[Progress, HeldOutLoss | None]:
    """Measure the held-out loss where it is due, and remember whether it was a gain."""
    every = config.evaluate_every_steps
    if every is None or (progress.step % every and progress.step != config.max_steps):
        return progress, None
    parts.pulse.enter("evaluate", progress.step)
    found = parts.measure_held_out(progress)
    return replace(progress, memory=remember_held_out(progress.memory, found.loss, config)), found


def _record(
    parts: Parts[Batch],
    progress: Progress,
    taken: _Taken[Batch],
    held_out: HeldOutLoss | None,
    beside: _Beside,
    slowest: Slow | None,
) -> StepRecord:
    result = taken.result
    return StepRecord(
        step=progress.step,
        samples_seen=progress.samples_seen,
        loss=result.loss,
        loss_by_source=name_losses(parts.sources, result.by_source),
        learning_rate=taken.learning_rate,
        grad_norm=result.grad_norm,
        tokens=result.tokens,
        targets=result.targets,
        skipped=taken.verdict.reason or None,
        skipped_steps=progress.memory.skipped_steps,
        held_out_loss=held_out.loss if held_out else None,
        held_out_loss_by_source=held_out.by_source if held_out else None,
        step_seconds=taken.seconds,
        data_wait_seconds=parts.batches.data_wait_seconds,
        forward_seconds=result.seconds.count + result.seconds.forward,
        backward_seconds=result.seconds.backward,
        optimizer_seconds=result.seconds.optimizer,
        compile_seconds=result.seconds.compile,
        evaluation_seconds=held_out.seconds if held_out else 0.0,
        checkpoint_stall_seconds=beside.checkpoint + taken.stall_seconds,
        collectives_seconds=parts.take_blocked_seconds(),
        logging_seconds=beside.logging,
        memory_peak_bytes=parts.memory_peak_bytes(),
        slowest_rank=slowest.rank if slowest else None,
        slowest_rank_factor=slowest.factor if slowest else None,
    )


def _log(parts: Parts[Batch], record: StepRecord, beside: _Beside) -> None:
    started = time.perf_counter()
    parts.metrics.log(record)
    beside.checkpoint, beside.logging = 0.0, time.perf_counter() - started


def _answer(
    parts: Parts[Batch], progress: Progress, taken: _Taken[Batch], config: LoopConfig
) -> Progress | None:
    """Tell of a step that was not applied; give the progress of an earlier checkpoint if it was loaded.

    Raises:
        NumericError: The verdict is to stop.
    """
    action, reason = taken.verdict.action, taken.verdict.reason
    documents = parts.blame(taken.micro_batches, taken.position)
    facts = {"step": progress.step, "samples_seen": taken.position, "reason": reason, "documents": documents}
    if action == "stop":
        parts.metrics.event("step_refused", **facts)
        raise NumericError(
            f"step {progress.step}: {reason}; look at {', '.join(documents)} or lower "
            "optimizer.learning_rate; nothing of this step was applied and what was saved before is untouched"
        )
    earlier = _roll_back(parts, progress, config) if action == "roll_back" else None
    if earlier is None or earlier.step == 0:
        parts.metrics.event("step_skipped", **facts)
        return None
    parts.metrics.event("rolled_back", **facts, to_step=earlier.step)
    parts.metrics.rewind(earlier)
    memory = roll_back_memory(earlier.memory, progress.memory)
    # The stream goes on where it is: past the data that the spike came from.
    return Progress(step=earlier.step, samples_seen=progress.samples_seen, memory=memory)


def _roll_back(parts: Parts[Batch], progress: Progress, config: LoopConfig) -> Progress:
    parts.pulse.enter("start", progress.step)
    return parts.checkpoints.resume(every=config.checkpoint_every_steps)


def _find_slowest(parts: Parts[Batch], taken: _Taken[Batch], progress: Progress) -> Slow | None:
    """Name the slowest rank where a window of steps ends; tell of those that are too slow."""
    alone = taken.result.seconds.alone
    device_seconds = None if alone is None else alone + parts.batches.data_wait_seconds
    found = parts.pace.end_step(progress.step, taken.seconds, device_seconds)
    for slow in found:
        if slow.is_slow:
            facts = {"rank": slow.rank, "node": slow.node, "factor": round(slow.factor, 3)}
            parts.metrics.event("slow_rank", step=progress.step, **facts)
    return found[0] if found else None


def _save(parts: Parts[Batch], progress: Progress, score: float | None, *, final: bool) -> float:
    """Save, and give the seconds for which the training stood still."""
    started = time.perf_counter()
    parts.pulse.enter("save", progress.step)
    parts.checkpoints.save(progress, final=final, score=score)
    return time.perf_counter() - started
