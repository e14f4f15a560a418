"""A rank's heart: a small file that says what the rank is at, rewritten as long as its process runs."""

import contextlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

Phase = Literal["imports", "start", "step", "evaluate", "save", "finish"]
PHASES: tuple[Phase, ...] = ("imports", "start", "step", "evaluate", "save", "finish")
"""In the order in which a step's number goes through them."""

_SIZE = 1024
_WRITES_PER_SECOND = 64
"""Of all ranks together: each is a change of a folder on the shared disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heart:
    """What one rank is at."""

    rank: int
    node: str
    pid: int
    born: int
    """When the process began, in ticks since its machine's: tells it from a later one of the same number."""

    incarnation: int | None
    """The start of the run; None before it was claimed."""

    phase: Phase
    step: int
    """The step that is being done, evaluated or saved."""

    since: float
    """When it came to that, seconds since 1970."""

    time: float
    """When this was written."""

    first: bool
    """Whether no step of this start is done."""

    entered: int
    """Collectives that its main thread has entered so far."""

    inside: bool
    """Whether it is in one."""

    usual_step_seconds: float | None = None
    """The 95th percentile of its steps, once there are enough."""

    own_seconds: float | None = None
    """Its own share of a step, the median of the last window."""

    @property
    def place(self) -> tuple[int, int]:
        """How far it is; a smaller one is behind."""
        return self.step, PHASES.index(self.phase)


def find_beat_seconds(world_size: int) -> float:
    """Find how often a heart is rewritten: every second, more rarely where there are very many."""
    return max(1.0, world_size / _WRITES_PER_SECOND)


def write_heart(path: Path, heart: Heart) -> bool:
    """Replace the file at once; False where even its old bytes cannot be written over.

    A full disk refuses a new file, but takes other bytes in the place of old ones.
    """
    text = json.dumps(asdict(heart)).ljust(_SIZE).encode()
    partial = path.with_name(f".{path.name}.{heart.node}.{heart.pid}")
    try:
        partial.write_bytes(text)
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        return _write_over(path, text)
    return True


def _write_over(path: Path, text: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY)
    except OSError:
        return False
    try:
        return os.pwrite(descriptor, text, 0) == len(text)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def read_heart(path: Path) -> Heart | None:
    """Read one; None where there is none, or it is just being written over."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Heart(**{each.name: values[each.name] for each in fields(Heart)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_born(pid: int | Literal["self"]) -> int | None:
    """Give when a process of this machine began, in ticks since the machine did, proc(5); None: it's gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
