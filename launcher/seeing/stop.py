"""`metier stop RUN`: lets a run save and end, and not come back."""

import contextlib
import getpass
import os
import signal
import sys
import time
from collections.abc import Sequence

from launcher.seeing.facts import read_jobs
from launcher.seeing.here import find_ranks, is_rank
from launcher.seeing.runs import RUN_ROOT, find_run, split_words
from launcher.seeing.slurm import JobView, ask, ask_jobs
from launcher.seeing.state import RunView, look_at
from launcher.slurm.facts import BY_USER
from launcher.slurm.journal import append_line
from launcher.tools import Words, refuse_flags
from training.errors import EXIT_FAILED, EXIT_OK, ClusterError, ConfigError
from training.files import write_text
from training.layout import RunLayout

HELP = """\
metier stop RUN... [--now] [run_root=DIR]

Asks a run to take its step to the end, save, and end; it does not start again by itself. Jobs of it that wait
in Slurm's queue are cancelled. `metier train` goes on from there when it is said again.

  --now   tell the job's processes at once (scancel; on this machine SIGTERM): the run still saves, within the
          time that Slurm leaves it

Examples
  metier stop medical_qlora_smol
  metier stop medical_qlora_smol --now
  metier stop run_root=/scratch/runs mine
"""

_GONE = ("Invalid job id", "already completing or completed", "already finished")
"""scancel's words for a job that ended since squeue was asked."""


def run(words: Words) -> int:
    """Ask; give the exit code.

    Raises:
        ClusterError: Nothing of the run is there to be stopped.
        ConfigError: The run does not exist.
        StorageError: The wish cannot be written.
    """
    refuse_flags(words, ("--now",))
    names, settings = split_words(words.plain)
    if not names:
        raise ConfigError("name a run: metier stop RUN")
    layouts = [find_run(name, settings.get("run_root", RUN_ROOT)) for name in names]
    views, trouble = look_at(layouts)
    code = EXIT_OK
    for view in views:
        for line in stop_run(view, trouble, now=bool(words.flags)):
            sys.stdout.write(f"{view.facts.name}: {line}\n")
            code = EXIT_FAILED if line.startswith("failed:") else code
    return code


def stop_run(view: RunView, trouble: str, *, now: bool) -> list[str]:
    """Ask one run to stop; say what was done.

    Raises:
        ClusterError: Nothing of it runs or waits, as far as can be known.
    """
    facts = view.facts
    if view.is_over and (facts.decision or not trouble):
        how = f"it is {view.state}" + (f" after step {facts.step}" if facts.step is not None else "")
        raise ClusterError(f"nothing of {facts.name} is running: {how}")
    who = say_who()
    write_text(facts.layout.stop_request, who)
    # What was to follow on the training does not follow on half of it.
    stages = read_jobs(facts.layout, stages=True)
    slurm = ask_jobs([*facts.jobs, *stages])
    active = [slurm.jobs[job] for job in (*facts.jobs, *stages) if job in slurm.jobs]
    jobs = [job for job in active if job.is_active and (job.job in facts.jobs or job.state == "PENDING")]
    said = []
    if not jobs or any(not job.waits for job in jobs):
        wish = facts.layout.stop_request.name
        said.append(f"asked to save and end ({wish}); it does not start again by itself")
    done = {job.job: _stop_job(job, now=now) for job in jobs}
    said += [line for line, _ in done.values()]
    said += _stop_here(facts.layout) if now and not jobs else []
    if facts.jobs or stages:
        told = {
            word: [job.job for job in jobs if done[job.job][1] and job.waits == waits]
            for word, waits in (("cancelled", True), ("told", False))
        }
        append_line(facts.layout.jobs, "stop", by=who.strip(), **told)
    reasons = [reason for reason in (trouble, slurm.trouble) if reason]
    return said + [f"{reasons[0]}: its ranks see the wish by themselves" for _ in reasons[:1]]


def say_who() -> str:
    """Write who asks, and when: by its first word the job's script knows a person's wish from its own."""
    name = str(os.getuid())
    with contextlib.suppress(KeyError, OSError):
        name = getpass.getuser()
    return f"{BY_USER}{name}@{os.uname().nodename} {time.strftime('%Y-%m-%dT%H:%M:%S%z')}\n"


def _stop_job(job: JobView, *, now: bool) -> tuple[str, bool]:
    """Stop a job; say what was done, and whether it was."""
    if job.waits:
        return _tell(["scancel", job.job], job, f", which was {job.state}, is cancelled")
    if now:
        return _tell(["scancel", job.job], job, f" on {job.nodes} is being cancelled: it saves and ends")
    # The job's script passes it on: a rank between two looks for the wish hears of it sooner.
    return _tell(["scancel", "--batch", "--signal=USR1", job.job], job, f" on {job.nodes} was told")


def _tell(command: Sequence[str], job: JobView, done: str) -> tuple[str, bool]:
    _, trouble = ask(command)
    if any(word in trouble for word in _GONE):
        return f"job {job.job} has ended meanwhile", False
    return (f"failed: job {job.job}: {trouble}", False) if trouble else (f"job {job.job}{done}", True)


def _stop_here(layout: RunLayout) -> list[str]:
    ranks = [pid for pid in find_ranks().get(layout.root, []) if is_rank(pid)]
    for pid in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    return [f"{len(ranks)} processes on {os.uname().nodename} were told"] if ranks else []
