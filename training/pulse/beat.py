"""The thread that beats: says what the main thread is at, and dumps all stacks when it is asked to."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections import deque
from typing import Protocol

from training.fence import is_fenced
from training.layout import RunLayout
from training.pulse.dump import DUMP_SIGNAL, dump_here, find_request
from training.pulse.heart import Heart, Phase, find_beat_seconds, read_born, write_heart
from training.pulse.limits import Watching, find_percentile
from training.ranks import Ranks
from training.waits import WAITS

_REMEMBERED_STEPS = 500
_LEAST_GAP_SECONDS = 0.1


class Pulse(Protocol):
    """Says what this rank is at, to whoever watches from outside."""

    def enter(self, phase: Phase, step: int) -> None:
        """Begin something; not collective, and takes no time."""

    def claim(self, incarnation: int) -> None:
        """Belong to a start of the run; once a newer one has taken over, there is no beat any more."""

    def tell_own(self, seconds: float) -> None:
        """Tell this rank's own share of a step."""

    def close(self) -> None:
        """Stop beating."""


class SilentPulse:
    """Of a run that nobody watches."""

    def enter(self, phase: Phase, step: int) -> None:
        """Do nothing."""

    def claim(self, incarnation: int) -> None:
        """Do nothing."""

    def tell_own(self, seconds: float) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class BeatingPulse:
    """Rewrites this rank's heart at every beat, and at once when a phase changes.

    The main thread sets values and nothing else. It may be held in a collective for ever: the beat goes on
    and says where. When Python itself is held (a process that is stopped, a C function that does not let go
    of the interpreter's lock) the beat stops, which says so as well.
    """

    def __init__(self, layout: RunLayout, ranks: Ranks, watching: Watching) -> None:
        """Start to beat, at the imports."""
        self._layout = layout
        self._ranks = ranks
        self._watching = watching
        self._every = find_beat_seconds(ranks.world_size)
        self._born = read_born("self") or 0
        self._at: tuple[Phase, int, float] = ("imports", 0, time.time())
        self._first = True
        self._follows = False
        self._steps: deque[float] = deque(maxlen=_REMEMBERED_STEPS)
        self._own_seconds: float | None = None
        self._incarnation: int | None = None
        self._answered: str | None = find_request(layout)
        self._wake = threading.Event()
        self._closed = False
        with contextlib.suppress(OSError):
            layout.pulse.mkdir(parents=True, exist_ok=True)
        # By a signal the stacks come even where Python is held: the handler is in C.
        faulthandler.register(DUMP_SIGNAL, file=sys.stderr, all_threads=True)
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def enter(self, phase: Phase, step: int) -> None:
        """Begin something; a step that follows another one tells how long steps take."""
        (before, _, since), now = self._at, time.time()
        if before == "step":
            if self._follows and phase != "start":
                self._steps.append(now - since)
            self._first = False
        self._follows = before == "step"
        self._at = (phase, step, now)
        if phase != before:
            self._wake.set()

    def claim(self, incarnation: int) -> None:
        """Belong to a start of the run."""
        self._incarnation = incarnation

    def tell_own(self, seconds: float) -> None:
        """Tell this rank's own share of a step."""
        self._own_seconds = seconds

    def close(self) -> None:
        """Stop beating; within a bounded time, whatever the disk does."""
        self._closed = True
        self._wake.set()
        self._thread.join(timeout=2.0)
        faulthandler.unregister(DUMP_SIGNAL)

    def _run(self) -> None:
        while not self._closed and not self._is_fenced():
            # Where Python is held, nobody can be asked for stacks: they come by themselves before the limit.
            faulthandler.dump_traceback_later(0.9 * self._watching.step_seconds, file=sys.stderr)
            write_heart(self._layout.heart(self._ranks.rank), self._beat())
            self._answer()
            time.sleep(_LEAST_GAP_SECONDS * self._every)
            self._wake.wait(self._every * (1 - _LEAST_GAP_SECONDS))
            self._wake.clear()
        faulthandler.cancel_dump_traceback_later()
        if self._closed and not self._is_fenced():
            write_heart(self._layout.heart(self._ranks.rank), self._beat())

    def _is_fenced(self) -> bool:
        return self._incarnation is not None and is_fenced(self._layout.incarnations, self._incarnation)

    def _beat(self) -> Heart:
        phase, step, since = self._at
        return Heart(
            rank=self._ranks.rank,
            node=os.uname().nodename,
            pid=os.getpid(),
            born=self._born,
            incarnation=self._incarnation,
            phase=phase,
            step=step,
            since=since,
            time=time.time(),
            first=self._first,
            entered=WAITS.entered,
            inside=WAITS.inside,
            usual_step_seconds=find_percentile(self._steps),
            own_seconds=self._own_seconds,
        )

    def _answer(self) -> None:
        asked = find_request(self._layout)
        if asked is not None and asked != self._answered:
            self._answered = asked
            dump_here(self._layout, self._ranks.rank, asked)
