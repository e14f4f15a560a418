"""What a run's own files say about it: numbers, and when there was last a sign of life."""

import contextlib
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.seeing.read import (
    inner,
    modified,
    number,
    read_object,
    read_records,
    read_tail,
    text,
    whole_number,
)
from launcher.slurm.facts import BY_USER
from launcher.slurm.journal import find_decision, find_stages, find_withdrawn, read_journal
from training.layout import RunLayout
from training.metrics.goodput import find_goodput, read_first_start

RECENT_STEPS = 50
"""Steps whose mean duration says how long the rest will take."""

_STEP_FOLDER = re.compile(r"step_(\d+)")
_FEWEST_STEPS = 2

Line = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What the files of a run say; None: they do not."""

    layout: RunLayout
    max_steps: int | None
    step: int | None
    loss: float | None
    tokens_per_second: float | None
    mfu: float | None
    seconds_left: float | None
    goodput: float | None
    starts: int
    checkpoint_step: int | None
    checkpoint_time: float | None
    """Seconds since 1970."""

    last_sign: float
    """When anything was last written by its ranks, seconds since 1970; 0: never."""

    outcome: Line
    wish: str
    """Of a stop that a person has asked for since the newest start: who, and when; else nothing."""

    withdrawn: str
    """Of a stop by which a person has taken its newest job out of the queue: who, and when; else nothing."""

    decision: Line
    """Of its newest job: that nothing comes after it, and why; else nothing."""

    claim: Line
    """The newest start's: host, pid, time."""

    jobs: tuple[str, ...]
    """Slurm's numbers, in the order in which they were submitted."""

    stages: tuple[tuple[str, str], ...]
    """The jobs before and after the training that were submitted with it: number, and what it does."""

    journal: tuple[Line, ...]
    events: tuple[Line, ...]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.layout.root.name


def read_facts(layout: RunLayout, now: float | None = None) -> RunFacts:
    """Read what there is; nothing that is torn, missing or older than this version is an error."""
    config = inner(read_object(layout.config), "config")
    journal = [line for line in read_records(layout.metrics) if isinstance(line.get("step"), int)]
    events = read_records(layout.events)
    outcome = read_object(layout.outcome)
    claims = sorted(layout.incarnations.glob("[0-9]*.json"))
    last = journal[-1] if journal else {}
    max_steps = whole_number(inner(config, "loop"), "max_steps")
    step = _find_step(last, outcome)
    checkpoint = find_checkpoint(layout)
    now = time.time() if now is None else now
    jobs = read_journal(layout.jobs)
    sign = find_last_sign(layout, last, events)
    return RunFacts(
        layout=layout,
        max_steps=max_steps,
        step=step,
        loss=number(last, "loss"),
        tokens_per_second=number(last, "tokens_per_second"),
        mfu=number(last, "mfu"),
        seconds_left=find_time_left(journal, step, max_steps),
        goodput=_find_goodput(layout, journal, sign if outcome else now) if claims else None,
        starts=len(claims),
        checkpoint_step=checkpoint[0] if checkpoint else None,
        checkpoint_time=checkpoint[1] if checkpoint else None,
        last_sign=sign,
        outcome=outcome,
        wish=_read_wish(layout),
        withdrawn=text(find_withdrawn(jobs) or {}, "by"),
        decision=find_decision(jobs) or {},
        claim=read_object(claims[-1]) if claims else {},
        jobs=read_jobs(layout),
        stages=tuple((str(line.get("job")), str(line.get("stage"))) for line in find_stages(jobs)),
        journal=tuple(journal),
        events=tuple(events),
    )


def find_time_left(journal: Sequence[Line], step: int | None, max_steps: int | None) -> float | None:
    """Multiply the steps that are left by the mean wall time of the newest ones.

    Saves and measurements between them count; the pause between two starts does not.
    """
    if step is None or max_steps is None:
        return None
    if step >= max_steps:
        return 0.0
    start = journal[-1].get("incarnation") if journal else None
    times = [
        moment
        for line in journal[-RECENT_STEPS:]
        if line.get("incarnation") == start and (moment := number(line, "time")) is not None
    ]
    if len(times) < _FEWEST_STEPS:
        seconds = number(journal[-1], "step_seconds") if journal else None
    else:
        seconds = (times[-1] - times[0]) / (len(times) - 1)
    return None if seconds is None else (max_steps - step) * seconds


def find_checkpoint(layout: RunLayout) -> tuple[int, float] | None:
    """Find the newest committed checkpoint: its step, and when it was committed."""
    with contextlib.suppress(OSError):
        for folder in sorted(layout.checkpoints.iterdir(), reverse=True):
            found = _STEP_FOLDER.fullmatch(folder.name)
            written = modified(folder / "manifest.json")
            if found and written:
                return int(found[1]), written
    return None


def find_last_sign(layout: RunLayout, last: Line, events: Sequence[Line]) -> float:
    """Find when a rank last wrote anything: a step, an event, a beat of its heart."""
    moments = [number(last, "time") or 0.0]
    moments += [number(event, "time") or 0.0 for event in events[-1:]]
    moments += [modified(path) for path in layout.pulse.glob("heart_*.json")]
    return max(moments)


def read_hearts(layout: RunLayout) -> dict[int, Line]:
    """Read what every rank says it is at; a heart that is torn or was never begun is left out."""
    hearts: dict[int, Line] = {}
    for path in layout.pulse.glob("heart_*.json"):
        rank = path.stem.removeprefix("heart_")
        beat = read_object(path)
        if rank.isdecimal() and beat:
            hearts[int(rank)] = beat
    return dict(sorted(hearts.items()))


def read_jobs(layout: RunLayout, *, stages: bool = False) -> tuple[str, ...]:
    """Read the numbers of the run's jobs from jobs.jsonl, each once, oldest first; none that was called off.

    Args:
        layout: The run.
        stages: Those that prepare before the training and evaluate and export after it, instead of its own.
    """
    lines = read_records(layout.jobs)
    off = {str(line.get("job")) for line in lines if line.get("event") == "called_off"}
    found = (str(line.get("job") or "") for line in lines if (line.get("event") == "stage") == stages)
    return tuple(dict.fromkeys(job for job in found if job[:1].isdecimal() and job not in off))


def _read_wish(layout: RunLayout) -> str:
    # The file is removed at each start; the job's own script writes it as well, in other words.
    words = next(iter(read_tail(layout.stop_request, 1)), "")
    return words if words.startswith(BY_USER) else ""


def say_host(facts: RunFacts) -> str:
    """Name the host of the newest start's lead rank."""
    return text(facts.claim, "host")


def is_here(facts: RunFacts) -> bool:
    """Whether the newest start claimed the run from this machine."""
    return say_host(facts) == os.uname().nodename


def _find_step(last: Line, outcome: Line) -> int | None:
    steps = (whole_number(last, "step"), whole_number(outcome, "step"))
    return max((step for step in steps if step is not None), default=None)


def _find_goodput(layout: RunLayout, journal: Sequence[Line], until: float) -> float | None:
    with contextlib.suppress(KeyError, TypeError, ValueError):
        started = read_first_start(layout.incarnations)
        return find_goodput(list(journal), started, until).goodput
    return None


def folder_name(path: Path) -> str:
    """Write a folder as short as it stays clear: relative to here where it lies below."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
