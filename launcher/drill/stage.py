"""Where a drill happens: what can start, interrupt and await a run."""

from dataclasses import dataclass
from typing import Protocol

from launcher.drill.plan import Kind, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a run that is over has left on the machines."""

    found: tuple[str, ...]
    """Processes, shared memory, temporary files: in words."""

    unknown: str | None = None
    """Why some of it could not be looked for."""


class Stage(Protocol):
    """Starts of runs; one run at a time."""

    def start(self, plan: Plan, name: str) -> None:
        """Type `metier train`.

        Raises:
            MetierError: It does not start.
        """

    def is_over(self, plan: Plan, name: str) -> bool:
        """Whether nothing of the run's last start lives or waits any more."""
        ...

    def strike(self, plan: Plan, name: str, kind: Kind) -> str:
        """Interrupt a run; say in words what was done.

        Raises:
            MetierError: There is nothing to strike, or it is refused.
        """
        ...

    def find_left(self, plan: Plan, name: str) -> Left:
        """Look for what a run that is over has left on the machines."""
        ...

    def say_why(self, plan: Plan, name: str) -> str:
        """Say where to look when a start did not succeed."""
        ...

    def end(self, plan: Plan, name: str) -> None:
        """Let nothing of the run live: the drill ends early."""
