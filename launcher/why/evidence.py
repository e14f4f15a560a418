"""Gathers the facts about a run's last end: from its directory, and from Slurm where it ran there."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from launcher.seeing.facts import RunFacts, read_facts
from launcher.seeing.logs import find_launch_logs, find_rank_logs
from launcher.seeing.read import number, read_object, read_tail, text
from launcher.seeing.slurm import JobView, ask_jobs, read_queue
from launcher.seeing.state import find_forgotten
from launcher.slurm.journal import last_submission, read_journal
from launcher.why.awaited import find_awaited, say_awaited
from launcher.why.match import Fact
from launcher.why.sacct import Row, ask_rows, is_of, last_start, read_rows, say_row
from training.layout import START_MARK, RunLayout

START_MARKS = (START_MARK, "metier job: start ")
"""With these words each start begins in a log that is appended to: a rank's, a job's."""

SAVED_ROWS = "sacct.txt"
"""What sacct said, kept beside a recorded run: it is read instead of asking."""

SAVED_QUEUE = "squeue.txt"
"""The same of squeue."""

SAID = "command.log"
"""What the command itself printed, kept beside a recorded run."""

_LINES = 400
_CLOCKS_DIFFER_SECONDS = 60.0
_ROOT_CAUSE = re.compile(r"rank\s+: (\d+) \(local_rank")
_HOST = re.compile(r"host\s+: (\S+)")
_TASK = re.compile(r"srun: error: (\S+): tasks? (\d+)[\d,-]*: (.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """The rank that failed first, as far as it can be known."""

    rank: int
    node: str
    how: str
    """By what it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that was found."""

    run: RunFacts
    facts: tuple[Fact, ...]
    failing: Failing | None
    rows: tuple[Row, ...]
    """Slurm's, of all starts of the job."""

    job: str | None
    trouble: str
    """Why Slurm says nothing; nothing where it did, or has nothing to do with it."""


def gather(layout: RunLayout, job: str | None = None, said: Path | None = None) -> Evidence:
    """Gather what there is about the last end of a run.

    Args:
        layout: The run.
        job: Slurm's number of the job to look at; None: the newest.
        said: A file with what a command printed, or a job's log from elsewhere.
    """
    (run,) = find_forgotten([read_facts(layout)])
    job = job or (run.jobs[-1] if run.jobs else None)
    rows, trouble = _find_rows(layout, job)
    never_begun = _read_never_begun(layout, run, job, rows)
    facts = never_begun or _read_start(layout, run, job, said)
    return Evidence(
        run=run,
        facts=(*facts, *[Fact(source="sacct", text=say_row(row), where="sacct") for row in last_start(rows)]),
        failing=None if never_begun else find_failing(run.outcome, facts),
        rows=tuple(rows),
        job=job,
        trouble=trouble,
    )


def _read_start(layout: RunLayout, run: RunFacts, job: str | None, said: Path | None) -> list[Fact]:
    """Read what the last start has left behind."""
    log = layout.job_log(job) if job else None
    facts = [
        *_read_outcome(run),
        *(fact for path in find_launch_logs(layout) for fact in _read_log("launch", path)),
        *(_read_log("job", log) if log else []),
        *_read_log("command", said or layout.root / SAID),
        *_read_log("tracker", layout.logs / "tracker.log"),
        *_read_events(run),
        *_read_jobs(layout),
        *_read_preflight(layout),
    ]
    claimed = number(run.claim, "time") or 0.0
    for path in find_rank_logs(layout):
        if is_older(newest_start(read_tail(path, _LINES)), claimed):
            continue  # the newest start has fewer ranks
        facts += _read_log("rank", path, rank=int(path.stem.removeprefix("rank_")))
    return facts


def _read_never_begun(layout: RunLayout, run: RunFacts, job: str | None, rows: Sequence[Row]) -> list[Fact]:
    """Read why a job has never begun; nothing where it has. Whatever else lies there is of earlier ones."""
    if run.withdrawn:
        return [Fact(source="outcome", text=f"state=STOPPED wish={run.withdrawn}", where="jobs.jsonl")]
    before = find_awaited(read_journal(layout.jobs), job, rows, lambda each: _find_rows(layout, each)[0])
    if before is None:
        return []
    waited = Fact(
        source="sacct", text=f"job {job} waited for {say_awaited(before, layout)}", where="jobs.jsonl"
    )
    logs = (layout.job_log(row["JobID"]) for row in before.failed)
    return [waited, *(fact for log in logs for fact in _read_log("job", log))]


def gather_text(path: Path, content: Sequence[str]) -> tuple[Fact, ...]:
    """Take a text alone, where there is no run directory: a console, a job's log."""
    return tuple(Fact(source="command", text=line, where=path.name) for line in content)


def newest_start(lines: Sequence[str]) -> Sequence[str]:
    """Give the lines of the last start; all, where a log does not mark them."""
    marks = [place for place, line in enumerate(lines) if line.startswith(START_MARKS)]
    return lines[marks[-1] :] if marks else lines


