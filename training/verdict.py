"""preflight.json: what a preflight found, and what the scheduler's side is to do about it. Without torch."""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from training.config.base import Section
from training.files import write_json

EXIT_EXCLUDE = 3
EXIT_STOP = 4

UNNAMED = "preflight"
"""The name of a preflight that belongs to no run: of corpus and model nothing is looked at."""

ALL_NODES = "all nodes"

Kind = Literal["ok", "warn", "exclude", "stop", "unknown"]


class Finding(Section):
    """One thing that is not as it should be."""

    node: str
    """The node's name as the scheduler knows it, or ``ALL_NODES``."""

    what: str
    """What was looked at."""

    value: str
    """What was found, for people."""

    wanted: str
    """What it is held against, for people: ``the others 120 GFLOP/s``."""

    severity: Literal["bad", "warn"]
    excluding_helps: bool
    """Whether the run could go on without this node."""

    because: str | None = None
    """A likely reason, where one was seen."""


class Verdict(Section):
    """What is to be done."""

    kind: Kind
    """ok, warn: train; exclude: go on without ``nodes``; stop: excluding nodes does not help; unknown: no
    preflight came to an end."""

    nodes: tuple[str, ...]
    """Those that are to be excluded."""

    reason: str
    """One line for people; empty when all is well."""

    @property
    def exit_code(self) -> int:
        """What the lead's process ends with."""
        return {"exclude": EXIT_EXCLUDE, "stop": EXIT_STOP}.get(self.kind, 0)


class Report(Section):
    """The whole of preflight.json; ``facts`` is what was measured."""

    time: float
    """Seconds since 1970."""

    seconds: float
    """How long it took, from the lead's start to the verdict."""

    nodes: tuple[str, ...]
    verdict: Verdict
    findings: tuple[Finding, ...]
    undone: tuple[str, ...]
    """What was not looked at, and why, one line each."""

    facts: dict[str, object]


def write_report(path: Path, report: Report) -> None:
    """Write preflight.json, complete or not at all.

    Raises:
        StorageError: It cannot be written.
    """
    write_json(path, report.model_dump(mode="json"))


def read_verdict(path: Path) -> Verdict:
    """Read what the last preflight said; ``unknown`` where none came to an end.

    Whoever starts a preflight removes the file first: the one before this is no news of these nodes.
    """
    report = find_report(path)
    if report is not None:
        return report.verdict
    reason = f"{path} is missing: the preflight did not come to an end, its lead node may be the bad one"
    return Verdict(kind="unknown", nodes=(), reason=reason)


def find_report(path: Path) -> Report | None:
    """Read preflight.json; None where it is missing or is none."""
    try:
        return Report.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def say(finding: Finding, verdict: Verdict) -> str:
    """Write a finding, and what was decided about it, as one line."""
    because = f" ({finding.because})" if finding.because else ""
    if finding.severity == "warn" or verdict.kind == "warn":
        decided = "warning"
    elif finding.node in verdict.nodes:
        decided = "excluded"
    else:
        decided = "bad"
    return f"{finding.node}: {finding.what} {finding.value}, {finding.wanted}{because}; {decided}"
