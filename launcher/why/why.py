"""`metier why RUN`: the post-mortem of a run."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.seeing.read import read_tail
from launcher.seeing.runs import RUN_ROOT, find_one_run, split_words
from launcher.seeing.state import look_at
from launcher.tools import Words, refuse_flags
from launcher.why.catalogue import read_catalogue
from launcher.why.evidence import Evidence, gather, gather_text
from launcher.why.match import Candidate, rank_causes
from launcher.why.page import write_page, write_text_page
from launcher.why.starts import list_starts
from training.errors import EXIT_OK, ConfigError

HELP = """\
metier why RUN [--job ID] [--log FILE] [--json] [run_root=DIR]
metier why --log FILE

Says why a run ended and what to do: the cause, the rank that failed first with its last lines, how each start
ended, and what Slurm says of the job. It reads RUN's logs, events, outcome.json and preflight.json, asks
sacct, and holds all that against the catalogue in docs/troubleshooting.md.

  --job ID    look at this job of the run; without it, at the newest
  --log FILE  what a command or a job printed, where it is not in the run directory; - reads standard input.
              It may be all there is

Examples
  metier why medical_qlora_smol
  metier why medical_qlora_smol --job 4711
  metier train experiment=mine 2>&1 | metier why --log -
"""


def run(words: Words) -> int:
    """Print what is known; give the exit code.

    Raises:
        ConfigError: There is no such run or file.
    """
    refuse_flags(words, ("--job", "--log", "--json"))
    names, settings = split_words(words.plain)
    flags = dict(words.flags)
    if not names and "--log" in flags:
        return _explain_text(flags["--log"], as_json="--json" in flags)
    layout = find_one_run(names, "why", settings.get("run_root", RUN_ROOT))
    said = _check_file(flags["--log"]) if "--log" in flags else None
    views, _ = look_at([layout])
    evidence = gather(layout, flags.get("--job"), said)
    candidates = find_candidates(evidence)
    if "--json" in flags:
        sys.stdout.write(json.dumps(as_record(views[0].state, evidence, candidates), indent=2) + "\n")
    else:
        sys.stdout.write(write_page(views[0], evidence, candidates))
    return EXIT_OK


def find_candidates(evidence: Evidence) -> list[Candidate]:
    """Hold the facts against the catalogue; of a run that has completed, only what failed beside it."""
    completed = evidence.run.outcome.get("state") == "COMPLETED"
    return rank_causes(read_catalogue(), evidence.facts, completed=completed)


def as_record(state: str, evidence: Evidence, candidates: list[Candidate]) -> dict[str, Any]:
    """Give all that is known as plain values."""
    return {
        "run": evidence.run.name,
        "state": state,
        "step": evidence.run.step,
        "causes": [_as_cause(each) for each in candidates],
        "failing": asdict(evidence.failing) if evidence.failing else None,
        "starts": [asdict(start) for start in list_starts(evidence.run)],
        "job": evidence.job,
        "slurm": list(evidence.rows),
        "trouble": evidence.trouble or None,
    }


def _as_cause(candidate: Candidate) -> dict[str, Any]:
    cause = candidate.cause
    return {
        "id": cause.id,
        "title": cause.title,
        "explanation": cause.explanation,
        "remedy": cause.remedy,
        "signs": [{"where": fact.where, "text": fact.text} for fact in candidate.facts],
    }


def _explain_text(name: str, *, as_json: bool) -> int:
    path = Path(name)
    lines = sys.stdin.read().splitlines() if name == "-" else read_tail(_check_file(name))
    candidates = rank_causes(read_catalogue(), gather_text(path, lines))
    if as_json:
        sys.stdout.write(json.dumps([_as_cause(each) for each in candidates], indent=2) + "\n")
    else:
        sys.stdout.write(write_text_page(candidates))
    return EXIT_OK


def _check_file(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        raise ConfigError(f"--log {name}: a folder; name a file in it, or give a run's folder without --log")
    if not path.is_file():
        raise ConfigError(f"--log {name}: there is no such file")
    return path
