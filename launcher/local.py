"""Training on this machine, or its share of one on several, through torchrun; and what the end means."""

import json
import os
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.commands import merge_environment, torchrun_command, training_variables
from launcher.hosts import ALONE, Share
from launcher.processes import run_with_log
from training.config.schema import RunConfig
from training.errors import EXIT_FAILED, EXIT_OK, EXIT_USER_ERROR, MetierError, StorageError
from training.fence import find_incarnation, is_fenced, newest_incarnation
from training.layout import ASKED, RunLayout

_STOPPED_EARLY = 130  # what a shell says after Ctrl-C
_AGAIN = "the same command"
# For so long a host looks for the outcome that another host writes: caches of NFS may hide it for as long.
_OUTCOME_SECONDS = 30.0
_OUTCOME_SECONDS_AFTER_FAILURE = 5.0
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a start ended, for the exit code, for a line on the screen and for a sweep's table."""

    exit_code: int
    state: str
    step: int | None
    line: str


def train_here(config: RunConfig, layout: RunLayout, share: Share = ALONE) -> Ending:
    """Start one process per device of this machine, wait, and read how it went.

    Raises:
        StorageError: The run directory cannot be written.
    """
    former = _Former(outcome=_identity(layout.outcome), incarnation=newest_incarnation(layout.incarnations))
    try:
        if share.is_head:
            layout.outcome.unlink(missing_ok=True)
            former = _Former(outcome=None, incarnation=former.incarnation)
    except OSError as error:
        raise StorageError(
            f"{layout.root} cannot be written ({error.strerror}); set its permissions, or choose another "
            "run_root"
        ) from None
    log = layout.logs / _log_name(config)
    began = time.time()
    environment = merge_environment(os.environ, training_variables(config)) | {ASKED: str(began)}
    code, asked = run_with_log(torchrun_command(config, layout.root, share.node_rank), environment, log)
    if was_overtaken(layout, began):
        ending = _overtaken(layout)
    elif config.cluster.nodes > 1:
        ending = _find_ending_of_hosts(config, layout, code, former, asked=asked)
    else:
        shutil.rmtree(layout.torchrun, ignore_errors=True)
        ending = _find_ending(config, layout, code, asked=asked)
    stream = sys.stdout if ending.exit_code == EXIT_OK else sys.stderr
    stream.write(f"metier train: {ending.line}\n")
    return ending


def _log_name(config: RunConfig) -> str:
    return "launch.log" if config.cluster.nodes == 1 else f"launch_{os.uname().nodename}.log"


def _overtaken(layout: RunLayout) -> Ending:
    # Whatever lies in the run directory is the newer start's.
    line = f"{layout.root} was taken over by a newer start, which goes on; this one has ended"
    return Ending(exit_code=EXIT_USER_ERROR, state="FENCED", step=None, line=line)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Former:
    """What the start before has left: a host that is not the head may not remove it."""

    outcome: tuple[int, int] | None
    incarnation: int


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _find_ending_of_hosts(
    config: RunConfig, layout: RunLayout, code: int, former: _Former, *, asked: bool
) -> Ending:
    """Read the one outcome that all hosts share, once it is there."""
    deadline = time.monotonic() + (_OUTCOME_SECONDS if code == EXIT_OK else _OUTCOME_SECONDS_AFTER_FAILURE)
    while _identity(layout.outcome) in (None, former.outcome):
        begun = newest_incarnation(layout.incarnations) > former.incarnation
        if (asked and not begun) or time.monotonic() > deadline:
            return _without_outcome(config, layout, code, former, asked=asked)
        time.sleep(_LOOK_SECONDS)
    ending = read_ending(layout, config.loop.max_steps, code)
    return replace(ending, line=ending.line.replace(_AGAIN, f"{_AGAIN} on every host"))


def _without_outcome(
    config: RunConfig, layout: RunLayout, code: int, former: _Former, *, asked: bool
) -> Ending:
    cluster, again = config.cluster, f"{_AGAIN} on every host"
    if asked:
        line = f"stopped before the first step of this start; {again} goes on"
        return Ending(exit_code=_STOPPED_EARLY, state="STOPPED", step=None, line=line)
    if code == EXIT_OK:
        return _overtaken(layout)
    log = layout.logs / _log_name(config)
    if newest_incarnation(layout.incarnations) == former.incarnation:
        line = (
            f"the {cluster.nodes} hosts did not begin (torchrun ended with {code}); see that all of them "
            f"were started and reach {cluster.head_address}:{cluster.head_port}, and {log}; then {again}"
        )
    else:
        line = (
            f"a process was killed (torchrun ended with {code}); see {layout.logs}; {again} goes on from the "
            "last checkpoint"
        )
    return Ending(exit_code=EXIT_FAILED, state="KILLED", step=None, line=line)


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
    if outcome.get("cause") == "hang":
        return EXIT_FAILED, f"hung: {message}; the same command goes on from the last checkpoint"
    log = layout.rank_log(int(outcome.get("rank") or 0))
    return EXIT_FAILED, f"failed with {error_class}: {message}; the traceback is in {log}"


def _user_errors(root: type[MetierError]) -> set[str]:
    return {root.__name__}.union(*(_user_errors(each) for each in root.__subclasses__()))
