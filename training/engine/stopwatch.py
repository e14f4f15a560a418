"""How long the parts of a step take, compiling apart, without making a GPU wait."""

import time
from collections import defaultdict
from collections.abc import Callable

import torch


class Stopwatch:
    """Measures laps; on a GPU by events in its queue: what the device needed, not the call that asked.

    While the host compiles the device waits in its queue, so that its time has to be taken out in any case.
    """

    def __init__(self, device: torch.device, compiled_seconds: Callable[[], float]) -> None:
        """Start.

        Args:
            device: Whose time is measured.
            compiled_seconds: Gives how long this process has spent compiling so far.
        """
        self._on_gpu = device.type == "cuda"
        self._compiled_seconds = compiled_seconds
        self._start = self._now()
        self._compiled_at_start = compiled_seconds()
        self._laps: list[tuple[str | None, float | torch.cuda.Event, float]] = []

    def lap(self, name: str | None) -> None:
        """Count what passed since the last lap under ``name``, or nowhere."""
        self._laps.append((name, self._now(), self._compiled_seconds()))

    def seconds(self) -> dict[str, float]:
        """Sum the laps of each name, and what was spent compiling; on a GPU this waits for the last one."""
        sums: dict[str, float] = defaultdict(float)
        before, compiled_before = self._start, self._compiled_at_start
        for name, now, compiled in self._laps:
            sums["compile"] += compiled - compiled_before
            if name is not None:
                sums[name] += max(0.0, self._between(before, now) - (compiled - compiled_before))
            before, compiled_before = now, compiled
        return sums

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    @staticmethod
    def _between(before: float | torch.cuda.Event, now: float | torch.cuda.Event) -> float:
        if isinstance(before, torch.cuda.Event) and isinstance(now, torch.cuda.Event):
            now.synchronize()
            return float(before.elapsed_time(now)) / 1000
        return float(now) - float(before)  # type: ignore[arg-type]
