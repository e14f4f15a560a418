"""Each start of a run and how it ended, from its claims, events and steps: pure but for the claims."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launcher.seeing.facts import RunFacts
from launcher.seeing.read import number, read_object, read_records, text, whole_number
from training.layout import redone_beside

_ENDS = {
    "finished": "finished",
    "stopped": "stopped in order",
    "failed": "failed",
    "hang": "a rank was stuck",
    "fenced": "taken over by a newer start",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of a run."""

    number: int
    host: str
    time: float | None
    """When it was asked for, seconds since 1970."""

    first_step: int | None
    last_step: int | None
    end: str


def list_starts(run: RunFacts) -> list[Start]:
    """List them, oldest first."""
    lines = [*run.journal, *read_records(redone_beside(run.layout.metrics))]
    starts = []
    for path in sorted(run.layout.incarnations.glob("[0-9]*.json")):
        if not path.stem.isdecimal():
            continue
        count, claim = int(path.stem), read_object(path)
        steps = [
            step
            for line in lines
            if line.get("incarnation") == count and (step := whole_number(line, "step"))
        ]
        starts.append(
            Start(
                number=count,
                host=text(claim, "host"),
                time=number(claim, "time"),
                first_step=min(steps, default=None),
                last_step=max(steps, default=None),
                end=_say_end(run, count),
            )
        )
    return starts


def _say_end(run: RunFacts, count: int) -> str:
    events = [event for event in run.events if event.get("incarnation") == count]
    said = _find_end(events)
    if said:
        return said
    if count < run.starts:
        return "ended without a word: killed, or its node was lost"
    state = text(run.outcome, "state")
    if state == "FAILED":
        return f"failed: {text(run.outcome, 'error_class')}: {text(run.outcome, 'message')}"
    return state.lower() or "no word of its end"


def _find_end(events: Sequence[dict[str, Any]]) -> str:
    for event in reversed(events):
        kind = text(event, "event")
        if kind in _ENDS:
            reason = text(event, "reason") or text(event, "notice")
            return f"{_ENDS[kind]}{': ' if reason else ''}{reason}"
    return ""
