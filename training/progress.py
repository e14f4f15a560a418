"""How far a run is, and what its decisions look back on."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the guards and the early stop remember of earlier steps.

    It travels with the checkpoint and nowhere else: a run that is resumed decides what it would have decided.
    """

    recent: tuple[float, ...] = ()
    """The watched number of the last steps that were applied, oldest first: at most a window of them."""

    skipped_steps: int = 0
    """Steps whose update was not applied, over the whole run."""

    skipped_in_a_row: int = 0
    """Those since the run last came further than ever before."""

    furthest_step: int = 0
    """The highest step reached; a run that was rolled back is behind it for a while."""

    best_held_out_loss: float | None = None
    """The least of all in-loop evaluations."""

    gained_held_out_loss: float | None = None
    """Of the last evaluation that was a gain; ``best_held_out_loss`` may be a little less."""

    evaluations_without_gain: int = 0
    """In-loop evaluations since then."""

    def as_json(self) -> dict[str, Any]:
        """Give JSON values from which ``from_json`` makes the same again, to the last bit."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Memory":
        """Read what ``as_json`` gave."""
        return cls(**{**values, "recent": tuple(values.get("recent", ()))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """All that a checkpoint has to remember besides the engine's state."""

    step: int
    """Optimizer steps done."""

    samples_seen: int
    """Samples consumed over all ranks: the position in the data order. More than ``step`` global batches
    after the run was rolled back: it goes on past the data that it was rolled back for."""

    memory: Memory = field(default_factory=Memory)
