"""Seeds as pure functions of what they are for, so that nothing random has to be saved."""

import hashlib
import os
import random

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, position: int) -> int:
    """Hash a run's seed, a purpose and a position to 63 bits; the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_pass(seed: int, position: int, stretch: int = 0) -> None:
    """Seed everything random of the pass whose first sample is at ``position``: torch, numpy and Python.

    What is drawn depends on the samples alone: not on the steps before, nor on how often the run was resumed.
    ``stretch`` numbers the parts of the pass where ranks share it, so that they draw differently.
    """
    torch.manual_seed(derive_seed(seed, f"dropout/{stretch}" if stretch else "dropout", position))
    np.random.seed(derive_seed(seed, "numpy", position) % 2**32)
    random.seed(derive_seed(seed, "python", position))


def make_deterministic() -> None:
    """Have torch take only algorithms whose result is the same each time, on the same number of devices.

    Call it before the first work on a GPU. Without it a GPU adds up some sums (gradients of embeddings, of
    attention) in whatever order its threads come.
    """
    # cuBLAS gives each stream a workspace of its own (its manual, "Results reproducibility").
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    # New tensors would be filled with NaN, which finds reads of what was never written and costs bandwidth.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
