"""When the main thread waits for other ranks: counted at the one place that every wait goes through.

It knows no torch, so that whoever only looks at it need not import torch.
"""

import functools
import threading
import time
from collections.abc import Callable
from typing import Any


class Waits:
    """The waits of the main thread; a save's thread has its own collectives, which do not count."""

    def __init__(self) -> None:
        """Begin without any."""
        self.entered = 0
        """Waits begun: on all ranks the same number where all take part in the same collectives."""

        self.seconds = 0.0
        """Time in those that have ended; on a GPU a wait only makes its queue wait, and takes no time."""

        self.inside = False
        """Whether the main thread is in one."""

    def count(self, wait: Callable[..., Any]) -> Callable[..., Any]:
        """Make of ``wait`` one that is counted."""
        main = threading.main_thread().ident

        @functools.wraps(wait)
        def counted(*args: Any, **options: Any) -> Any:
            if threading.get_ident() != main:
                return wait(*args, **options)
            self.entered += 1
            self.inside = True
            started = time.perf_counter()
            try:
                return wait(*args, **options)
            finally:
                self.seconds += time.perf_counter() - started
                self.inside = False

        return counted


WAITS = Waits()
"""Of this process."""
