"""preflight.json's verdict: what the nodes were found to be, in a form that needs no torch to be read."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["ok", "warn", "exclude", "stop", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a preflight came to."""

    kind: Kind
    """unknown: it left nothing behind."""

    nodes: list[str]
    """Those to be left out, for ``exclude``."""

    reason: str
    """One line."""


def read_verdict(path: Path) -> Verdict:
    """Read what the last preflight came to."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Verdict(kind=found["verdict"], nodes=list(found["nodes_out"]), reason=str(found["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Verdict(kind="unknown", nodes=[], reason="")
