"""Draws a token from what a model finds likely, with random numbers of its own."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How free an answer is, and the numbers that decide it."""

    temperature: float
    """What logits are divided by; more than 0."""

    top_p: float
    """Only the likeliest tokens that have this probability together are drawn (arXiv:1904.09751)."""

    seed: int
    """The same seed draws the same, from the same probabilities."""


class DrawnTokens:
    """A processor of logits, in transformers' words, that leaves of each row's tokens the drawn one alone.

    Torch's random state, which training's dropout is drawn from, is neither read nor moved. And the numbers
    are the same on any device.
    """

    def __init__(self, drawing: Drawing) -> None:
        """Begin with the first number of the drawing's seed."""
        self._drawing = drawing
        self._numbers = np.random.default_rng(drawing.seed)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Draw a token for each row.

        Args:
            input_ids: int64 [B, T], not looked at.
            scores: Logits, [B, V].

        Returns:
            [B, V]: 0 for each row's drawn token, minus infinity for the others.
        """
        cpu = scores.double().cpu()
        drawn = [self._draw(torch.softmax(row / self._drawing.temperature, dim=-1)) for row in cpu]
        left = torch.full_like(scores, -torch.inf)
        left[range(len(drawn)), drawn] = 0.0
        return left

    def _draw(self, probabilities: Tensor) -> int:
        """Find the token in whose stretch of the summed probabilities the next number lies."""
        likeliest, order = probabilities.sort(descending=True, stable=True)
        # A token stays while those before it are not enough: the likeliest always.
        probabilities[order[likeliest.cumsum(0) - likeliest >= self._drawing.top_p]] = 0.0
        # In the order of the vocabulary: a rounding that changes the order of likelihood changes little.
        sums = probabilities.cumsum(0)
        place = int(torch.searchsorted(sums, self._numbers.random() * float(sums[-1]), right=True))
        return min(place, len(sums) - 1)
