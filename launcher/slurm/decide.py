"""What comes after a start that ended: the whole of the decision, as one pure function."""

from dataclasses import dataclass
from typing import Any, Literal

Step = Literal["finished", "stopped", "overtaken", "failed", "again", "return"]

FINAL_CAUSES = frozenset({"settings", "data", "checkpoint", "storage", "numeric", "memory"})
"""Another start would end in the same way: a person has to look."""

TOLD_FACTOR = 5
"""Starts that were told to stop may come to nothing this many times more often than those that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A start that has ended, as the job's script sees it."""

    code: int
    """srun's exit code: the highest of its tasks'; a hint, no more."""

    outcome: dict[str, Any] | None
    """What the ranks left behind; None when they could not."""

    notice: str
    """The signal that the job's script got meanwhile: USR1, TERM, or nothing."""

    stopped_by_user: bool
    """Somebody asked for an end: `metier stop`, or the whole job was cancelled."""

    overtaken: bool
    """A newer start of the run has claimed it."""

    out_of_memory: bool
    """The kernel killed a rank for its memory, says Slurm."""

    away: bool
    """srun did not reach Slurm's controller, and no rank was ever started."""

    idle_failed: int
    """Starts in a row, this one among them, that failed without a new checkpoint."""

    idle_told: int
    """The same, those that were told to stop included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the job does next, and why, in words for its log."""

    step: Step
    reason: str


def decide(ended: Ended, *, starts_without_progress: int) -> Decision:
    """Decide what comes next.

    ``again``: another start within this job. ``return``: the run goes on in another job, or in this one when
    Slurm starts it again. The rest are ends.
    """
    outcome = ended.outcome or {}
    state, cause = outcome.get("state"), outcome.get("cause")
    told = bool(ended.notice) or state == "STOPPED"
    final = _find_end(ended, state, cause)
    if final is not None:
        return final
    if ended.away:
        return Decision(
            step="again",
            reason="Slurm let no rank begin: its controller was away, or had not yet heard of the last end",
        )
    if told:
        if ended.idle_told >= TOLD_FACTOR * starts_without_progress:
            return _give_up(ended.idle_told, "was told to stop before it could save anything new")
        return Decision(step="return", reason=_explain_notice(ended, outcome))
    if ended.idle_failed >= starts_without_progress:
        return _give_up(ended.idle_failed, _say_failure(ended, outcome))
    return Decision(step="again", reason=_say_failure(ended, outcome))


def _find_end(ended: Ended, state: str | None, cause: str | None) -> Decision | None:
    outcome = ended.outcome or {}
    if ended.overtaken or state == "FENCED":
        return Decision(step="overtaken", reason="a newer start of this run has taken over")
    if state == "COMPLETED":
        return Decision(step="finished", reason=f"finished after step {outcome.get('step')}")
    if ended.stopped_by_user:
        saved = f"saved at step {outcome.get('step')}" if state == "STOPPED" else "nothing new was saved"
        return Decision(step="stopped", reason=f"stopped because somebody asked for it; {saved}")
    if state == "FAILED" and cause in FINAL_CAUSES:
        return Decision(step="failed", reason=f"{_say_failure(ended, outcome)}; another start cannot help")
    if ended.out_of_memory:
        return Decision(step="failed", reason="out of memory: a rank was killed for it; see `metier why`")
    return None


def _give_up(starts: int, what: str) -> Decision:
    return Decision(
        step="failed",
        reason=f"given up: {starts} starts in a row saved nothing new; the last one {what}; see `metier why`",
    )


def _explain_notice(ended: Ended, outcome: dict[str, Any]) -> str:
    who = outcome.get("notice") or ended.notice
    if outcome.get("state") == "STOPPED":
        return f"told to stop ({who}), saved at step {outcome.get('step')}"
    return f"told to stop ({who}); it ended before it had saved"


def _say_failure(ended: Ended, outcome: dict[str, Any]) -> str:
    if outcome.get("state") == "FAILED":
        place = f"rank {outcome.get('rank')}" + (f" on {outcome['node']}" if outcome.get("node") else "")
        words = (str(outcome.get(key) or "") for key in ("error_class", "message"))
        return f"failed on {place}: {': '.join(filter(None, words))}"
    return f"ended without a word (srun's exit code {ended.code})"
