"""The watcher: ``python -m training.pulse.watch RUN_DIR WORLD_SIZE PARENT``, a child of the lead rank.

A process of its own, since a thread stands still with its process: when it is stopped, or Python is held.
It imports nothing heavy, hears no stop notice, and ends with the lead.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from training.fence import is_fenced
from training.layout import RunLayout
from training.processes import end_with_parent, shield_children, stay_shielded
from training.pulse.dump import LEAST_SECONDS, ask_for_dumps, end_of_stacks, is_here
from training.pulse.heart import Heart, find_beat_seconds, read_heart
from training.pulse.limits import Hang, Seen, Watching, find_hang, find_quiet_seconds, say_hang

_PAUSE_SECONDS = 5.0
"""A longer gap between two looks means that this machine, or its disk, stood still: nobody's fault."""


class HangError(Exception):
    """A rank was at one thing for longer than it may; told by the watcher, raised by nobody."""


class Watcher:
    """The handle of the helper, for the lead rank."""

    def __init__(self, layout: RunLayout, world_size: int) -> None:
        """Start it.

        Raises:
            OSError: No process can be started.
        """
        with shield_children():
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(layout.root), str(world_size), str(os.getpid())],
                stdin=subprocess.DEVNULL,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


class View:
    """What was seen of each rank, and since when, by this process's own clock: nodes' clocks differ."""

    def __init__(self, world_size: int, now: float) -> None:
        """See nobody yet."""
        self._hearts: list[Heart | None] = [None] * world_size
        self._came = [now] * world_size
        self._beat = [now] * world_size
        self._steps_then: list[int | None] = [None] * world_size
        """The furthest step of all when this rank fell silent."""

        self._last = now

    def look(self, hearts: list[Heart | None], now: float, *, beat_seconds: float) -> list[Seen]:
        """Take in what was read just now."""
        gap = now - self._last - beat_seconds
        if gap > _PAUSE_SECONDS:
            self._came = [moment + gap for moment in self._came]
            self._beat = [moment + gap for moment in self._beat]
        self._last = now
        newest = max((heart.incarnation or 0 for heart in hearts if heart), default=0)
        for rank, heart in enumerate(hearts):
            # One of an older start is of a process on a node that was lost sight of.
            if heart is not None and (heart.incarnation is None or heart.incarnation == newest):
                self._take(rank, heart, now)
        furthest = max((heart.step for heart in self._hearts if heart), default=0)
        return [
            Seen(
                rank=rank,
                heart=heart,
                held=now - self._came[rank],
                silent=now - self._beat[rank],
                left_behind=self._is_left_behind(rank, furthest, now, find_quiet_seconds(beat_seconds)),
            )
            for rank, heart in enumerate(self._hearts)
        ]

    def _is_left_behind(self, rank: int, furthest: int, now: float, quiet: float) -> bool:
        then = self._steps_then[rank]
        if now - self._beat[rank] <= quiet:
            self._steps_then[rank] = None
        elif then is None:
            self._steps_then[rank] = furthest
        else:
            return furthest > then + 1
        return False

    def _take(self, rank: int, heart: Heart, now: float) -> None:
        before = self._hearts[rank]
        if before is None or (before.pid, before.time) != (heart.pid, heart.time):
            self._beat[rank] = now
        # Imports and start are one time, that of a process's first sight to its first step.
        starting = before is not None and before.pid == heart.pid and {before.phase, heart.phase} <= _STARTING
        if before is None or ((before.pid, before.place) != (heart.pid, heart.place) and not starting):
            self._came[rank] = now
        self._hearts[rank] = heart


_STARTING = {"imports", "start"}


