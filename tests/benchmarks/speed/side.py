"""What the parent starts on either side of the comparison."""

import sys
from collections.abc import Callable, Mapping

import torch

from tests.benchmarks.speed.case import Case
from tests.benchmarks.speed.rounds import Rounds

Variants = Mapping[str, Callable[[Case, Rounds], None]]


def train_until_told(variants: Variants) -> None:
    """Train what the command line says until the parent has enough."""
    torch.set_num_threads(1)
    case = Case.from_json(sys.argv[1])
    variants[case.variant](case, Rounds(warm_steps=case.warm_steps, tokens=case.tokens_per_round))
