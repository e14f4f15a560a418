"""Begins a rank's beat, and on the lead the watcher: before anything heavy is imported."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator

from training.layout import RunLayout
from training.pulse.beat import BeatingPulse, Pulse, SilentPulse
from training.pulse.dump import clear_pulse
from training.pulse.limits import Watching
from training.pulse.watch import Watcher
from training.ranks import Ranks

_RECORDED_COLLECTIVES = "2000"


@contextlib.contextmanager
def beating(layout: RunLayout, ranks: Ranks) -> Iterator[Pulse]:
    """Beat while this process trains, as far as the run is watched."""
    watching = Watching.read(layout.config)
    if watching is None:
        yield SilentPulse()
        return
    # PyTorch's flight recorder: read when its libraries are loaded.
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", _RECORDED_COLLECTIVES)
    began = time.time()
    if ranks.is_lead:
        clear_pulse(layout, began)
    pulse = BeatingPulse(layout, ranks, watching)
    watcher = _start_watcher(layout, ranks)
    try:
        yield pulse
    finally:
        if watcher is not None:
            watcher.close()
        pulse.close()


def _start_watcher(layout: RunLayout, ranks: Ranks) -> Watcher | None:
    if not ranks.is_lead:
        return None
    try:
        return Watcher(layout, ranks.world_size)
    except OSError as error:
        sys.stderr.write(f"nobody watches for ranks that hang: no process can be started ({error})\n")
        return None
