"""Numbers as people read them: pure."""

import itertools
from collections.abc import Sequence

from training.metrics.rates import say_duration

NOTHING = "-"
_BARS = "▁▂▃▄▅▆▇█"


def say_number(value: float | None, form: str) -> str:
    """Write a number, or that there is none."""
    return NOTHING if value is None else format(value, form)


def say_seconds(value: float | None) -> str:
    """Write a duration, or that there is none."""
    return NOTHING if value is None else say_duration(max(0.0, value))


def say_step(step: int | None, max_steps: int | None) -> str:
    """Write how far a run is."""
    of = "" if max_steps is None else f"/{max_steps}"
    return f"{NOTHING if step is None else step}{of}"


def draw_line(values: Sequence[float], width: int) -> str:
    """Draw numbers as a line of small bars, the highest full; each bar is the mean of its share of them."""
    if not values:
        return ""
    count = min(width, len(values))
    bounds = [len(values) * place // count for place in range(count + 1)]
    means = [sum(values[first:last]) / (last - first) for first, last in itertools.pairwise(bounds)]
    low, high = min(means), max(means)
    reach = (high - low) or 1.0
    return "".join(_BARS[round((mean - low) / reach * (len(_BARS) - 1))] for mean in means)
