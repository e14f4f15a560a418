"""What asks this process to end soon. Heard from its first line on, before anything heavy is imported."""

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Of a scheduler before it takes the nodes back, of a terminal, of a user; all mean: save and end."""


class Notice:
    """Remembers the first signal that asked for an end.

    The handler does nothing but set a value: it may interrupt anything, a write to a file as well.
    """

    def __init__(self) -> None:
        """Hear nothing yet."""
        self._number: int | None = None

    def listen(self) -> None:
        """Take the signals from now on; only the main thread may call it, any number of times."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._hear)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self._number is None:
            self._number = number

    @property
    def heard(self) -> str | None:
        """Name the signal; None as long as there was none."""
        return None if self._number is None else signal.Signals(self._number).name
