"""What one optimizer step reports."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SourceLoss:
    """One source's part of a step."""

    nats: float
    """Sum of the cross-entropy over its targets."""

    targets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One optimizer step, already reduced over all ranks."""

    loss: float
    """Mean cross-entropy per target token of the global batch, in nats."""

    grad_norm: float
    """Global L2 norm of the gradient before clipping."""

    samples: int
    """Samples in the global batch."""

    tokens: int
    """Tokens in the global batch, padding not counted."""

    targets: int
    """Tokens that were trained on."""

    by_source: tuple[SourceLoss, ...]
    """The part of each source, in the order of their numbers; their sums are the whole step."""
