"""From run directories to the table: what is done is read, what failed says why, what runs is waited for."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.scaling.figures import Row, Size, build_rows, find_knee
from launcher.scaling.journal import Speed, choose_lines, find_speed, read_journal
from launcher.scaling.record import Attempt, Experiment, ScaleLayout
from launcher.scaling.sizes import Mode
from training.layout import RunLayout

FORMAT = 1
"""Of scale.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run's newest job."""

    number: str
    alive: bool
    """Whether it waits, runs or ends."""


FindJob = Callable[[RunLayout], Job | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What became of one run."""

    attempt: Attempt
    speed: Speed | None
    reason: str | None
    """Why there is no speed; None where the run has not ended yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One way of scaling."""

    mode: Mode
    rows: tuple[Row, ...]
    knee: Row | None


def look_at(experiment: Experiment, layout: ScaleLayout, find_job: FindJob) -> list[Found]:
    """Read every run's own files."""
    return [_look(attempt, experiment, layout, find_job) for attempt in experiment.attempts]


def build_tables(experiment: Experiment, found: Sequence[Found]) -> list[Table]:
    """Compare the sizes, each way of scaling by itself."""
    tables = []
    for mode in experiment.modes:
        sizes = _gather(mode, found)
        rows = build_rows(sizes, shards_optimizer=experiment.shards_optimizer)
        tables.append(Table(mode=mode, rows=tuple(rows), knee=find_knee(rows, experiment.knee)))
    return tables


def describe(experiment: Experiment, tables: Sequence[Table], found: Sequence[Found]) -> dict[str, Any]:
    """Lay out scale.json."""
    about = {key: value for key, value in asdict(experiment).items() if key != "attempts"}
    return {
        "format": FORMAT,
        **about,
        "tables": [
            {
                "mode": table.mode,
                "knee": table.knee.size if table.knee else None,
                "rows": [asdict(row) for row in table.rows],
            }
            for table in tables
        ],
        "runs": [
            {
                **asdict(each.attempt),
                "measured": asdict(each.speed) if each.speed else None,
                "reason": each.reason,
            }
            for each in found
        ],
    }


def is_complete(layout: ScaleLayout, attempt: Attempt) -> bool:
    """Whether a run has ended as it should."""
    return _read_outcome(layout.run(attempt).outcome).get("state") == "COMPLETED"


def _look(attempt: Attempt, experiment: Experiment, layout: ScaleLayout, find_job: FindJob) -> Found:
    run = layout.run(attempt)
    outcome = _read_outcome(run.outcome)
    state = outcome.get("state")
    # Slurm is asked for what has not come to its end alone.
    job = None if attempt.refused or state == "COMPLETED" else find_job(run)
    speed, reason = None, None
    if attempt.refused:
        reason = attempt.refused
    elif state == "COMPLETED":
        speed = find_speed(choose_lines(read_journal(run.metrics), experiment.warmup))
        reason = None if speed else "it took no step beyond the warm-up"
    elif job is not None and job.alive:
        reason = None
    elif state == "FAILED":
        said = _first_line(f"{outcome.get('error_class')}: {outcome.get('message') or ''}")
        reason = f"{said.rstrip(': ')}; see `metier why {attempt.name}`"
    elif attempt.ended is not None:
        reason = attempt.ended
    elif job is not None:
        reason = f"job {job.number} is gone and the run is not complete; see `metier why {attempt.name}`"
    return Found(attempt=attempt, speed=speed, reason=reason)


def _gather(mode: Mode, found: Sequence[Found]) -> list[Size]:
    by_size: dict[int, list[Found]] = {}
    for each in found:
        if mode in each.attempt.modes:
            by_size.setdefault(each.attempt.size, []).append(each)
    return [_gather_size(by_size[size]) for size in sorted(by_size)]


def _gather_size(found: Sequence[Found]) -> Size:
    first = found[0].attempt
    return Size(
        size=first.size,
        devices=first.devices,
        global_batch_size=first.global_batch_size,
        passes=first.passes,
        speeds=tuple(each.speed for each in found if each.speed),
        asked=len(found),
        waiting=sum(each.speed is None and each.reason is None for each in found),
        reason=next((each.reason for each in found if each.reason), None),
    )


def _read_outcome(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0][:300]
