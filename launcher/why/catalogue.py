"""causes.yaml: what is known to end a run, by which signs it is seen, and what to do."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from training.errors import ConfigError

PATH = Path(__file__).parent / "causes.yaml"

SOURCES = ("outcome", "rank", "launch", "job", "command", "events", "sacct", "preflight", "tracker")
"""Where a sign may be: outcome.json, the ranks' logs, torchrun's words, the job's log, what a command
printed, events.jsonl, Slurm's accounting, preflight.json, the W&B helper's log."""

_USUAL_SOURCES = ("outcome", "rank", "launch", "job", "command")
_KEYS = frozenset(
    {
        "id",
        "title",
        "area",
        "seen",
        "signs",
        "explanation",
        "remedy",
        "weight",
        "harmless",
        "recorded",
        "source",
    }
)
_NEEDED = ("id", "title", "area", "seen", "signs", "explanation", "remedy", "weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """A line by which a cause is seen."""

    sources: tuple[str, ...]
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One thing that ends a run."""

    id: str
    title: str
    area: str
    seen_in: str
    seen: str
    """A line as one meets it, and where: one of ``SOURCES``."""

    signs: tuple[Sign, ...]
    explanation: str
    remedy: str
    weight: int
    """What causes others weighs more than what follows from it."""

    harmless: bool = False
    """It is seen beside a training that goes on."""

    recorded: bool = True
    """Whether its test is made of lines of this project's own runs."""

    source: str | None = None
    """Where its signs are documented, when it is not recorded."""


@cache
def read_catalogue(path: Path = PATH) -> tuple[Cause, ...]:
    """Read all causes.

    Raises:
        ConfigError: An entry is incomplete, or has what no entry has.
    """
    entries: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    causes = tuple(_read(entry) for entry in entries)
    names = [cause.id for cause in causes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"{path}: {twice} is there twice")
    return causes


def _read(entry: dict[str, Any]) -> Cause:
    missing = [key for key in _NEEDED if key not in entry]
    strange = sorted(set(entry) - _KEYS)
    name = entry.get("id", "a cause")
    if missing or strange:
        raise ConfigError(f"{name}: without {missing}, with unknown {strange}")
    if not entry.get("recorded", True) and "source" not in entry:
        raise ConfigError(f"{name}: what is not recorded needs the source of its signs")
    ((seen_in, seen),) = entry["seen"].items()
    if seen_in not in SOURCES:
        raise ConfigError(f"{name}: seen in {seen_in}, wanted one of {', '.join(SOURCES)}")
    return Cause(
        id=name,
        title=entry["title"],
        area=entry["area"],
        seen_in=seen_in,
        seen=" ".join(seen.split()),
        signs=tuple(_read_sign(name, sign) for sign in entry["signs"]),
        explanation=" ".join(entry["explanation"].split()),
        remedy=" ".join(entry["remedy"].split()),
        weight=entry["weight"],
        harmless=entry.get("harmless", False),
        recorded=entry.get("recorded", True),
        source=entry.get("source"),
    )


def _read_sign(name: str, sign: str | dict[str, Any]) -> Sign:
    """A bare pattern is looked for where people's and ranks' words are."""
    if isinstance(sign, str):
        sign = {"match": sign}
    sources = tuple(sign.get("in", _USUAL_SOURCES))
    strange = [source for source in sources if source not in SOURCES]
    if strange or set(sign) - {"in", "match"}:
        raise ConfigError(f"{name}: a sign has a match, and in: some of {', '.join(SOURCES)}")
    return Sign(sources=sources, pattern=re.compile(sign["match"]))
