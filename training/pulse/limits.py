"""How long a rank may be at one thing, and who is stuck when that is over: pure functions of the hearts."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from training.pulse.heart import Heart

LEAST_STEPS = 5
"""So many must be known before a limit is taken from them."""

_SILENT_BEATS = 5
_LEAST_SILENT_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Watching:
    """``cluster.watch`` of a run; a plain copy, so that nothing heavy is imported for it."""

    enabled: bool
    start_seconds: float
    step_seconds: float
    step_factor: float
    save_seconds: float
    evaluate_seconds: float
    slow_factor: float
    slow_window_steps: int

    @classmethod
    def read(cls, frozen: Path) -> "Watching | None":
        """Read run.json; None where nothing is to be watched, or it is of an older time."""
        try:
            values: dict[str, Any] = json.loads(frozen.read_text(encoding="utf-8"))["config"]["cluster"][
                "watch"
            ]
            found = cls(**{each.name: values[each.name] for each in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if found.enabled else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One rank as the watcher sees it, by the watcher's own clock."""

    rank: int
    heart: Heart | None
    """The last; None where there never was one."""

    held: float
    """Seconds since it came to what it is at."""

    silent: float
    """Seconds since its heart was last rewritten."""

    left_behind: bool = False
    """Whether others have done more than a step since it fell silent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """Who is stuck, at what, for how long."""

    ranks: tuple[int, ...]
    """The stuck ones; all of them where nothing tells them apart."""

    held: float
    """Seconds; of a silent one since its last beat."""

    limit: float
    silent: bool
    """Whether their hearts stopped as well: a stopped process, a dead node, or a lock that Python needs."""


def find_percentile(seconds: Sequence[float]) -> float | None:
    """Give the 95th percentile; None of fewer than ``LEAST_STEPS``."""
    if len(seconds) < LEAST_STEPS:
        return None
    return statistics.quantiles(seconds, n=20, method="inclusive")[-1]


def find_limit(heart: Heart | None, watching: Watching, usual_step_seconds: float | None) -> float:
    """Find how long a rank may be at what it is at, in seconds.

    A start's first step may compile and founds the groups' connections: it has the time of a start.

    Args:
        heart: The rank's; None: it has not come as far as to have one.
        watching: The settings.
        usual_step_seconds: The 95th percentile of the lead's steps, where it is known.
    """
    step = max(watching.step_seconds, watching.step_factor * (usual_step_seconds or 0.0))
    match heart.phase if heart else "imports":
        case "imports" | "start":
            return watching.start_seconds
        case "evaluate":
            return watching.evaluate_seconds
        case "save" | "finish":
            return watching.save_seconds
        case _:
            return max(step, watching.start_seconds) if heart and heart.first else step


def find_hang(seen: Sequence[Seen], watching: Watching, *, beat_seconds: float) -> Hang | None:
    """Find who has been at one thing for too long; None while nobody has.

    Whoever waits for another rank is not to blame. So the ranks that are furthest behind are found first, and
    only their time counts. What a silent one is at now is not known: the others show where it is missed, and
    theirs is the limit.
    """
    lead = next((each.heart for each in seen if each.rank == 0), None)
    usual = lead.usual_step_seconds if lead else None
    quiet = find_quiet_seconds(beat_seconds)
    stuck = find_stuck(seen, silent_seconds=quiet)
    limits = {each.rank: find_limit(each.heart, watching, usual) for each in seen}
    late: list[tuple[float, float]] = []
    for each in stuck:
        silent = each.heart is not None and each.silent > quiet
        held, limit = (each.silent, min(limits.values())) if silent else (each.held, limits[each.rank])
        if held > limit:
            late.append((held, limit))
    if not late:
        return None
    held, limit = max(late, key=lambda pair: pair[0] - pair[1])
    return Hang(
        ranks=tuple(each.rank for each in stuck),
        held=held,
        limit=limit,
        silent=all(each.silent > quiet for each in stuck),
    )


def find_quiet_seconds(beat_seconds: float) -> float:
    """Find after how many seconds without a beat a heart counts as stopped."""
    return max(_LEAST_SILENT_SECONDS, _SILENT_BEATS * beat_seconds)


def find_stuck(seen: Sequence[Seen], *, silent_seconds: float) -> list[Seen]:
    """Find the ranks that the others wait for, if anybody waits: all where nothing tells them apart.

    In this order: who never had a heart; whose heart has stopped while others beat; who is behind by step and
    phase; who has entered fewer collectives; who is in none while others are.
    """
    missing = [each for each in seen if each.heart is None]
    if missing:
        return missing
    known = [(each, each.heart) for each in seen if each.heart is not None]
    # Every step has collectives: a rank that others have left behind takes part in them, although its heart
    # cannot be written.
    known = [(each, heart) for each, heart in known if not each.left_behind]
    silent = [each for each, _ in known if each.silent > silent_seconds]
    if silent and len(silent) < len(known):
        return silent
    known = _lowest(known, [heart.place for _, heart in known])
    known = _lowest(known, [heart.entered for _, heart in known])
    known = _lowest(known, [heart.inside for _, heart in known])
    return [each for each, _ in known]


def _lowest(known: list[tuple[Seen, Heart]], keys: Sequence[Any]) -> list[tuple[Seen, Heart]]:
    least = min(keys, default=None)
    return [pair for pair, key in zip(known, keys, strict=True) if key == least]


def say_hang(hang: Hang, seen: Sequence[Seen], found: dict[int, str]) -> str:
    """Say it in one line.

    Args:
        hang: Who.
        seen: The ranks.
        found: What the machine says of some of the stuck processes.
    """
    by_rank = {each.rank: each for each in seen}
    named = [_name(by_rank[rank]) for rank in hang.ranks[:4]]
    more = len(hang.ranks) - len(named)
    everybody = len(hang.ranks) == len(seen) > 1
    who = (
        f"all {len(seen)} ranks" if everybody else " and ".join([*named, *([f"{more} more"] if more else [])])
    )
    verb = "has" if len(hang.ranks) == 1 else "have"
    first = by_rank[hang.ranks[0]]
    why = next((found[rank] for rank in hang.ranks if rank in found), "")
    what = f"been {_say_place(first.heart)} for {hang.held:.0f} s"
    if hang.silent and first.heart is not None:
        what = f"not beaten for {hang.held:.0f} s, last seen {_say_place(first.heart)}"
    return (
        f"{who} {verb} {what}, the limit was {hang.limit:.0f} s"
        f"{f' ({why})' if why else ''}; stacks are in logs/rank_*.log"
    )


def _name(seen: Seen) -> str:
    return f"rank {seen.rank}" + (f" on {seen.heart.node}" if seen.heart else "")


def _say_place(heart: Heart | None) -> str:
    if heart is None:
        return "without a sign of life"
    match heart.phase:
        case "imports":
            return "at its imports"
        case "start":
            return "starting: data, model, checkpoint"
        case "finish":
            return "at its end"
        case "step":
            return f"{'in a collective of' if heart.inside else 'at'} step {heart.step}"
        case _:
            what = {"save": "saving", "evaluate": "at the evaluation of"}[heart.phase]
            return f"{what} step {heart.step}"
