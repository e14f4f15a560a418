"""Says how far preparing is: a moving line on a terminal, a plain line every few seconds elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

SECONDS_BETWEEN_LINES = 5.0
REFRESHES_PER_SECOND = 4


class Speaker:
    """Counts documents and tokens as they are encoded."""

    def __init__(self, console: Console) -> None:
        """Speak on ``console``; begin to count time at the first document, past all imports."""
        self._console = console
        self._documents = 0
        self._tokens = 0
        self._begin: float | None = None
        self._spoken = time.monotonic()
        self._live = Live(
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            get_renderable=lambda: Text(self._line()),
        )

    def advance(self, documents: int, tokens: int) -> None:
        """Add what was just encoded."""
        self._begin = self._begin or time.monotonic()
        self._documents += documents
        self._tokens += tokens
        if not self._console.is_terminal and time.monotonic() - self._spoken >= SECONDS_BETWEEN_LINES:
            self._spoken = time.monotonic()
            self._console.print(self._line(), soft_wrap=True, highlight=False)

    def __enter__(self) -> Self:
        """Start the moving line, on a terminal."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the moving line away."""
        self._live.stop()

    def _line(self) -> str:
        if self._begin is None:
            return "preparing  reading the sources"
        seconds = time.monotonic() - self._begin
        # The first batch has no time yet: a rate needs a second at least.
        rate = f"  {self._tokens / seconds:,.0f} tokens/s" if seconds >= 1 else ""
        return f"preparing  {self._documents:,} documents  {self._tokens:,} tokens{rate}"
