"""How fast each rank does its own share: gathered once in a window of steps, so that a slow one is named."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from training.collectives import sum_over_ranks
from training.pulse.limits import Watching
from training.pulse.slow import find_factors
from training.ranks import Ranks
from training.waits import WAITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """The slowest rank of a window."""

    rank: int
    node: str
    factor: float
    """Its own time as a multiple of the median of the others'."""

    is_slow: bool
    """Whether that is more than the run allows."""


class Pace(Protocol):
    """Measures a rank's own share of its steps."""

    def begin_step(self) -> None:
        """Begin to measure."""

    def end_step(self, step: int, seconds: float, device_seconds: float | None) -> Sequence[Slow]:
        """Give the slowest rank, and others that are too slow, at the end of each window. Collective there.

        Args:
            step: Optimizer steps done.
            seconds: Wall time of the step.
            device_seconds: Where the ranks wait for each other on the device, and not in the main thread: its
                time for work that nobody else takes part in, and the wait for data.
        """


class NoPace:
    """Of a run that nobody watches."""

    def begin_step(self) -> None:
        """Do nothing."""

    def end_step(self, step: int, seconds: float, device_seconds: float | None) -> Sequence[Slow]:
        """Name nobody."""
        return ()


class WindowPace:
    """Takes a median over each window of steps.

    Wall time counts, not the processor's: a rank that is paused, or has to share its cores, uses no more
    processor time than the others. What it waits for other ranks is taken off: all ranks of a step take the
    same time from edge to edge, and the slow one is the one that does not wait.
    """

    def __init__(
        self,
        watching: Watching,
        ranks: Ranks,
        nodes: Sequence[str],
        device: torch.device,
        tell: Callable[[float], None],
    ) -> None:
        """Measure on ``device``; ``nodes`` are the ranks' hosts, in rank order; ``tell`` hears our own."""
        self._watching = watching
        self._ranks = ranks
        self._nodes = nodes
        self._device = device
        self._tell = tell
        self._own: list[float] = []
        self._waited = 0.0

    def begin_step(self) -> None:
        """Begin to measure."""
        self._waited = WAITS.seconds

    def end_step(self, step: int, seconds: float, device_seconds: float | None) -> Sequence[Slow]:
        """Give the slowest rank, and others that are too slow, at the end of each window."""
        if self._device.type == "cpu":
            self._own.append(seconds - (WAITS.seconds - self._waited))
        elif device_seconds is not None:
            self._own.append(device_seconds)
        if step % self._watching.slow_window_steps:
            return ()
        own = statistics.median(self._own) if self._own else 0.0
        whole = 2 * len(self._own) > self._watching.slow_window_steps
        self._own.clear()
        if not whole:
            return ()  # a start in the middle of a window: its first steps are like no others
        self._tell(own)
        table = [0.0] * self._ranks.world_size
        table[self._ranks.rank] = own
        found = [
            Slow(
                rank=each.rank,
                node=self._nodes[each.rank],
                factor=each.factor,
                is_slow=each.factor > self._watching.slow_factor,
            )
            for each in find_factors(sum_over_ranks(table, self._device))
        ]
        return [*found[:1], *(each for each in found[1:] if each.is_slow)]
