"""Whether a step may be applied: a pure function of numbers that are the same on every rank."""

import math
import statistics
from dataclasses import dataclass, replace
from typing import Literal

from training.config.schema import LoopConfig
from training.engine.step import StepResult
from training.progress import Memory

Action = Literal["apply", "skip", "roll_back", "stop"]

NORMAL = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation (MAD)."""

LEAST_DEVIATION = 0.01
"""Of the median: numbers that hardly differ would make every next one a spike."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a step, and why."""

    action: Action
    reason: str = ""


APPLY = Verdict("apply")


def judge(result: StepResult, memory: Memory, config: LoopConfig) -> Verdict:
    """Decide before the optimizer steps.

    A loss or a gradient that is not finite is skipped. A spike, which is more than ``find_spike_limit`` of
    the last ``spike_window_steps`` applied steps, meets what ``config.spike`` says; until there are as many,
    nothing is a spike. Either stops the run when too many came before it came any further.
    """
    verdict = _look(result, memory, config)
    if verdict.action in {"skip", "roll_back"} and memory.skipped_in_a_row >= config.max_skipped_in_a_row:
        return Verdict("stop", f"{verdict.reason}, {_say_earlier(memory.skipped_in_a_row, config)}")
    return verdict


def _say_earlier(skipped: int, config: LoopConfig) -> str:
    if config.spike == "roll_back":
        # Steps that are done again are applied in between.
        return f"after {skipped} skipped steps since the run last came further than ever before"
    return f"as in the {skipped} steps in a row before it"


def find_spike_limit(recent: tuple[float, ...], deviations: float) -> float:
    """Give the highest number that is no spike: median + deviations x max(1.4826 MAD, 1 % of the median).

    MAD is the median of the distances from the median: one spike in the window moves neither.
    """
    median = statistics.median(recent)
    spread = NORMAL * statistics.median(abs(value - median) for value in recent)
    return median + deviations * max(spread, LEAST_DEVIATION * abs(median))


def remember(memory: Memory, step: int, result: StepResult, verdict: Verdict, config: LoopConfig) -> Memory:
    """Give the memory after ``step``, which was judged by ``verdict``."""
    further = step > memory.furthest_step
    memory = replace(memory, furthest_step=max(step, memory.furthest_step))
    if verdict.action != "apply":
        return replace(
            memory,
            skipped_steps=memory.skipped_steps + 1,
            skipped_in_a_row=memory.skipped_in_a_row + 1,
        )
    return replace(
        memory,
        recent=(*memory.recent, _watched(result, config))[-config.spike_window_steps :],
        # A run that does again what it was rolled back for has not got over it yet.
        skipped_in_a_row=0 if further else memory.skipped_in_a_row,
    )


def roll_back_memory(saved: Memory, now: Memory) -> Memory:
    """Forget the steps that are undone, and keep the count of what went wrong."""
    return replace(
        saved,
        skipped_steps=now.skipped_steps,
        skipped_in_a_row=now.skipped_in_a_row,
        furthest_step=now.furthest_step,
    )


def _look(result: StepResult, memory: Memory, config: LoopConfig) -> Verdict:
    if not math.isfinite(result.loss):
        return Verdict("skip", "the loss is not finite")
    if not math.isfinite(result.grad_norm):
        return Verdict("skip", "the gradient is not finite")
    if config.spike == "none" or len(memory.recent) < config.spike_window_steps:
        return APPLY
    value, limit = _watched(result, config), find_spike_limit(memory.recent, config.spike_deviations)
    if value <= limit:
        return APPLY
    return Verdict(config.spike, f"{config.spike_measure} {value:.6g} is above {limit:.6g}")


def _watched(result: StepResult, config: LoopConfig) -> float:
    return result.loss if config.spike_measure == "loss" else result.grad_norm
