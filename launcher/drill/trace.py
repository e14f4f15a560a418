"""What a run leaves that another can be compared with, bit for bit; and the comparison."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.commands import merge_environment, package_variables
from launcher.scaling.journal import read_journal
from training.layout import RunLayout, redone_beside

_ORDER = ("samples_seen", "tokens", "targets")
_NUMBERS = ("loss", "loss_by_source", "grad_norm", "learning_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One run, as it is on the disk."""

    state: str
    """Of its outcome; empty where there is none."""

    message: str
    lines: tuple[Mapping[str, Any], ...]
    """Of metrics.jsonl, in order."""

    redone: int
    """Steps that were done more than once."""

    starts: int
    digests: Mapping[str, str]
    """SHA-256 of each tensor of the final checkpoint, the optimizer's too, by name; and of its position."""

    trouble: str | None
    """Why there are no digests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What differs, in words; None: nothing."""

    state: str | None
    losses: str | None
    samples: str | None

    @property
    def differences(self) -> list[str]:
        """Those that there are, the most telling first."""
        return [each for each in (self.samples, self.losses, self.state) if each]


def read_trace(layout: RunLayout, environ: Mapping[str, str]) -> Trace:
    """Read a run that has ended."""
    outcome = _read_outcome(layout)
    step = outcome.get("step")
    digests, trouble = _read_digests(layout, step, environ) if isinstance(step, int) else ({}, "no outcome")
    return Trace(
        state=str(outcome.get("state", "")),
        message=str(outcome.get("message") or ""),
        lines=tuple(read_journal(layout.metrics)),
        redone=len(read_journal(redone_beside(layout.metrics))),
        starts=count_starts(layout),
        digests=digests,
        trouble=trouble,
    )


def count_starts(layout: RunLayout) -> int:
    """Count the starts that came as far as to claim the run."""
    return len(list(layout.incarnations.glob("[0-9]*.json")))


def is_complete(layout: RunLayout) -> bool:
    """Whether a run has come to its end."""
    return _read_outcome(layout).get("state") == "COMPLETED"


def compare(expected: Trace, found: Trace) -> Comparison:
    """Say in which ways a run differs from the undisturbed one."""
    return Comparison(
        state=_compare_states(expected, found),
        losses=_compare_lines(expected.lines, found.lines, _NUMBERS),
        samples=_compare_samples(expected.lines, found.lines),
    )


def _compare_samples(expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> str | None:
    steps = [line["step"] for line in found]
    if steps != list(range(1, len(expected) + 1)):
        return f"metrics.jsonl holds {len(steps)} steps, not each of 1 to {len(expected)} once and in order"
    return _compare_lines(expected, found, _ORDER)


def _compare_lines(
    expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> str | None:
    here = {line["step"]: line for line in found}
    for line in expected:
        other = here.get(line["step"], {})
        for key in keys:
            if line.get(key) != other.get(key):
                return f"{key} of step {line['step']} is {other.get(key)} instead of {line.get(key)}"
    return None


def _compare_states(expected: Trace, found: Trace) -> str | None:
    if found.state != "COMPLETED":
        return f"it ended as {found.state or 'killed'}" + (f" ({found.message})" if found.message else "")
    if found.trouble:
        return f"its final checkpoint cannot be read ({found.trouble})"
    names = [*expected.digests, *(name for name in found.digests if name not in expected.digests)]
    different = [name for name in names if expected.digests.get(name) != found.digests.get(name)]
    if not different:
        return None
    more = f" and {len(different) - 1} more of {len(names)}" if len(different) > 1 else ""
    return f"{different[0]}{more} of the final checkpoint differ"


def _read_digests(
    layout: RunLayout, step: int, environ: Mapping[str, str]
) -> tuple[dict[str, str], str | None]:
    """Have the tensors hashed, in a process that may read checkpoints."""
    command = [sys.executable, "-m", "training.upkeep", str(layout.root), "digest", str(step)]
    variables = merge_environment(environ, package_variables())
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        return {}, (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return dict(json.loads(done.stdout)), None


def _read_outcome(layout: RunLayout) -> dict[str, Any]:
    try:
        value = json.loads(layout.outcome.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
