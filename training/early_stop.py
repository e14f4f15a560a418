"""When held-out documents say that a run learns nothing more: pure numbers."""

import math
from dataclasses import dataclass, replace

from training.config.schema import LoopConfig
from training.progress import Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutLoss:
    """What held-out documents say after a step; the same on every rank but for the seconds."""

    loss: float
    """Mean nats per target of all documents."""

    by_source: dict[str, float]
    """The same of each source that has targets among them."""

    seconds: float


def remember_held_out(memory: Memory, loss: float, config: LoopConfig) -> Memory:
    """Give the memory after an evaluation.

    The best loss is the least one, as it is of checkpoints. A gain is more than ``min_change`` below the last
    gain, so that small steps in one direction are a gain together.
    """
    without = replace(memory, evaluations_without_gain=memory.evaluations_without_gain + 1)
    if not math.isfinite(loss):
        return without
    best, gained = memory.best_held_out_loss, memory.gained_held_out_loss
    memory = replace(without, best_held_out_loss=loss if best is None else min(best, loss))
    if gained is None or loss < gained - config.min_change:
        return replace(memory, gained_held_out_loss=loss, evaluations_without_gain=0)
    return memory


def is_stale(memory: Memory, config: LoopConfig) -> bool:
    """Whether ``patience`` evaluations in a row brought no gain."""
    return config.patience is not None and memory.evaluations_without_gain >= config.patience
