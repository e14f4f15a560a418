"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from training.config.learning import OptimizerConfig, ScheduleConfig


def learning_rate_at(
    step: int, *, optimizer: OptimizerConfig, schedule: ScheduleConfig, max_steps: int
) -> float:
    """Give the learning rate with which optimizer step number ``step`` (0-based) of this run is taken.

    The warm-up rises linearly and reaches the peak with its last step. The decay reaches
    ``final_fraction`` of the peak with the last step of the schedule, which is this run's own unless
    ``total_steps`` says otherwise. wsd is warm-up, stable, decay (arXiv:2404.06395), its decay linear.
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
    # The peak itself is the step before the first of the decay, unless there is none.
    passed = (step + 1 - first) / (length - first)
    shape = 1 - passed if schedule.kind != "cosine" else (1 + math.cos(math.pi * passed)) / 2
    return schedule.final_fraction + (1 - schedule.final_fraction) * shape
