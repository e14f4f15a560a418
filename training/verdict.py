"""preflight.json: what a preflight found, and what the scheduler's side is to do about it. Without torch."""

import time
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from training.config.base import Section
from training.config.cluster import PreflightConfig
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


def note_lead(path: Path, node: str) -> None:
    """Write down which node leads a preflight that begins: should it hang, nobody else could tell.

    Raises:
        StorageError: It cannot be written.
    """
    reason = f"{node} began to lead the preflight and has not brought it to an end"
    _write_about(path, node, Verdict(kind="unknown", nodes=(node,), reason=reason), (), 0.0)


def blame_lead(path: Path, config: PreflightConfig, seconds: float, node: str = "an unnamed node") -> str:
    """Give the verdict in place of a lead that has not given it in time; say it as one line.

    Args:
        path: Where preflight.json is, or is to be.
        config: What a bad node means.
        seconds: How long it was waited for.
        node: The lead's, where it has not even begun.

    Raises:
        StorageError: It cannot be written.
    """
    begun = find_report(path)
    node = begun.nodes[0] if begun else node
    finding = Finding(
        node=node,
        what="leads the preflight and",
        value=f"did not answer for {seconds:.0f} s",
        wanted="a verdict wanted",
        severity="bad",
        excluding_helps=True,
    )
    kinds: dict[str, Kind] = {"warn": "warn", "stop": "stop"}
    kind = kinds.get(config.mode, "exclude")
    bad = (node,) if kind == "exclude" else ()
    verdict = Verdict(kind=kind, nodes=bad, reason=f"{node}: {finding.what} {finding.value}")
    _write_about(path, node, verdict, (finding,), seconds)
    return say(finding, verdict)


def _write_about(
    path: Path, node: str, verdict: Verdict, findings: tuple[Finding, ...], seconds: float
) -> None:
    report = Report(
        time=time.time(),
        seconds=seconds,
        nodes=(node,),
        verdict=verdict,
        findings=findings,
        undone=(),
        facts={},
    )
    write_report(path, report)


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
