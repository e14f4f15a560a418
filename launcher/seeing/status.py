"""`metier status [RUN...]`: what every run is at, in one table."""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from launcher.seeing.runs import RUN_ROOT, find_run, list_runs, split_words
from launcher.seeing.state import RunView, look_at
from launcher.seeing.words import NOTHING, say_number, say_seconds, say_step
from launcher.tables import lay_out
from launcher.tools import Words, refuse_flags
from training.errors import EXIT_OK

HELP = """\
metier status [RUN...] [run_root=DIR] [--json]

RUN is a run's folder, or its name in runs/; without one, all of them. One line for each run:

  state       Slurm's, while a job of the run waits or runs; else how the last start ended: COMPLETED,
              STOPPED, FAILED, FENCED; RUNNING, where its processes or its pulse can be seen; KILLED: they are
              gone and said nothing; SILENT: no sign for two minutes; NEW: never started
  left        the steps that are left x the mean time of the last 50
  restarts    starts after the first
  goodput     the part of the time since the first start that was steps that count
  checkpoint  the newest one's step, and its age

Below the table: what there is to say besides, also which of the jobs that `metier run` has submitted before
and after a training wait, run or have failed.

Slurm is asked once for all runs, and not waited for when it does not answer.

Examples
  metier status
  metier status medical_qlora_smol legal_full_smol
  metier status run_root=/scratch/runs --json
"""

_HEAD = (
    "run",
    "state",
    "step",
    "loss",
    "tokens/s",
    "MFU",
    "left",
    "restarts",
    "goodput",
    "checkpoint",
)
_RIGHT = (2, 3, 4, 5, 6, 7, 8)
_NOTE_LENGTH = 160


def run(words: Words) -> int:
    """Print the table; give the exit code.

    Raises:
        ConfigError: A run that was named does not exist.
    """
    refuse_flags(words, ("--json",))
    names, settings = split_words(words.plain)
    run_root = settings.get("run_root", RUN_ROOT)
    layouts = [find_run(name, run_root) for name in names] if names else list_runs(run_root)
    views, trouble = look_at(layouts)
    if words.flags:
        sys.stdout.write(json.dumps([as_record(view) for view in views], indent=2) + "\n")
    elif not views:
        sys.stdout.write(f"no run in {run_root}/\n")
    else:
        sys.stdout.write(write_table(views, time.time()))
    if trouble:
        sys.stderr.write(f"metier status: {trouble}; what is said here is from the runs' own files\n")
    return EXIT_OK


def write_table(views: Sequence[RunView], now: float) -> str:
    """Write one line for each run, and below what there is to say besides."""
    lines = lay_out([_HEAD, *(_row(view, now) for view in views)], _RIGHT)
    notes = [f"{view.facts.name}: {_shorten(say_more(view))}" for view in views if say_more(view)]
    return "".join(f"{line}\n" for line in [*lines, *([""] if notes else []), *notes])


def say_more(view: RunView) -> str:
    """Say what the table has no column for, and what can be done."""
    unclear = view.state in {"FAILED", "KILLED", "SILENT"} or view.is_unexplained
    parts = (view.note, view.stages, f"metier why {view.facts.name}" if unclear else "")
    return "; ".join(part for part in parts if part)


def as_record(view: RunView) -> dict[str, Any]:
    """Give a view as plain values, in the words of metrics.jsonl."""
    facts = view.facts
    return {
        "run": facts.name,
        "folder": str(facts.layout.root),
        "state": view.state,
        "note": view.note,
        "stages": view.stages,
        "is_over": view.is_over,
        "job": view.job.job if view.job else None,
        "nodes": view.job.nodes if view.job else None,
        "step": facts.step,
        "max_steps": facts.max_steps,
        "loss": facts.loss,
        "tokens_per_second": facts.tokens_per_second,
        "mfu": facts.mfu,
        "seconds_left": None if view.is_over else facts.seconds_left,
        "restarts": max(0, facts.starts - 1),
        "goodput": facts.goodput,
        "checkpoint_step": facts.checkpoint_step,
        "checkpoint_time": facts.checkpoint_time,
        "last_sign": facts.last_sign or None,
    }


def _row(view: RunView, now: float) -> tuple[str, ...]:
    facts = view.facts
    checkpoint = NOTHING
    if facts.checkpoint_step is not None and facts.checkpoint_time is not None:
        checkpoint = f"{facts.checkpoint_step}, {say_seconds(now - facts.checkpoint_time)} ago"
    return (
        facts.name,
        view.state,
        say_step(facts.step, facts.max_steps),
        say_number(facts.loss, ".3f"),
        say_number(facts.tokens_per_second, ",.0f"),
        say_number(facts.mfu, ".1%"),
        NOTHING if view.is_over else say_seconds(facts.seconds_left),
        str(max(0, facts.starts - 1)),
        say_number(facts.goodput, ".1%"),
        checkpoint,
    )


def _shorten(note: str) -> str:
    if len(note) <= _NOTE_LENGTH:
        return note
    head, separator, tail = note.rpartition("; metier why")
    return f"{(head or note)[:_NOTE_LENGTH]}…{separator}{tail if separator else ''}"
