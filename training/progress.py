"""How far a run is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """All that a checkpoint has to remember besides the engine's state."""

    step: int
    """Optimizer steps done."""

    samples_seen: int
    """Samples consumed over all ranks: the position in the data order."""