def watch(layout: RunLayout, world_size: int, watching: Watching) -> None:
    """Look at every beat until a rank hangs; then tell of it and end this machine's ranks."""
    beat = find_beat_seconds(world_size)
    view = View(world_size, time.monotonic())
    while True:
        time.sleep(beat)
        hearts = [read_heart(layout.heart(rank)) for rank in range(world_size)]
        seen = view.look(hearts, time.monotonic(), beat_seconds=beat)
        hang = find_hang(seen, watching, beat_seconds=beat)
        if hang is not None and (not _all_silent(seen, beat) or _can_write(layout)):
            end_hang(layout, hang, seen, beat_seconds=beat)
            return


def _all_silent(seen: list[Seen], beat_seconds: float) -> bool:
    return all(each.silent > find_quiet_seconds(beat_seconds) for each in seen)


def _can_write(layout: RunLayout) -> bool:
    """Whether the run's disk takes anything: where it does not, hearts say nothing about ranks."""
    probe = layout.pulse / ".probe"
    try:
        probe.write_text("here", encoding="utf-8")
        return probe.read_text(encoding="utf-8") == "here"
    except OSError:
        return False


def end_hang(layout: RunLayout, hang: Hang, seen: list[Seen], *, beat_seconds: float) -> None:
    """Have all stacks dumped, leave event and outcome, and end this machine's ranks; the lead last.

    The launcher ends the others: srun by --kill-on-bad-exit, torchrun by itself.
    """
    hearts = [each.heart for each in seen if each.heart is not None]
    incarnation = next((heart.incarnation for heart in hearts if heart.incarnation is not None), None)
    fenced = incarnation is not None and is_fenced(layout.incarnations, incarnation)
    try:
        if not fenced:
            found = _dump(layout, hang, seen, seconds=max(LEAST_SECONDS, 2 * beat_seconds))
            _tell(layout, hang, seen, incarnation, say_hang(hang, seen, found))
    finally:
        for heart in sorted(hearts, key=lambda heart: -heart.rank):
            if is_here(heart):
                with contextlib.suppress(OSError):
                    os.kill(heart.pid, signal.SIGKILL)


def _dump(layout: RunLayout, hang: Hang, seen: list[Seen], *, seconds: float) -> dict[int, str]:
    """Collect the stacks; give what the machine says of stuck ranks that cannot answer."""
    with contextlib.suppress(OSError):
        reason = say_hang(hang, seen, {}).partition(";")[0]
        hearts = {each.rank: each.heart for each in seen if each.heart is not None}
        # Whose heart has stopped cannot answer: nobody waits for that.
        awake = {each.rank for each in seen if each.heart is not None and each.silent < seconds / 2}
        answered = ask_for_dumps(layout, reason, awake, seconds=seconds)
        return end_of_stacks([heart for rank, heart in hearts.items() if rank not in answered], layout)
    return {}


def _tell(layout: RunLayout, hang: Hang, seen: list[Seen], incarnation: int | None, message: str) -> None:
    # Only now: they take longer to import than all the rest.
    from training.metrics.journal import Events  # noqa: PLC0415
    from training.outcome import Outcome, write_outcome  # noqa: PLC0415

    first = next(each for each in seen if each.rank == hang.ranks[0])
    node = first.heart.node if first.heart else None
    events = Events(layout.events)
    facts = {"ranks": list(hang.ranks), "node": node, "held_seconds": round(hang.held, 3)}
    step = first.heart.step if first.heart else None
    events.record(
        "hang", incarnation=incarnation, step=step, limit_seconds=hang.limit, reason=message, **facts
    )
    events.close()
    write_outcome(
        layout.outcome,
        Outcome(
            state="FAILED",
            step=None,
            error_class=HangError.__name__,
            message=message,
            rank=first.rank,
            cause="hang",
            node=node,
            incarnation=incarnation,
        ),
    )


def main(arguments: list[str]) -> int:
    """Watch one start of a run."""
    stay_shielded()
    root, world_size, parent = arguments
    end_with_parent(int(parent))
    layout = RunLayout(Path(root))
    watching = Watching.read(layout.config)
    if watching is not None:
        watch(layout, int(world_size), watching)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
