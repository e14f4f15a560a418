"""What goes through the model in one forward pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""The label of a position that is no target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """``micro_batch_size`` packed rows laid end to end: documents side by side, none sees another.

    N = micro_batch_size x sequence_length.
    """

    input_ids: Tensor
    """int64 [1, N]."""

    labels: Tensor
    """int64 [1, N]; what comes after this token, IGNORE_INDEX where that is no target. Shifted already."""

    position_ids: Tensor
    """int64 [1, N]; restarts at 0 with each document."""

    document_bounds: tuple[int, ...]
    """Where each document begins in N, and N at the end; a row's padding is a document of its own."""

    source_ids: tuple[int, ...]
    """The source number of each document, in the order of ``document_bounds``; 0 for padding."""

    tokens: int
    """Tokens that are no padding."""

    targets: int
    """Labels that are not IGNORE_INDEX."""

    def to(self, device: torch.device) -> "Batch":
        """Copy the tensors to ``device``."""
        return Batch(
            input_ids=self.input_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            document_bounds=self.document_bounds,
            tokens=self.tokens,
            targets=self.targets,
        )
