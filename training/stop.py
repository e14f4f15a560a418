"""The wish that training end soon: whoever asks any rank, all ranks agree at the edge of a step."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from training.collectives import sum_over_ranks
from training.layout import RunLayout
from training.metrics.lines import NEWLINE, parse_lines
from training.notice import STOP_SIGNALS, Notice

STOP_FILE = "stop.request"
TIME = "time"
_KINDS = (STOP_FILE, *(number.name for number in STOP_SIGNALS), TIME)
"""Where several ask at once, the first of these is told: who wrote the file wants to be named."""

_POLL_SECONDS = 1.0
_LEAST_LEAD_SECONDS = 60.0
_END_TIMES = ("METIER_END_TIME", "SLURM_JOB_END_TIME")
_MOST_WORDS = 200

Wish = Callable[[], str | None]
"""Says what asks for a stop, if something does: one of ``_KINDS``, words of its own behind a colon."""


class StopFlag:
    """Puts the ranks' answers together; what asked is remembered."""

    def __init__(self, notice: Notice, device: torch.device, wishes: Sequence[Wish] = ()) -> None:
        """Listen to this process's signals, and on the lead to what else may ask.

        Args:
            notice: Listens already.
            device: Where the ranks talk.
            wishes: Asked at every step's edge.
        """
        self._notice = notice
        self._device = device
        self._wishes = wishes
        self.notice: str | None = None
        """What asked, once all ranks have agreed: a signal's name, ``stop.request: NAME``, ``time``."""

    def is_set(self) -> bool:
        """Give the same answer on every rank. Collective: every rank must call it once per step."""
        if self.notice is None:
            own = self._ask() or ""
            kind = own.partition(":")[0]
            votes = sum_over_ranks([float(kind == each) for each in _KINDS], self._device)
            agreed = next((each for each, count in zip(_KINDS, votes, strict=True) if count), None)
            self.notice = own if agreed == kind else agreed
        return self.notice is not None

    def _ask(self) -> str | None:
        found = [wish() for wish in self._wishes]
        return next((each for each in (*found, self._notice.heard) if each), None)


def lead_wishes(
    layout: RunLayout, lead_seconds: int | None, environ: Mapping[str, str], *, asked: float
) -> list[Wish]:
    """Give what the lead looks at beside signals: the file that asks for a stop, and the job's end.

    Args:
        layout: The run.
        lead_seconds: How long before the job's end it stops; None: by the longest save so far.
        environ: Tells the job's end.
        asked: When this start was asked for, seconds since 1970; an older file was meant for another.
    """
    wishes: list[Wish] = [StopRequest(layout.stop_request, since=asked)]
    end = read_end_time(environ)
    if end is not None:
        wishes.append(JobEnd(end, lead_seconds, LongestSave(layout.events), now=time.time()))
    return wishes


class StopRequest:
    """A file whose presence asks for a stop; its first line says who."""

    def __init__(self, path: Path, *, since: float) -> None:
        """Forget a file that is older than this start."""
        self._path = path
        self._next_look = 0.0
        try:
            if path.stat().st_mtime < since:
                path.unlink()
        except OSError:
            return

    def __call__(self) -> str | None:
        """Look, once a second at most."""
        now = time.monotonic()
        if now < self._next_look:
            return None
        self._next_look = now + _POLL_SECONDS
        try:
            words = self._path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None
        who = words.splitlines()[0][:_MOST_WORDS] if words else ""
        return f"{STOP_FILE}: {who}" if who else STOP_FILE


class LongestSave:
    """The longest save of a run so far, by its events: of earlier starts, and of this one as they come."""

    def __init__(self, events: Path) -> None:
        """Follow ``events``."""
        self._events = events
        self._read_bytes = 0
        self._seconds = 0.0
        self._next_look = 0.0

    def __call__(self) -> float:
        """Give its seconds; 0 where nothing was saved yet."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _POLL_SECONDS
            with contextlib.suppress(OSError):
                self._look()
        return self._seconds

    def _look(self) -> None:
        with self._events.open("rb") as stream:
            stream.seek(self._read_bytes)
            content = stream.read()
        whole = content.rfind(NEWLINE) + 1
        self._read_bytes += whole
        for line in parse_lines(content[:whole]):
            if line.get("event") == "saved" and isinstance(line.get("seconds"), int | float):
                self._seconds = max(self._seconds, float(line["seconds"]))


class JobEnd:
    """Asks for a stop early enough before the job's end that the last save still fits."""

    def __init__(
        self, end: float, lead_seconds: int | None, longest_save: Callable[[], float], *, now: float
    ) -> None:
        """Take the end, seconds since 1970, and the lead, or what it is found by."""
        self._end = end
        self._left_at_start = end - now
        self._lead_seconds = lead_seconds
        self._longest_save = longest_save
        self._last_look: float | None = None

    def __call__(self) -> str | None:
        """Look at the clock: the time between two looks is that of a step, and one more may follow."""
        return TIME if self.is_due(time.time()) else None

    def is_due(self, now: float) -> bool:
        """Whether a run that took one more step might not be able to save any more."""
        step = 0.0 if self._last_look is None else now - self._last_look
        self._last_look = now
        lead = find_lead_seconds(self._lead_seconds, self._longest_save(), self._left_at_start)
        return now + step + lead >= self._end


def find_lead_seconds(wanted: int | None, longest_save: float, left_at_start: float) -> float:
    """Find how long before the job's end a run stops, in seconds.

    Unless it is set, it is a minute and twice the longest save, and no more than half of the time that was
    left when the start began: a job of two minutes is to train as well.
    """
    if wanted is not None:
        return wanted
    return min(_LEAST_LEAD_SECONDS + 2 * longest_save, max(0.0, left_at_start / 2))


def read_end_time(environ: Mapping[str, str]) -> float | None:
    """Read when the job ends, seconds since 1970; None where nobody says so, or it has no end."""
    for name in _END_TIMES:
        try:
            end = float(environ[name])
        except (KeyError, ValueError):
            continue
        if end > 0:
            return end
    return None


def read_asked(environ: Mapping[str, str], name: str) -> float:
    """Read when this start was asked for, seconds since 1970; where nobody says so, when it began."""
    try:
        return float(environ[name])
    except (KeyError, ValueError):
        return _began_at()


def _began_at() -> float:
    """Give when this process began: its age is counted in ticks since the machine's start, proc(5)."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return time.time()
