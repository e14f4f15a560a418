"""What state a run is in: pure, from its files, its processes here and Slurm's word."""

import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.seeing.facts import RunFacts, is_here, read_facts, read_hearts, say_host
from launcher.seeing.here import find_ranks
from launcher.seeing.read import number, text
from launcher.seeing.slurm import SCRIPT_WORDS, JobView, SlurmView, ask, ask_jobs, find_by_script
from launcher.slurm.journal import ENDS
from training.layout import RunLayout

SILENT_SECONDS = 120.0
"""Without a sign for so long, a run whose processes cannot be seen from here is called silent."""

_UNSAID = frozenset({"COMPLETED", "CANCELLED"})
"""Of a job beside the training: it has ended well, or because another one has not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run as it is seen at one moment."""

    facts: RunFacts
    state: str
    """Slurm's word while a job of it waits or runs; else the outcome's; else what can be seen."""

    note: str
    """What there is to say besides; nothing where nothing is."""

    stages: str
    """Which jobs before and after the training wait, run, or have failed; nothing where none does."""

    job: JobView | None
    """The job that counts: the newest that is not over, else the newest."""

    is_over: bool
    """Whether nothing of it runs or waits any more."""

    @property
    def is_unexplained(self) -> bool:
        """Whether Slurm alone has said how it ended."""
        said = {text(self.facts.outcome, "state"), ENDS.get(text(self.facts.decision, "step"))}
        return self.is_over and self.job is not None and self.state == self.job.state not in said


def look_at(layouts: Sequence[RunLayout]) -> tuple[list[RunView], str]:
    """Look at runs; Slurm is asked once for all of them.

    Returns:
        One view for each run, and why Slurm does not say more: nothing where it answered or is not there.
    """
    now = time.time()
    facts = find_forgotten([read_facts(layout, now) for layout in layouts])
    slurm = ask_jobs(job for each in facts for job in (*each.jobs, *(job for job, _ in each.stages)))
    here = find_ranks()
    return [judge(each, slurm, here, now) for each in facts], slurm.trouble


def find_forgotten(runs: Sequence[RunFacts]) -> list[RunFacts]:
    """Find by its script the job of a run that has one and whose jobs.jsonl names none: it was removed."""
    lost = [run for run in runs if not run.jobs and run.layout.job_script.is_file()]
    if not lost or shutil.which("squeue") is None:
        return list(runs)
    said, _ = ask(SCRIPT_WORDS)
    found = {run.name: find_by_script(said, run.layout.job_script) for run in lost}
    return [replace(run, jobs=(job,)) if (job := found.get(run.name)) else run for run in runs]


def judge(facts: RunFacts, slurm: SlurmView, here: Mapping[Path, Sequence[int]], now: float) -> RunView:
    """Say what state a run is in.

    Args:
        facts: What its files say.
        slurm: What Slurm says of its jobs.
        here: The ranks on this machine, by run directory.
        now: Seconds since 1970.
    """
    job = choose_job(facts.jobs, slurm.jobs.values())
    # Without its controller Slurm knows the past alone: what the run itself has said goes first.
    unasked = bool(slurm.trouble) and bool(facts.jobs)
    if job is not None and job.is_active and not (unasked and facts.decision):
        state, note, is_over = job.state, f"{_say_job(job)}{_say_phase(facts, now)}", False
    elif facts.layout.root in here:
        state, note, is_over = "RUNNING", f"on {os.uname().nodename}{_say_phase(facts, now)}", False
    elif facts.withdrawn:
        state, note, is_over = "STOPPED", _say_withdrawn(facts), True
    elif job is not None and job.is_unmet:
        state, note, is_over = job.state, f"job {job.job} never began: what it waited for has failed", True
    elif facts.decision and text(facts.outcome, "state") != ENDS[facts.decision["step"]]:
        # The ranks had no time to say it, or what they said is of an earlier job.
        state, note, is_over = ENDS[facts.decision["step"]], text(facts.decision, "reason"), True
    elif text(facts.outcome, "state"):
        over = bool(facts.decision) or not unasked
        state, note, is_over = text(facts.outcome, "state"), say_outcome(facts), over
    elif job is not None:
        state, note, is_over = job.state, f"job {job.job} is over, and no rank has said how", True
    else:
        state, note, is_over = _judge_by_signs(facts, now)
    return RunView(
        facts=facts, state=state, note=note, stages=_say_stages(facts, slurm), job=job, is_over=is_over
    )


def _say_stages(facts: RunFacts, slurm: SlurmView) -> str:
    said = []
    for first, stage in facts.stages:
        # An array's tasks have its number before their own.
        views = [view for job, view in slurm.jobs.items() if job.partition("_")[0] == first]
        states = dict.fromkeys(view.state for view in views if view.state not in _UNSAID)
        said += [f"{stage} {first} {'/'.join(states)}"] if states else []
    return ", ".join(said)


def _judge_by_signs(facts: RunFacts, now: float) -> tuple[str, str, bool]:
    """Judge a start that has left no outcome, and that neither Slurm nor this machine's kernel knows."""
    silence = now - facts.last_sign
    if not facts.starts:
        return "NEW", "", not facts.jobs
    if is_here(facts):
        return "KILLED", "its processes are gone and none has said why", True
    if silence < SILENT_SECONDS:
        return "RUNNING", f"on {say_host(facts)}{_say_phase(facts, now)}", False
    return "SILENT", f"no sign from {say_host(facts)} for {silence:.0f} s", False


def choose_job(order: Sequence[str], known: Iterable[JobView]) -> JobView | None:
    """Choose the job that counts: the newest that is running, else waiting, else the newest of all."""
    by_number = {view.job: view for view in known}
    views = [by_number[job] for job in reversed(order) if job in by_number]
    running = [view for view in views if view.is_active and view.state != "PENDING"]
    waiting = [view for view in views if view.is_active]
    return next(iter([*running, *waiting, *views]), None)


def say_outcome(facts: RunFacts) -> str:
    """Write in a few words how the last start ended."""
    outcome = facts.outcome
    if text(outcome, "state") == "FAILED":
        kind = text(outcome, "error_class") or text(outcome, "cause")
        node = f" on {text(outcome, 'node')}" if text(outcome, "node") else ""
        return f"rank {outcome.get('rank', '?')}{node}: {kind}: {text(outcome, 'message')}"
    asked_by = facts.wish or text(outcome, "notice")
    return f"asked by {asked_by}" if asked_by else ""


def _say_withdrawn(facts: RunFacts) -> str:
    when = "while it waited to go on" if facts.starts else "before it began"
    return f"stopped {when}, asked by {facts.withdrawn}"


def _say_phase(facts: RunFacts, now: float) -> str:
    """Say what the ranks are at that is furthest behind, where it is not a step."""
    hearts = read_hearts(facts.layout)
    newest = [heart for heart in hearts.values() if heart.get("incarnation") in {facts.starts, None}]
    since = min((number(heart, "since") or now for heart in newest), default=now)
    phase = next((text(heart, "phase") for heart in newest if number(heart, "since") == since), "")
    return f", {phase} for {max(0.0, now - since):.0f} s" if phase not in {"", "step"} else ""


def _say_job(job: JobView) -> str:
    where = f" on {job.nodes}" if job.nodes else ""
    reason = f" ({job.reason})" if job.reason else ""
    return f"job {job.job}{where}{reason}"
