"""The post-mortem as text: headline, starts, Slurm, the first failing rank, what else was found."""

import textwrap
import time
from collections.abc import Sequence

from launcher.seeing.events import say_event
from launcher.seeing.facts import RunFacts
from launcher.seeing.read import read_records, read_tail
from launcher.seeing.state import RunView
from launcher.seeing.words import NOTHING, say_seconds, say_step
from launcher.tables import lay_out
from launcher.why.evidence import Evidence, newest_start
from launcher.why.match import Candidate
from launcher.why.starts import Start, list_starts
from training.layout import START_MARK

_WIDTH = 110
_LAST_LINES = 15
_LONGEST_SIGN = 300
_LONGEST_END = 140
_MOST_CANDIDATES = 4
_MOST_DECISIONS = 10
_UNSAID = frozenset({"asked", "end", "after", "restart"})
_SHOWN_FIELDS = ("JobID", "State", "ExitCode", "Elapsed", "Timelimit", "NodeList", "MaxRSS", "Reason")


def write_page(view: RunView, evidence: Evidence, candidates: Sequence[Candidate]) -> str:
    """Write all of it."""
    run = evidence.run
    head = f"{run.name}: {view.state}, step {say_step(run.step, run.max_steps)}"
    note = f" ({view.note})" if view.note and not (view.is_over and candidates) else ""
    parts = [
        f"{head}{note}",
        _say_cause(view, candidates),
        _say_starts(list_starts(run)),
        _say_decisions(run),
        _say_slurm(evidence),
        _say_failing(view, evidence),
        _say_rest(candidates),
        _say_checkpoint(evidence),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_text_page(candidates: Sequence[Candidate]) -> str:
    """Write what a text alone gives."""
    if not candidates:
        return "no known cause is in this text; docs/troubleshooting.md lists what is known\n"
    parts = [_say_candidate(candidates[0]), _say_rest(candidates)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _say_cause(view: RunView, candidates: Sequence[Candidate]) -> str:
    fine = view.state == "COMPLETED"
    if fine and candidates:
        return "The run itself has completed. Beside it:\n\n" + _say_candidate(candidates[0])
    if fine:
        return "Nothing is wrong: the run has completed."
    if not view.is_over and view.state != "SILENT":
        # The logs are of a start that lives; what Slurm says is of one that is over, or that cannot be.
        told = [each for each in candidates if any(fact.source == "sacct" for fact in each.facts)]
        state = "It waits in the queue." if view.state == "PENDING" else "It has not ended."
        return f"{state} What Slurm says of it:\n\n{_say_candidate(told[0])}" if told else state
    if not candidates:
        return (
            "No known cause was found; what is known is below. The same command goes on from the last "
            "checkpoint."
        )
    return _say_candidate(candidates[0])


def _say_candidate(candidate: Candidate) -> str:
    cause = candidate.cause
    seen = [
        line
        for fact in candidate.facts[:2]
        for line in _fold(f"{fact.where}: {_shorten(fact.text)}", "seen     ")
    ]
    return "\n".join(
        [
            f"cause    {cause.title} ({cause.id})",
            *seen,
            *_fold(cause.explanation, "means    "),
            *_fold(cause.remedy, "to do    "),
        ]
    )


def _say_starts(starts: Sequence[Start]) -> str:
    if not starts:
        return "Starts: none has claimed the run"
    rows = [
        (
            f"  {start.number}",
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start.time)) if start.time else NOTHING,
            start.host or NOTHING,
            "no step" if start.last_step is None else f"steps {start.first_step}-{start.last_step}",
            _shorten(start.end, _LONGEST_END),
        )
        for start in starts
    ]
    return "\n".join(["Starts", *lay_out(rows)])


def _say_decisions(run: RunFacts) -> str:
    lines = read_records(run.layout.jobs)[-_MOST_DECISIONS:]
    shown = [{key: value for key, value in line.items() if key not in _UNSAID} for line in lines]
    said = [f"  {line}" for line in map(say_event, shown) if line]
    return "\n".join(["Jobs, and what they decided (jobs.jsonl)", *said]) if said else ""


def _say_slurm(evidence: Evidence) -> str:
    if evidence.trouble:
        return f"Slurm: {evidence.trouble}"
    if not evidence.rows:
        return ""
    names = [name for name in _SHOWN_FIELDS if any(row.get(name) for row in evidence.rows)]
    rows = [names, *([row.get(name, "") for name in names] for row in evidence.rows)]
    return "\n".join([f"Slurm on job {evidence.job or NOTHING}", *(f"  {line}" for line in lay_out(rows))])


def _say_failing(view: RunView, evidence: Evidence) -> str:
    failing = evidence.failing
    if failing is None or view.state == "COMPLETED":
        return ""
    path = evidence.run.layout.rank_log(failing.rank)
    said = [line for line in newest_start(read_tail(path)) if not line.startswith(START_MARK)]
    lines = [line for line in said if line.strip()][-_LAST_LINES:]
    node = f" on {failing.node}" if failing.node else ""
    head = f"Rank {failing.rank}{node} was the first to fail ({failing.how}); "
    told = f"the last lines of {path.name}:" if lines else f"{path.name} says nothing"
    return "\n".join([head + told, *(f"  | {_shorten(line)}" for line in lines)])


def _say_rest(candidates: Sequence[Candidate]) -> str:
    rest = candidates[1 : 1 + _MOST_CANDIDATES]
    if not rest:
        return ""
    lines = [f"  {each.cause.title} ({each.cause.id}): {_shorten(each.facts[0].text)}" for each in rest]
    return "\n".join(["Also seen, more likely as what followed", *lines])


def _say_checkpoint(evidence: Evidence) -> str:
    run = evidence.run
    if run.checkpoint_step is None or run.checkpoint_time is None:
        return "No checkpoint is there: the same command begins anew"
    age = say_seconds(time.time() - run.checkpoint_time)
    return f"Last checkpoint: step {run.checkpoint_step}, {age} ago; logs: {run.layout.logs}"


def _fold(text: str, label: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=label,
        subsequent_indent=" " * len(label),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _shorten(text: str, most: int = _LONGEST_SIGN) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
