"""Where the loop's numbers go: journal, events, screen, W&B. Only the lead rank has one that writes."""

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict

from training.config.schema import RunConfig
from training.fence import is_fenced
from training.layout import RunLayout
from training.metrics.journal import Events, Journal, LineFile
from training.metrics.progress import Screen, open_screen, say_event
from training.metrics.record import Hardware, MetricsSink, StepRecord, journal_line
from training.metrics.rewind import Moment
from training.metrics.tracker import TrackerHandle, start_tracker
from training.progress import Progress
from training.ranks import Ranks


class SilentSink:
    """Keeps nothing: every rank but the lead."""

    def log(self, record: StepRecord) -> None:
        """Do nothing."""

    def answer(self, progress: Progress, facts: Mapping[str, object]) -> None:
        """Do nothing."""

    def rewind(self, progress: Progress) -> None:
        """Do nothing."""

    def event(self, kind: str, **facts: object) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class LeadSink:
    """Writes what happens once per run. A full disk is said once and counted, never raised.

    Once a newer start has taken the run over, the files are that one's: nothing more is written.
    """

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
        self._incarnations = layout.incarnations
        self._journal = Journal(layout.metrics)
        self._samples = Journal(layout.samples)
        self._events = Events(layout.events)
        self._hardware = hardware
        self._incarnation = incarnation
        self._screen = screen
        self._tracker = tracker
        self._warned = False
        self._fenced = False

    def log(self, record: StepRecord) -> None:
        """Keep one step in the journal and show it."""
        line = journal_line(record, self._hardware, time=time.time(), incarnation=self._incarnation)
        self._append(self._journal, line)
        self._screen.show(line)

    def answer(self, progress: Progress, facts: Mapping[str, object]) -> None:
        """Keep what the model answered to a held-out question after a step."""
        self._append(self._samples, {"step": progress.step, "samples_seen": progress.samples_seen, **facts})

    def rewind(self, progress: Progress) -> None:
        """Take back what was kept of steps that the weights do not remember: the run goes on from here."""
        if self._may_not_write():
            return
        moment = Moment(step=progress.step, samples_seen=progress.samples_seen)
        told: dict[str, object] = {}
        for file in (self._journal, self._samples):
            found = file.rewind(moment)
            if found is None:
                self._warn(file)
            elif found.changed:
                told[file.path.name] = asdict(found)
        if self._events.torn:
            told[self._events.path.name] = {"torn": self._events.torn}
            self._events.torn = 0
        if told:
            self.event("rewound", step=progress.step, **told)

    def event(self, kind: str, **facts: object) -> None:
        """Keep something that happened, durably, together with the steps before it; some is shown as well."""
        shown = say_event(kind, facts)
        if shown:
            self._screen.say(shown)
        if self._may_not_write():
            return
        self._journal.sync()
        if not self._events.record(kind, incarnation=self._incarnation, **facts):
            self._warn(self._events)

    def close(self) -> None:
        """Write out what is pending; W&B gets a bounded time."""
        self._screen.close()
        if not self._may_not_write():
            self._journal.flush()
            if self._journal.lost_lines:
                lost = self._journal.lost_lines
                self._screen.say(f"{self._journal.path}: {lost} steps could not be written")
                self._events.record("metrics_lost", incarnation=self._incarnation, lines=lost)
            for file in (self._journal, self._samples, self._events):
                file.close()
        self._let_tracker_go()

    def _append(self, file: LineFile, line: Mapping[str, object]) -> None:
        if not self._may_not_write() and not file.append(line):
            self._warn(file)

    def _may_not_write(self) -> bool:
        if not self._fenced and is_fenced(self._incarnations, self._incarnation):
            self._fenced = True
            self._screen.say("a newer start of this run has taken over; this one writes nothing more")
            self._let_tracker_go()
        return self._fenced

    def _let_tracker_go(self) -> None:
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            tracker.close()

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
