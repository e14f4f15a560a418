"""Of a job that never began: the job that it waited for, how that one ended, and where its words are."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher.seeing.facts import read_jobs
from launcher.seeing.read import read_tail
from launcher.seeing.runs import list_runs
from launcher.slurm.journal import Line
from launcher.why.sacct import Row, is_unmet
from training.layout import RunLayout

_REASON = re.compile(r"metier [a-z]+: |(\w+\.)*\w*(Error|Exception)\b")
_SLURMS = re.compile(r"(srun|slurmstepd[\w-]*|slurmd): ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    """The job by whose end all that waited for it was cancelled."""

    job: str
    stage: str
    """What it was to do, where it is one of the run's own."""

    failed: tuple[Row, ...]
    """Slurm's, of what has not ended well in it: itself, or tasks of its array."""


def find_awaited(
    lines: Sequence[Line], job: str | None, rows: Sequence[Row], ask: Callable[[str], Sequence[Row]]
) -> Awaited | None:
    """Find the job that was waited for, over jobs that never began themselves.

    Args:
        lines: The run's jobs.jsonl.
        job: The one that never began.
        rows: What Slurm says of it.
        ask: Asks Slurm for the rows of another one.
    """
    submitted = {str(line["job"]): line for line in lines if "after" in line and "job" in line}
    before = None
    while job is not None and any(map(is_unmet, rows)) and (after := submitted.get(job, {}).get("after")):
        job, rows = str(after), ask(str(after))
        whole = [row for row in rows if "." not in row["JobID"]]
        failed = tuple(row for row in whole if not row.get("State", "").startswith("COMPLETED"))
        before = Awaited(job=job, stage=str(submitted.get(job, {}).get("stage", "")), failed=failed)
    return before


def say_awaited(awaited: Awaited, layout: RunLayout) -> str:
    """Name the job, say how it ended, and where to look."""
    what = f"job {awaited.job}" + (f" ({awaited.stage})" if awaited.stage else "")
    ends = [
        f"{row['JobID']} {row.get('State', '')} {row.get('ExitCode', '')}".strip() for row in awaited.failed
    ]
    return f"{what}, which has ended: {', '.join(ends) or 'not well'}{_say_where(awaited, layout)}"


def _say_where(awaited: Awaited, layout: RunLayout) -> str:
    logs = [log for row in awaited.failed if (log := layout.job_log(row["JobID"])).is_file()]
    if logs:
        last = choose_line(read_tail(logs[0]))
        return f"; {logs[0]}" + (f" says: {last}" if last else " says nothing")
    others = list_runs(str(layout.root.parent))
    owner = next((each for each in others if awaited.job in read_jobs(each)), None)
    return f"; it is of {owner.root.name}: metier why {owner.root.name}" if owner else ""


def choose_line(lines: Sequence[str]) -> str:
    """Choose the line of a job's log that says most of its end: an error, before what Slurm adds to it."""
    said = [line.strip() for line in reversed(lines) if line.strip()]
    own = [line for line in said if not _SLURMS.match(line)]
    return next((line for line in own if _REASON.match(line)), next(iter([*own, *said]), ""))
