"""Where the loop's numbers go: journal, events, screen, W&B. Only the lead rank has one that writes."""

import sys
import time

from training.config.schema import RunConfig
from training.layout import RunLayout
from training.metrics.journal import Events, Journal, LineFile
from training.metrics.progress import Screen, open_screen, say_event
from training.metrics.record import Hardware, MetricsSink, StepRecord, journal_line
from training.metrics.tracker import TrackerHandle, start_tracker
from training.ranks import Ranks


class SilentSink:
    """Keeps nothing: every rank but the lead."""

    def log(self, record: StepRecord) -> None:
        """Do nothing."""

    def event(self, kind: str, **facts: object) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class LeadSink:
    """Writes what happens once per run. A full disk is said once and counted, never raised."""

    def __init__(
        self,
        layout: RunLayout,
        hardware: Hardware,
        *,
        incarnation: int,
        screen: Screen,
        tracker: TrackerHandle | None,
    ) -> None:
        """Append to the run's journal and events."""
        self._journal = Journal(layout.metrics)
        self._events = Events(layout.events)
        self._hardware = hardware
        self._incarnation = incarnation
        self._screen = screen
        self._tracker = tracker
        self._warned = False

    def log(self, record: StepRecord) -> None:
        """Keep one step in the journal and show it."""
        line = journal_line(record, self._hardware, time=time.time(), incarnation=self._incarnation)
        if not self._journal.append(line):
            self._warn(self._journal)
        self._screen.show(line)

    def event(self, kind: str, **facts: object) -> None:
        """Keep something that happened, durably, together with the steps before it; some is shown as well."""
        self._journal.sync()
        shown = say_event(kind, facts)
        if shown:
            self._screen.say(shown)
        if not self._events.record(kind, incarnation=self._incarnation, **facts):
            self._warn(self._events)

    def close(self) -> None:
        """Write out what is pending; W&B gets a bounded time."""
        self._screen.close()
        self._journal.flush()
        if self._journal.lost_lines:
            self._screen.say(f"{self._journal.path}: {self._journal.lost_lines} steps could not be written")
            self._events.record("metrics_lost", incarnation=self._incarnation, lines=self._journal.lost_lines)
        self._journal.close()
        self._events.close()
        if self._tracker is not None:
            self._tracker.close()

    def _warn(self, file: LineFile) -> None:
        if self._warned:
            return
        self._warned = True
        self._screen.say(
            f"{file.path}: a line could not be written ({file.last_error}); training goes on and lines wait "
            "in memory; free some space"
        )
        if not isinstance(file, Events):
            self._events.record("metrics_waiting", incarnation=self._incarnation, reason=file.last_error)


def open_metrics(
    layout: RunLayout,
    config: RunConfig,
    ranks: Ranks,
    *,
    incarnation: int,
    flops_per_token: float | None,
    peak_flops: float | None,
) -> MetricsSink:
    """Open the sink of this rank: the lead's writes, every other's does nothing."""
    if not ranks.is_lead:
        return SilentSink()
    hardware = Hardware(world_size=ranks.world_size, flops_per_token=flops_per_token, peak_flops=peak_flops)
    screen = open_screen(
        sys.stdout, max_steps=config.loop.max_steps, log_every_steps=config.loop.log_every_steps
    )
    tracker = None
    if config.tracker.mode != "disabled":
        try:
            tracker = start_tracker(layout)
        except OSError as error:
            screen.say(
                f"W&B's helper did not start ({error}); training goes on, metrics.jsonl has everything"
            )
    return LeadSink(layout, hardware, incarnation=incarnation, screen=screen, tracker=tracker)
