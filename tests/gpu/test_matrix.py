"""Law 1 on a GPU: every method, stage, optimizer and precision does the steps of a plain loop there."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks.matrix_case import (
    BF16_GRAD_NORM,
    BF16_LOSS,
    FP32,
    METHODS,
    Cell,
    learn_with,
    walk_reference,
    write_tiny_model,
)
from tests.ranks.matrix_walk import walk_cells
from tests.ranks.spawn import on_ranks
from tests.reference_loop import PlainStep
from training.engine.step import StepResult

GPU = torch.device("cuda", 0)
STRATEGIES = ("0", "1", "2", "3", "2, optimizer on CPU", "3, both on CPU")
CUTS = ((1, True), (4, True), (4, False))
EIGHT_BIT = 0.05
"""Relative, of a loss. Moments in 8 bits are off by up to 1/256 of their block's largest, and the blocks of a
plain loop are not those of a rank's flat state: nothing but the size of a step is alike."""


def list_cells() -> list[Cell]:
    """Every method that a GPU can train, on every strategy, whole batches and cut ones."""
    cells = []
    for method, strategy, precision in itertools.product(METHODS, STRATEGIES, ("fp32", "bf16")):
        cuts = CUTS if precision == "fp32" else CUTS[1:2]
        cells += [make_cell(method, "adamw", strategy, precision, *cut) for cut in cuts]
    for method, strategy in itertools.product(("none", "qlora"), ("0", "2", "3")):
        cells += [make_cell(method, each, strategy, "fp32", 4, True) for each in ("lion", "muon")]
    return cells


def make_cell(method: str, optimizer: str, strategy: str, precision: str, passes: int, packed: bool) -> Cell:
    return Cell(
        learnt=(*METHODS[method], *learn_with(optimizer)),
        strategy=strategy,
        precision=precision,
        ranks=1,
        passes=passes,
        packed=packed,
        on_gpu=True,
    )


def walk_both(cells: list[Cell], folder: Path) -> tuple[list[list[StepResult]], dict[Any, list[PlainStep]]]:
    """Walk the cells and, on the same device, the plain loops that they are compared with."""
    torch.backends.cuda.matmul.allow_tf32 = False
    plain = {learnt: walk_reference(learnt, folder, GPU) for learnt in {cell.learnt for cell in cells}}
    return walk_cells(cells, folder, GPU), plain


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    write_tiny_model(made)
    return made


def test_every_cell_has_the_losses_and_gradient_norms_of_the_plain_loop(folder: Path) -> None:
    cells = list_cells()

    [(answers, plain)] = on_ranks(1, walk_both, cells, folder, timeout_seconds=540, accelerator="cuda")

    wrong = []
    for cell, reported in zip(cells, answers, strict=True):
        loss, grad_norm = (FP32, FP32) if cell.precision == "fp32" else (BF16_LOSS, BF16_GRAD_NORM)
        for step, wanted in zip(reported, plain[cell.learnt], strict=True):
            far = (abs(step.loss / wanted.loss - 1), abs(step.grad_norm / wanted.grad_norm - 1))
            if not (far[0] <= loss and far[1] <= grad_norm):
                wrong.append((cell, far))
                break
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "adamw_paged"])
def test_bitsandbytes_optimizers_learn_as_torchs_does(optimizer: str, folder: Path) -> None:
    cells = [
        make_cell("none", kind, stage, "bf16", 4, True)
        for stage in ("0", "2", "3")
        for kind in ("adamw", optimizer)
    ]

    [answers] = on_ranks(1, walk_cells, cells, folder, GPU, timeout_seconds=300, accelerator="cuda")

    bound = EIGHT_BIT if optimizer == "adamw_8bit" else BF16_LOSS
    for cell, torchs, theirs in zip(cells[1::2], answers[::2], answers[1::2], strict=True):
        assert [step.loss for step in theirs] == pytest.approx([step.loss for step in torchs], rel=bound), (
            cell
        )
        assert theirs[-1].loss < theirs[0].loss, cell
