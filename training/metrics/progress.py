"""The screen: a live bar on a terminal, plain lines elsewhere."""

import math
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from training.metrics.rates import find_seconds_left, say_duration

SMOOTHING = 0.2
"""Weight of the newest step in the running mean of the seconds per step."""


class Screen(Protocol):
    """Shows a run's progress to a person."""

    def show(self, line: dict[str, Any]) -> None:
        """Show one step, given as the journal's line."""

    def say(self, text: str) -> None:
        """Show one line of text beside the progress."""

    def close(self) -> None:
        """Leave the terminal as it was found."""


class Pace:
    """A running mean of the wall seconds per step, checkpoints and evaluations included."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self.seconds_per_step: float | None = None

    def add(self, line: dict[str, Any]) -> float:
        """Take one step into the mean and return it."""
        seconds = line["step_seconds"] + line["checkpoint_stall_seconds"] + line["evaluation_seconds"]
        known = self.seconds_per_step
        self.seconds_per_step = seconds if known is None else known + SMOOTHING * (seconds - known)
        return float(self.seconds_per_step)


class PlainScreen:
    """One line of text every ``every_steps`` steps, and for the run's last step."""

    def __init__(self, stream: TextIO, *, max_steps: int, every_steps: int) -> None:
        """Write to ``stream``."""
        self._stream = stream
        self._max_steps = max_steps
        self._every_steps = every_steps
        self._pace = Pace()

    def show(self, line: dict[str, Any]) -> None:
        """Show one step, given as the journal's line."""
        pace = self._pace.add(line)
        step = line["step"]
        if step % self._every_steps == 0 or step == self._max_steps:
            self.say(say_step(line, self._max_steps, find_seconds_left(pace, step, self._max_steps)))

    def say(self, text: str) -> None:
        """Show one line of text."""
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Nothing is open."""


class LiveScreen:
    """A rich progress bar with loss, speed and time left."""

    def __init__(self, console: Console, *, max_steps: int) -> None:
        """Draw on ``console``; the bar appears with the first step."""
        self._max_steps = max_steps
        self._pace = Pace()
        self._task: TaskID | None = None
        self._progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=None, complete_style="green"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            expand=True,
            redirect_stderr=False,  # that is the rank's log file
        )

    def show(self, line: dict[str, Any]) -> None:
        """Show one step, given as the journal's line."""
        left = find_seconds_left(self._pace.add(line), line["step"], self._max_steps)
        loss = _number(line["loss"], ".3f")
        numbers = f"loss [bold cyan]{loss}[/]  {_rate(line)}  [dim]{say_duration(left)} left[/]"
        if self._task is None:
            self._task = self._progress.add_task("training", total=self._max_steps, numbers="")
            self._progress.start()
        self._progress.update(self._task, completed=line["step"], numbers=numbers)

    def say(self, text: str) -> None:
        """Show one line of text above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the bar as it stands and give the terminal back."""
        self._progress.stop()


def open_screen(stream: TextIO, *, max_steps: int, log_every_steps: int) -> Screen:
    """Choose the live bar on a terminal, plain lines in a file or a pipe."""
    console = Console(file=stream)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveScreen(console, max_steps=max_steps)
    return PlainScreen(stream, max_steps=max_steps, every_steps=log_every_steps)


def say_step(line: dict[str, Any], max_steps: int, seconds_left: float) -> str:
    """Write one step as one line of text."""
    width = len(str(max_steps))
    parts = [
        f"step {line['step']:>{width}}/{max_steps}",
        f"loss {_number(line['loss'], '.3f')}",
        *([f"held_out_loss {_number(line['held_out_loss'], '.3f')}"] if "held_out_loss" in line else []),
        f"lr {_number(line['learning_rate'], '.1e')}",
        f"grad_norm {_number(line['grad_norm'], '.2f')}",
        _rate(line),
        *([f"mfu {line['mfu']:.1%}"] if line.get("mfu") is not None else []),
        f"{say_duration(seconds_left)} left" if line["step"] < max_steps else "done",
    ]
    return "  ".join(parts)


def say_event(kind: str, facts: Mapping[str, Any]) -> str:
    """Write an event as one line of text; nothing for those that only the file has."""
    said = ""
    match kind:
        case "note":
            said = str(facts.get("text", ""))
        case "memory":
            said = _say_memory(facts["ranks"])
        case "step_skipped" | "rolled_back":
            gone = f"; back to step {facts['to_step']}, on past its data" if kind == "rolled_back" else ""
            said = f"step {facts['step']} was not applied: {facts['reason']}{gone}"
        case "slow_rank":
            where = f"rank {facts['rank']} on {facts['node']}"
            said = f"{where} is slow: its own share of a step takes {facts['factor']:.1f} times the others'"
        case "stopped_early":
            said = f"step {facts['step']} is the last: the held-out loss gains nothing more"
        case "finished" | "stopped" if facts.get("goodput") is not None:
            wall = say_duration(facts["wall_seconds"])
            said = f"goodput {facts['goodput']:.1%}: so much of {wall} since the first start was useful steps"
    return said


_TOLD_BYTES = 2**20 // 10  # less would be read as nothing
_PARTS_OF_MEMORY = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "buckets": "buckets for reducing gradients",
    "transit": "offload's own copies and buffers",
    "buffers": "the model's buffers",
}


def _say_memory(ranks: list[dict[str, int]]) -> str:
    most = {part: max(rank[part] for rank in ranks) for part in ranks[0]}
    held = {name: most[part] for part, name in _PARTS_OF_MEMORY.items()}
    parts = ", ".join(f"{name} {_say_bytes(count)}" for name, count in held.items() if count >= _TOLD_BYTES)
    host = f"; {_say_bytes(most['host'])} of it on the host" if most["host"] else ""
    disk = f"; {_say_bytes(most['disk'])} on its disk" if most["disk"] else ""
    return f"memory of a rank: {parts}{host}{disk}"


def _say_bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _rate(line: dict[str, Any]) -> str:
    return f"{line['tokens_per_second']:,.0f} tokens/s"


def _number(value: float | None, form: str) -> str:
    # The journal writes null for what is not finite.
    return "not finite" if value is None or not math.isfinite(value) else format(value, form)
