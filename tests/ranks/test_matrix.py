"""Law 1, cell by cell: whatever the page of strategies calls tested does the steps of a plain loop."""

import functools
from pathlib import Path

import pytest

from tests.ranks.matrix_case import (
    BF16_GRAD_NORM,
    BF16_LOSS,
    FP32,
    Cell,
    Settings,
    list_cells,
    walk_reference,
    write_tiny_model,
)
from tests.ranks.spawn import on_ranks
from tests.reference_loop import PlainStep
from training.engine.step import StepResult


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    write_tiny_model(made)
    return made


@functools.cache
def expected(learnt: Settings, folder: Path) -> list[PlainStep]:
    return walk_reference(learnt, folder)


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_cell_has_the_losses_and_gradient_norms_of_the_plain_loop(ranks: int, folder: Path) -> None:
    from tests.ranks.matrix_walk import walk_cells

    cells = list(list_cells(ranks))
    answers = on_ranks(ranks, walk_cells, cells, folder, timeout_seconds=900)

    for cell, *per_rank in zip(cells, *answers, strict=True):
        assert all(reported == per_rank[0] for reported in per_rank), f"ranks differ: {cell}"
        check_cell(cell, per_rank[0], expected(cell.learnt, folder))


def check_cell(cell: Cell, reported: list[StepResult], plain: list[PlainStep]) -> None:
    loss, grad_norm = (FP32, FP32) if cell.precision == "fp32" else (BF16_LOSS, BF16_GRAD_NORM)
    assert [step.loss for step in reported] == pytest.approx([step.loss for step in plain], rel=loss), cell
    assert [step.grad_norm for step in reported] == pytest.approx(
        [step.grad_norm for step in plain], rel=grad_norm
    ), cell
