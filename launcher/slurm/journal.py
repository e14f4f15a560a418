"""jobs.jsonl: each job that was submitted for a run, each start in it, and what was decided at its end."""

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

from training.errors import StorageError
from training.metrics.lines import read_lines

Line = dict[str, Any]

ENDS = {"finished": "COMPLETED", "stopped": "STOPPED", "overtaken": "FENCED", "failed": "FAILED"}
"""Decisions after which nothing comes (decide.py), and the outcome that each means."""

_OF_JOBS = frozenset({"submitted", "next", "started", "decided"})


def append_line(path: Path, event: str, **facts: object) -> Line:
    """Append one event, durably.

    Raises:
        StorageError: It cannot be written.
    """
    line: Line = {"event": event, "time": round(time.time(), 3), **facts}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            # A line that a full disk or a kill has torn ends here, so that ours is whole.
            torn = file.tell() > 0 and _last_byte(path) != b"\n"
            file.write((b"\n" if torn else b"") + json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error.strerror}); free some space, or mend its permissions"
        ) from None
    return line


def read_journal(path: Path) -> list[Line]:
    """Read all whole lines; empty where there is no file."""
    try:
        return [line for line in read_lines(path) if "event" in line]
    except OSError:
        return []


def newest_job(lines: list[Line]) -> str | None:
    """Name the job that was submitted last; None where none was."""
    return next(
        (str(line["job"]) for line in reversed(lines) if line["event"] in {"submitted", "next"}), None
    )


def list_jobs(lines: list[Line]) -> list[str]:
    """Name the jobs since a person has submitted the run last, the newest first."""
    since = lines[last_submission(lines) :]
    names = [str(line["job"]) for line in reversed(since) if line["event"] in {"submitted", "next"}]
    return list(dict.fromkeys(names))


def is_stopped(lines: list[Line]) -> bool:
    """Whether a person has stopped the run, and has not submitted it since."""
    return any(line["event"] == "stop" for line in lines[last_submission(lines) :])


def find_decision(lines: list[Line]) -> Line | None:
    """Find the newest job's decision that nothing comes after it; None where it has not decided that."""
    last = next((line for line in reversed(lines) if line["event"] in _OF_JOBS), None)
    return last if last is not None and last.get("step") in ENDS else None


def find_withdrawn(lines: list[Line]) -> Line | None:
    """Find the stop by which a person has taken the newest job out of the queue; None where it was none."""
    last = next((line for line in reversed(lines) if line["event"] != "stage"), None)
    if last is None or last["event"] != "stop" or find_decision(lines):
        return None
    return last if newest_job(lines) in last.get("cancelled", []) else None


def find_newer(lines: list[Line], job: str, restart: int) -> str | None:
    """Name the newer job of the run, or the same job where it is run again, that has begun since.

    Slurm gives a job's nodes up for dead, and the job to others, while its script may live on unseen.

    Args:
        lines: The journal.
        job: The one that asks.
        restart: How often that job had been run again when this script began.

    Returns:
        The newest of them; None where none has begun.
    """
    order = [str(line["job"]) for line in lines if line["event"] in {"submitted", "next"}]
    newer = set(order[order.index(job) + 1 :]) if job in order else set()
    found = (
        str(line.get("job"))
        for line in reversed(lines)
        if line["event"] == "started"
        and ((line.get("job") == job and int(line.get("restart", 0)) > restart) or line.get("job") in newer)
    )
    return next(found, None)


def find_bad_nodes(lines: list[Line], job: str) -> set[str]:
    """Name the nodes that the newest preflight of a job has found bad."""
    found = next(
        (line for line in reversed(lines) if line["event"] == "preflight" and line.get("job") == job), None
    )
    return set(found.get("bad", [])) if found else set()


def list_excluded(lines: list[Line]) -> list[str]:
    """Name the nodes that preflights have found bad since a person has submitted the run last, sorted."""
    since = lines[last_submission(lines) :]
    return sorted({node for line in since if line["event"] == "preflight" for node in line.get("bad", [])})


def count_refusals(lines: list[Line], event: str) -> int:
    """Count the lines of one event since the last start, or since a person has submitted the run last."""
    since = max((at for at, line in enumerate(lines) if line["event"] == "started"), default=0)
    return sum(line["event"] == event for line in lines[max(since, last_submission(lines)) :])


def last_submission(lines: list[Line]) -> int:
    """Find the line by which a person has submitted the run last; 0 where there is none."""
    return max((at for at, line in enumerate(lines) if line["event"] == "submitted"), default=0)


def find_stages(lines: list[Line]) -> list[Line]:
    """Find the jobs that were submitted beside the training's, with its newest: before it and after."""
    last = last_submission(lines)
    before = itertools.takewhile(
        lambda line: line["event"] == "stage" and str(line.get("stage")).startswith("prepare"),
        reversed(lines[:last]),
    )
    return [*reversed(list(before)), *(line for line in lines[last:] if line["event"] == "stage")]


def count_in_vain(lines: list[Line]) -> int:
    """Count the last starts in a row that Slurm did not let begin."""
    ends = [bool(line.get("away")) for line in lines if line["event"] == "ended"]
    return next((at for at, away in enumerate(reversed(ends)) if not away), len(ends))


def count_idle_starts(lines: list[Line], step: int) -> tuple[int, int]:
    """Count the starts since the run last came further.

    Args:
        lines: The journal.
        step: The newest checkpoint's step.

    Returns:
        Those that failed by themselves, or of whose end nothing is known; and all of them, those that were
        told to stop included. A start that Slurm did not let begin is neither.
    """
    failed = told = 0
    noticed = away = False
    for line in reversed(lines):
        if line["event"] == "given_up" or line["event"] == "submitted":
            break  # a person has looked at it since
        if line["event"] == "ended":
            noticed, away = bool(line.get("noticed")), bool(line.get("away"))
        elif line["event"] == "started":
            if int(line.get("step", 0)) < step:
                break
            told += not away
            failed += not (noticed or away)
            noticed = away = False
    return failed, told


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)
