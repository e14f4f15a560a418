"""What one optimizer step reports."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SourceLoss:
    """One source's part of a step."""

    nats: float
    """Sum of the cross-entropy over its targets."""

    targets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeconds:
    """Where a step's time went on this rank; on a GPU the device's time.

    What the ranks say to each other is part of what waits for it: ZeRO-3's gathers of ``forward`` and
    ``backward``, the reduction of gradients of ``backward``, gathering updated weights of ``optimizer``.
    """

    count: float = 0.0
    """Counting the targets of all ranks: who comes first waits here for the last."""

    forward: float = 0.0
    backward: float = 0.0
    optimizer: float = 0.0
    """The gradient's norm, clipping and the update."""

    compile: float = 0.0
    """What this rank spent compiling, in none of the others."""

    alone: float | None = None
    """Part of them on a GPU in which it waited for nobody: the forward passes, unless other ranks take part
    in them. None on CPUs, where all waits are in the main thread and are counted there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One optimizer step, already reduced over all ranks."""

    loss: float
    """Mean cross-entropy per target token of the global batch, in nats."""

    grad_norm: float
    """Global L2 norm of the gradient before clipping; infinite where it is not finite."""

    samples: int
    """Samples in the global batch."""

    tokens: int
    """Tokens in the global batch, padding not counted."""

    targets: int
    """Tokens that were trained on."""

    by_source: tuple[SourceLoss, ...]
    """The part of each source, in the order of their numbers; their sums are the whole step."""

    seconds: StepSeconds = field(default=StepSeconds(), compare=False)


Accept = Callable[[StepResult], bool]
"""Whether a step's update may be applied; the same answer on every rank."""
