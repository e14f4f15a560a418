"""outcome.json: how a start of a run ended, in a form that outlives exit codes.

torchrun and srun both change exit codes on their way; this file does not change.
"""

import json
import os
import time
from pathlib import Path
from typing import Literal

from training.config.base import Section

PEER_WAIT_SECONDS = 2.0
"""How long a rank that only lost another one waits for that one's own word."""

State = Literal["COMPLETED", "STOPPED", "FENCED", "FAILED"]

Cause = Literal[
    "settings", "data", "checkpoint", "storage", "numeric", "memory", "peer", "hang", "node", "unknown"
]
"""What kind of failure it was: the scheduler's side decides by it whether another start can help."""


class Outcome(Section):
    """The end of one start."""

    state: State
    step: int | None
    """Optimizer steps of the run that are done and saved."""

    error_class: str | None
    message: str | None
    rank: int
    cause: Cause | None = None
    """Of a failure."""

    node: str | None = None
    """The host of that rank."""

    incarnation: int | None = None
    """The start that ended; None when it never claimed the run."""

    notice: str | None = None
    """Of a stop: what asked for it: a signal's name, ``stop.request``, ``time``."""


_CAUSES: dict[str, Cause] = {
    "ConfigError": "settings",
    "ModelError": "settings",
    "ClusterError": "settings",
    "DataError": "data",
    "CheckpointError": "checkpoint",
    "StorageError": "storage",
    "NumericError": "numeric",
    "OutOfMemoryError": "memory",
    "MemoryError": "memory",
    "PeerLostError": "peer",
    "HangError": "hang",
}


def find_cause(error: BaseException) -> Cause:
    """Find what kind of failure an error is, by its class or the nearest above it.

    By name: torch's OutOfMemoryError is none of Python's, and not everybody who asks has imported torch.
    """
    names = (kind.__name__ for kind in type(error).__mro__)
    return next((_CAUSES[name] for name in names if name in _CAUSES), "unknown")


def read_outcome(path: Path) -> Outcome | None:
    """Read how the last start ended; None where nothing says so, or nothing that can be read."""
    try:
        return Outcome.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_outcome(path: Path, outcome: Outcome) -> bool:
    """Write ``outcome`` unless a rank has already told its own: the first cause is the one that counts.

    The loss of a peer is no cause but the sight of one. Who tells that waits a little for the other's own
    word, and is overwritten by it.

    A hard link makes the choice atomic between ranks, on local disks and on NFS. A start that was fenced must
    not call this: the file is the newer start's. False when another rank was first, or nothing can be written
    at all.
    """
    if outcome.cause == "peer":
        _wait_for_a_cause(path)
    partial = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(outcome.model_dump(), indent=2) + "\n", encoding="utf-8")
        try:
            os.link(partial, path)
        except FileExistsError:
            told = read_outcome(path)
            if told is None or told.cause != "peer" or outcome.cause == "peer":
                return False
            partial.replace(path)
    except OSError:
        return False
    finally:
        partial.unlink(missing_ok=True)
    return True


def _wait_for_a_cause(path: Path) -> None:
    deadline = time.monotonic() + PEER_WAIT_SECONDS
    while not path.exists() and path.parent.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
