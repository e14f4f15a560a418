"""Compiled layers train as the plain loop does, and are compiled once whatever the documents' lengths."""

from typing import Any

import pytest

from tests.ranks.spawn import on_ranks
from tests.ranks.test_engine import open_engine, open_place, plain_losses, run_steps
from tests.ranks.training_case import make_config


def train_compiled(settings: dict[str, Any]) -> tuple[list[float], list[int], list[float]]:
    """Train four steps; give their losses, the graphs compiled after each, and what each spent compiling."""
    import torch._dynamo.utils

    config = make_config(**settings)
    place = open_place(config)
    engine = open_engine(config, place, adapter=False)
    losses, graphs, seconds = [], [], []
    for step in range(4):
        [result] = run_steps(engine, config, place, range(step, step + 1))
        losses.append(result.loss)
        seconds.append(result.seconds.compile)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    engine.close()
    return losses, graphs, seconds


def test_compiled_layers_give_the_plain_losses_and_no_batch_compiles_them_anew() -> None:
    settings = {"strategy.compile": "layers", "strategy.zero_stage": 3, "optimizer.learning_rate": 3e-3}

    [(losses, graphs, seconds)] = on_ranks(1, train_compiled, settings, timeout_seconds=600)

    assert losses == pytest.approx(plain_losses(adapter=False, learning_rate=3e-3)[:4], rel=1e-5)
    assert graphs[0] > 0
    assert graphs == [graphs[0]] * 4
    assert seconds[0] > 0, "the first step knows what it spent compiling"
    assert seconds[1:] == [0.0] * 3
