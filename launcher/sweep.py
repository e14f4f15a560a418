"""Cuts a sweep into jobs: every combination of the values, each with a name of its own."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.compose import parse_sweep
from launcher.tree import ConfigTree

# These already give each job a name of its own.
_NAMING = ("name", "experiment")


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a sweep."""

    overrides: tuple[str, ...]
    suffix: str
    """What the swept keys add to the run's name; empty when nothing is swept."""


def plan_jobs(overrides: Sequence[str], tree: ConfigTree, *, multirun: bool) -> list[Job]:
    """List the jobs in the order in which they run: the last key varies fastest.

    Raises:
        ConfigError: An override cannot be read or swept.
    """
    if not multirun:
        return [Job(tuple(overrides), "")]
    keys = parse_sweep(overrides, tree)
    short = _short_names([key for key, values in keys if len(values) > 1])
    jobs = []
    for combination in itertools.product(*(values for _, values in keys)):
        parts = [
            f"{short[key]}={_clean(value)}"
            for (key, _), (_, value) in zip(keys, combination, strict=True)
            if key in short and key not in _NAMING
        ]
        suffix = "".join(f",{part}" for part in parts)
        jobs.append(Job(tuple(override for override, _ in combination), suffix))
    return jobs


def _short_names(keys: list[str]) -> dict[str, str]:
    """Name each key by its last part where that is enough to tell them apart."""
    last = [key.lstrip("+").rpartition(".")[2] for key in keys]
    return {
        key: name if last.count(name) == 1 else key.lstrip("+") for key, name in zip(keys, last, strict=True)
    }


def _clean(value: str) -> str:
    """Leave out what a run's name cannot hold."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", value).strip("-")
