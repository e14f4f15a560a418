"""How a run goes on in another job: the same one again, or the next of a chain; and who waits for it."""

import os
import re
from collections.abc import Sequence

from launcher.slurm.call import PATIENT, SlurmAwayError, SlurmError, call_slurm, sbatch_words
from launcher.slurm.facts import find_job_state
from launcher.slurm.journal import Line, append_line, list_excluded, read_journal
from training.config.freeze import read_frozen
from training.layout import RunLayout

_ATTEMPTS = 6
_WAITS = re.compile(r"after(ok|any|notok)?:")


def own_job() -> str:
    """Name the job that this process runs in, as users do: an array's task is ARRAY_TASK."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]


def hand_over(
    layout: RunLayout, job: str, *, may_requeue: bool, exclude: Sequence[str] = ()
) -> tuple[str, str]:
    """See to it that the run goes on later; this job is to end.

    Args:
        layout: The run's folder.
        job: This job.
        may_requeue: Whether the site lets a job run again.
        exclude: Nodes that the job's preflight has just found bad: it may not be this job that goes on.

    Returns:
        The job that goes on, which may be this one, and words about it for the job's log.

    Raises:
        SlurmError: Slurm refuses.
    """
    chained = find_successor(layout, job)
    if chained is not None and exclude:
        call_off_next(layout, job)
        chained = None
    if chained is not None or exclude or not may_requeue:
        by = chained or submit_next(layout, after=job)
        append_line(layout.jobs, "decided", job=job, step="return", by=by)
        return by, f"job {by} goes on" + (f" without {', '.join(exclude)}" if exclude else "")
    append_line(layout.jobs, "decided", job=job, step="return", by=job)
    try:
        requeue(job)
    except SlurmError as error:
        by = submit_next(layout, after=job)
        append_line(layout.jobs, "decided", job=job, step="return", by=by)
        return by, f"{error}; job {by} goes on instead"
    return job, f"job {job} is put back into the queue"


def requeue(job: str) -> None:
    """Ask that this job run again, for as long as the controller needs to answer.

    Slurm then ends this job's processes. That it is pending already (it was preempted) is as good.

    Raises:
        SlurmError: Slurm refuses to.
    """
    try:
        call_slurm(["scontrol", "requeue", job], attempts=PATIENT)
    except SlurmError as error:
        if "pending" not in str(error).lower():
            raise


def submit_next(layout: RunLayout, *, after: str) -> str:
    """Submit this run's script once more, to begin when job ``after`` has ended in whatever way; give its id.

    It stays away from the nodes that preflights have found bad, unless Slurm then has too few.

    Raises:
        SlurmError: It is refused.
    """
    waits = ("--parsable", f"--dependency=afterany:{after}")
    bad = list_excluded(read_journal(layout.jobs))
    known = read_frozen(layout.config).cluster.slurm.exclude
    try:
        without = [f"--exclude={','.join([*known, *bad])}"] if bad else []
        said = call_slurm(sbatch_words(layout.job_script, *waits, *without), attempts=PATIENT)
    except SlurmAwayError:
        raise
    except SlurmError:
        if not bad:
            raise
        bad = []
        said = call_slurm(sbatch_words(layout.job_script, *waits), attempts=PATIENT)
    job = said.strip().partition(";")[0]
    append_line(layout.jobs, "next", job=job, after=after, excluded=bad)
    move_dependents(after, job, besides={job})
    return job


def find_successor(layout: RunLayout, job: str) -> str | None:
    """Name the job that waits to go on after ``job``; None where there is none, or somebody has cancelled it.

    Where the controller does not answer, what was submitted is taken to wait still.
    """
    waiting = find_waiting(read_journal(layout.jobs), job)
    try:
        return waiting if waiting and find_job_state(waiting, attempts=_ATTEMPTS) else None
    except SlurmAwayError:
        return waiting


def find_waiting(lines: Sequence[Line], job: str) -> str | None:
    """Name the job that was submitted to go on after ``job`` and was not called off."""
    found = None
    for line in lines:
        if line["event"] == "next" and line.get("after") == job:
            found = str(line["job"])
        elif line["event"] == "called_off" and line.get("job") == found:
            found = None
    return found


def call_off_next(layout: RunLayout, job: str) -> None:
    """Cancel the job that would go on after this one: the run has ended; who waits for it waits for us again.

    Raises:
        SlurmError: It is refused.
    """
    waiting = find_waiting(read_journal(layout.jobs), job)
    if waiting is None:
        return
    move_dependents(waiting, job, besides={waiting})
    call_slurm(["scancel", waiting], attempts=PATIENT)
    append_line(layout.jobs, "called_off", job=waiting)


def move_dependents(old: str, new: str, *, besides: set[str]) -> None:
    """Let jobs that wait for ``old`` wait for ``new``; ``besides`` are left alone."""
    said = call_slurm(
        ["squeue", "--noheader", "--me", "--states=PENDING", "--format=%i %E"], attempts=PATIENT
    )
    for row in said.splitlines():
        job, _, waits = row.partition(" ")
        moved = replace_dependency(waits, old, new)
        if job not in besides and moved is not None:
            call_slurm(["scontrol", "update", f"JobId={job}", f"Dependency={moved}"], attempts=PATIENT)


def replace_dependency(waits: str, old: str, new: str) -> str | None:
    """Rewrite a dependency as squeue writes it, afterok:12(unfulfilled); None where ``old`` is not in it."""
    plain = re.sub(r"\([^)]*\)", "", waits.strip())
    if not _WAITS.search(plain):
        return None
    moved = re.sub(rf"(?<=[:+,]){re.escape(old)}(?![\d_])", new, plain)
    return moved if moved != plain else None
