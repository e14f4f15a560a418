"""From findings to what is to be done."""

from collections.abc import Sequence

from training.config.cluster import PreflightConfig
from training.verdict import Finding, Verdict

_SUMMED = 4


def decide(findings: Sequence[Finding], config: PreflightConfig) -> Verdict:
    """Say what is to be done; with mode=off, where only a person asks, as with exclude."""
    bad = [finding for finding in findings if finding.severity == "bad"]
    if not bad or config.mode == "warn":
        reason = _sum_up(bad or findings)
        return Verdict(kind="warn" if findings else "ok", nodes=(), reason=reason)
    hopeless = [finding for finding in bad if not finding.excluding_helps]
    if hopeless or config.mode == "stop":
        return Verdict(kind="stop", nodes=(), reason=_sum_up(hopeless or bad))
    nodes = tuple(dict.fromkeys(finding.node for finding in bad))
    return Verdict(kind="exclude", nodes=nodes, reason=_sum_up(bad))


def _sum_up(findings: Sequence[Finding]) -> str:
    lines = [f"{finding.node}: {finding.what} {finding.value}" for finding in findings]
    more = f" and {len(lines) - _SUMMED} more" if len(lines) > _SUMMED else ""
    return "; ".join(lines[:_SUMMED]) + more
