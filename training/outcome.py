"""outcome.json: how a start of a run ended, in a form that outlives exit codes.

torchrun and srun both change exit codes on their way; this file does not change.
"""

import json
import os
from pathlib import Path
from typing import Literal

from training.config.base import Section

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


def write_outcome(path: Path, outcome: Outcome) -> bool:
    """Write ``outcome`` unless a rank has already told its own: the first cause is the one that counts.

    A hard link makes the choice atomic between ranks, on local disks and on NFS. A start that was fenced must
    not call this: the file is the newer start's. False when another rank was first, or nothing can be written
    at all.
    """
    partial = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(outcome.model_dump(), indent=2) + "\n", encoding="utf-8")
        os.link(partial, path)
    except OSError:
        return False
    finally:
        partial.unlink(missing_ok=True)
    return True
