"""How fast something goes: rounds long enough that a pause of some milliseconds counts, the best of some."""

import time
from collections.abc import Callable

ROUND_SECONDS = 0.25
ROUNDS = 4


def best_rate(work: Callable[[], None], amount: float, *, rounds: int = ROUNDS) -> float:
    """Give ``amount`` per second, where each call of ``work`` does one ``amount`` and waits for its end.

    A single short call would now and then fall between two pauses of a device that is held back half of the
    time; so each round repeats it for a quarter of a second.
    """
    work()
    return max(_round(work) for _ in range(rounds)) * amount


def _round(work: Callable[[], None]) -> float:
    began, calls = time.perf_counter(), 0
    while True:
        work()
        calls += 1
        seconds = time.perf_counter() - began
        if seconds >= ROUND_SECONDS:
            return calls / seconds