def is_older(start: Sequence[str], claimed: float) -> bool:
    """Whether the start that these lines tell of was over before the newest one was asked for."""
    mark = start[0].removeprefix(START_MARK).split(" on ")[0] if start else ""
    try:
        began = datetime.strptime(mark, "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError:
        return False
    return began < claimed - _CLOCKS_DIFFER_SECONDS


def leave_out_followers(lines: Sequence[str]) -> Sequence[str]:
    """Leave out of torchrun's report the processes that failed after the first, or that it killed itself."""
    try:
        first = lines.index("Failures:")
        root = next(place for place in range(first, len(lines)) if "Root Cause" in lines[place])
    except (ValueError, StopIteration):
        return lines
    return [*lines[:first], *lines[root:]]


def find_failing(outcome: dict[str, Any], facts: Sequence[Fact]) -> Failing | None:
    """Find the rank that failed first: torchrun and srun saw processes end, outcome.json is its own word.

    A rank that was killed says nothing; the outcome is then another's, which only lost its peer.
    """
    rank = outcome.get("rank")
    told = text(outcome, "state") == "FAILED" and isinstance(rank, int)
    lost = text(outcome, "error_class") == "PeerLostError" or text(outcome, "cause") == "peer"
    if told and not lost:
        return Failing(rank=int(rank or 0), node=text(outcome, "node"), how="outcome.json")
    seen = _find_ended(facts)
    if seen is None and told:
        return Failing(rank=int(rank or 0), node=text(outcome, "node"), how="outcome.json")
    return seen


def _find_ended(facts: Sequence[Fact]) -> Failing | None:
    root = host = ""
    in_root_cause = False
    for fact in facts:
        if fact.source not in {"launch", "job"}:
            continue
        if match := _TASK.search(fact.text):
            return Failing(rank=int(match[2]), node=match[1], how=f"srun: {match[3]}")
        in_root_cause = in_root_cause or "Root Cause" in fact.text
        if in_root_cause:
            host = host or (match[1] if (match := _HOST.search(fact.text)) else "")
            root = root or (match[1] if (match := _ROOT_CAUSE.search(fact.text)) else "")
    return Failing(rank=int(root), node=host, how="torchrun") if root else None


def _find_rows(layout: RunLayout, job: str | None) -> tuple[list[Row], str]:
    saved, queue = layout.root / SAVED_ROWS, layout.root / SAVED_QUEUE
    if saved.is_file():
        rows = [row for row in read_rows(read_tail(saved)) if job is None or is_of(row, job)]
        return explain_wait(rows, read_queue(read_tail(queue))), ""
    if job is None:
        return [], ""
    rows, trouble = ask_rows(job)
    waits = any(row.get("State") == "PENDING" for row in rows)
    return explain_wait(rows, ask_jobs([job]).jobs if waits else {}), trouble


def explain_wait(rows: Sequence[Row], jobs: Mapping[str, JobView]) -> list[Row]:
    """Say in the rows of a job that waits what it waits for: squeue knows it, the accounting does not."""
    return [
        {**row, "Reason": jobs[row["JobID"]].reason}
        if row.get("State") == "PENDING" and row["JobID"] in jobs
        else row
        for row in rows
    ]


def _read_outcome(run: RunFacts) -> list[Fact]:
    outcome = run.outcome
    if not outcome:
        begun = [Fact(source="outcome", text="state=none (nothing was left)", where="no outcome.json")]
        return begun if run.starts else []
    words = " ".join(
        f"{name}={outcome[key]}"
        for name, key in (
            ("state", "state"),
            ("class", "error_class"),
            ("cause", "cause"),
            ("rank", "rank"),
            ("node", "node"),
            ("notice", "notice"),
            ("message", "message"),
        )
        if outcome.get(key) is not None
    )
    wish = f" wish={run.wish}" if run.wish else ""
    # The ranks know a signal; that a person has cancelled the job, its script has found out.
    ended = text(outcome, "state") == "STOPPED" and text(run.decision, "step") == "stopped"
    decided = f" decided={text(run.decision, 'reason')}" if ended else ""
    return [Fact(source="outcome", text=words + wish + decided, where="outcome.json")]


def _read_log(source: str, path: Path, rank: int | None = None) -> list[Fact]:
    lines = leave_out_followers(newest_start(read_tail(path, _LINES)))
    return [Fact(source=source, text=line, where=path.name, rank=rank) for line in lines if line.strip()]


def _read_events(run: RunFacts) -> list[Fact]:
    newest = run.starts
    return [
        Fact(source="events", text=json.dumps(event, ensure_ascii=False), where="events.jsonl")
        for event in run.events
        if event.get("incarnation") in {newest, None}
    ]


def _read_jobs(layout: RunLayout) -> list[Fact]:
    """Read what was decided since a person has submitted the run last."""
    lines = read_journal(layout.jobs)
    return [
        Fact(source="events", text=json.dumps(line, ensure_ascii=False), where="jobs.jsonl")
        for line in lines[last_submission(lines) :]
    ]


def _read_preflight(layout: RunLayout) -> list[Fact]:
    found = read_object(layout.preflight)
    lines = json.dumps(found, indent=1, ensure_ascii=False).splitlines() if found else []
    return [Fact(source="preflight", text=line.strip(), where="preflight.json") for line in lines]
