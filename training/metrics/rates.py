"""Rates: pure numbers."""


def find_tokens_per_second(tokens: int, seconds: float) -> float:
    """Divide real tokens (no padding) by wall time; 0 when no time passed."""
    return tokens / seconds if seconds > 0 else 0.0


def find_mfu(
    tokens_per_second: float, flops_per_token: float | None, peak_flops: float | None, world_size: int
) -> float | None:
    """Give the model FLOPs utilisation as a fraction of the dense peak (PaLM, arXiv:2204.02311, appendix B).

    Args:
        tokens_per_second: Real tokens of all ranks per second.
        flops_per_token: Model FLOPs per token, forward and backward, nothing computed twice.
        peak_flops: Dense peak of one device in FLOP/s.
        world_size: Devices at work.

    Returns:
        A fraction 0..1; None where the FLOPs or the peak are unknown.
    """
    if flops_per_token is None or peak_flops is None:
        return None
    return tokens_per_second * flops_per_token / (peak_flops * world_size)


def find_seconds_left(seconds_per_step: float, step: int, max_steps: int) -> float:
    """Extrapolate to the end of the run."""
    return max(0, max_steps - step) * seconds_per_step


def say_duration(seconds: float) -> str:
    """Write a duration as a person would: ``42s``, ``2m05s``, ``3h07m``, ``4d06h``."""
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"
