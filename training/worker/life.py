"""One start of a run, as its ranks live it: its number, the wish that it end, the beat that others hear."""

import os
from dataclasses import dataclass

from training.checkpoint.load import read_step
from training.checkpoint.manifest import list_checkpoints
from training.collectives import from_lead, gather_over_ranks
from training.config.schema import RunConfig
from training.engine.deepspeed_engine import Place
from training.fence import claim_incarnation
from training.layout import ASKED, RunLayout
from training.metrics.journal import Events
from training.notice import Notice
from training.pulse.beat import Pulse
from training.pulse.limits import Watching
from training.pulse.pace import NoPace, Pace, WindowPace
from training.stop import StopFlag, lead_wishes, read_asked
from training.worker.host import look_at_host
from training.worker.tell import clear_outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """What connects a process with whoever started it, from its first line on."""

    notice: Notice
    pulse: Pulse


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One start of the run."""

    incarnation: int
    stop: StopFlag
    pulse: Pulse


def claim_life(layout: RunLayout, config: RunConfig, place: Place, outside: Outside) -> Life:
    """Claim the run's next start. Collective.

    What was heard since the process's first line counts as asked for.
    """
    lead = place.ranks.is_lead
    incarnation = from_lead(claim_incarnation(layout.incarnations) if lead else 0)
    outside.pulse.claim(incarnation)
    wishes = []
    if lead:
        clear_outcome(layout, incarnation)
        asked = read_asked(os.environ, ASKED)
        wishes = lead_wishes(layout, config.cluster.slurm.stop_lead_seconds, os.environ, asked=asked)
    stop = StopFlag(outside.notice, place.device, wishes)
    return Life(incarnation=incarnation, stop=stop, pulse=outside.pulse)


def end_unborn(layout: RunLayout, place: Place, life: Life) -> int:
    """Keep the event of a stop before anything was loaded; give the step of the last checkpoint."""
    step = max((read_step(folder) for folder in list_checkpoints(layout.checkpoints)), default=0)
    if place.ranks.is_lead:
        events = Events(layout.events)
        events.record("stopped", incarnation=life.incarnation, step=step, notice=life.stop.notice)
        events.close()
    return step


def gather_host_notes(place: Place, nodes: int) -> list[str]:
    """Look at every rank's machine; give each line once. Collective."""
    shares_memory = place.device.type == "cuda" and place.ranks.world_size > nodes
    found = gather_over_ranks(look_at_host(shares_memory=shares_memory))
    return list(dict.fromkeys(note for notes in found for note in notes))


def open_pace(layout: RunLayout, place: Place, pulse: Pulse) -> Pace:
    """Measure who is slow, where the run is watched and there is somebody to compare with. Collective."""
    watching = Watching.read(layout.config)
    if watching is None or place.ranks.world_size == 1:
        return NoPace()
    nodes = gather_over_ranks(os.uname().nodename)
    return WindowPace(watching, place.ranks, nodes, place.device, pulse.tell_own)
