"""Says how far preparing is: a bar on a terminal, a plain line every few seconds elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0
REFRESHES_PER_SECOND = 4
SECONDS_OF_A_MINUTE = 60
SECONDS_OF_AN_HOUR = 3600


class Speaker:
    """Counts what is encoded, over all processes."""

    def __init__(self, console: Console) -> None:
        """Speak on ``console``."""
        self._console = console
        self._documents = self._tokens = 0
        self._total = self._done = self._done_before = 0
        self._begin: float | None = None
        self._spoken = time.monotonic()
        self._phase = "reading the sources"
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
        )
        self._task = self._bar.add_task(self._describe(), total=None)

    def begin(self, *, total_bytes: int, done_bytes: int) -> None:
        """Hear how much there is to read, and how much of it earlier calls have done."""
        self._total, self._done, self._done_before = total_bytes, done_bytes, done_bytes
        self._phase = ""
        self._bar.update(self._task, total=total_bytes or None, completed=done_bytes)

    def advance(self, documents: int, tokens: int, read_bytes: int) -> None:
        """Hear what was just encoded."""
        # From the first documents on: the time before went into imports.
        self._begin = self._begin or time.monotonic()
        self._documents += documents
        self._tokens += tokens
        self._done += read_bytes
        self._speak()

    def enter(self, phase: str) -> None:
        """Hear what is done next, once all is encoded."""
        self._phase = phase
        self._bar.update(self._task, total=None)
        self._speak()

    def upload(self, done_bytes: int, total_bytes: int) -> None:
        """Hear how much of the corpus is copied."""
        self._phase = f"copying {done_bytes / max(1, total_bytes):.0%}"
        self._speak()

    def say(self, line: str) -> None:
        """Say a line that stays."""
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def __enter__(self) -> Self:
        """Start the bar, on a terminal."""
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if self._console.is_terminal:
            self._bar.stop()

    def _speak(self) -> None:
        self._bar.update(self._task, description=self._describe(), completed=self._done)
        if not self._console.is_terminal and time.monotonic() - self._spoken >= SECONDS_BETWEEN_LINES:
            self._spoken = time.monotonic()
            self._console.print(
                f"preparing  {self._describe()}{self._foretell()}", soft_wrap=True, highlight=False
            )

    def _describe(self) -> str:
        if self._phase:
            return self._phase
        seconds = time.monotonic() - (self._begin or time.monotonic())
        # The first batch has no time yet: a rate needs a second at least.
        rate = f"  {self._tokens / seconds:,.0f} tokens/s" if seconds >= 1 else ""
        return f"{self._documents:,} documents  {self._tokens:,} tokens{rate}"

    def _foretell(self) -> str:
        if self._phase or not self._total:
            return ""
        line = f"  {self._done / self._total:.0%} read"
        seconds = time.monotonic() - (self._begin or time.monotonic())
        if (read := self._done - self._done_before) > 0 and seconds >= 1:
            line += f", {_say_time(seconds * (self._total - self._done) / read)} left"
        return line


def _say_time(seconds: float) -> str:
    if seconds >= SECONDS_OF_AN_HOUR:
        return f"{seconds / SECONDS_OF_AN_HOUR:.1f} h"
    if seconds >= SECONDS_OF_A_MINUTE:
        return f"{seconds / SECONDS_OF_A_MINUTE:.0f} min"
    return f"{seconds:.0f} s"
