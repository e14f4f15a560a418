"""A look with a deadline: what hangs (a dead disk, a dead GPU, a dead peer) is left behind, and said."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from training.errors import first_line

Value = TypeVar("Value")

ARRIVE, LOOK, MEET, PAIR = 0.35, 0.65, 0.85, 0.95
"""Shares of the budget by which ranks have come, have looked at themselves, at the network, at each link."""

_LONGEST_SHARE = 0.2
"""Of the budget, for one look."""

_NO_TIME = "no time was left"


@dataclass(frozen=True, slots=True)
class Clock:
    """The budget: counted from the moment this rank has imported all it needs."""

    budget_seconds: float
    began: float = field(default_factory=time.monotonic)

    def left(self, share: float) -> float:
        """Seconds left until this share of the budget is spent, never less than none."""
        return max(0.0, self.began + share * self.budget_seconds - time.monotonic())

    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def agree(self, spent: float) -> "Clock":
        """Give a clock on which so much is spent now, as the lead's."""
        return Clock(self.budget_seconds, time.monotonic() - spent)


class Looks:
    """Does one look after the other and keeps in mind which were left out."""

    def __init__(self, clock: Clock, share: float) -> None:
        """All of them have to be done when this share of the budget is spent."""
        self._clock, self._share = clock, share
        self.undone: list[str] = []

    def take(self, name: str, look: Callable[[], Value], *, whole: bool = False) -> Value | None:
        """Give what ``look`` gives; None when it raises, hangs, or has no time left.

        Args:
            name: What is looked at.
            look: Called in a thread of its own, which is left behind when it does not end.
            whole: Whether it may take all of the time that is left.
        """
        left = self._clock.left(self._share)
        seconds = left if whole else min(left, _LONGEST_SHARE * self._clock.budget_seconds)
        if seconds <= 0:
            self.undone.append(f"{name}: {_NO_TIME}")
            return None
        box: list[Value] = []
        errors: list[Exception] = []

        def body() -> None:
            try:
                box.append(look())
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        thread.join(seconds)
        if box:
            return box[0]
        self.undone.append(
            f"{name}: {first_line(errors[0])}" if errors else f"{name}: no answer in {seconds:.1f} s"
        )
        return None

    def insist(
        self, name: str, look: Callable[[], Value], on_failure: Callable[[str], Value]
    ) -> Value | None:
        """As ``take``, but a look that raises or hangs is a result, made of the reason, and not left out."""
        found = self.take(name, look)
        if found is None and not self.undone[-1].endswith(_NO_TIME):
            return on_failure(self.undone.pop().partition(": ")[2])
        return found
