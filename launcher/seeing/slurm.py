"""Asks Slurm about jobs: all of them at once, within a bounded time, and never with an error."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 8.0
"""How long an answer may take; a controller that is restarting takes longer and is not waited for."""

ACTIVE = frozenset(
    {
        "PENDING",
        "CONFIGURING",
        "RUNNING",
        "COMPLETING",
        "STAGE_OUT",
        "SIGNALING",
        "STOPPED",
        "SUSPENDED",
        "RESIZING",
        "REQUEUED",
        "REQUEUE_HOLD",
        "REQUEUE_FED",
        "RESV_DEL_HOLD",
        "SPECIAL_EXIT",
    }
)
"""States of a job that is not over (squeue(1), "JOB STATE CODES")."""

_WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"})

UNMET = "DependencyNeverSatisfied"
"""squeue's reason of a job that Slurm has cancelled because the one that it waited for has failed."""

NOWHERE = "None assigned"
"""sacct's nodes of a job that never began."""

_UNMET = re.compile(rf"\|CANCELLED\|[^|]*\|{NOWHERE}")
SCRIPT_WORDS = ("squeue", "--noheader", "--me", "--array", "--format=%i %o")
"""squeue's words for what ``find_by_script`` reads."""

_FIELDS = 4
_NUMBER = re.compile(r"\d+(_\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """What Slurm says of one job."""

    job: str
    state: str
    """RUNNING, PENDING, TIMEOUT and so on, without what follows (CANCELLED by 1000)."""

    reason: str = ""
    """Why it waits, where it does."""

    nodes: str = ""

    @property
    def is_active(self) -> bool:
        """Whether it waits, runs, or comes back by itself."""
        return self.state in ACTIVE

    @property
    def waits(self) -> bool:
        """Whether it is in the queue."""
        return self.state in _WAITING

    @property
    def is_unmet(self) -> bool:
        """Whether it never began because the job that it waited for has failed."""
        return self.state == "CANCELLED" and self.reason == UNMET


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmView:
    """What Slurm says of all jobs that were asked for."""

    jobs: dict[str, JobView]
    trouble: str = ""
    """Why it does not say more, for a person; nothing where it answered."""


NOTHING = SlurmView(jobs={})


def ask_jobs(jobs: Iterable[str]) -> SlurmView:
    """Ask for the states of jobs: those that are there from squeue, those that are gone from sacct."""
    wanted = sorted({job for job in jobs if _NUMBER.fullmatch(job)})
    if not wanted or shutil.which("squeue") is None:
        return NOTHING
    said, trouble = ask(queue_words(wanted))
    # Slurm forgets a job some minutes after its end, and says so of a single one by an error.
    trouble = "" if "Invalid job id" in trouble else trouble
    found = read_queue(said)
    gone = [job for job in wanted if job not in found]
    if gone and shutil.which("sacct"):
        rows, _ = ask(
            ["sacct", "-X", "-P", "-n", "--format=JobID,State,Reason,NodeList", f"--jobs={','.join(gone)}"]
        )
        # In squeue's words; what a person has cancelled is CANCELLED by 1000.
        found |= read_queue(_UNMET.sub(f"|CANCELLED|{UNMET}|", row) for row in rows)
    return SlurmView(jobs=found, trouble=trouble)


def queue_words(jobs: Sequence[str]) -> list[str]:
    """Give squeue's words for what ``read_queue`` reads."""
    columns = "--format=%i|%T|%r|%N"
    return ["squeue", "--noheader", "--array", "--states=all", columns, f"--jobs={','.join(jobs)}"]


def read_queue(lines: Iterable[str]) -> dict[str, JobView]:
    """Read what squeue, or sacct in the same columns, says of jobs."""
    return {view.job: view for view in map(_read_queue, lines) if view}


def find_by_script(lines: Iterable[str], script: Path) -> str | None:
    """Find the job that this script was submitted as and that is not over; None where there is none."""
    rows = (line.strip().partition(" ") for line in lines)
    return next((job for job, _, command in rows if command.strip() == str(script)), None)


def ask(command: Sequence[str], seconds: float = SECONDS) -> tuple[list[str], str]:
    """Run one of Slurm's commands.

    Returns:
        The lines that it printed, and why there are not more: nothing where it went well.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return [], f"Slurm's controller does not answer ({command[0]} took more than {seconds:.0f} s)"
    except OSError as error:
        return [], f"{command[0]} cannot be run ({error.strerror})"
    trouble = "" if done.returncode == 0 else _say_trouble(command[0], done.stderr)
    return [line for line in done.stdout.splitlines() if line.strip()], trouble


def _say_trouble(command: str, stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else "no reason given"
    if any(sign in stderr for sign in ("Unable to contact", "Connection refused", "timed out", "DNS SRV")):
        return f"Slurm's controller does not answer ({last})"
    return f"{command} failed ({last})"


def _read_queue(line: str) -> JobView | None:
    fields = line.split("|")
    if len(fields) < _FIELDS or not fields[1]:
        return None
    job, state, reason, nodes = (field.strip() for field in fields[:_FIELDS])
    reason = "" if reason in {"None", "N/A"} else reason
    return JobView(job=job, state=state.split()[0], reason=reason, nodes=nodes)
