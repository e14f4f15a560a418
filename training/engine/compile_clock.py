"""How long this process has spent compiling: minutes of a first step that are no training."""

import time

from torch._dynamo.callback import callback_handler


class CompileClock:
    """Counts from its making to its closing; the compiler tells it when it begins and ends.

    Backward graphs that are compiled at their first use are among them. What torch compiles inside of a
    compilation is counted once.
    """

    def __init__(self) -> None:
        """Listen."""
        self._seconds = 0.0
        self._began: float | None = None
        callback_handler.register_start_callback(self._begin)
        callback_handler.register_end_callback(self._end)

    @property
    def seconds(self) -> float:
        """All of them so far."""
        return self._seconds

    def close(self) -> None:
        """Listen no longer."""
        callback_handler.remove_start_callback(self._begin)
        callback_handler.remove_end_callback(self._end)

    def _begin(self, *_: object) -> None:
        self._began = time.perf_counter()

    def _end(self, *_: object) -> None:
        if self._began is not None:
            self._seconds += time.perf_counter() - self._began
            self._began = None
