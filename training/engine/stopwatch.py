"""How long the parts of a step take, without making a GPU wait."""

import time
from collections import defaultdict

import torch


class Stopwatch:
    """Measures laps; on a GPU by events in its queue: what the device needed, not the call that asked."""

    def __init__(self, device: torch.device) -> None:
        """Start."""
        self._on_gpu = device.type == "cuda"
        self._start = self._now()
        self._laps: list[tuple[str | None, float | torch.cuda.Event]] = []

    def lap(self, name: str | None) -> None:
        """Count what passed since the last lap under ``name``, or nowhere."""
        self._laps.append((name, self._now()))

    def seconds(self) -> dict[str, float]:
        """Sum the laps of each name; on a GPU this waits for the last one."""
        sums: dict[str, float] = defaultdict(float)
        before = self._start
        for name, now in self._laps:
            if name is not None:
                sums[name] += self._between(before, now)
            before = now
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
