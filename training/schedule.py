"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from training.config.learning import OptimizerConfig, ScheduleConfig


def learning_rate_at(
    step: int, *, optimizer: OptimizerConfig, schedule: ScheduleConfig, max_steps: int
) -> float:
    """Give the learning rate with which optimizer step number ``step`` (0-based) of this run is taken.

    With W = ``warmup_steps``, N the length of the whole schedule, f = ``final_fraction`` and s the step's
    number in the whole schedule, from 0, the rate is the peak times:

    * s < W: (s + 1) / W. No step has the rate 0, and the warm-up's last one has the peak.
    * cosine and linear: f + (1 - f) x shape(p), where p = (s - W) / (N - W), and shape(p) = 1 - p for linear
      and (1 + cos(pi p)) / 2 for cosine (arXiv:1608.03983).
    * wsd: 1 until the last ``decay_steps``, D, then linear with p = (s - (N - D)) / D (arXiv:2404.06395).
    * inverse_sqrt: sqrt(W / (s + 1)), at least f.

    So a decay arrives at f where the schedule ends: it is the rate of a step N that is not taken, and with
    f = 0 no step is thrown away. transformers' get_linear_schedule_with_warmup counts its decay so as well.
    N is ``total_steps``, or else where this run ends.
    """
    return optimizer.learning_rate * _factor(
        schedule.first_step + step, schedule, schedule_length(schedule, max_steps)
    )


def schedule_length(schedule: ScheduleConfig, max_steps: int) -> int:
    """Count the steps of the whole schedule, those before this run included."""
    return schedule.total_steps or schedule.first_step + max_steps


def _factor(step: int, schedule: ScheduleConfig, length: int) -> float:
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    match schedule.kind:
        case "constant":
            return 1.0
        case "inverse_sqrt":
            # 1 at the warm-up's last step, or at the very first.
            falling = math.sqrt(max(schedule.warmup_steps, 1) / (step + 1))
            return max(falling, schedule.final_fraction)
        case "wsd":
            first = length - schedule.decay_steps
        case "cosine" | "linear":
            first = schedule.warmup_steps
    if step < first:
        return 1.0
    passed = (step - first) / (length - first)
    shape = 1 - passed if schedule.kind != "cosine" else (1 + math.cos(math.pi * passed)) / 2
    return schedule.final_fraction + (1 - schedule.final_fraction) * shape
