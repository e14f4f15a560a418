"""Shows a submitted run's log as it grows, until the run has ended: over requeues and chains of jobs."""

import json
import sys
import time
from pathlib import Path

from launcher.local import Ending, read_ending
from launcher.slurm.call import SlurmError
from launcher.slurm.facts import find_job_state
from launcher.slurm.journal import find_decision, find_withdrawn, newest_job, read_journal
from training.config.schema import RunConfig
from training.errors import EXIT_FAILED, EXIT_OK
from training.layout import RunLayout

_SECONDS = 1.0
_ASK_EVERY = 5


def follow_run(config: RunConfig, layout: RunLayout) -> Ending:
    """Copy the jobs' logs to the screen until no job of the run is left; Ctrl-C leaves the run alone."""
    shown: dict[str, int] = {}
    state = "PENDING"
    try:
        while True:
            for _ in range(_ASK_EVERY):
                job = newest_job(read_journal(layout.jobs)) or ""
                _show_new(layout, shown)
                time.sleep(_SECONDS)
            state = _say_change(layout, job, state)
            if state == "GONE":
                _show_new(layout, shown)
                return find_ending(config, layout)
    except KeyboardInterrupt:
        sys.stdout.write(
            f"\nthe run goes on without this screen; metier watch {config.name} comes back to it\n"
        )
        return Ending(exit_code=EXIT_OK, state="SUBMITTED", step=None, line="")


def _say_change(layout: RunLayout, job: str, before: str) -> str:
    try:
        state = find_job_state(job) or "GONE"
    except SlurmError:
        # The controller is away: the run's own files say what goes on.
        return "GONE" if find_decision(read_journal(layout.jobs)) else before
    if state not in {before, "GONE"}:
        sys.stdout.write(f"job {job} is {state.lower()}\n")
        sys.stdout.flush()
    return state


def _show_new(layout: RunLayout, shown: dict[str, int]) -> None:
    for log in sorted(layout.logs.glob("job_*.log"), key=_age):
        begin = shown.setdefault(log.name, 0)
        with log.open("rb") as file:
            file.seek(begin)
            text = file.read()
        shown[log.name] = begin + len(text)
        sys.stdout.write(text.decode(errors="replace"))
    sys.stdout.flush()


def _age(path: Path) -> float:
    return path.stat().st_mtime


def find_ending(config: RunConfig, layout: RunLayout) -> Ending:
    """Find how a run has ended, and say so."""
    lines = read_journal(layout.jobs)
    last = next((line for line in reversed(lines) if line["event"] == "decided"), None)
    if (stop := find_withdrawn(lines)) is not None:
        line = f"stopped while its job waited in the queue, asked by {stop['by']}"
        sys.stdout.write(f"metier train: {line}\n")
        return Ending(exit_code=EXIT_OK, state="STOPPED", step=None, line=line)
    try:
        json.loads(layout.outcome.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        reason = last.get("reason") if last else None
        line = f"the job has ended ({reason or 'without a word'}); see `metier why {config.name}`"
        ending = Ending(exit_code=EXIT_FAILED, state="KILLED", step=None, line=line)
    else:
        ending = read_ending(layout, config.loop.max_steps, EXIT_FAILED)
    stream = sys.stdout if ending.exit_code == EXIT_OK else sys.stderr
    stream.write(f"metier train: {ending.line}\n")
    return ending
