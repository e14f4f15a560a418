"""Training on this machine through torchrun, and what its end means."""

import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from typing import Any

from launcher.commands import merge_environment, torchrun_command, training_variables
from launcher.processes import run_with_log
from training.config.schema import RunConfig
from training.errors import EXIT_FAILED, EXIT_OK, EXIT_USER_ERROR, MetierError, StorageError
from training.fence import find_incarnation, is_fenced
from training.layout import ASKED, RunLayout

_STOPPED_EARLY = 130  # what a shell says after Ctrl-C


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a start ended, for the exit code, for a line on the screen and for a sweep's table."""

    exit_code: int
    state: str
    step: int | None
    line: str


def train_here(config: RunConfig, layout: RunLayout) -> Ending:
    """Start one process per device, wait, and read how it went.

    Raises:
        StorageError: The run directory cannot be written.
    """
    try:
        layout.outcome.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{layout.root} cannot be written ({error.strerror}); set its permissions, or choose another "
            "run_root"
        ) from None
    log = layout.logs / "launch.log"
    began = time.time()
    environment = merge_environment(os.environ, training_variables(config)) | {ASKED: str(began)}
    code, asked = run_with_log(torchrun_command(config, layout.root), environment, log)
    if was_overtaken(layout, began):
        # Whatever lies in the run directory is the newer start's.
        line = f"{layout.root} was taken over by a newer start, which goes on; this one has ended"
        ending = Ending(exit_code=EXIT_USER_ERROR, state="FENCED", step=None, line=line)
    else:
        if config.cluster.nodes == 1:
            shutil.rmtree(layout.torchrun, ignore_errors=True)
        ending = _find_ending(config, layout, code, asked=asked)
    stream = sys.stdout if ending.exit_code == EXIT_OK else sys.stderr
    stream.write(f"metier train: {ending.line}\n")
    return ending


def was_overtaken(layout: RunLayout, began: float) -> bool:
    """Whether a newer start has claimed the run since the one that was asked for at this time."""
    number = find_incarnation(layout.incarnations, began)
    return number is not None and is_fenced(layout.incarnations, number)


def _find_ending(config: RunConfig, layout: RunLayout, code: int, *, asked: bool) -> Ending:
    if asked and not layout.outcome.exists():
        line = "stopped before the first step of this start; the same command goes on"
        return Ending(exit_code=_STOPPED_EARLY, state="STOPPED", step=None, line=line)
    return read_ending(layout, config.loop.max_steps, code)


def read_ending(layout: RunLayout, max_steps: int, code: int) -> Ending:
    """Turn outcome.json into an exit code and one line; torchrun's own code says little.

    Args:
        layout: The run directory.
        max_steps: The run's length.
        code: torchrun's exit code, for the case that no rank could tell.
    """
    try:
        outcome: dict[str, Any] = json.loads(layout.outcome.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return Ending(
            exit_code=EXIT_FAILED,
            state="KILLED",
            step=None,
            line=f"a process was killed (torchrun ended with {code}); see {layout.logs}; "
            "the same command goes on from the last checkpoint",
        )
    state, step = str(outcome["state"]), outcome.get("step")
    code, line = _explain(state, outcome, layout, max_steps)
    return Ending(exit_code=code, state=state, step=step, line=line)


def _explain(state: str, outcome: dict[str, Any], layout: RunLayout, max_steps: int) -> tuple[int, str]:
    step, message = outcome.get("step"), outcome.get("message") or ""
    match state:
        case "COMPLETED":
            return EXIT_OK, f"finished after step {step}; {layout.root}"
        case "STOPPED":
            return EXIT_OK, f"stopped after step {step} of {max_steps}; the same command goes on from there"
    error_class = outcome.get("error_class") or "unknown error"
    if error_class in _user_errors(MetierError):
        return EXIT_USER_ERROR, message
    log = layout.rank_log(int(outcome.get("rank") or 0))
    return EXIT_FAILED, f"failed with {error_class}: {message}; the traceback is in {log}"


def _user_errors(root: type[MetierError]) -> set[str]:
    return {root.__name__}.union(*(_user_errors(each) for each in root.__subclasses__()))
