"""How much of the time since a run's first start was training that counts."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Useful seconds over all seconds."""

    useful_seconds: float
    """Of the steps that the weights remember: done again after a crash, or rolled back, they count once."""

    wall_seconds: float
    """Since the run's first start, over all restarts and the time between them."""

    @property
    def goodput(self) -> float:
        """A fraction 0..1."""
        return self.useful_seconds / self.wall_seconds if self.wall_seconds > 0 else 0.0


def find_goodput(journal: list[dict[str, Any]], started: float, now: float) -> Goodput:
    """Add up the steps of a journal.

    Args:
        journal: One line for each step. A skipped step changed no weight and is not useful.
        started: Seconds since 1970 of the run's first start.
        now: Seconds since 1970.
    """
    useful = sum(line["step_seconds"] for line in journal if "skipped" not in line)
    return Goodput(useful_seconds=useful, wall_seconds=max(0.0, now - started))


def read_first_start(incarnations: Path) -> float:
    """Read when a run was started for the first time, seconds since 1970; now, where nothing says so."""
    try:
        return float(json.loads(min(incarnations.glob("[0-9]*.json")).read_text(encoding="utf-8"))["time"])
    except (OSError, ValueError, KeyError):
        return time.time()
