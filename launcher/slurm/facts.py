"""What can be found out within a job: the run's files, Slurm's view, and what the job's log says."""

import json
import os
import re
from pathlib import Path
from typing import Any

from launcher.slurm.call import SlurmError, call_slurm
from launcher.slurm.journal import Line, is_stopped, list_jobs, read_journal
from training.layout import RunLayout

BY_USER = "user "
"""How the text of a stop request begins that a person has made; the job's own script says otherwise."""

SLURM_LOG = "METIER_SLURM_LOG"
"""Environment variable by which the script of an array tells where Slurm's own words go."""

_CANCELLED = re.compile(r"\*\*\* JOB (\S+) ON \S+ CANCELLED AT (.*)\*\*\*")
_SLURMS_OWN = re.compile(r"DUE TO (PREEMPTION|JOB REQUEUE|TIME LIMIT|NODE FAILURE)")
_OUT_OF_MEMORY = re.compile(
    r"oom[-_]kill|Out Of Memory|[Ee]xceeded (job |step )?memory limit"  # by cgroup, or by what Slurm sampled
)
_LOG_TAIL = 20_000
_ATTEMPTS = 3
_MOST_ALIVE = 3
"""A job that runs, one that was called off, and the one in its place: what is older has ended."""

START_SAID = "metier job: start "
"""How the line of the job's log begins by which a start is told."""


def newest_step(layout: RunLayout) -> int:
    """Find the newest complete checkpoint's step; 0 where there is none."""
    found = (
        path.parent.name.removeprefix("step_") for path in layout.checkpoints.glob("step_*/manifest.json")
    )
    return max((int(step) for step in found if step.isdecimal()), default=0)


def asked_by_user(layout: RunLayout) -> bool:
    """Whether a person wants the run to stop: by the file that the ranks see, or by the journal."""
    if is_stopped(read_journal(layout.jobs)):
        return True
    try:
        return layout.stop_request.read_text(encoding="utf-8").startswith(BY_USER)
    except OSError:
        return False


def find_job_state(job: str, *, attempts: int = _ATTEMPTS) -> str | None:
    """Ask for a job's state while it waits, runs or ends; None when it is gone.

    Raises:
        SlurmError: The controller does not answer.
    """
    try:
        said = call_slurm(["squeue", "--noheader", f"--jobs={job}", "--format=%T"], attempts=attempts)
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    return next(iter(said.split()), None)


def find_living_job(lines: list[Line]) -> tuple[str, str] | None:
    """Find a run's newest job that waits, runs or ends, and its state; None where all are gone.

    In a chain the newest one may have been cancelled while the one before it still saves.

    Raises:
        SlurmError: The controller does not answer.
    """
    for job in list_jobs(lines)[:_MOST_ALIVE]:
        if state := find_job_state(job):
            return job, state
    return None


def is_cancelled(job: str, log: str) -> bool:
    """Whether a person has cancelled the job.

    While a cancelled job ends Slurm calls its state COMPLETING; why, it tells in the job's log, where a
    preemption, a requeue, the time's end and a node's death have words of their own.
    """
    # Tasks of an array share a log, in which each has a number of its own.
    number = os.environ.get("SLURM_JOB_ID", job)
    told = [words for whose, words in _CANCELLED.findall(log) if whose == number]
    if not told or _SLURMS_OWN.search(told[-1]):
        return False
    try:
        said = call_slurm(["scontrol", "show", "job", "--oneliner", job])
    except SlurmError:
        return False
    return "JobState=CANCELLED" in said or "JobState=COMPLETING" in said


def is_out_of_memory(log: str) -> bool:
    """Whether the kernel or Slurm itself (its setting OverMemoryKill) killed a rank for its memory."""
    return bool(_OUT_OF_MEMORY.search(log))


def own_restart() -> int:
    """How often this job had been run again when this script began."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def is_run_again(job: str) -> bool:
    """Whether Slurm has put this job back into the queue since this script began; False if it cannot tell."""
    try:
        said = call_slurm(["scontrol", "show", "job", "--oneliner", job])
    except SlurmError:
        return False
    found = re.search(r" Restarts=(\d+)", said)
    return found is not None and int(found[1]) > own_restart()


def find_end(job: str) -> int | None:
    """Ask when the job's time is over, seconds since 1970; None where it is not known."""
    try:
        said = call_slurm(["squeue", "--noheader", f"--jobs={job}", "--format=%e"])
    except SlurmError:
        return None
    return int(said.strip()) if said.strip().isdecimal() else None


def read_outcome(path: Path) -> dict[str, Any] | None:
    """Read what the ranks left behind; None where they could not."""
    try:
        outcome = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return outcome if isinstance(outcome, dict) else None


def read_own_log() -> str:
    """Read the end of the job's log, which Slurm has opened as this process's stderr.

    Of what it says only what was said since the newest start.
    """
    said = _read_end(Path("/proc/self/fd/2"))
    return said[max(0, said.rfind(START_SAID)) :]


def read_slurm_log() -> str:
    """Read the end of the log that Slurm itself writes to: another one than the job's in an array."""
    path = os.environ.get(SLURM_LOG)
    return _read_end(Path(path)) if path else ""


def _read_end(path: Path) -> str:
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
