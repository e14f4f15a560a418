"""Slurm's own view of a job: rows of sacct, or what the controller still knows."""

import re
import shutil
from collections.abc import Sequence

from launcher.seeing.slurm import NOWHERE, UNMET, ask

FIELDS = (
    "JobID",
    "JobName",
    "State",
    "ExitCode",
    "Elapsed",
    "Timelimit",
    "NodeList",
    "MaxRSS",
    "ReqMem",
    "Start",
    "End",
    "Reason",
)
_FROM_CONTROLLER = {
    "JobID": "JobId",
    "JobName": "JobName",
    "State": "JobState",
    "ExitCode": "ExitCode",
    "Elapsed": "RunTime",
    "Timelimit": "TimeLimit",
    "NodeList": "NodeList",
    "Start": "StartTime",
    "End": "EndTime",
    "Reason": "Reason",
}
_GOING_ON = ("PENDING", "RUNNING", "REQUEUED", "COMPLETING")

Row = dict[str, str]


def ask_rows(job: str) -> tuple[list[Row], str]:
    """Ask for a job and its steps, each start of it by itself.

    Returns:
        The rows, and why there are none: nothing where there are some or Slurm is not here.
    """
    if shutil.which("sacct") is None:
        return [], ""
    lines, trouble = ask(["sacct", "-D", "-P", f"--format={','.join(FIELDS)}", "-j", job])
    rows = read_rows(lines)
    if rows:
        return rows, ""
    said, _ = ask(["scontrol", "show", "job", "-o", job])
    rows = [row for line in said if (row := read_controller(line))]
    return rows, "" if rows else trouble or f"Slurm knows nothing of job {job} any more"


def read_rows(lines: Sequence[str]) -> list[Row]:
    """Read what ``sacct -P`` prints: a line of names, then one for each job, start and step."""
    if not lines:
        return []
    names = lines[0].split("|")
    return [dict(zip(names, line.split("|"), strict=False)) for line in lines[1:] if "|" in line]


def read_controller(line: str) -> Row:
    """Read what ``scontrol show job -o`` prints of one job, in the words of sacct."""
    pairs = dict(word.split("=", 1) for word in line.split() if "=" in word)
    row = {name: pairs.get(theirs, "") for name, theirs in _FROM_CONTROLLER.items()}
    return row if row["JobID"] else {}


def last_start(rows: Sequence[Row]) -> list[Row]:
    """Give the rows of the last start that has ended: a requeued job has several under one number."""
    starts: list[list[Row]] = []
    for row in rows:
        if "." not in row.get("JobID", "") or not starts:
            starts.append([])
        starts[-1].append(row)
    ended = [start for start in starts if not start[0].get("State", "").startswith(_GOING_ON)]
    return (ended or starts or [[]])[-1]


def is_of(row: Row, job: str) -> bool:
    """Whether a row is of this job: of itself, of a step, of a task of its array."""
    return re.fullmatch(rf"{re.escape(job)}(_\d+)?(\..+)?", row.get("JobID", "")) is not None


def is_unmet(row: Row) -> bool:
    """Whether Slurm has cancelled this job because the one that it waited for has failed.

    sacct does not always have the reason; what a person has cancelled is CANCELLED by 1000 to it.
    """
    never = row.get("NodeList") == NOWHERE
    return row.get("State") == "CANCELLED" and (never or row.get("Reason") == UNMET)


def say_row(row: Row) -> str:
    """Write a row as one line that signs are looked for in."""
    words = {
        "job": row.get("JobID", ""),
        "name": row.get("JobName", ""),
        "state": row.get("State", ""),
        "exit": row.get("ExitCode", ""),
        "reason": row.get("Reason", ""),
        "nodes": row.get("NodeList", ""),
    }
    return " ".join(f"{key}={value}" for key, value in words.items() if value)
