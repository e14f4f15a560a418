"""Which rank is slower than the others: pure arithmetic on each rank's own share of its steps."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowness:
    """One rank's own time, as a multiple of that of the others."""

    rank: int
    factor: float


def find_factors(own_seconds: Sequence[float]) -> list[Slowness]:
    """Compare each rank with the median of the others; the slowest first.

    Args:
        own_seconds: Of each rank, in rank order: time of a step in which it did not wait for another.

    Returns:
        One for each rank; none where there is only one rank, or nothing was measured.
    """
    if len(own_seconds) < 2 or min(own_seconds) <= 0:  # noqa: PLR2004
        return []
    found = []
    for rank, own in enumerate(own_seconds):
        others = [*own_seconds[:rank], *own_seconds[rank + 1 :]]
        found.append(Slowness(rank=rank, factor=own / statistics.median(others)))
    return sorted(found, key=lambda each: (-each.factor, each.rank))
