"""What can be found out within a job: the run's files, Slurm's view, and what the job's log says."""

import json
import os
import re
from pathlib import Path
from typing import Any

from launcher.slurm.call import SlurmError, call_slurm
from training.layout import RunLayout

BY_USER = "user "
"""How the text of a stop request begins that a person has made; the job's own script says otherwise."""

_CANCELLED = re.compile(r"\*\*\* JOB \S+ ON \S+ CANCELLED AT (.*)\*\*\*")
_SLURMS_OWN = re.compile(r"DUE TO (PREEMPTION|JOB REQUEUE|TIME LIMIT|NODE FAILURE)")
_OUT_OF_MEMORY = re.compile(r"oom[-_]kill|Out Of Memory|[Ee]xceeded (job |step )?memory limit")
_LOG_TAIL = 20_000


def newest_step(layout: RunLayout) -> int:
    """Find the newest complete checkpoint's step; 0 where there is none."""
    found = (
        path.parent.name.removeprefix("step_") for path in layout.checkpoints.glob("step_*/manifest.json")
    )
    return max((int(step) for step in found if step.isdecimal()), default=0)


def asked_by_user(layout: RunLayout) -> bool:
    """Whether a person wants the run to stop."""
    try:
        return layout.stop_request.read_text(encoding="utf-8").startswith(BY_USER)
    except OSError:
        return False


def is_cancelled(job: str, log: str) -> bool:
    """Whether a person has cancelled the job.

    While a cancelled job ends Slurm calls its state COMPLETING; why, it tells in the job's log, where a
    preemption, a requeue, the time's end and a node's death have words of their own.
    """
    told = _CANCELLED.findall(log)
    if not told or _SLURMS_OWN.search(told[-1]):
        return False
    try:
        said = call_slurm(["scontrol", "show", "job", "--oneliner", job])
    except SlurmError:
        return False
    return "JobState=CANCELLED" in said or "JobState=COMPLETING" in said


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


def is_out_of_memory(log: str) -> bool:
    """Whether Slurm has ended the step for its memory: by the kernel's hand (cgroup), or by its own count."""
    return bool(_OUT_OF_MEMORY.search(log))


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
    """Read the end of the job's log, which Slurm has opened as this process's stderr."""
    path = Path("/proc/self/fd/2")
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
