"""What each process of the matrix test does: it trains one cell after the other."""

import os
from pathlib import Path

import torch
import torch.distributed as dist

from tests.ranks.disk_case import swap_small_tensors
from tests.ranks.matrix_case import CPU, Cell, lay_rows, make_documents
from tests.ranks.training_case import make_batch, rate_at
from training.batch import plan_run
from training.collectives import join
from training.engine.step import StepResult
from training.ranks import Ranks


def walk_cells(cells: list[Cell], folder: Path, device: torch.device = CPU) -> list[list[StepResult]]:
    """Train every cell in this process; give what its steps reported."""
    torch.set_num_threads(1)
    swap_small_tensors()
    ranks = Ranks.from_environ(os.environ)
    if not dist.is_initialized():
        join(ranks, device=device, timeout_seconds=120)
    return [_train(cell, folder, ranks, device) for cell in cells]


def _train(cell: Cell, folder: Path, ranks: Ranks, device: torch.device) -> list[StepResult]:
    # DeepSpeed is imported on the ranks alone: it takes seconds, and the tests' own process needs none.
    from training.engine.deepspeed_engine import DeepSpeedEngine, Place
    from training.engine.partition import build_share

    config = cell.config(folder)
    place = Place(ranks=ranks, device=device, plan=plan_run(config))
    model, why_whole = build_share(config, place)
    assert why_whole is None
    engine = DeepSpeedEngine(model, config, place)
    plan, rate, steps = place.plan, rate_at(config), []
    for step, documents in enumerate(make_documents()):
        rows, passes = lay_rows(documents, packed=cell.packed), []
        for micro in range(plan.gradient_accumulation_steps):
            first = plan.first_sample(ranks.rank, micro)
            mine = rows[first : first + plan.micro_batch_size]
            passes.append(make_batch(mine, [0] * len(mine)))
        steps.append(
            engine.train_step(
                passes,
                learning_rate=rate(step),
                samples_seen=step * cell.rows_per_step,
                accept=lambda _: True,
            )
        )
    engine.close()
    return steps
