"""Randomness as a function of the samples: nothing to save, nothing to restore."""

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from training.engine.seeds import derive_seed, make_deterministic, seed_pass


def draw() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.random()), random.random()


def test_what_a_pass_draws_depends_on_its_position_alone() -> None:
    seed_pass(1, 8)
    first = draw()
    for _ in range(5):
        draw()
    seed_pass(1, 8)
    assert draw() == first
    seed_pass(1, 9)
    assert all(one != other for one, other in zip(draw(), first, strict=True))
    seed_pass(2, 8)
    assert all(one != other for one, other in zip(draw(), first, strict=True))


def test_purposes_do_not_share_their_numbers() -> None:
    seeds = {
        derive_seed(seed, purpose, place)
        for seed in range(9)
        for purpose in ("dropout", "numpy", "python")
        for place in range(99)
    }
    assert len(seeds) == 9 * 3 * 99


@pytest.fixture
def _torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@pytest.mark.usefixtures("_torch_as_it_was")
def test_an_operation_that_has_no_deterministic_form_is_refused_and_memory_is_not_filled() -> None:
    make_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
