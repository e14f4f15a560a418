"""Where a run's wall time went, over all its starts: added up from its own journal and events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.layout import RunLayout, redone_beside
from training.metrics.goodput import Goodput, find_goodput, read_first_start
from training.metrics.lines import read_lines

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """All seconds since a run's first start, by what they went into."""

    goodput: Goodput
    starts: int
    collectives_seconds: float
    """Part of the steps that count: spent in the collectives that are not DeepSpeed's."""

    seconds: dict[str, float]
    """By what it was, in the words of a report; the sum is the wall time."""


def read_accounts(layout: RunLayout) -> Accounts:
    """Read a run's accounts, from its first start to the last thing that it wrote."""
    journal, events = read_lines(layout.metrics), read_lines(layout.events)
    # A start that was killed while it moved lines has left them in both files, until the next one.
    known = {_identity(line) for line in journal}
    redone = [line for line in read_lines(redone_beside(layout.metrics)) if _identity(line) not in known]
    lines = [*journal, *redone]
    started = read_first_start(layout.incarnations)
    ended = max((float(each["time"]) for each in [*lines, *events]), default=started)
    kept = [line for line in journal if "skipped" not in line]
    return find_accounts(kept, lines, events, find_goodput(kept, started, ended))


def find_accounts(
    kept: Sequence[Line], lines: Sequence[Line], events: Sequence[Line], goodput: Goodput
) -> Accounts:
    """Add up.

    Args:
        kept: The lines of the steps that the weights remember.
        lines: All lines, also of steps that were done again.
        events: All events.
        goodput: Of the same run.
    """
    useful = goodput.useful_seconds
    parts = {
        "forward": _sum(kept, "forward_seconds"),
        "backward": _sum(kept, "backward_seconds"),
        "optimizer": _sum(kept, "optimizer_seconds"),
        "waiting for data": _sum(kept, "data_wait_seconds"),
    }
    beside = {
        "steps done again, or not applied": _sum(lines, "step_seconds") - useful,
        "checkpoints": _sum([event for event in events if event["event"] == "saved"], "stall_seconds"),
        "compiling": _sum(lines, "compile_seconds"),
        "held-out loss": _sum(lines, "evaluation_seconds"),
        "logging": _sum(lines, "logging_seconds"),
    }
    rest = goodput.wall_seconds - useful - sum(beside.values())
    seconds = {
        **parts,
        "rest of the steps": useful - sum(parts.values()),
        **beside,
        "starts, pauses and the rest": rest,
    }
    return Accounts(
        goodput=goodput,
        starts=len({event.get("incarnation") for event in events}),
        collectives_seconds=_sum(kept, "collectives_seconds"),
        seconds={name: max(0.0, value) for name, value in seconds.items()},
    )


def _identity(line: Line) -> tuple[object, ...]:
    return line["step"], line["time"], line["incarnation"]


def _sum(lines: Sequence[Line], key: str) -> float:
    return sum(float(line.get(key, 0.0)) for line in lines)
