"""`metier watch RUN`: looks on while a run trains, from any machine, over its restarts; touches nothing."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from launcher.seeing.events import say_event
from launcher.seeing.runs import RUN_ROOT, find_one_run, split_words
from launcher.seeing.state import RunView, look_at
from launcher.seeing.words import draw_line, say_number, say_seconds, say_step
from launcher.tools import Words, refuse_flags
from training.errors import EXIT_FAILED, EXIT_OK, ConfigError
from training.layout import RunLayout

HELP = """\
metier watch RUN [--every SECONDS] [run_root=DIR]

Shows state, progress, loss and speed of a run, and its events as they come, until it ends. It reads the run's
files and asks Slurm: it works from a login node, over requeues and restarts, and Ctrl-C leaves the run alone.
On a terminal the picture is renewed every 2 s; elsewhere there is one line every 30 s, or --every SECONDS.

The exit code is 0 when the run has completed or was stopped, 1 when it failed.

Examples
  metier watch medical_qlora_smol
  metier watch medical_qlora_smol --every 5
  metier watch /scratch/runs/mine
"""

_LIVE_SECONDS = 2.0
_PLAIN_SECONDS = 30.0
_POLL_SECONDS = 1.0
_SHOWN_LOSSES = 400
_LINE_WIDTH = 60
_LOOKS_OF_AN_END = 2
"""Between a stop and the requeue there is a moment at which nothing runs."""


def run(words: Words) -> int:
    """Look on until the run ends; give the exit code.

    Raises:
        ConfigError: The run does not exist, or a flag has no sense.
    """
    refuse_flags(words, ("--every",))
    names, settings = split_words(words.plain)
    layout = find_one_run(names, "watch", settings.get("run_root", RUN_ROOT))
    every = _read_seconds(dict(words.flags).get("--every"))
    console = Console()
    if console.is_terminal and not console.is_dumb_terminal:
        view = _watch_live(layout, console, every or _LIVE_SECONDS)
    else:
        view = _watch_plainly(layout, every or _PLAIN_SECONDS)
    return EXIT_OK if view.state in {"COMPLETED", "STOPPED", "FENCED", "NEW"} else EXIT_FAILED


def look_until_end(layout: RunLayout, seconds: float) -> Iterator[tuple[RunView, str]]:
    """Look at a run every ``seconds``, until it is over; the last look is given as well."""
    looks_of_an_end = 0
    while True:
        views, trouble = look_at([layout])
        looks_of_an_end = looks_of_an_end + 1 if views[0].is_over else 0
        yield views[0], trouble
        if looks_of_an_end >= _LOOKS_OF_AN_END:
            return
        time.sleep(_POLL_SECONDS if looks_of_an_end else seconds)


def say_line(view: RunView) -> str:
    """Write a look as one line."""
    facts = view.facts
    parts = [
        f"{facts.name}: {view.state}",
        f"step {say_step(facts.step, facts.max_steps)}",
        f"loss {say_number(facts.loss, '.3f')}",
        f"{say_number(facts.tokens_per_second, ',.0f')} tokens/s",
    ]
    if facts.mfu is not None:
        parts.append(f"mfu {facts.mfu:.1%}")
    if not view.is_over:
        parts.append(f"{say_seconds(facts.seconds_left)} left")
    if facts.starts > 1:
        parts.append(f"start {facts.starts}")
    return "  ".join([*parts, *(said for said in (view.note, view.stages) if said)])


def draw(view: RunView, trouble: str = "") -> RenderableType:
    """Draw a look for a terminal."""
    facts = view.facts
    losses = [line["loss"] for line in facts.journal[-_SHOWN_LOSSES:] if isinstance(line.get("loss"), float)]
    parts: list[RenderableType] = [
        Text(say_line(view), style="bold", no_wrap=True, overflow="ellipsis"),
        _draw_bar(min(1.0, (facts.step or 0) / max(1, facts.max_steps or 1))),
    ]
    if losses:
        ends = f"  {losses[0]:.3f} -> {losses[-1]:.3f}"
        parts.append(Text(f"{draw_line(losses, _LINE_WIDTH)}{ends}", style="cyan", no_wrap=True))
    if trouble:
        parts.append(Text(trouble, style="yellow"))
    return Group(*parts)


def _draw_bar(part: float) -> Text:
    done = round(part * _LINE_WIDTH)
    rest = "━" * (_LINE_WIDTH - done)
    return Text.assemble(("━" * done, "green"), (rest, "bright_black"), f"  {part:.0%}", no_wrap=True)


class News:
    """The events that have come since the last look."""

    def __init__(self) -> None:
        """Know none; the first look shows those of the newest start alone."""
        self._seen: int | None = None

    def take(self, view: RunView) -> list[str]:
        """Say what is new."""
        events = view.facts.events
        if self._seen is None:
            newest = view.facts.starts
            self._seen = next(
                (place for place, event in enumerate(events) if event.get("incarnation") == newest),
                len(events),
            )
        new, self._seen = events[self._seen :], len(events)
        return [line for line in map(say_event, new) if line]


def _watch_plainly(layout: RunLayout, seconds: float) -> RunView:
    news, shown, said = News(), 0.0, ""
    for view, trouble in look_until_end(layout, min(seconds, _POLL_SECONDS)):
        for line in news.take(view):
            sys.stdout.write(line + "\n")
        now = time.monotonic()
        if not shown or now - shown >= seconds or view.is_over:
            line = say_line(view) + (f"  ({trouble})" if trouble else "")
            if line != said:
                sys.stdout.write(line + "\n")
            shown, said = now, line
        sys.stdout.flush()
    return view


def _watch_live(layout: RunLayout, console: Console, seconds: float) -> RunView:
    news = News()
    with _leave_alone(console), Live(console=console, auto_refresh=False) as live:
        for view, trouble in look_until_end(layout, seconds):
            for line in news.take(view):
                console.print(line, markup=False, highlight=False)
            live.update(draw(view, trouble), refresh=True)
    return view


@contextmanager
def _leave_alone(console: Console) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        console.print("the run goes on; `metier stop` lets it save and end", style="dim")
        raise


def _read_seconds(word: str | None) -> float | None:
    if word is None:
        return None
    try:
        seconds = float(word)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise ConfigError(f"--every {word}: wanted seconds")
    return seconds
