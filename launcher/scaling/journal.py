"""What a run's metrics.jsonl says of its speed, the warm-up of every start left out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.metrics.lines import read_lines

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One run, over its measured steps. Seconds are those of a step, on average, as the lead rank tells."""

    steps: int
    tokens_per_second: float
    """All tokens of the measured steps over all their seconds; padding is no token."""

    mfu: float | None
    step_seconds: float
    data_wait_seconds: float
    forward_seconds: float
    backward_seconds: float
    optimizer_seconds: float
    collectives_seconds: float
    """In the collectives that are not DeepSpeed's: the part of the communication that is measured."""

    checkpoint_stall_seconds: float
    """Beside the step."""

    memory_peak_bytes: int


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Read a run's steps; a line that is torn is none, and a file that is missing has none."""
    try:
        return [line for line in read_lines(path) if "step_seconds" in line]
    except OSError:
        return []


def choose_lines(lines: Sequence[Line], warmup: int) -> list[Line]:
    """Leave out the first ``warmup`` steps of each start: a run that was requeued was cold twice."""
    seen: Counter[object] = Counter()
    chosen = []
    for line in lines:
        start = line.get("incarnation")
        seen[start] += 1
        if seen[start] > warmup:
            chosen.append(line)
    return chosen


def find_speed(lines: Sequence[Line]) -> Speed | None:
    """Add up measured steps; None when there are none."""
    seconds = _sum(lines, "step_seconds")
    if seconds <= 0:
        return None
    count = len(lines)
    known = [line for line in lines if line.get("mfu") is not None]
    return Speed(
        steps=count,
        tokens_per_second=_sum(lines, "tokens") / seconds,
        # A rate's mean over time is weighted by time.
        mfu=sum(line["mfu"] * line["step_seconds"] for line in known) / _sum(known, "step_seconds")
        if known
        else None,
        step_seconds=seconds / count,
        data_wait_seconds=_sum(lines, "data_wait_seconds") / count,
        forward_seconds=_sum(lines, "forward_seconds") / count,
        backward_seconds=_sum(lines, "backward_seconds") / count,
        optimizer_seconds=_sum(lines, "optimizer_seconds") / count,
        collectives_seconds=_sum(lines, "collectives_seconds") / count,
        checkpoint_stall_seconds=_sum(lines, "checkpoint_stall_seconds") / count,
        memory_peak_bytes=max(int(line.get("memory_peak_bytes") or 0) for line in lines),
    )


def _sum(lines: Sequence[Line], key: str) -> float:
    return sum(float(line.get(key) or 0.0) for line in lines)
