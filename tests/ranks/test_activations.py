"""Whatever of a layer is kept for backward or computed again, a step reports the same to the last bit."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks.matrix_case import METHODS, compose, cut, lay_rows, make_documents, rate_at, write_tiny_model
from tests.ranks.spawn import on_ranks
from tests.ranks.training_case import make_batch
from training.batch import plan_batch
from training.collectives import join
from training.config.schema import RunConfig
from training.engine.step import StepResult
from training.model.load import build_model
from training.ranks import Ranks

STEPS = 2
ROWS = 8
CHOICES: tuple[str | int, ...] = ("none", "full", 2, "offload")
# Dropout must drop the same when a layer is computed again.
LEARNT = {
    "none": METHODS["none"],
    "lora": (*METHODS["lora"], ("adapter.dropout", 0.1)),
    "qlora": (*METHODS["qlora"], ("adapter.dropout", 0.1)),
}


def configure(folder: Path, method: str, zero_stage: int, choice: str | int) -> RunConfig:
    return cut(
        compose(folder, LEARNT[method]),
        {
            "precision": "fp32",
            "strategy": {
                "zero_stage": zero_stage,
                "parameter_persistence_threshold": 65,
                "activation_checkpointing": choice,
            },
            "cluster": {"processes_per_node": 2},
            "batch": {"global_batch_size": ROWS, "micro_batch_size": 2},
        },
    )


def train(config: RunConfig, ranks: Ranks) -> list[StepResult]:
    """Train two steps; give what they reported."""
    from training.engine.deepspeed_engine import DeepSpeedEngine, Place

    device = torch.device("cpu")
    model = build_model(
        config.model,
        config.adapter,
        precision=config.precision,
        device=device,
        seed=config.seed,
        activation_checkpointing=config.strategy.activation_checkpointing,
    )
    place = Place(ranks=ranks, device=device, plan=plan_batch(config.batch, ranks.world_size))
    engine = DeepSpeedEngine(model, config, place)
    reported = []
    for step, documents in enumerate(make_documents()[:STEPS]):
        rows, passes = lay_rows(documents, packed=True), []
        for micro in range(place.plan.gradient_accumulation_steps):
            first = place.plan.first_sample(ranks.rank, micro)
            passes.append(make_batch(rows[first : first + 2], [0, 0]))
        rate = rate_at(config)(step + 2)
        reported.append(
            engine.train_step(passes, learning_rate=rate, samples_seen=step * ROWS, accept=lambda _: True)
        )
    engine.close()
    return reported


def train_all(folder: Path) -> dict[tuple[str, int], list[list[StepResult]]]:
    """Train every method and stage with every choice."""
    torch.set_num_threads(1)
    ranks = Ranks.from_environ(os.environ)
    join(ranks, device=torch.device("cpu"), timeout_seconds=300)
    return {
        (method, stage): [train(configure(folder, method, stage, choice), ranks) for choice in CHOICES]
        for method in LEARNT
        for stage in (2, 3)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    write_tiny_model(made, layers=3)
    return made


def test_steps_are_the_same_to_the_bit_whichever_layers_are_computed_again(folder: Path) -> None:
    answers: list[dict[Any, list[list[StepResult]]]] = on_ranks(2, train_all, folder, timeout_seconds=600)

    assert answers[0] == answers[1]
    for cell, (plain, *others) in answers[0].items():
        assert plain[0].loss != plain[1].loss, f"{cell} learns nothing, or equal steps say little"
        for choice, found in zip(CHOICES[1:], others, strict=True):
            assert found == plain, (cell, choice)
